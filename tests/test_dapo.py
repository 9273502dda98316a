"""DAPO and Dr.GRPO: dynamic sampling, overlong shaping, the constant denominator, and all of it in a resumed run."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxes import Boxes, files, grouped, tiny
from envrl.batches.batch import build_batch
from envrl.build import form_of, renderer_of
from envrl.cli.main import main
from envrl.config.check import check_together
from envrl.config.load import dump_config, load_recipe
from envrl.curricula.dynamic import Dynamic
from envrl.curriculum import Plan, draw_tasks
from envrl.envs.registry import register_env
from envrl.errors import UserError
from envrl.objective.rewards import overlong
from envrl.rollout.scripts import play_script, random_script
from envrl.types import Trajectory, TrajectoryGroup, episodes_of
from test_idle import Hopeless
from test_update import make_model, play

TASKS = Boxes().tasks("train")
PLAN = Plan(seed=3, tasks=4, group_size=2, max_steps=3, updates=9)


def group_of(*returns: float) -> TrajectoryGroup:
    episode = play_script(Boxes(), TASKS[0], random_script(0), 1)
    (step,) = episode.transitions
    episodes = tuple(replace(episode, transitions=(replace(step, reward=value),)) for value in returns)
    return TrajectoryGroup(TASKS[0], episodes)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- dynamic sampling ------------------------------------------------------------------------------------------------


def test_rounds_by_hand() -> None:
    """Of 4 tasks one has signal: 3 / 0.75 = 4 are played instead; then 2 of 4 have, and 1 / 0.75 is rounded up to 2."""
    order = draw_tasks(TASKS, 3, 1, 16)
    dynamic = Dynamic(TASKS, PLAN, rounds=3, expected=0.75)
    drawn = []
    for signals in ([1, 0, 0, 0], [0, 1, 1, 0], [0, 1]):
        assigned = dynamic.next(1)
        assert {each.episodes for each in assigned} == {2}
        drawn += [each.task for each in assigned]
        assert [dynamic.admit(group_of(0.0, float(signal))) for signal in signals] == [bool(each) for each in signals]
    assert drawn == order[:10]
    assert dynamic.figures() == {"rounds": 3, "played": 10, "admitted": 4}
    state = json.loads(json.dumps(dynamic.state()))
    again = Dynamic(TASKS, PLAN, rounds=3, expected=0.75)
    again.load(state)
    for each in (dynamic, again):
        assert [assigned.task for assigned in each.next(2)] == order[10:14]
        assert each.figures() == {"rounds": 1, "played": 0, "admitted": 0}


def test_a_run_learns_from_groups_with_signal_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    chosen = tiny(curriculum={"name": "dynamic"}, train={"updates": 2, "trajectories": 9, "trajectories_every": 1})
    recipe.write_text(dump_config(chosen))
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--run", str(run)]) == 0
    for line in lines(run):
        admitted = min(line["curriculum/admitted"], 3)  # rollout.tasks
        assert 1 <= line["curriculum/rounds"] <= 10
        assert admitted == 3 or line["curriculum/rounds"] == 10
        assert line["rows/policy"] == 4 * admitted  # rollout.group_size: every episode of such a group has an advantage
        assert line["train/groups_used"] == pytest.approx(line["curriculum/admitted"] / line["curriculum/played"])


def test_where_no_group_ever_has_signal_it_is_bounded_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hopeless, "played", 0)
    register_env("hopeless", Hopeless)
    recipe = tmp_path / "small.toml"
    config = tiny(curriculum={"name": "dynamic"}, owned={"curriculum.dynamic.rounds": 3}, train={"updates": 1})
    recipe.write_text(dump_config(replace(config, env=replace(config.env, name="hopeless"))))
    assert main(["train", str(recipe), "--run", str(tmp_path / "run")]) == 0
    (line,) = lines(tmp_path / "run")
    assert (line["curriculum/rounds"], line["curriculum/played"], line["curriculum/admitted"]) == (3, 9, 0)
    assert (line["episodes"], line["rows/policy"]) == (36, 0)
    said = capsys.readouterr().err
    assert "update 1: the curriculum refused all 9 groups of 3 rounds" in said
    assert "the curriculum 'dynamic' admitted none of the groups" in said


# --- overlong shaping ------------------------------------------------------------------------------------------------


def test_the_example_of_the_docstring() -> None:
    result = doctest.testmod(overlong)
    assert (result.attempted, result.failed) == (1, 0)


def with_lengths(*lengths: int) -> Trajectory:
    """An episode whose responses have so many tokens."""
    episode = play_script(Boxes(), TASKS[0], random_script(0), 1)
    (step,) = episode.transitions
    sampled = [replace(step, action=replace(step.action, token_ids=(7,) * length)) for length in lengths]
    return replace(episode, transitions=tuple(sampled))


def test_overlong_by_hand() -> None:
    """Limit 10, buffer 4: nothing up to 6 tokens, then a quarter each. An episode of 5 + 3 tokens lacks half."""
    groups = [TrajectoryGroup(TASKS[0], (with_lengths(6, 7, 10, 15), with_lengths(5, 3), with_lengths()))]

    def paid(**settings: Any) -> list[list[float]]:
        return [each.tolist() for each in overlong.overlong(groups, lambda _: np.zeros(0), **settings)]

    assert paid(limit=10, buffer=4) == [[0.0, -0.25, -1.0, -1.0], [0.0, 0.0], []]
    assert paid(limit=10, buffer=4, of="episode") == [[0.0, 0.0, 0.0, -1.0], [0.0, -0.5], []]
    with pytest.raises(UserError, match="buffer = 11 must not be above"):
        paid(limit=10, buffer=11)


# --- the constant denominator ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "constant", "expected"), [("concat", 0, 36), ("steps", 0, 12), ("concat", 50, 50)])
def test_every_row_counts_as_the_most_tokens_that_it_can_have(layout: str, constant: int, expected: int) -> None:
    """Responses of up to 12 tokens, 3 steps an episode; rows without advantage are in the denominator, too."""
    objective = {"aggregation": "constant", "idle_rows": "count", "constant": constant}
    config = tiny(objective=objective, rollout={"layout": layout}, owned={"objective.grpo.std": False})
    model = make_model(config)
    groups = grouped(play(model, config), 4)
    rows = build_batch(groups, config, renderer_of(model, form_of(config)), 1).rows
    assert {row.terms[0].token_count for row in rows} == {float(expected)}
    assert all((row.terms[0].weights_T == 1.0).all() for row in rows)
    steps = sum(len(episode.transitions) for episode in episodes_of(groups))
    assert len(rows) == (16 if layout == "concat" else steps)
    returns = groups[0].returns_G
    for row, advantage in zip(rows[:4], returns - returns.mean(), strict=True) if layout == "concat" else ():
        assert row.terms[0].streams["advantages"] == pytest.approx(advantage)


def test_a_constant_without_its_aggregation_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective.constant = 50 is for objective.aggregation = 'constant'"):
        check_together(tiny(objective={"constant": 50}))


# --- recipes, and all at once ----------------------------------------------------------------------------------------


def test_the_recipes_say_what_the_papers_do() -> None:
    dapo, drgrpo = load_recipe("alfworld-dapo"), load_recipe("alfworld-drgrpo")
    assert dapo.settings("loss") == {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 0.0}
    assert (dapo.objective.aggregation, dapo.curriculum.name) == ("token_mean", "dynamic")
    assert [(each.name, each.settings["of"]) for each in dapo.rewards()] == [("overlong", "episode")]
    assert dapo.objective.kl_weight == dapo.objective.entropy_weight == 0.0
    assert drgrpo.settings("estimator")["std"] is False
    assert (drgrpo.objective.aggregation, drgrpo.objective.idle_rows) == ("constant", "count")
    assert drgrpo.row_tokens == 24 * 16
    both = load_recipe("alfworld-envrl-dapo")
    assert (both.objective, both.curriculum, both.rewards()) == (dapo.objective, dapo.curriculum, dapo.rewards())
    assert both.auxiliaries() == load_recipe("alfworld-envrl").auxiliaries()


def test_all_of_it_in_one_run_which_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    """Dynamic sampling, overlong shaping, Clip-Cov, EPO, k1 in the reward, the constant; with EnvRL's losses."""
    owned = {
        "objective.clip_cov.cov_low": 0.0,
        "objective.clip_cov.cov_ratio": 0.1,
        "reward.overlong.weight": 0.5,
        "reward.overlong.limit": 20,
        "reward.overlong.buffer": 15,
        "reward.overlong.of": "episode",
        "regularizer.epo.weight": 0.1,
    }
    objective = {"loss": "clip_cov", "aggregation": "constant"}
    objective |= {"kl_weight": 0.05, "kl_estimator": "k1", "kl_in": "reward"}
    config = tiny(
        objective=objective,
        owned=owned,
        curriculum={"name": "dynamic"},
        auxiliary={"state": {"weight": 0.2, "schedule": "constant"}},
        train={"updates": 4, "minibatches": 2},
        eval={"every": 0},
        checkpoint={"every": 1},
    )
    recipe = tmp_path / "small.toml"
    recipe.write_text(dump_config(config))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", str(recipe), "--run", str(whole)]) == 0
    assert main(["train", str(recipe), "--run", str(parts), "--train.updates", "2"]) == 0
    assert main(["train", str(recipe), "--run", str(parts), "--resume"]) == 0
    found = [lines(run) for run in (whole, parts)]
    for line in (each for run in found for each in run):
        assert [line.pop(name) for name in ("seconds", "rate", "memory")]
    assert found[0] == found[1]
    trained = [files(run / "checkpoints" / "step-000004")["model.safetensors"] for run in (whole, parts)]
    assert trained[0] == trained[1]
    last = found[0][-1]
    assert last["reward/overlong"] < 0.0
    assert {"kl", "loss/epo", "epo/low", "curriculum/rounds", "loss/state", "clip_fraction"} <= last.keys()
    assert any(line["clip_fraction"] > 0.0 for line in found[0])
