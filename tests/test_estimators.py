"""The estimators beyond GRPO and RLOO: against numbers worked by hand, and second implementations written plainly."""

from __future__ import annotations

import doctest
import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from boxes import grouped, tiny
from envrl import registry
from envrl.batches.batch import step_advantages
from envrl.batches.values import values_of_steps
from envrl.cli.main import main
from envrl.config.load import dump_config, load_recipe
from envrl.errors import UserError
from envrl.objective.advantage import ESTIMATORS
from envrl.trainer.loop import train
from envrl.types import Row, TrajectoryGroup, episodes_of
from test_advantage import EPSILON, flat, no_text
from test_update import make_model, play

MODULES = [
    "grpo",
    "rloo",
    "gigpo",
    "hgpo",
    "graphgpo",
    "maxrl",
    "reinforce",
    "stratified",
    "gae",
    "poad",
    "spa",
    "hiper",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings(name: str) -> None:
    module = importlib.import_module(f"envrl.objective.estimators.{name}")
    result = doctest.testmod(module)
    assert result.attempted >= 2
    assert result.failed == 0


def test_which_compare_the_episodes_of_a_group() -> None:
    traits = {name: registry.find("estimator", name).traits for name in registry.KINDS["estimator"].built_in}
    assert sorted(name for name, has in traits.items() if not has.get("compares")) == [
        "gae",
        "hiper",
        "poad",
        "reinforce++",
        "spa",
    ]
    assert [name for name in traits if ESTIMATORS[name].reads_values] == ["gae", "poad", "spa", "hiper"]


def batch(seed: int) -> dict[str, Any]:
    """Return nine episodes of one to seven steps in three groups: few texts, so that states are met again."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 8, size=9)
    texts = [generator.choice(["a", "b", "c", "d"], size=n).tolist() for n in lengths]
    rewards = [[0.0] * (n - 1) + [float(generator.random() < 0.4) * 10.0] for n in lengths]
    return {
        "rewards": rewards,
        "observations": texts,
        "groups": generator.permutation([0, 0, 0, 0, 1, 1, 1, 2, 2]).tolist(),
        "penalties": [(0.1 * (generator.random(n) < 0.25)).tolist() for n in lengths],
        "final_observations": generator.choice(["a", "b", "e", "f"], size=9).tolist(),
    }


def called(name: str, given: dict[str, Any], **knobs: Any) -> list[float]:
    data = dict(given)
    return flat(ESTIMATORS[name](data.pop("rewards"), data.pop("observations"), **data, **knobs))


# --- HGPO ------------------------------------------------------------------------------------------------------------


def test_hgpo_by_hand() -> None:
    """Two episodes a, b, b: the last step shares one, two and three observations, and their weights are 2, 3 and 4.

    γ = 1, returns 4 and 0 in every step. Sets of the last observation: a {4, 0}, b {4, 4, 0, 0}: μ = 2, σ = 2, so
    ±2 / (2 + ε) for every length. A is that times (2 + 3 + 4) / (9 + ε) at the end, 2 / (2 + ε) at the start.
    """
    rewards, texts = [[0.0, 0.0, 4.0], [0.0, 0.0, 0.0]], [["a", "b", "b"]] * 2
    one = 2 / (2 + EPSILON)
    expected = [one * w / (w + EPSILON) for w in (2, 2 + 3, 2 + 3 + 4)]
    assert flat(ESTIMATORS["hgpo"](rewards, texts, gamma=1.0)) == pytest.approx(
        [*expected, *(-x for x in expected)], abs=1e-12
    )


def test_hgpo_weighs_shared_histories() -> None:
    """Step 1 of all three is "b"; the first two come from "a". Returns 6, 0, 0, plain means.

    k = 1: μ = 2, so 4, −2, −2. k = 2: 3, −3; the third is alone. A = (2·4 + 3·3) / 5, −(2·2 + 3·3) / 5, −2.
    """
    rewards, texts = [[0.0, 6.0], [0.0, 0.0], [0.0, 0.0]], [["a", "b"], ["a", "b"], ["c", "b"]]
    found = ESTIMATORS["hgpo"](rewards, texts, gamma=0.0, step_norm="mean")
    assert [round(each[1], 5) for each in found] == pytest.approx([17 / 5, -13 / 5, -2.0], abs=1e-5)
    even = ESTIMATORS["hgpo"](rewards, texts, gamma=0.0, step_norm="mean", alpha=0.0)
    assert [round(each[1], 5) for each in even] == pytest.approx([3.5, -2.5, -2.0], abs=1e-5)
    one = ESTIMATORS["hgpo"](rewards, texts, gamma=0.0, step_norm="mean", history=0)
    assert [round(each[1], 5) for each in one] == pytest.approx([4.0, -2.0, -2.0], abs=1e-5)


def test_hgpo_leaves_out_what_is_zero() -> None:
    """A return that is its set's mean (2 of 0, 2, 4) has no item of that length, so the other one weighs all."""
    rewards = [[0.0, 0.0], [0.0, 2.0], [0.0, 4.0]]
    texts = [["x", "b"], ["a", "b"], ["a", "b"]]
    found = ESTIMATORS["hgpo"](rewards, texts, gamma=0.0, step_norm="mean")
    # k = 1: −2, 0, 2; k = 2 of the last two: −1, 1
    assert [each[1] for each in found] == pytest.approx([-2.0, -1.0, (2 * 2 + 3 * 1) / 5], abs=1e-5)


def plain_hgpo(given: dict[str, Any], gamma: float, history: int, alpha: float, base: bool, std: bool) -> list[float]:
    rewards, texts, groups, penalties = (given[k] for k in ("rewards", "observations", "groups", "penalties"))
    returns = [
        [sum(gamma ** (m - t) * r[m] for m in range(t, len(r))) - p[t] for t in range(len(r))]
        for r, p in zip(rewards, penalties, strict=True)
    ]
    steps = [(i, t) for i, r in enumerate(rewards) for t in range(len(r))]
    found = []
    for i, t in steps:
        items = []
        if base:
            pool = [sum(rewards[j]) - penalties[j][u] for j, u in steps if groups[j] == groups[i]]
            own = sum(rewards[i]) - penalties[i][t]
            mean, spread = (np.mean(pool), np.std(pool, ddof=1)) if len(pool) > 1 else (0.0, 1.0)
            items.append((0, (own - mean) / (spread + EPSILON) if std else own - mean))
        for k in range(1, min(history + 1, t + 1) + 1):
            mine = texts[i][t - k + 1 : t + 1]
            pool = [
                returns[j][u]
                for j, u in steps
                if groups[j] == groups[i] and u >= k - 1 and texts[j][u - k + 1 : u + 1] == mine
            ]
            if len(pool) > 1:
                centred = returns[i][t] - np.mean(pool)
                items.append((k, centred / (np.std(pool) + EPSILON) if std else centred))
        items = [(k, a) for k, a in items if abs(a) > 1e-9]
        weights = [(k + 1) ** alpha for k, _ in items]
        found.append(sum(w * a for w, (_, a) in zip(weights, items, strict=True)) / (sum(weights) + EPSILON))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_hgpo_agrees_with_the_definition_written_out(seed: int) -> None:
    given = batch(seed)
    gamma, history, alpha = [0.95, 1.0, 0.5][seed % 3], seed % 4, [1.0, 0.0, 2.0][seed % 3]
    base, std = bool(seed % 2), bool(seed // 2 % 2)
    data = {key: value for key, value in given.items() if key != "final_observations"}
    knobs = {"gamma": gamma, "history": history, "alpha": alpha, "base": base}
    found = called("hgpo", data, **knobs, step_norm="mean_std" if std else "mean")
    assert found == pytest.approx(plain_hgpo(given, gamma, history, alpha, base, std), rel=1e-9, abs=1e-9)


# --- GraphGPO --------------------------------------------------------------------------------------------------------

CHAIN = {
    # s → a → b → goal; a failure that leaves "a" for "x", from where nothing leads back
    "rewards": [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
    "observations": [["s", "a", "b"], ["s", "a", "x"]],
    "final_observations": ["", "x"],
}


def test_graphgpo_by_hand() -> None:
    """d: b 1, a 2, s 3; x never reaches the goal: 4. Scores 10 · 0.5^d(next): a 10/2, 10/16; the others are alone."""
    found = called("graphgpo", CHAIN, gamma=0.5, step_norm="mean", std=False)
    half = (10 / 2 - 10 / 16) / 2
    assert found == pytest.approx([0.5, 0.5 + half, 0.5, -0.5, -0.5 - half, -0.5])


def test_graphgpo_progress_by_hand() -> None:
    """10 · 0.5^(d(next) − d(here) + 1): a → b 10, a → x 10 · 0.5³; the same at any distance."""
    found = called("graphgpo", CHAIN, gamma=0.5, step_norm="mean", std=False, distance="progress")
    half = (10 - 10 / 8) / 2
    assert found == pytest.approx([0.5, 0.5 + half, 0.5, -0.5, -0.5 - half, -0.5])


def test_graphgpo_takes_the_shorter_way_between_wins() -> None:
    """Both win; from "s" one goes straight to "b", the other by "a": 10 · γ against 10 · γ², so wins differ."""
    given = {"rewards": [[0.0, 1.0], [0.0, 0.0, 1.0]], "observations": [["s", "b"], ["s", "a", "b"]]}
    found = called("graphgpo", given, gamma=0.1, step_norm="mean", std=False)
    assert found == pytest.approx([0.45, 0.0, -0.45, 0.0, 0.0])


def test_graphgpo_without_a_success_has_penalties_alone() -> None:
    given = {**CHAIN, "rewards": [[0.0] * 3] * 2, "penalties": [[0.0] * 3, [0.0, 1.0, 0.0]]}
    for distance in ("proximity", "progress"):
        found = called("graphgpo", given, step_norm="mean", std=False, distance=distance)
        # at "a": 0 and −1 about −1/2, besides the episode part's own −1
        assert found == pytest.approx([0.0, 0.5, 0.0, 0.0, -1.5, 0.0])


def plain_graph_scores(given: dict[str, Any], gamma: float, distance: str) -> list[list[float]]:
    rewards, texts, groups = given["rewards"], given["observations"], given["groups"]
    ends = [
        [*t[1:], "GOAL" if sum(r) > 0 else final]
        for r, t, final in zip(rewards, texts, given["final_observations"], strict=True)
    ]
    scores: list[list[float]] = [[] for _ in rewards]
    for group in set(groups):
        members = [i for i, g in enumerate(groups) if g == group]
        edges = [edge for i in members for edge in zip(texts[i], ends[i], strict=True)]
        won = any(end == "GOAL" for _, end in edges)
        far = {node: float("inf") for edge in edges for node in edge} | {"GOAL": 0.0}
        for _ in far:  # as often as there are nodes, which is enough (Bellman and Ford)
            for here, there in edges:
                far[here] = min(far[here], far[there] + 1)
        known = [d for d in far.values() if d < float("inf")]
        far = {node: (d if d < float("inf") else max(known) + 1) if won else 1.0 for node, d in far.items()}
        for i in members:
            for here, there in zip(texts[i], ends[i], strict=True):
                power = far[there] if distance == "proximity" else far[there] - far[here] + 1
                scores[i].append(10 * gamma**power)
    return scores


@pytest.mark.parametrize("seed", range(12))
def test_graphgpo_agrees_with_the_definition_written_out(seed: int) -> None:
    """Its step part is GiGPO's of the scores: with γ = 0, a step's return is its own reward."""
    given = batch(100 + seed)
    distance, gamma = ["proximity", "progress"][seed % 2], [0.1, 0.2, 0.9][seed % 3]
    scores = plain_graph_scores(given, gamma, distance)
    knobs: dict[str, Any] = {"step_norm": ["mean_std", "mean"][seed // 2 % 2], "std": bool(seed // 4 % 2)}
    found = called("graphgpo", given, gamma=gamma, distance=distance, **knobs)
    rest = {k: given[k] for k in ("groups", "penalties")}
    both = flat(ESTIMATORS["gigpo"](scores, given["observations"], **rest, gamma=0.0, **knobs))
    episode = flat(ESTIMATORS["grpo"](scores, given["observations"], **rest, std=knobs["std"]))
    expected = np.array(called("grpo", given, std=knobs["std"])) + np.array(both) - np.array(episode)
    assert found == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9)


# --- REINFORCE++, MaxRL, Stratified GRPO -----------------------------------------------------------------------------


def test_reinforce_plus_plus_by_hand() -> None:
    """γ = 0.5: step returns 1, 2 and 0, 0 of two tasks; μ = 0.75, σ² = (0.0625 + 1.5625 + 2 · 0.5625) / 3 = 11/12."""
    found = ESTIMATORS["reinforce++"]([[0.0, 2.0], [0.0, 0.0]], [["a", "b"]] * 2, groups=[0, 1], gamma=0.5)
    spread = (11 / 12 + 1e-8) ** 0.5
    assert flat(found) == pytest.approx([0.25 / spread, 1.25 / spread, -0.75 / spread, -0.75 / spread], abs=1e-12)


def test_reinforce_plus_plus_baseline_is_whitened_after_the_groups_mean() -> None:
    """Groups {0, 4} and {1, 1, 1, 5}: −2, 2 and −1, −1, −1, 3; μ = 0, σ² = 20 / 5."""
    rewards = [[0.0], [4.0], [1.0], [1.0], [1.0], [5.0]]
    found = ESTIMATORS["reinforce++-baseline"](rewards, no_text(rewards), groups=[0, 0, 1, 1, 1, 1])
    assert flat(found) == pytest.approx([-1, 1, -0.5, -0.5, -0.5, 1.5], rel=1e-8)


def test_whitening_makes_one_penalty_large() -> None:
    """The known trap: where all episodes fail, a penalty of 0.1 in one of ten steps is all that there is."""
    rewards, penalties = [[0.0]] * 10, [[0.1], *[[0.0]] * 9]
    found = flat(ESTIMATORS["reinforce++"](rewards, no_text(rewards), penalties=penalties))
    assert found[0] == pytest.approx(-0.09 / (0.001 + 1e-8) ** 0.5)


def test_maxrl_weighs_rare_wins() -> None:
    """Σ A of a group is 0; the wins' part is n · (1 − p) whatever the success rate p, in units of a win."""
    for wins in range(1, 8):
        rewards = [[1.0]] * wins + [[0.0]] * (8 - wins)
        found = flat(ESTIMATORS["maxrl"](rewards, no_text(rewards)))
        assert sum(found) == pytest.approx(0.0, abs=1e-9)
        assert sum(found[:wins]) == pytest.approx(8 - wins, rel=1e-4)


def test_maxrl_in_groups_without_signal() -> None:
    for value in (0.0, 0.1, 7.0):
        assert flat(ESTIMATORS["maxrl"]([[value]] * 3, [["a"]] * 3)) == [0.0] * 3
        assert flat(ESTIMATORS["maxrl"]([[value]], [["a"]])) == [0.0]
    penalised = ESTIMATORS["maxrl"]([[0.0, 0.0], [0.0]], [["a", "b"], ["a"]], penalties=[[0.0, 0.1], [0.0]])
    assert flat(penalised) == [0.0, -0.1, 0.0], "no division by a mean of zero"
    with pytest.raises(UserError, match="'maxrl' is for returns from 0 on, and an episode has -1"):
        ESTIMATORS["maxrl"]([[-1.0], [1.0]], [["a"], ["a"]])


def test_stratified_by_hand() -> None:
    """One group; strata {8, 4} and {0, 2, 10}: about 6 and 4; all five about 4.8. α = 0.75."""
    rewards = [[8.0], [4.0], [0.0], [2.0], [10.0]]
    found = ESTIMATORS["stratified"](rewards, no_text(rewards), strata="aabbb", alpha=0.75, std=False)
    local, whole = [2, -2, -4, -2, 6], [3.2, -0.8, -4.8, -2.8, 5.2]
    assert flat(found) == pytest.approx([0.75 * a + 0.25 * b for a, b in zip(local, whole, strict=True)])


def test_strata_are_counted_commands_in_a_run() -> None:
    rewards, texts = [[0.0, 3.0], [0.0, 1.0], [0.0, 5.0]], [["a", "b"]] * 3
    commands = [["search[x]", "click[y]"], ["search[z]", "click[y]"], ["search[x]", "search[y]"]]
    found = ESTIMATORS["stratified"](rewards, texts, commands=commands, std=False)
    assert flat(found) == [1.0, 1.0, -1.0, -1.0, 0.0, 0.0]
    found = ESTIMATORS["stratified"](rewards, texts, commands=commands, std=False, counted="click")
    # {3, 1} have one click, {5} none
    assert flat(found) == [1.0, 1.0, -1.0, -1.0, 0.0, 0.0]
    assert flat(ESTIMATORS["stratified"](rewards, texts)) == flat(ESTIMATORS["grpo"](rewards, texts))


# --- GAE -------------------------------------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    """γ = 0.5, λ = 0.5: δ = (0 + 0.5·4 − 2, 1 − 0.1 + 0.5·8 − 4, 6 − 8) = (0, 0.9, −2); A = δ + 0.25 A of the next."""
    rewards, values = [[0.0, 1.0, 6.0], [3.0]], [[2.0, 4.0, 8.0], [1.0]]
    call = ESTIMATORS["gae"].credit
    knobs: dict[str, Any] = {"gamma": 0.5, "lam": 0.5, "values": values, "penalties": [[0.0, 0.1, 0.0], [0.0]]}
    advantages, returns = call(rewards, [["a"] * 3, ["a"]], **knobs)
    assert flat(advantages) == pytest.approx([0.25 * 0.4, 0.9 - 0.5, -2.0, 2.0])
    assert flat(returns["value"]) == pytest.approx([2.1, 4.4, 6.0, 3.0])
    whitened, same = call(rewards, [["a"] * 3, ["a"]], **knobs, whiten=True)
    assert flat(same["value"]) == flat(returns["value"])
    assert np.mean(flat(whitened)) == pytest.approx(0.0, abs=1e-12)
    assert np.std(flat(whitened), ddof=1) == pytest.approx(1.0)


def test_gae_over_tokens_by_hand() -> None:
    """Two steps of two tokens and one; γ = 0.5 and λ = 1 between steps, 0.9 and 0.8 between tokens.

    A of the last: 2 − 1 = 1. Of the one before: 0 + 0.5·1 − 3 + 0.5·1 = −2. Of the first: 0.9·3 − 4 − 0.72·2 = −2.74.
    """
    given: dict[str, Any] = {
        "values": [[np.array([4.0, 3.0]), 1.0]],
        "gamma": 0.5,
        "token_gamma": 0.9,
        "token_lam": 0.8,
    }
    ((first, second),), returns = ESTIMATORS["gae"].credit([[0.0, 2.0]], [["a", "b"]], **given)
    assert first.tolist() == pytest.approx([-2.74, -2.0])
    assert second.tolist() == pytest.approx([1.0])
    assert returns["value"][0][0].tolist() == pytest.approx([1.26, 1.0])


@pytest.mark.parametrize("seed", range(6))
def test_gae_between_its_ends(seed: int) -> None:
    """λ = γ = 1: the return to come, less the value. λ = 0: δ. Tokens without discounts leave a step's first."""
    given = batch(seed)
    data = {key: given[key] for key in ("rewards", "observations")}
    generator = np.random.default_rng(seed)
    values = [generator.normal(size=len(each)) for each in given["rewards"]]
    whole = called("gae", {**data, "values": values})
    to_come = [np.cumsum(r[::-1])[::-1] - v for r, v in zip(given["rewards"], values, strict=True)]
    assert whole == pytest.approx(np.concatenate(to_come).tolist(), abs=1e-9)
    short = called("gae", {**data, "values": values}, lam=0.0, gamma=0.9)
    delta = [np.array(r) + 0.9 * np.append(v[1:], 0.0) - v for r, v in zip(given["rewards"], values, strict=True)]
    assert short == pytest.approx(np.concatenate(delta).tolist(), abs=1e-9)
    tokens = [[np.append(v, generator.normal(size=2)) for v in each] for each in values]
    many = ESTIMATORS["gae"](*data.values(), values=tokens, lam=0.7, gamma=0.9)
    one = ESTIMATORS["gae"](*data.values(), values=values, lam=0.7, gamma=0.9)
    assert [step[0] for each in many for step in each] == pytest.approx(flat(one), abs=1e-9)


def test_poad_does_not_ask_how_an_action_is_cut_into_tokens() -> None:
    """An action of one token, and the same of two whose second has the value that the first ends in: λ = 1, γ = 0.5.

    Between the two tokens nothing is discounted, so the first has the advantage of the whole action either way.
    """
    rewards, texts = [[1.0, 4.0]], [["a", "b"]]
    whole = ESTIMATORS["poad"](rewards, texts, values=[[2.0, 1.0]], gamma=0.5, lam=1.0)
    cut = ESTIMATORS["poad"](rewards, texts, values=[[np.array([2.0, 7.0]), 1.0]], gamma=0.5, lam=1.0)
    assert flat(whole) == [1.0, 3.0]  # 1 + 0.5 · 4 − 2
    assert (cut[0][0][0], cut[0][1].tolist()) == (1.0, [3.0])
    by_step = ESTIMATORS["gae"](rewards, texts, values=[[np.array([2.0, 7.0]), 1.0]], gamma=0.5, token_gamma=0.5)
    assert by_step[0][0][0] == 0.5 * 1.0 + 0.25 * 4.0 - 2.0, "with a discount it would not"


@pytest.mark.parametrize(
    ("name", "own", "heads"),
    [
        ("gae", {"level": "token", "whiten": "true", "gamma": "0.9", "lam": "0.9"}, ["value"]),
        ("gae", {"level": "step", "whiten": "true", "gamma": "0.9", "lam": "0.9"}, ["value"]),
        ("spa", {"grounding": "0"}, ["progress", "value"]),
    ],
)
def test_heads_are_trained_and_resume_bit_for_bit(
    name: str, own: dict[str, str], heads: list[str], tmp_path: Path
) -> None:
    plain = tiny(
        train={"updates": 4, "learning_rate": 1e-3, "head_learning_rate": 3e-2},
        auxiliary={"echo": {"weight": 0.05, "schedule": "constant"}},
        eval={"every": 0, "episodes": 2, "free_episodes": 0},
    )
    recipe = tmp_path / "recipe.toml"
    text = re.sub(r"\[objective.grpo\][^\[]*", "", dump_config(plain))
    recipe.write_text(text.replace('estimator = "grpo"', f'estimator = "{name}"'))
    config = load_recipe(recipe, [(f"objective.{name}.{key}", value) for key, value in own.items()])
    whole = train(config, tmp_path / "whole")
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    begun = records if name == "gae" else records[1:]  # a new head makes every reward of SPA 0
    assert all(record[f"loss/{head}"] > 0 for record in begun for head in heads)
    assert all(record["rows/policy"] > 0 for record in begun)
    found = load_file(whole / "checkpoints" / "latest" / "heads.safetensors")
    assert sorted(found) == sorted(f"{head}.{part}" for head in heads for part in ("weight", "bias"))
    assert all(found[f"{head}.weight"].abs().max() > 1e-3 for head in heads), "they began with zeros"
    short = replace(config, train=replace(config.train, updates=2))
    run = train(short, tmp_path / "run")
    train(config, run, resume=True)
    for file in ("model", "heads"):
        resumed, expected = (each / "checkpoints" / "latest" / f"{file}.safetensors" for each in (run, whole))
        assert resumed.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_the_targets_of_progress_have_the_gradient_of_the_papers_loss(seed: int) -> None:
    """That of (Σ c − R)², by autograd, for every step of episodes of unequal length."""
    data = batch(seed)
    generator = np.random.default_rng(seed)
    progress = [[float(c) for c in generator.normal(size=len(rewards))] for rewards in data["rewards"]]
    zeros = [[0.0] * len(rewards) for rewards in data["rewards"]]
    given: dict[str, Any] = {"values": zeros, "heads": {"progress": progress}}
    _, learned = ESTIMATORS["spa"].credit(data["rewards"], data["observations"], **given)
    for read, rewards, targets in zip(progress, data["rewards"], learned["progress"], strict=True):
        ours, theirs = (torch.tensor(read, dtype=torch.float64, requires_grad=True) for _ in range(2))
        (ours - torch.tensor(targets)).square().sum().backward()
        (theirs.sum() - float(np.sum(rewards))).square().backward()
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.tolist() == pytest.approx(theirs.grad.tolist(), abs=1e-9)


def test_an_estimator_with_a_head_of_its_own_needs_its_values() -> None:
    with pytest.raises(UserError, match="'spa' needs the values of its head"):
        ESTIMATORS["spa"]([[1.0]], [["a"]], values=[[0.0]])
    with pytest.raises(UserError, match=r"heads\['progress'\] must hold a finite number for each step"):
        ESTIMATORS["spa"]([[1.0]], [["a"]], values=[[0.0]], heads={"progress": [[np.nan]]})


def test_an_estimator_of_the_users_gets_values(tmp_path: Path) -> None:
    """Of each step's first token, since it has no setting that says otherwise; the head learns what it returns."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nimport envrl\nfrom envrl.objective.advantage import Credit\n"
        "@envrl.register('estimator', 'beyond', reads=('values',))\n"
        "def beyond(steps, *, value_weight: float = 0.25):\n"
        "    assert all(len(values) == 1 for values in steps.values_N)\n"
        "    ones = tuple(np.ones(1) for _ in steps.values_N)\n"
        "    return Credit(tuple(1.0 - values for values in steps.values_N), ones)\n"
    )
    plain = tiny(train={"updates": 2, "head_learning_rate": 1e-2}, eval={"every": 0, "episodes": 1, "free_episodes": 0})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(re.sub(r"\[objective.grpo\][^\[]*", "", dump_config(plain)))
    chosen = ["--plugin", str(tmp_path / "mine.py"), "--objective.estimator", "beyond"]
    assert main(["train", str(recipe), "--run", str(tmp_path / "run"), *chosen]) == 0
    losses = [json.loads(line)["loss/value"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(1.0), "a new head says 0 of every state"
    assert losses[1] < 1.0


def test_values_are_those_of_the_states_before_the_judged_tokens(played: list[TrajectoryGroup]) -> None:
    """The engine is asked for each step's first token, or for each that was not fixed, and answers by rows."""
    episodes = episodes_of(played)
    asked: list[Row] = []

    def values(rows: Sequence[Row], component: str) -> dict[str, np.ndarray]:
        asked.extend(rows)
        return {row.origin: row.terms[0].positions_T.astype(np.float32) for row in rows}

    for level in ("step", "last", "token"):
        asked.clear()
        found = values_of_steps(episodes, "value", level, values)
        for episode, of_episode in zip(episodes, found, strict=True):
            for segment in episode.segments:
                for span in segment.spans:
                    choices = episode.transitions[span.step].action.allowed
                    free = [n for n, ids in enumerate(choices) if n and (ids is None or len(ids) > 1)]
                    every = [span.start, *(span.start + n for n in free)]
                    expected = {"step": [span.start], "last": [span.stop - 1], "token": every}[level]
                    assert of_episode[span.step].tolist() == expected
        assert len({row.origin for row in asked}) == len(asked)


# --- GiGPO by similarity ---------------------------------------------------------------------------------------------


def test_texts_that_are_alike_are_one_state() -> None:
    """ "drawer 1 is open" and "drawer 2 is open" share 15 of 16 letters: a ratio of 15/16 = 0.9375."""
    rewards = [[4.0], [0.0], [2.0]]
    texts = [["drawer 1 is open"], ["drawer 2 is open"], ["nothing happens"]]
    knobs: dict[str, Any] = {"step_norm": "mean", "std": False}
    apart = [2.0, -2.0, 0.0]  # the episode part alone: no text is met twice
    together = [4.0, -4.0, 0.0]  # and ±2 of the first two
    assert flat(ESTIMATORS["gigpo"](rewards, texts, **knobs)) == apart
    assert flat(ESTIMATORS["gigpo"](rewards, texts, similarity=0.95, **knobs)) == apart
    assert flat(ESTIMATORS["gigpo"](rewards, texts, similarity=0.93, **knobs)) == together
    assert flat(ESTIMATORS["gigpo"](rewards, texts, similarity=0.93, groups=[0, 1, 2], **knobs)) == [4.0, 0.0, 2.0]


def test_a_text_joins_the_first_set_that_it_is_like() -> None:
    """b is like a, c is like b and not like a: c opens a set of its own, which d joins only if it is not like a."""
    a, b, c = "xxxxxxxxxx", "xxxxxxxxyy", "xxxxxxyyyy"
    texts = [[a], [b], [c], [b]]
    found = ESTIMATORS["gigpo"]([[6.0], [0.0], [9.0], [0.0]], texts, similarity=0.8, step_norm="mean", std=False)
    episode = [2.25, -3.75, 5.25, -3.75]
    assert flat(found) == pytest.approx([e + s for e, s in zip(episode, [4.0, -2.0, 0.0, -2.0], strict=True)])


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: ESTIMATORS["graphgpo"]([[1.0]], [["a"]], distance="near"), "graphgpo: distance cannot be 'near'"),
    (lambda: ESTIMATORS["hgpo"]([[1.0]], [["a"]], alpha=-1.0), "hgpo: alpha must be 0 or more"),
    (lambda: ESTIMATORS["gigpo"]([[1.0]], [["a"]], similarity=1.2), "gigpo: similarity must be between 0 and 1"),
    (lambda: ESTIMATORS["stratified"]([[1.0]], [["a"]], strata=[1, 2]), "strata must hold an id or text a trajectory"),
    (lambda: ESTIMATORS["grpo"]([[1.0]], [["a"]], commands=[["x", "y"]]), "commands must have the shape of rewards"),
    (lambda: ESTIMATORS["gae"]([[1.0]], [["a"]]), "the advantage estimator 'gae' needs values"),
    (lambda: ESTIMATORS["gae"]([[1.0]], [["a"]], values=[[1.0, 2.0]]), "values must have the shape of rewards"),
    (lambda: ESTIMATORS["gae"]([[1.0]], [["a"]], values=[[float("nan")]]), "values must hold a finite number"),
    (lambda: ESTIMATORS["reinforce++"]([[1.0]], [["a"]], gamma=2.0), "gamma must be between 0 and 1, not 2.0"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_mistakes_are_sentences(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize("name", sorted(registry.KINDS["estimator"].built_in))
def test_a_run_has_them_by_name(name: str, played: list[TrajectoryGroup]) -> None:
    """Of episodes that were played: what the estimator reads of a run is what it is given by hand."""
    groups, config = played, tiny(objective={"estimator": name})
    episodes = episodes_of(groups)
    found = step_advantages(groups, config)
    read = {level: values_of_steps(episodes, "any", level, None) for level in ("token", "step", "last", "parts")}
    levels = ESTIMATORS[name].levels(config.settings("estimator"))
    assert [len(each) for each in found] == [len(episode.transitions) for episode in episodes]
    by_hand = ESTIMATORS[name](
        [[step.reward for step in each.transitions] for each in episodes],
        [[step.observation.text for step in each.transitions] for each in episodes],
        groups=[group.task.id for group in groups for _ in group.trajectories],
        final_observations=[each.transitions[-1].next_observation.text for each in episodes],
        commands=[[step.action.text for step in each.transitions] for each in episodes],
        values=read[levels.get("value", "step")],
        heads={head: read[level] for head, level in levels.items() if head != "value"},
        valid=[[step.admissible for step in each.transitions] for each in episodes],
    )
    assert [np.hstack(list(each)).tolist() for each in found] == [np.hstack(list(each)).tolist() for each in by_hand]
    assert any(np.hstack(list(each)).any() for each in found)


@pytest.fixture(scope="module")
def played() -> list[TrajectoryGroup]:
    config = tiny()
    model = make_model(config)
    return grouped(play(model, config), config.rollout.group_size)


def test_reinforce_plus_plus_trains_with_groups_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its quoted table in a recipe; an estimator that compares the episodes of a group is refused there."""
    config = tiny(rollout={"group_size": 1, "tasks": 6}, train={"updates": 1}, eval={"every": 0, "free_episodes": 0})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_config(config).replace('estimator = "grpo"', 'estimator = "reinforce++"'))
    given = ["--objective.reinforce++.gamma", "0.9"]
    plain = re.sub(r"\[objective.grpo\][^\[]*", '[objective."reinforce++"]\ngamma = 0.5\n\n', recipe.read_text())
    recipe.write_text(plain)
    assert load_recipe(recipe).settings("estimator") == {"gamma": 0.5}
    assert main(["train", str(recipe), "--run", str(tmp_path / "run"), *given]) == 0
    assert "gamma = 0.9" in (tmp_path / "run" / "config.toml").read_text()
    capsys.readouterr()
    assert main(["train", str(recipe), "--run", str(tmp_path / "no"), "--objective.estimator", "maxrl"]) == 2
    said = capsys.readouterr().err
    assert "group" in said


def test_every_one_takes_all_data_and_groups_of_one() -> None:
    """Values, strata and the rest are data: each estimator takes them all, and reads what it needs."""
    given = batch(7) | {"groups": list(range(9)), "strata": list(range(9))}
    given["values"] = [[0.5] * len(each) for each in given["rewards"]]
    given["heads"] = {"progress": given["values"], "plan": given["values"]}
    for name in registry.KINDS["estimator"].built_in:
        assert np.isfinite(called(name, given)).all()
