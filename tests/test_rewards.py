"""Rewards beside the world's: what inverse dynamics pays, by hand; how it enters the advantages; what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from boxes import tiny
from envrl.batches.batch import Asks, build_batch
from envrl.batches.rewards import chances_of, rewards_of, with_rewards
from envrl.build import form_of, renderer_of
from envrl.cli.main import main
from envrl.config.load import dump_config, load_run
from envrl.config.schema import Config
from envrl.engine.local import loss_settings
from envrl.engine.update import policy_logprobs
from envrl.models.load import LanguageModel
from envrl.objective.auxiliary.inverse import inverse
from envrl.rendering.renderer import Renderer
from envrl.types import Example, FloatArray, Row, TrajectoryGroup
from test_auxiliary import ANSWERS, SAID, episode, model, terms_of

__all__ = ["model"]


def recipe(**settings: float | str | bool | int) -> Config:
    """Return a recipe with the inverse reward."""
    table = {f"reward.inverse.{key}": value for key, value in ({"weight": 0.5} | settings).items()}
    return tiny(owned=table, train={"updates": 4})


def pair_of(renderer: Renderer | None = None) -> TrajectoryGroup:
    played = tuple(episode(answers, member, renderer) for member, answers in enumerate(ANSWERS))
    return TrajectoryGroup(played[0].task, played)


def test_a_step_is_paid_the_chance_of_its_command() -> None:
    """The third command is none that the world lists: it is paid nothing, unless what is not accepted is paid, too."""
    asked: list[Example] = []

    def chances(examples: Sequence[Example]) -> np.ndarray:
        asked.extend(examples)
        return np.arange(1, len(examples) + 1) / 8

    (reward,) = recipe().rewards()
    found = rewards_of(reward, [pair_of()], chances)
    assert [each.tolist() for each in found] == [[0.125, 0.25, 0.0, 0.5], [0.625, 0.75, 0.0, 1.0]]
    assert [example.target for example in asked] == [*SAID, *SAID]
    assert [example.following for example in asked] == [*ANSWERS[0], *ANSWERS[1]]
    (lenient,) = recipe(accepted=False).rewards()
    assert rewards_of(lenient, [pair_of()], chances)[0].tolist() == [0.125, 0.25, 0.375, 0.5]


def test_a_chance_is_the_product_over_the_command(model: LanguageModel) -> None:
    """Under the network, at the temperature of sampling; equal questions are asked once; too long ones have 0."""
    config = recipe()
    renderer = renderer_of(model, form_of(config))
    group = pair_of(renderer)
    examples = list(inverse([group, group]))
    rows: list[int] = []

    def logprobs(some: Sequence[Row]) -> Mapping[str, FloatArray]:
        rows.append(len(some))
        return policy_logprobs(model, some, replace(loss_settings(config, {}), temperature=2.0))

    found = chances_of("inverse", examples, renderer, logprobs)
    assert rows == [8]
    assert found[:8].tolist() == found[8:].tolist()
    for example, chance in zip(examples, found, strict=True):
        pair = renderer.pair("inverse", example)
        ids = torch.tensor([[*pair.prompt, *pair.target]])
        with torch.no_grad():
            scores = (model.network(ids).logits[0] / 2.0).log_softmax(-1)
        by_hand = sum(float(scores[p - 1, ids[0, p]]) for p in range(len(pair.prompt), ids.shape[1]))
        assert log(chance) == pytest.approx(by_hand, rel=1e-5)
    lengths = [len(renderer.pair("inverse", e).prompt) + len(renderer.pair("inverse", e).target) for e in examples]
    short = renderer_of(model, form_of(config), max(lengths) - 1)
    fits = np.array(lengths) < max(lengths)
    assert (chances_of("inverse", examples, short, logprobs) > 0).tolist() == fits.tolist()
    assert not fits.all()


def test_it_is_added_to_the_steps_own_and_its_weight_falls(model: LanguageModel) -> None:
    """λ = 0.5, 0.375, 0.25, 0.125 over four updates, times what is said; nothing else of an episode changes."""
    config = recipe(schedule="linear")
    renderer, group = renderer_of(model, form_of(config)), pair_of()
    paid = replace(group.trajectories[0].transitions[3], reward=2.0)
    first = replace(group.trajectories[0], transitions=(*group.trajectories[0].transitions[:3], paid))
    group = replace(group, trajectories=(first, group.trajectories[1]))

    def quarter(some: Sequence[Row]) -> Mapping[str, FloatArray]:
        counts = {row.origin: len(row.terms[0].positions_T) for row in some}
        return {origin: np.full(count, log(0.25) / count, dtype=np.float32) for origin, count in counts.items()}

    for update, weight in enumerate((0.5, 0.375, 0.25, 0.125, 0.0), 1):
        (found,), figures = with_rewards([group], config.rewards(), update, 4, renderer, quarter)
        one, other = ([step.reward for step in each.transitions] for each in found.trajectories)
        extra = 0.25 * weight
        assert one == pytest.approx([extra, extra, 0.0, 2.0 + extra], abs=1e-7)
        assert other == pytest.approx([extra, extra, 0.0, extra], abs=1e-7)
        assert figures["reward_weight/inverse"] == weight
        assert figures.get("reward/inverse", 0.25 * 6 / 8) == pytest.approx(0.25 * 6 / 8)
        assert ("reward/inverse" in figures) == (weight > 0)
        bare = [replace(step, reward=0.0) for each in found.trajectories for step in each.transitions]
        assert bare == [replace(step, reward=0.0) for each in group.trajectories for step in each.transitions]
    assert [step.reward for step in group.trajectories[0].transitions] == [0.0, 0.0, 0.0, 2.0]


def test_the_advantages_are_of_the_sum(model: LanguageModel) -> None:
    """Neither episode wins. The first is paid 0.5 · (0.25 · 3), the second 0: under Dr.GRPO ± half of it."""
    config = replace(recipe(), owned=recipe().owned | {"objective.grpo.std": False})
    renderer = renderer_of(model, form_of(config))
    played = []
    for member, answers in enumerate(ANSWERS):
        tokens = episode(answers, member, renderer)
        steps = [
            replace(step, action=replace(step.action, token_ids=(1,), logprobs=(-1.0,), allowed=(None,)))
            for step in tokens.transitions
        ]
        played.append(replace(tokens, transitions=tuple(steps)))

    def first_alone(some: Sequence[Row]) -> Mapping[str, FloatArray]:
        own = {renderer.pair("inverse", e) for e in inverse([TrajectoryGroup(played[0].task, (played[0],))])}
        ids = {(*pair.prompt, *pair.target) for pair in own}
        return {
            row.origin: np.array([log(0.25) if tuple(row.token_ids.tolist()) in ids else -99.0], dtype=np.float32)
            for row in some
        }

    group = TrajectoryGroup(played[0].task, tuple(played))
    batch = build_batch([group], config, renderer, 1, Asks(logprobs=first_alone))
    found = [term.streams["advantages"].tolist() for _, term in terms_of(batch.rows, "policy")]
    half = 0.5 * (0.25 * 3) / 2
    assert found == [pytest.approx([half] * 4), pytest.approx([-half] * 4)]
    assert batch.figures["reward/inverse"] == pytest.approx(0.25 * 3 / 8)
    assert build_batch([group], tiny(), renderer, 1).figures["rows/policy"] == 0, "without it there is no difference"


PLUGIN = """
import numpy as np
import envrl


@envrl.register("reward", "short")
def short(groups, chances, *, amount: float = 1.0):
    return [np.full(len(t.transitions), -amount) for g in groups for t in g.trajectories]


@envrl.register("reward", "shapeless")
def shapeless(groups, chances):
    return [np.zeros(1)]


@envrl.register("reward", "endless")
def endless(groups, chances):
    return [np.full(len(t.transitions), np.inf) for g in groups for t in g.trajectories]
"""


def test_a_run_is_paid_for_what_it_can_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside it a user's reward; the world's return is logged as it was; wrong shapes and names are refused."""
    quick = {"every": 0, "split": ("valid_b",), "episodes": 2, "final": 2, "free_episodes": 0, "probe_episodes": 0}
    config = tiny(
        auxiliary={"inverse": {"weight": 0.1}},
        train={"updates": 2, "trajectories": 1, "trajectories_every": 1},
        eval=quick,
    )
    (tmp_path / "small.toml").write_text(dump_config(config))
    (tmp_path / "mine.py").write_text(PLUGIN)
    start = ["train", str(tmp_path / "small.toml"), "--plugin", str(tmp_path / "mine.py"), "--run"]
    paid = ["--reward.inverse.weight", "0.2", "--reward.short.weight", "0.1", "--reward.short.amount", "3"]
    assert main([*start, str(tmp_path / "run"), *paid]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert 0 < line["reward/inverse"] < 1
        assert (line["reward_weight/inverse"], line["reward_weight/short"], line["reward/short"]) == (0.2, 0.1, -3.0)
        assert line["train/return"] == line["train/success_rate"], "that of the world"
        assert line["rows/policy"] > 0
    assert [each.name for each in load_run(tmp_path / "run").rewards()] == ["inverse", "short"]
    shown = json.loads((tmp_path / "run" / "trajectories" / "update-000001.jsonl").read_text().splitlines()[0])
    assert "advantage" not in shown["steps"][0]
    capsys.readouterr()
    for name, sentence in (
        ("shapeless", "the reward 'shapeless' must return an array for each of the 1 episodes"),
        ("endless", "the reward 'endless' returned a number that is not finite"),
        ("invrse", "there is no reward 'invrse'; did you mean 'inverse'"),
    ):
        assert main([*start, str(tmp_path / "other"), f"--reward.{name}.weight", "0.1"]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    only = ["--auxiliary.inverse.weight", "0", "--reward.inverse.weight", "0.1", "--train.updates", "0"]
    assert main([*start, str(tmp_path / "untaught"), *only]) == 0
    assert "pays for what the policy can answer, and nothing teaches it that" in capsys.readouterr().err
