"""The curricula that ship: what they play after what happened, and that a state which is saved decides alike."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boxes import Boxes, tiny
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.curricula.failures import Failures
from envrl.curricula.progress import Progress
from envrl.curricula.restarts import Restarts
from envrl.curricula.scaling import Scaling
from envrl.curricula.solvable import Solvable
from envrl.curriculum import Plan, draw_tasks
from envrl.errors import RunError, UserError
from envrl.samples.store import from_json, to_json
from envrl.types import Assignment, Task, TrajectoryGroup
from episodes import group

TASKS = Boxes().tasks("train")
PLAN = Plan(seed=3, tasks=6, group_size=2, max_steps=10, updates=20)


def outcomes(assignments: list[Assignment], *won: str) -> list[TrajectoryGroup]:
    """Return groups with one win in two for the kinds in `won`, and none for the others."""
    return [group(a.task, float(a.task.kind in won), 0.0, start=a.start) for a in assignments]


def ids(assignments: list[Assignment]) -> list[str]:
    return [assignment.task.id for assignment in assignments]


# ScalingInter


@pytest.mark.parametrize(("horizons", "expected"), [((), [4, 4, 7, 7, 10, 10, 10]), ((3, 5), [3, 3, 5, 5, 5, 5, 5])])
def test_episodes_grow_longer_in_stages(horizons: tuple[int, ...], expected: list[int]) -> None:
    """Without horizons they are thirds: 10/3 and 20/3, rounded up, then 10."""
    curriculum = Scaling(TASKS, PLAN, horizons=horizons, every=2)
    played = [curriculum.next(update) for update in range(1, 8)]
    assert [{each.max_steps for each in update} for update in played] == [{steps} for steps in expected]
    assert curriculum.figures() == {"horizon": expected[-1]}
    assert ids(played[2]) == [task.id for task in draw_tasks(TASKS, 3, 3, 6)]


@pytest.mark.parametrize(
    ("horizons", "said"),
    [((4, 4), "each more than the last"), ((0, 4), "must be steps"), ((4, 11), "ends with 11 steps")],
)
def test_horizons_that_do_not_fit_are_refused(horizons: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Scaling(TASKS, PLAN, horizons=horizons)


# ARPO's task filter


def test_tasks_that_were_never_won_are_not_played_again() -> None:
    curriculum = Solvable(TASKS, PLAN, count=15)
    tried: list[str] = []
    for update in (1, 2, 3):
        assigned = curriculum.next(update)
        tried += ids(assigned)
        curriculum.observe(outcomes(assigned, "key", "coin"))
    assert [len(tried), len(set(tried))] == [15, 15]
    kept = {name for name in tried if TASKS[int(name.split("/")[1])].kind in ("key", "coin")}
    assert curriculum.figures() == {"tried": 15, "kept": len(kept), "dropped": 0}
    later = Counter(name for update in range(4, 4 + len(kept)) for name in ids(curriculum.next(update)))
    assert set(later) == kept
    assert max(later.values()) - min(later.values()) <= 2


def test_a_task_that_is_lost_again_and_again_is_dropped_and_a_run_without_tasks_ends() -> None:
    curriculum = Solvable(TASKS, PLAN, count=6, patience=2)
    curriculum.observe(outcomes(curriculum.next(1), "key", "coin", "ring", "pen"))
    for update in (2, 3):
        assert len(curriculum.next(update)) == 6
        curriculum.observe(outcomes(curriculum.next(update)))
    assert curriculum.figures() == {"tried": 6, "kept": 0, "dropped": 6}
    with pytest.raises(RunError, match="none of the 6 tasks that the curriculum 'solvable' tried is left"):
        curriculum.next(4)


# Learning progress


def test_kinds_whose_success_changes_are_drawn_more_often() -> None:
    """One kind goes from 0 to 1/2 at the second update: fast 0.2, slow 0.05, so its progress is 0.15 and no other's."""
    plan = replace(PLAN, tasks=400)
    curriculum = Progress(TASKS, plan, fast=0.4, slow=0.1, floor=0.2)
    first = Counter(a.task.kind for a in curriculum.next(1))
    assert all(70 <= first[kind] <= 130 for kind in ("key", "coin", "ring", "pen"))
    curriculum.observe(outcomes([Assignment(task, 2) for task in TASKS]))
    curriculum.observe(outcomes([Assignment(task, 2) for task in TASKS], "ring"))
    assert curriculum.figures()["progress"] == pytest.approx(0.15)
    drawn = Counter(a.task.kind for a in curriculum.next(3))  # P = 0.05 + 0.8 for it, 0.05 for the others
    assert 310 <= drawn["ring"] <= 370
    assert all(5 <= drawn[kind] <= 40 for kind in ("key", "coin", "pen"))
    assert curriculum.figures()["arms"] == pytest.approx(1.799, abs=1e-3)  # exp(−0.85 ln 0.85 − 3 · 0.05 ln 0.05)


def test_a_task_is_not_repeated_while_its_kind_has_others() -> None:
    curriculum = Progress(TASKS, replace(PLAN, tasks=40))
    kinds: dict[str, list[str]] = {}
    for assignment in curriculum.next(1):
        kinds.setdefault(assignment.task.kind, []).append(assignment.task.id)
    assert all(len(set(names)) == min(len(names), 12) for names in kinds.values())


def test_one_kind_alone_is_refused() -> None:
    alike = [Task(f"t{n}", "train") for n in range(3)]
    with pytest.raises(UserError, match=r"finds one kind alone in this split.*or by = 'task'"):
        Progress(alike, PLAN)
    assert len(Progress(alike, PLAN, by="task").next(1)) == 6


# Tasks from failures


def test_a_failure_asks_for_another_task_of_its_kind_once() -> None:
    curriculum = Failures(TASKS, PLAN, rate=1.0)
    assert ids(curriculum.next(1)) == [task.id for task in draw_tasks(TASKS, 3, 1, 6)]
    failed = [TASKS[0], TASKS[4]]  # of the kind "key", half of whose episodes are won
    curriculum.observe(outcomes([Assignment(task, 2) for task in failed], "key"))
    assigned = curriculum.next(2)
    asked, in_turn = assigned[:2], assigned[2:]
    assert {a.task.kind for a in asked} == {"key"}
    assert not {a.task.id for a in asked} & {task.id for task in failed}
    assert len(set(ids(asked))) == 2
    assert ids(in_turn) == [task.id for task in draw_tasks(TASKS, 3, 2, 6)[2:]]
    assert curriculum.figures() == {"asked": 2, "failed": 0, "too_easy_or_hard": 0}
    assert curriculum.next(3)[0].task == draw_tasks(TASKS, 3, 3, 6)[0]


def test_kinds_that_are_always_lost_or_mostly_won_ask_for_nothing() -> None:
    curriculum = Failures(TASKS, PLAN, rate=1.0)
    lost, easy = group(TASKS[1], 0.0, 0.0), group(TASKS[2], 1.0, 1.0, 1.0, 1.0, 0.0)
    curriculum.observe([lost, easy, group(TASKS[3], 1.0, 1.0)])
    assert ids(curriculum.next(2)) == [task.id for task in draw_tasks(TASKS, 3, 2, 6)]
    assert curriculum.figures() == {"asked": 0, "failed": 2, "too_easy_or_hard": 2}


# Starts in the middle


def test_groups_start_along_a_recorded_win() -> None:
    curriculum = Restarts(TASKS, PLAN)
    assert all(not a.start for a in curriculum.next(1))
    won = group(TASKS[7], 1.0, 0.0, steps=5)
    curriculum.observe([won, group(TASKS[8], 0.0, 0.0, steps=5), group(TASKS[9], 1.0, 1.0, steps=5)])
    commands = [step.action.text for step in won.trajectories[0].transitions]
    lengths = set()
    for update in range(2, 30):
        assigned = curriculum.next(update)
        started, others = assigned[:3], assigned[3:]
        assert {a.task for a in started} == {TASKS[7]}
        assert all(list(a.start) == commands[: len(a.start)] for a in started)
        assert not any(a.start for a in others)
        lengths |= {len(a.start) for a in started}
    assert lengths == {1, 2, 3, 4}  # something is left to the policy
    figures = curriculum.figures()
    assert (figures["started"], figures["kept"]) == (3, 1)


def test_episodes_are_drawn_by_the_variance_of_their_group() -> None:
    curriculum = Restarts(TASKS, replace(PLAN, tasks=400), won=False, size=2)
    forgotten, even, rare = (group(TASKS[n], *returns) for n, returns in enumerate([(1, 0), (1, 0), (1, *[0] * 9)]))
    curriculum.observe([forgotten, even, rare])
    drawn = Counter(a.task for a in curriculum.next(2)[:200])
    assert drawn[TASKS[1]] + drawn[TASKS[2]] == 200
    assert drawn[TASKS[1]] / 200 == pytest.approx(0.25 / (0.25 + 0.09), abs=0.1)


def test_the_start_of_an_episode_is_played_again_and_the_rest_is_the_policy_s(tmp_path: Path) -> None:
    """Boxes are opened until the thing is found: of each started group the first commands are those of a win."""
    config = tiny(
        curriculum={"name": "restarts"},
        rollout={"tasks": 6, "group_size": 4},
        train={"updates": 3, "trajectories": 6, "trajectories_every": 1, "learning_rate": 1e-5},
        warm_start={"demonstrations": 0},
        eval={"every": 0, "final": 1, "free_episodes": 0, "probe_episodes": 0},
    )
    (tmp_path / "recipe.toml").write_text(dump_config(config))
    assert main(["train", str(tmp_path / "recipe.toml"), "--run", str(tmp_path / "run")]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["curriculum/started"] == 0
    assert metrics[2]["curriculum/started"] == 3
    assert metrics[2]["curriculum/start_steps"] >= 1
    shown = (tmp_path / "run" / "trajectories" / "update-000003.jsonl").read_text().splitlines()
    started = [json.loads(line) for line in shown][:12]
    for n in range(0, 12, 4):
        firsts = {episode["steps"][0]["action"] for episode in started[n : n + 4]}
        assert len(firsts) == 1


# States


@pytest.mark.parametrize("kind", [Solvable, Progress, Failures, Restarts])
def test_a_state_that_is_saved_decides_alike(kind: Any) -> None:
    options = {"count": 15} if kind is Solvable else {}
    whole = kind(TASKS, PLAN, **options)
    plans = []
    for update in range(1, 9):
        if update in (2, 5):  # in the middle of a run, and of the trial of tasks
            again = kind(TASKS, PLAN, **options)
            again.load(from_json(json.loads(json.dumps(to_json(whole.state())))))
            whole = again
        assigned = whole.next(update)
        plans.append(assigned)
        whole.observe(outcomes(assigned, "key", *(["coin"] if update % 2 else [])))
    steady = kind(TASKS, PLAN, **options)
    for update, expected in enumerate(plans, 1):
        assert steady.next(update) == expected
        steady.observe(outcomes(expected, "key", *(["coin"] if update % 2 else [])))
    assert steady.figures() == whole.figures()
