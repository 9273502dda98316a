"""Which transitions make examples: ranks by hand, a uniform reservoir, and both across a resumed run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from math import inf, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxes import tiny
from envrl.batches.auxiliary import make_rows
from envrl.batches.selection import Memory, Reservoir, failures, novel, surprisal, transition_key, uncertain
from envrl.build import form_of, renderer_of
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.models.load import LanguageModel
from envrl.objective.auxiliary.state import state
from envrl.types import Action, Example, InPass, Pair, Trajectory, TrajectoryGroup
from test_auxiliary import ANSWERS, episode, model

__all__ = ["model"]


def with_chances(played: Trajectory, *chances: tuple[float, ...]) -> Trajectory:
    """Return an episode whose actions were drawn with these probabilities, a token each of which two were allowed."""
    steps = []
    for step, drawn in zip(played.transitions, chances, strict=True):
        logprobs = tuple(map(log, drawn))
        action = replace(step.action, token_ids=(1,) * len(drawn), logprobs=logprobs, allowed=((1, 2),) * len(drawn))
        steps.append(replace(step, action=action))
    return replace(played, transitions=tuple(steps))


def parts_of(*played: Trajectory) -> list[InPass]:
    return [InPass(each, step) for each in played for step in range(len(each.transitions))]


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_the_surprisal_is_the_mean_over_the_tokens_that_were_drawn() -> None:
    """Tokens that the restriction fixed do not count; a command without tokens is never uncertain."""
    (step, *_) = episode(ANSWERS[0]).transitions
    drawn = Action("x", (1, 2, 3), (log(0.5), 0.0, log(0.125)), ((1, 2), (2,), None))
    assert surprisal(replace(step, action=drawn)) == round((log(2) + log(8)) / 2, 3)
    assert surprisal(replace(step, action=Action("x", (1,), (0.0,), ((1,),)))) == 0.0
    assert surprisal(step) == -inf


def test_the_least_sure_commands_come_first() -> None:
    played = with_chances(episode(ANSWERS[0]), (0.9,), (0.5, 0.5), (0.1, 1.0), (0.7,))
    # surprisals 0.11, 0.69, 1.15, 0.36
    for fraction, steps in ((0.25, [2]), (0.5, [1, 2]), (0.75, [1, 2, 3]), (0.6, [1, 2]), (0.1, [])):
        found = uncertain(parts_of(played), fraction, 7)
        assert [each.step for each in found] == steps


def test_of_equal_ranks_a_random_one_is_chosen_and_all_that_is_about_a_transition_stays_together() -> None:
    played = with_chances(episode(ANSWERS[0]), *[(0.5,)] * 4)
    twice = [each for part in parts_of(played) for each in (part, Example(played, part.step))]
    chosen: Counter[int] = Counter()
    for key in range(400):
        found = uncertain(twice, 0.5, key)
        assert len(found) == 4
        assert found[0].step == found[1].step != found[2].step == found[3].step
        chosen.update({each.step for each in found})
    assert sum(chosen.values()) == 800
    assert all(abs(count - 200) < 50 for count in chosen.values()), "5 standard deviations"


def test_what_was_met_least_often_comes_first() -> None:
    """Two equal episodes: the second one repeats the first; of four transitions two were met in earlier updates."""
    one, again = episode(ANSWERS[0]), episode(ANSWERS[0], 1)
    known = [transition_key(step) for step in one.transitions]
    met = {known[0]: 3, known[2]: 1}
    # counts: steps 0 to 3 of the first 3, 0, 1, 0; of the second 4, 1, 2, 1
    found = novel(parts_of(one, again), 0.25, 0, met)
    assert [(each.trajectory.member, each.step) for each in found] == [(0, 1), (0, 3)]
    five = novel(parts_of(one, again), 0.625, 0, met)
    assert {(each.trajectory.member, each.step) for each in five} == {(0, 1), (0, 2), (0, 3), (1, 1), (1, 3)}


def test_a_task_makes_no_new_transition_of_an_old_one() -> None:
    (step, *_) = episode(ANSWERS[0]).transitions
    other = replace(step, reward=5.0, done=True, success=True, action=replace(step.action, logprobs=(0.0,)))
    assert transition_key(step) == transition_key(other)
    assert transition_key(step) != transition_key(replace(step, next_observation=step.observation))


def test_failures_are_those_of_lost_episodes() -> None:
    lost, won = episode(ANSWERS[0]), episode(ANSWERS[1], 1)
    won = replace(won, transitions=(*won.transitions[:-1], replace(won.transitions[-1], success=True)))
    assert failures(parts_of(lost, won)) == parts_of(lost)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_every_example_is_in_the_reservoir_with_the_same_chance() -> None:
    """4 of 10, offered in three updates: each is kept in 40 % of 2,000 seeds (σ = 1.1 %)."""
    counts = np.zeros(10)
    for seed in range(2000):
        reservoir = Reservoir(4)
        for update, part in enumerate((range(3), range(3, 9), range(9, 10))):
            reservoir.offer([Pair((), (number,)) for number in part], update, 31 * seed + update)
        assert len(reservoir.kept) == 4
        for pair, update in reservoir.kept:
            counts[pair.target[0]] += 1
            assert update == (0 if pair.target[0] < 3 else 1 if pair.target[0] < 9 else 2)
    assert np.abs(counts / 2000 - 0.4).max() < 0.055


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    parts=st.lists(st.lists(st.integers(0, 5), max_size=5), max_size=5), size=st.integers(1, 6), cut=st.integers(0, 5)
)
def test_a_reservoir_that_is_saved_goes_on_the_same(parts: list[list[int]], size: int, cut: int) -> None:
    whole = Memory()
    resumed = Memory()
    for update, part in enumerate(parts):
        if update == cut:
            saved = Memory()
            saved.load(json.loads(json.dumps(resumed.state())))
            resumed = saved
        for memory in (whole, resumed):
            memory.reservoir("state", size).offer([Pair((n,), (n, n), 0.5) for n in part], update, update)
    assert whole.state() == resumed.state()
    assert all(len(each.kept) <= size for each in whole.reservoirs.values())


def test_the_transitions_met_first_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five of eight are remembered: of the first episode the last, until it is played again."""
    monkeypatch.setattr("envrl.batches.selection.MOST_REMEMBERED", 5)
    memory, (one, two) = Memory(), (episode(answers) for answers in ANSWERS)
    first, second = ([transition_key(step) for step in played.transitions] for played in (one, two))
    for played in (one, two):
        memory.observe([TrajectoryGroup(played.task, (played,))])
    assert memory.met == {first[3]: 1} | dict.fromkeys(second, 1)
    memory.observe([TrajectoryGroup(one.task, (one,))])
    assert list(memory.met.items()) == [(second[3], 1), *((key, 1) for key in first[:3]), (first[3], 2)]


def test_rows_are_drawn_from_all_updates(model: LanguageModel) -> None:
    """Two updates of four examples each: two of them make rows each time, in the second some of the first."""
    config = tiny(auxiliary={"state": {"weight": 0.5, "fraction": 0.5, "reservoir": 6}})
    renderer, memory = renderer_of(model, form_of(config)), Memory()
    both = [TrajectoryGroup(each.task, (each,)) for each in (episode(ANSWERS[0]), episode(ANSWERS[1], 1))]
    pairs = [{renderer.pair("state", example) for example in state([group])} for group in both]
    earlier = 0.0
    for seed in range(20):
        memory = Memory()
        for update, group in enumerate(both, 1):
            made = make_rows(config.auxiliaries(), [group], renderer, (seed, update), memory, update)
            rows = [tuple(row.token_ids.tolist()) for row in made.rows]
            assert len(set(rows)) == len(rows) == made.figures["rows/state"]
            known = {(*pair.prompt, *pair.target) for part in pairs[:update] for pair in part}
            assert set(rows) <= known
            assert made.figures["rows/state_stored"] == (4, 6)[update - 1]
            old = {(*pair.prompt, *pair.target) for pair in pairs[0]} if update == 2 else set()
            assert made.figures["rows/state_earlier"] == len(set(rows) & old)
            earlier += made.figures["rows/state_earlier"]
    assert earlier > 5


# --- a run -----------------------------------------------------------------------------------------------------------

CHOSEN: dict[str, dict[str, Any]] = {
    "state": {"select": "novel", "fraction": 0.5, "reservoir": 12},
    "inverse": {"select": "failures"},
    "paw": {},
}


def lines(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "rate", "memory")} for record in records]


def test_a_resumed_run_selects_what_it_would_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four updates at once, and two with two more: the same lines and weights, bit for bit; all is counted."""
    quick = {"every": 0, "split": ("valid_b",), "episodes": 2, "final": 2, "free_episodes": 0, "probe_episodes": 1}
    tables = {name: {"weight": 0.1, "schedule": "constant", **table} for name, table in CHOSEN.items()}
    (tmp_path / "small.toml").write_text(
        dump_config(tiny(auxiliary=tables, train={"updates": 4, "trajectories": 0}, eval=quick))
    )
    recipe = str(tmp_path / "small.toml")
    assert main(["train", recipe, "--run", str(tmp_path / "whole")]) == 0
    assert main(["train", recipe, "--run", str(tmp_path / "parts"), "--train.updates", "2"]) == 0
    assert main(["train", recipe, "--run", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = lines(tmp_path / "whole"), lines(tmp_path / "parts")
    assert whole == parts
    digests = [
        hashlib.sha256((run / "checkpoints" / "latest" / "model.safetensors").read_bytes()).hexdigest()
        for run in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert digests[0] == digests[1]
    assert sum(line["rows/state_earlier"] for line in whole) > 0
    for line in whole:
        assert line["rows/state_stored"] <= 12
        assert line["rows/state_new"] <= line["rows/state_offered"] == line["train/steps"]
        assert line["rows/inverse_offered"] == line["train/steps"]
        assert line["rows/paw_offered"] == line["train/steps"]
    assert whole[-1]["rows/state_new"] < whole[0]["rows/state_new"], "less is new"
