"""The replays that ship: what joins an update, its gradient, and a run that goes on as if it had not stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boxes import Boxes, tiny
from boxes import register as register_worlds
from envrl.batches.batch import build_batch
from envrl.build import form_of, play_settings, renderer_of
from envrl.cli.main import main
from envrl.config.load import load_run
from envrl.curriculum import Plan
from envrl.engine.update import LossSettings, accumulate
from envrl.errors import UserError
from envrl.models.load import build_model
from envrl.replay import checked, start_of
from envrl.replays.arpo import Arpo
from envrl.replays.other_run import begin
from envrl.replays.spear import Spear
from envrl.report.curves import update_charts
from envrl.report.read import RunData
from envrl.samples.store import from_json, to_json
from envrl.trainer.rollouts import as_groups
from envrl.types import Row, TrajectoryGroup, episodes_of
from episodes import episode, group
from moments import essence
from playing import play_model

TASKS = Boxes().tasks("train")
PLAN = Plan(seed=0, tasks=2, group_size=3, max_steps=3, updates=20)
KEY, COIN = TASKS[0], TASKS[1]


def saved(state: Any) -> Any:
    """Return a state as a checkpoint gives it back."""
    return from_json(json.loads(json.dumps(to_json(state))))


# ARPO


def test_a_stored_success_takes_the_first_place_of_a_group_that_failed_altogether() -> None:
    replay = Arpo(PLAN)
    won, lost = group(KEY, 0.0, 1.0, 0.0), group(COIN, 0.0, 0.0, 0.0)
    one, two = replay.mix([won, lost], 1)
    assert one is won
    assert two is lost
    assert replay.figures() == {"swapped": 0, "unhelped": 1, "staleness": 0, "stored": 1}
    failed, other = group(KEY, 0.0, 0.0, 0.0, version=4), group(COIN, 0.0, 0.0, 0.0, version=4)
    mixed = replay.mix([failed, other], 4)
    assert mixed[0].trajectories[0] is won.trajectories[1]
    assert all(a is b for a, b in zip(mixed[0].trajectories[1:], failed.trajectories[1:], strict=True))
    assert mixed[0].returns_G.tolist() == [1.0, 0.0, 0.0]
    assert mixed[1] is other
    assert replay.figures() == {"swapped": 1, "unhelped": 1, "staleness": 3, "stored": 1}


@pytest.mark.parametrize("returns", [(1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.3, 0.0)])
def test_a_group_with_a_win_or_with_returns_that_differ_stays_as_it_is(returns: tuple[float, ...]) -> None:
    replay = Arpo(PLAN)
    replay.mix([group(KEY, 1.0)], 1)
    played = group(KEY, *returns, version=2)
    assert replay.mix([played], 2)[0] is played


def test_a_success_is_not_replayed_in_its_own_update_and_not_from_another_start() -> None:
    replay = Arpo(PLAN)
    failed = group(KEY, 0.0, 0.0)
    assert replay.mix([group(KEY, 1.0, 0.0), failed], 1)[1] is failed
    elsewhere = group(KEY, 0.0, 0.0, version=2, start=("open box 1",))
    assert start_of(elsewhere.trajectories[0]) == ("open box 1",)
    assert replay.mix([elsewhere], 2)[0] is elsewhere
    replay.mix([group(KEY, 1.0, version=3, start=("open box 1",))], 3)
    again = replay.mix([replace(elsewhere, policy_version=4)], 4)[0]
    assert start_of(again.trajectories[0]) == ("open box 1",)
    assert again.trajectories[0].success


def test_what_is_stored_is_bounded_by_task_in_all_and_by_age() -> None:
    replay = Arpo(PLAN, per_task=2, size=3, age=4)
    replay.mix([group(KEY, 1.0, 1.0, 1.0)], 1)
    assert replay.figures()["stored"] == 2
    replay.mix([group(COIN, 1.0, 1.0, version=2)], 2)  # four in all: the task that won longest ago goes
    assert replay.figures()["stored"] == 2
    failed = [group(task, 0.0, 0.0, version=6) for task in (KEY, COIN)]
    assert [each.trajectories[0].success for each in replay.mix(failed, 6)] == [False, True]
    assert replay.figures()["staleness"] == 4
    replay.mix(failed, 7)  # played with the weights of update 2: older than 4 now
    assert replay.figures() == {"swapped": 0, "unhelped": 2, "staleness": 0, "stored": 0}


def test_the_stored_successes_survive_a_checkpoint_and_are_drawn_alike() -> None:
    one, other = Arpo(PLAN), Arpo(PLAN)
    one.mix([group(KEY, 1.0, 1.0, 1.0), group(COIN, 1.0, 1.0)], 1)
    other.load(saved(one.state()))
    failed = [group(KEY, 0.0, 0.0), group(COIN, 0.0, 0.0)]
    drawn = []
    for update in range(2, 9):
        mixed, again = one.mix(failed, update), other.mix(failed, update)
        assert [e.member for e in episodes_of(mixed)] == [e.member for e in episodes_of(again)]
        drawn.append(mixed[0].trajectories[0].member)
    assert len(set(drawn)) > 1


# SPEAR


def test_good_episodes_are_imitated_once_the_store_is_full_with_advantages_to_the_median_of_the_groups() -> None:
    replay = Spear(PLAN, size=2, age=9, weight=0.8, weight_updates=4)
    first = [group(KEY, 0.0, 4.0, 5.0), group(COIN, 0.0, 0.0, 3.0)]  # means 3 and 1
    assert len(replay.mix(first, 1)) == 2
    assert replay.figures()["stored"] == 3  # 4 and 5 are above 3, and 3 is above 1
    own = [group(KEY, 1.0, 1.0, 1.0, version=3)]
    mixed = replay.mix(own, 3)
    assert mixed[0] is own[0]
    assert [(each.task, each.returns_G.tolist(), each.advantages_G) for each in mixed[1:]] == [
        (KEY, [4.0, 5.0], (2.0, 3.0)),  # the median of 3 and 1 is 2
        (COIN, [3.0], (1.0,)),
    ]
    gamma = 0.8 * 0.5 * (1.0 - cos(pi * 3 / 4))
    assert [each.weight for each in mixed[1:]] == pytest.approx([gamma, gamma])
    figures = replay.figures()
    assert (figures["imitated"], figures["staleness"], figures["stored"], figures["baseline"]) == (3, 2, 0, 2.0)
    assert figures["weight"] == pytest.approx(gamma)
    replay.mix(own, 9)
    assert replay.figures()["weight"] == 0.8
    assert replay.figures()["baseline"] == 1.0  # of 3, 1, 1


def test_episodes_that_the_policy_has_outgrown_or_that_are_old_are_not_imitated() -> None:
    replay = Spear(PLAN, size=1, age=5)
    replay.mix([group(KEY, 0.0, 1.0)], 1)  # mean 0.5, and an episode above it
    replay._means = [0.2, 1.0, 1.0]  # what it plays now
    assert len(replay.mix([], 2)) == 0
    assert replay.figures()["stored"] == 1
    replay._means = [0.2, 0.4, 1.0]
    assert replay.mix([], 2)[0].advantages_G == (0.6,)
    late = Spear(PLAN, size=1, age=5)
    late.mix([group(KEY, 0.0, 1.0)], 1)
    assert late.mix([], 7) == []
    assert late.figures()["stored"] == 0


def test_equal_returns_are_no_good_episodes() -> None:
    replay = Spear(PLAN)
    replay.mix([group(KEY, *[0.1] * 3)], 1)  # whose mean in floating point is not 0.1
    assert replay.figures()["stored"] == 0


def test_deviations_scale_the_advantage_if_asked() -> None:
    replay = Spear(PLAN, size=1, std=True)
    replay.mix([group(KEY, 0.0, 2.0), group(COIN, 0.0, 6.0)], 1)  # means 1, 3: b = 2; deviations 1, 3: 2
    (joined,) = replay.mix([], 2)
    assert joined.advantages_G[0] == pytest.approx((6.0 - 2.0) / (2.0 + 1e-6))


def test_the_bonus_pays_for_turns_and_fades() -> None:
    replay = Spear(PLAN, bonus=0.5, bonus_turns=4, bonus_updates=8)
    played = TrajectoryGroup(KEY, (episode(KEY, 0.0, steps=2), episode(KEY, 1.0, steps=6, member=1)), 1)
    (mixed,) = replay.mix([played], 2)
    fading = 0.5 * (1.0 + cos(pi * 2 / 8))
    assert mixed.returns_G.tolist() == pytest.approx([0.25 * fading, 1.0 + 0.5 * fading])
    assert [t.reward for t in mixed.trajectories[0].transitions] == pytest.approx([0.0, 0.25 * fading])
    assert replay.state()["stored"][0].returns_G.tolist() == [1.0]  # what is imitated has the world's reward
    assert replay.mix([played], 8)[0].returns_G.tolist() == pytest.approx([0.0, 1.0])


def test_spear_survives_a_checkpoint() -> None:
    one, other = Spear(PLAN, size=2), Spear(PLAN, size=2)
    one.mix([group(KEY, 0.0, 4.0, 5.0), group(COIN, 0.0, 0.0, 3.0)], 1)
    other.load(saved(one.state()))
    (mine, *_), (theirs, *_) = one.mix([], 2), other.mix([], 2)
    assert (mine.advantages_G, mine.weight) == (theirs.advantages_G, theirs.weight)
    assert [e.transitions for e in mine.trajectories] == [e.transitions for e in theirs.trajectories]


# What a replay may give


def test_episodes_of_one_name_are_told_apart() -> None:
    """Updates played ahead with the same weights have one version: their rows would have one name."""
    stored, played = group(KEY, 1.0, 0.0), group(KEY, 0.0, 0.0)
    mixed = checked("replay", [played, stored], 2)
    assert [(e.policy_version, e.member) for e in episodes_of(mixed)] == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert [e.total_reward for e in episodes_of(mixed)] == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("advantages", "weight"), [((1.0,), 1.0), ((1.0, float("nan")), 1.0), ((1.0, 1.0), np.inf)])
def test_advantages_that_do_not_fit_are_refused(advantages: tuple[float, ...], weight: float) -> None:
    wrong = replace(group(KEY, 1.0, 0.0), advantages_G=advantages, weight=weight)
    with pytest.raises(UserError, match="the replay 'x' gave 2 episodes of 'train/0' with the advantages"):
        checked("replay 'x'", [wrong], 2)


# Gradients


@pytest.fixture(scope="module")
def played() -> tuple[Any, Any, list[TrajectoryGroup], Any]:
    """A model, its renderer, and two groups of four that a policy of version 1 has played."""
    config = tiny()
    model = build_model(config.model, ["Open box 1, 2, 3, 4. It is empty. You open box 2 and find the key."], seed=0)
    renderer = renderer_of(model, form_of(config))
    tasks = [task for task in TASKS[:2] for _ in range(4)]
    settings = play_settings(config, 1.0)
    episodes = play_model(model, renderer, Boxes, tasks, [0, 1, 2, 3] * 2, settings, seed=0, update=1)
    return model, renderer, as_groups(episodes, [i // 4 for i in range(8)]), config


def by_hand(model: Any, rows: list[Row], low: float, high: float, cap: float, mask: float) -> torch.Tensor:
    """Return Σ_c Σ_rows w · mean_t min(…) of rows of stale and fresh episodes, one row at a time, from the formula."""
    losses: dict[str, list[torch.Tensor]] = {}
    for row in rows:
        (term,) = row.terms
        ids = torch.from_numpy(row.token_ids.astype(np.int64))[None]
        logits = model.network(input_ids=ids).logits[0].float()
        parts = []
        for n, position in enumerate(term.positions_T.tolist()):
            allowed = term.allowed.values[term.allowed.offsets[n] : term.allowed.offsets[n + 1]].tolist()
            drawn = logits[position - 1]
            logprob = drawn[row.token_ids[position]] - (drawn[allowed] if allowed else drawn).logsumexp(0)
            recorded, stale = float(term.streams["sampled_logprobs"][n]), "old_logprobs" in term.streams
            off = (logprob - recorded).exp() if stale else (logprob - logprob.detach()).exp()
            advantage = float(term.streams["advantages"][n])
            loss = -torch.minimum(off * advantage, off.clamp(1 - low, 1 + high) * advantage)
            ratio = float((logprob - recorded).detach().exp())
            if cap:
                loss = loss * (min(1.0, cap / ratio) if stale else min(1.0, cap))
            if mask and not 1 / mask <= ratio <= mask:
                loss = loss * 0.0
            parts.append(loss * float(term.weights_T[n]))
        losses.setdefault(term.component, []).append(torch.stack(parts).sum())
    return sum((torch.stack(each).sum() / len(each) for each in losses.values()), torch.zeros(()))


@pytest.mark.parametrize(
    ("high", "cap", "mask"), [(0.28, 0.0, 0.0), (0.02, 0.0, 0.0), (0.28, 1.05, 0.0), (0.28, 0.0, 1.3)]
)
def test_the_gradient_of_an_off_policy_batch_is_that_of_the_formula(
    played: Any, high: float, cap: float, mask: float
) -> None:
    """A fresh group that failed but for a success of version 1, and the same success imitated beside it."""
    _, renderer, groups, config = played
    old = next(e for e in episodes_of(groups) if e.success)
    lost = [e for e in episodes_of(groups) if not e.success and e.task == old.task]
    fresh = tuple(replace(e, policy_version=2, member=10 + n) for n, e in enumerate(lost))
    moved = build_model(config.model, ["Open box 1, 2, 3, 4. It is empty. You open box 2 and find the key."], seed=1)
    mixed = TrajectoryGroup(old.task, (old, *fresh), 2)
    imitated = TrajectoryGroup(old.task, (replace(old, member=20),), 1, advantages_G=(0.7,), weight=0.3)
    batch = build_batch([mixed, imitated], config, renderer, 2)
    rows = [replace(row, terms=tuple(_as_of(row.terms[0], row, moved))) for row in batch.rows]
    assert batch.figures["rows/replay"] == 1
    stale = [row for row in rows if "old_logprobs" in row.terms[0].streams]
    assert {row.terms[0].component for row in stale} == {"policy", "replay"}
    (own,) = (row.terms[0] for row in stale if row.terms[0].component == "replay")
    assert own.weights_T.tolist() == pytest.approx([0.3 / len(own.weights_T)] * len(own.weights_T))
    settings = LossSettings(
        {"policy": 1.0}, knobs={"clip_low": 0.2, "clip_high": high}, importance_cap=cap, importance_mask=mask
    )
    moved.network.zero_grad()
    totals, value = accumulate(moved, rows, settings)
    found = {name: p.grad.clone() for name, p in moved.network.named_parameters() if p.grad is not None}
    moved.network.zero_grad()
    expected = by_hand(moved, rows, 0.2, high, cap, mask)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    wanted = {name: p.grad for name, p in moved.network.named_parameters() if p.grad is not None}
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-6)
    figures = totals.figures()
    assert 0.0 < figures["effective_sample_size"] < 0.99
    assert (figures["replay/clip_fraction"] > 0.0) == (high == 0.02)
    assert figures.get("importance_capped", 0.0) + figures.get("importance_masked", 0.0) > 0.0 or not (cap or mask)


def _as_of(term: Any, row: Row, model: Any) -> list[Any]:
    """Return a fresh term with the log-probs that these weights give its tokens; a stale one as it is."""
    if "old_logprobs" in term.streams:
        return [term]
    from envrl.engine.update import policy_logprobs

    told = policy_logprobs(model, [row], LossSettings({"policy": 1.0}))[row.origin]
    return [replace(term, streams={**term.streams, "sampled_logprobs": told})]


# Recipes

SMALL = {
    "env.name": "boxes",
    "env.max_steps": 3,
    "model.hidden_size": 32,
    "model.layers": 2,
    "model.heads": 2,
    "model.vocabulary": 320,
    "model.context": 256,
    "warm_start.demonstrations": 4,
    "warm_start.epochs": 1,
    "warm_start.batch": 4,
    "warm_start.held_out": 0,
    "rollout.tasks": 4,
    "rollout.group_size": 3,
    "rollout.max_steps": 3,
    "rollout.response_tokens": 12,
    "train.threads": 1,
    "train.learning_rate": 3e-3,
    "train.epochs": 2,
    "train.trajectories": 0,
    "auxiliary.state.fraction": 1.0,
    "auxiliary.inverse.fraction": 1.0,
    "objective.kl_weight": 0.01,
    "eval.every": 0,
    "eval.split": "valid_a",
    "eval.final": 1,
    "eval.free_episodes": 0,
    "eval.probe_episodes": 0,
    "train.updates": 7,
    "checkpoint.every": 1,
    "checkpoint.keep": 9,
}
OF_RECIPE = {
    "alfworld-envrl-arpo": {"curriculum.solvable.count": 8, "rollout.group_size": 2, "rollout.max_steps": 2},
    "alfworld-envrl-spear": {"replay.spear.size": 4, "replay.spear.weight_updates": 4, "replay.spear.bonus_updates": 4},
}


@pytest.mark.parametrize(("name", "ahead"), [("alfworld-envrl-arpo", 0), ("alfworld-envrl-spear", 1)])
def test_a_recipe_with_replay_and_envrl_goes_on_bit_for_bit(name: str, ahead: int, tmp_path: Path) -> None:
    register_worlds()
    settings = SMALL | OF_RECIPE[name] | {"rollout.ahead": ahead}
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", name, *arguments, "--run", str(whole)]) == 0
    shutil.copytree(whole, cut, symlinks=True)
    for update in (5, 6, 7):
        shutil.rmtree(cut / "checkpoints" / f"step-{update:06d}")
    assert main(["train", name, *arguments, "--run", str(cut), "--resume"]) == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    joined = [line.get("replay/swapped", line.get("replay/imitated")) for line in lines]
    assert sum(joined[:4]) > 0
    assert sum(joined[4:]) > 0
    assert all(line["rows/state"] > 0 and line["rows/inverse"] > 0 for line in lines)
    learned = [line for line, count in zip(lines, joined, strict=True) if count]
    assert all(0.0 < line["effective_sample_size"] <= 1.0 for line in learned)
    assert all(1 <= line["replay/staleness"] <= 50 for line in learned)
    found, expected = essence(cut), essence(whole)
    assert found == expected


# The episodes of another run

FIRST = {
    **{key: value for key, value in SMALL.items() if not key.startswith("auxiliary")},
    "replay.name": "arpo",
    "train.updates": 1,
}


def begun(run: Path, **settings: Any) -> int:
    register_worlds()
    arguments = [part for key, value in (FIRST | settings).items() for part in (f"--{key}", str(value))]
    return main(["train", "alfworld-grpo", "--run", str(run), *arguments])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("first") / "run"
    assert begun(run) == 0
    return run


def test_a_run_can_begin_with_the_successes_of_another(first: Path, tmp_path: Path) -> None:
    shared = {"replay.start": first, "warm_start.path": first / "warm_start"}
    assert begun(tmp_path / "run", seed=1, **shared) == 0
    (before,) = (first / "metrics.jsonl").read_text().splitlines()
    (after,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(after)["replay/stored"] > json.loads(before)["replay/stored"] > 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-000000" / "state.json").read_text())
    stored = from_json(state["components"]["replay"]).values()
    assert {e.policy_version for e in episodes_of(stored)} == {0}  # before this run's first update: stale in all
    assert len(episodes_of(stored)) == json.loads(before)["replay/stored"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env.name": "halves"}, "played the world 'boxes', and this run plays 'halves'"),
        ({"rollout.repeat_task": "false"}, "this run could not have played (other values of rollout.repeat_task)"),
        ({"rollout.temperature": 0.7}, "other values of rollout.temperature"),
        ({"replay.name": "spear"}, "has the replay 'arpo', and this run 'spear'"),
        ({"replay.name": "none"}, "has no effect, since the replay 'none' keeps nothing"),
        ({"replay.start": "/nowhere"}, "replay.start = '/nowhere' is no run"),
        ({"model.vocabulary": 330}, "in the tokens of another tokenizer ("),
    ],
)
def test_episodes_that_do_not_fit_are_refused(
    settings: dict[str, Any], said: str, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begun(tmp_path / "run", **({"replay.start": first} | settings)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_tokenizer_of_a_shared_warm_start_is_refused_before_the_run(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert begun(other, **{"model.vocabulary": 330, "train.updates": 0}) == 0
    shared = {"replay.start": first, "warm_start.path": other / "warm_start", "model.vocabulary": 330}
    assert begun(tmp_path / "run", **shared) == 2
    assert "in the tokens of another tokenizer (" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_replay_of_another_version_is_refused(first: Path) -> None:
    def load(state: Any) -> None:
        raise KeyError("means")

    config = load_run(first)
    config = replace(config, replay=replace(config.replay, start=str(first)))
    with pytest.raises(UserError, match="is of another version of envrl"):
        begin(config, load, None)
    with pytest.raises(UserError, match="is of another version of envrl"):
        begin(config, lambda state: from_json({"$group": {"task": state}}), None)


def test_the_report_draws_what_a_replay_and_a_curriculum_say_of_themselves() -> None:
    metrics = tuple(
        {"update": n, "loss/replay": -0.1 * n, "replay/too_old": n, "curriculum/kept": 3.0, "replay/bonus": 0.0}
        for n in (1, 2)
    )
    run = RunData(Path("run"), {}, "", metrics, (), {})
    drawn = {chart["title"]: chart["lines"][0]["points"] for chart in update_charts(run)}
    assert drawn == {
        "Policy loss of replayed episodes with advantages of their own": [(1, -0.1), (2, -0.2)],
        "Replay: too old": [(1, 1), (2, 2)],
        "Curriculum: kept": [(1, 3.0), (2, 3.0)],
    }
