"""Generated household games: a pure function of (split, index), solvable, in rooms that the splits share or do not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envrl.envs.household.catalogue import CONTAINS, FIXED, OBJECT_TYPES, RECEPTACLE_TYPES, ROOM_KINDS
from envrl.envs.household.engine import Game, Play
from envrl.envs.household.floorplan import FIRST_ROOM, floor_plan, rooms_of
from envrl.envs.household.generator import SPLIT_SIZES, GeneratedTasks, generate_problem, header, index_of, task_of
from envrl.envs.household.problem import GOAL_KINDS, Problem, names_of
from envrl.errors import UserError
from envrl.types import Task

FINGERPRINT = """
import hashlib
from envrl.envs.household.generator import generate_problem
digest = hashlib.sha256()
for split in ("train", "valid_seen", "valid_unseen"):
    for index in (0, 7, 99):
        p = generate_problem(split, index)
        items = [(item.id, item.type, item.locations, sorted(item.flags)) for item in p.items]
        facts = (p.receptacles, items, sorted(p.in_receptacle), sorted(p.can_contain), p.start)
        digest.update(repr((facts, p.goal, p.task, p.walkthrough)).encode())
print(digest.hexdigest())
"""

KNOWN_DIGEST = "029cb22e64d9a994b2f52b8c3e6baee42d55f15a1b36c7d1da35fe330904162e"


def sample() -> list[tuple[str, int]]:
    return [(split, index) for split in SPLIT_SIZES for index in range(100)]


def test_walkthroughs_win_at_their_last_step_and_no_earlier() -> None:
    for split, index in sample():
        problem = generate_problem(split, index)
        play = Play(Game(problem))
        assert not play.save().won
        won = []
        for command in problem.walkthrough:
            assert command in play.answer().admissible, (split, index, command)
            won.append(play.step(command).done)
        assert won == [False] * (len(won) - 1) + [True], (split, index, problem.task, problem.walkthrough)
        assert 3 <= len(won) <= 10


def test_equal_in_another_process_with_other_hash_seeds() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert digests == {KNOWN_DIGEST + "\n"}, "games have changed: recorded runs and evaluations no longer compare"


def test_unseen_rooms_are_not_those_of_training() -> None:
    rooms = {split: {header(split, index).room for index in range(500)} for split in SPLIT_SIZES}
    assert rooms["train"] == rooms["valid_seen"]
    assert len(rooms["train"]) == 40
    assert len(rooms["valid_unseen"]) == 12
    assert not rooms["valid_unseen"] & rooms["train"]


def test_unseen_rooms_look_different() -> None:
    def inventory(room: int) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(Counter(place.receptacle.type for place in floor_plan(room).places).items()))

    seen = {inventory(room) for kind in FIRST_ROOM for room in rooms_of("train", kind)}
    unseen = [inventory(room) for kind in FIRST_ROOM for room in rooms_of("valid_unseen", kind)]
    assert sum(room in seen for room in unseen) <= 2


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_all_six_kinds_in_about_the_proportions_of_alfworld(split: str) -> None:
    """ALFWorld's training games: 790, 308, 650, 459, 533, 813 of 3,553."""
    counts = Counter(task_of(split, index).kind for index in range(500))
    assert set(counts) == set(GOAL_KINDS)
    for kind, original in zip(GOAL_KINDS, (790, 308, 650, 459, 533, 813), strict=True):
        assert abs(counts[kind] / 500 - original / 3553) < 0.06


def test_floor_plans_have_8_to_20_receptacles_and_a_start_of_its_own() -> None:
    for kind in FIRST_ROOM:
        for split in ("train", "valid_unseen"):
            for room in rooms_of(split, kind):
                plan = floor_plan(room)
                assert plan.kind == kind
                assert 8 <= len(plan.places) <= 20
                assert plan.start not in {place.receptacle.location for place in plan.places}


def done_at_start(problem: Problem) -> bool:
    goal = problem.goal
    items = {item.id: item.type for item in problem.items}
    receptacles = {receptacle.id: receptacle.type for receptacle in problem.receptacles}
    there = [r for i, r in problem.in_receptacle if items[i] == goal.object_type and receptacles[r] == goal.target_type]
    return bool(there) and goal.kind in ("pick_and_place_simple", "pick_two_obj_and_place")


@given(st.sampled_from(sorted(SPLIT_SIZES)), st.integers(0, 499))
def test_problems_are_sound(split: str, index: int) -> None:
    problem = generate_problem(split, index)
    goal = problem.goal
    assert goal == header(split, index).goal
    assert not done_at_start(problem)
    locations = {receptacle.id: receptacle.location for receptacle in problem.receptacles}
    held = {}
    for item, receptacle in problem.in_receptacle:
        held.setdefault(item, []).append(receptacle)
    for item in problem.items:
        assert 1 <= len(held[item.id]) <= 2
        assert item.locations[0] in {locations[receptacle] for receptacle in held[item.id]}
        assert ("pickupable" in item.flags) == (item.type not in FIXED)
    needed = 2 if goal.kind == "pick_two_obj_and_place" else 1
    assert sum(item.type == goal.object_type for item in problem.items) >= needed
    if goal.kind != "look_at_obj_in_light":
        assert (goal.target_type, goal.object_type) in problem.can_contain


def test_names_come_out_as_in_alfworld() -> None:
    problem = generate_problem("train", 0)
    names = names_of(problem)
    for record in (*problem.receptacles, *problem.items):
        assert names[record.id].partition(" ")[0] == record.type
    first = [names[r.id] for r in problem.receptacles if r.type == "cabinet" or r.type == "drawer"]
    assert first == sorted(first, key=lambda name: (name.partition(" ")[0], -int(name.partition(" ")[2])))


def test_tables_agree_with_each_other() -> None:
    assert set(CONTAINS) == set(RECEPTACLE_TYPES)
    for tables in ROOM_KINDS.values():
        assert set(tables.furniture) <= set(RECEPTACLE_TYPES)
        assert set(tables.places) <= set(OBJECT_TYPES)
        for where in tables.places.values():
            assert set(where) <= set(tables.furniture)
        for name, targets in tables.targets.items():
            assert name in tables.places
            assert all(name in CONTAINS[target] and target in tables.furniture for target in targets)
        assert tables.looked_at <= set(tables.places)


def test_task_ids_lead_back_to_their_games() -> None:
    tasks = GeneratedTasks("valid_unseen")
    assert len(tasks) == 500
    assert len({task.id for task in tasks}) == 500
    assert index_of(tasks[499]) == ("valid_unseen", 499)
    assert tasks[-1] == tasks[499]
    assert tasks[2:4] == [tasks[2], tasks[3]]
    assert tasks[3] in tasks
    assert "valid_unseen" not in tasks
    for change in ({"id": tasks[3].id.replace("unseen", "seen")}, {"id": f"{tasks[3].id}0"}, {"kind": "none"}):
        assert replace(tasks[3], **change) not in tasks
    with pytest.raises(IndexError):
        tasks[500]


@pytest.mark.parametrize("identifier", ["train/000001", "valid_seen/nonsense/000001", "test/x/000001", "train/x/abc"])
def test_ids_of_no_game_are_refused(identifier: str) -> None:
    with pytest.raises(UserError, match="there is no household game"):
        index_of(Task(id=identifier, split="train"))


def test_unknown_splits_and_indices_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'valid_unseen'"):
        generate_problem("valid_unsen", 0)
    with pytest.raises(UserError, match="games 0 to 499"):
        task_of("valid_seen", 500)
