"""Advantage estimators against numbers worked by hand, against a naive second implementation, and by their laws."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import envrl
from envrl.errors import UserError
from envrl.objective.advantage import ESTIMATORS

EPSILON = 1e-6


def flat(arrays: list[np.ndarray]) -> list[float]:
    return [float(x) for a in arrays for x in a]


def no_text(rewards: list[Any]) -> list[list[str]]:
    return [[""] * len(r) for r in rewards]


# --- GRPO ----------------------------------------------------------------------------------------------------------

# three trajectories of 1, 2 and 4 steps with returns 10, 10, 0
REWARDS = [[10.0], [0.0, 10.0], [0.0, 0.0, 0.0, 0.0]]


def test_grpo_over_trajectories():
    # μ = 20/3; deviations 10/3, 10/3, −20/3; σ² = (100/9 + 100/9 + 400/9) / 2 = 100/3, σ = 5.7735
    sigma = (100 / 3) ** 0.5
    advantages = ESTIMATORS["grpo"](REWARDS, no_text(REWARDS))
    assert [len(a) for a in advantages] == [1, 2, 4]
    win, loss = (10 / 3) / (sigma + EPSILON), (-20 / 3) / (sigma + EPSILON)
    assert flat(advantages) == pytest.approx([win] * 3 + [loss] * 4, abs=1e-12)
    assert win == pytest.approx(0.5773502, abs=1e-6)


def test_grpo_over_steps_lets_a_long_failure_pull_the_mean_down():
    # seven step rows: 10, 10, 10, 0, 0, 0, 0; μ = 30/7; Σ dev² = 3·(40/7)² + 4·(30/7)² = 8400/49, σ² = 8400/294 = 200/7
    sigma = (200 / 7) ** 0.5
    advantages = flat(ESTIMATORS["grpo"](REWARDS, no_text(REWARDS), baseline="steps"))
    win = (40 / 7) / (sigma + EPSILON)
    assert advantages == pytest.approx([win] * 3 + [(-30 / 7) / (sigma + EPSILON)] * 4, abs=1e-12)
    assert win > flat(ESTIMATORS["grpo"](REWARDS, no_text(REWARDS)))[0]


def test_grpo_without_std_is_the_centred_return():
    assert flat(ESTIMATORS["grpo"](REWARDS, no_text(REWARDS), std=False)) == pytest.approx([10 / 3] * 3 + [-20 / 3] * 4)


def test_a_group_of_one_gets_its_raw_return():
    # μ = 0, σ = 1
    assert flat(ESTIMATORS["grpo"]([[0.0, 10.0]], [["a", "b"]])) == pytest.approx([10.0, 10.0], rel=1.1e-6)
    assert flat(ESTIMATORS["grpo"]([[0.0, 10.0]], [["a", "b"]], std=False)) == [10.0, 10.0]
    assert flat(ESTIMATORS["rloo"]([[0.0, 10.0]], [["a", "b"]])) == [10.0, 10.0]


def test_over_steps_a_lone_trajectory_of_several_steps_is_a_pool_of_several_equal_members():
    assert flat(ESTIMATORS["grpo"]([[0.0, 10.0]], [["a", "b"]], baseline="steps")) == [0.0, 0.0]
    assert flat(ESTIMATORS["grpo"]([[10.0]], [["a"]], baseline="steps", std=False)) == [10.0]


@pytest.mark.parametrize("value", [0.1, 0.7, 1e-3, 10.0, -0.3])
@pytest.mark.parametrize("count", [2, 3, 7, 8])
@pytest.mark.parametrize("knobs", [{}, {"baseline": "steps"}, {"std": False}])
def test_equal_returns_give_exactly_zero(value: float, count: int, knobs: dict[str, Any]):
    # the rounded mean of [0.1] * 3 is 0.10000000000000002 in float64 and off by 7e-9, over ε = 0.007, in float32
    rewards = [[value]] * count
    assert flat(ESTIMATORS["grpo"](rewards, no_text(rewards), **knobs)) == [0.0] * count


def test_close_returns_are_told_apart_where_float32_would_see_noise():
    # σ of (1000, 1000.0001) is 7.07e-5: in float32 the two differ by 1.2e-4 or 0, here the advantages are ±0.5 / 0.7171
    low, high = flat(ESTIMATORS["grpo"]([[1000.0], [1000.0001]], [["a"], ["a"]]))
    expected = 0.5e-4 / (0.5**0.5 * 1e-4 + EPSILON)
    assert (low, high) == pytest.approx((-expected, expected), rel=1e-6)


def test_groups_are_independent_whatever_their_order_and_the_type_of_their_ids():
    rewards = [[10.0], [4.0], [0.0], [6.0], [3.0]]
    together = ESTIMATORS["grpo"](rewards, no_text(rewards), groups=["x", 7, "x", 7, ("y", 1)], std=False)
    # x: 10, 0 → ±5; 7: 4, 6 → ±1; ("y", 1) alone: raw
    assert flat(together) == [5.0, -1.0, -5.0, 1.0, 3.0]


# --- penalties -----------------------------------------------------------------------------------------------------


def test_a_penalty_lands_on_its_own_step_only():
    rewards, penalties = [[0.0, 10.0], [0.0, 0.0]], [[0.0, 0.1], [0.0, 0.0]]
    # the first step of each trajectory stands for it in the statistics: μ = 5
    advantages = ESTIMATORS["grpo"](rewards, no_text(rewards), penalties=penalties, std=False)
    assert flat(advantages) == pytest.approx([5.0, 4.9, -5.0, -5.0])


def test_over_trajectories_only_a_penalty_of_the_first_step_moves_the_baseline():
    rewards, penalties = [[0.0, 10.0], [0.0, 0.0]], [[0.1, 0.0], [0.0, 0.0]]
    # pool 9.9, 0: μ = 4.95
    advantages = ESTIMATORS["grpo"](rewards, no_text(rewards), penalties=penalties, std=False)
    assert flat(advantages) == pytest.approx([4.95, 5.05, -4.95, -4.95])


def test_over_steps_every_penalty_moves_the_baseline():
    rewards, penalties = [[0.0, 10.0], [0.0, 0.0]], [[0.0, 0.4], [0.0, 0.0]]
    # pool 10, 9.6, 0, 0: μ = 4.9
    advantages = ESTIMATORS["grpo"](rewards, no_text(rewards), penalties=penalties, std=False, baseline="steps")
    assert flat(advantages) == pytest.approx([5.1, 4.7, -4.9, -4.9])


def test_a_penalty_outside_a_pool_of_equal_values_does_not_explode():
    rewards, penalties = [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.1], [0.0, 0.0]]
    # (−0.1 − 0) / (0 + ε) would be −100,000
    assert flat(ESTIMATORS["grpo"](rewards, no_text(rewards), penalties=penalties)) == [0.0] * 4
    without = flat(ESTIMATORS["grpo"](rewards, no_text(rewards), penalties=penalties, std=False))
    assert without == [0.0, -0.1, 0.0, 0.0]


# --- RLOO ----------------------------------------------------------------------------------------------------------


def test_rloo_is_the_return_less_the_mean_of_the_others():
    rewards = [[1.0, 2.0], [5.0], [0.0, 0.0, 4.0]]
    # returns 3, 5, 4: 3 − 4.5, 5 − 3.5, 4 − 4
    assert flat(ESTIMATORS["rloo"](rewards, no_text(rewards))) == pytest.approx([-1.5, -1.5, 1.5, 0.0, 0.0, 0.0])


# --- GiGPO ---------------------------------------------------------------------------------------------------------


def test_gigpo_by_hand():
    # A: r = 0, 10 at "room", "fridge"; B: r = 0, 0, 0 at "room", "room", "shelf"; γ = 0.5
    # G: A = 5, 10; B = 0, 0, 0. Sets: room {5, 0, 0}, fridge {10} alone, shelf {0} alone.
    # room: μ = 5/3, σ² = ((10/3)² + 2·(5/3)²)/2 = 25/3, σ = 2.88675
    rewards, texts = [[0.0, 10.0], [0.0, 0.0, 0.0]], [["room", "fridge"], ["room", "room", "shelf"]]
    sigma = (25 / 3) ** 0.5 + EPSILON
    episode = 5 / (50**0.5 + EPSILON)
    expected = [
        episode + 2 * (10 / 3) / sigma,
        episode,
        -episode - 2 * (5 / 3) / sigma,
        -episode - 2 * (5 / 3) / sigma,
        -episode,
    ]
    assert flat(ESTIMATORS["gigpo"](rewards, texts, gamma=0.5, step_weight=2.0)) == pytest.approx(expected, abs=1e-12)


def test_gigpo_mean_and_no_std_by_hand():
    rewards, texts = [[0.0, 10.0], [0.0, 0.0, 0.0]], [["room", "fridge"], ["room", "room", "shelf"]]
    # episode ±5; step part in "room" 10/3, −5/3, −5/3
    advantages = ESTIMATORS["gigpo"](rewards, texts, gamma=0.5, step_norm="mean", std=False)
    assert flat(advantages) == pytest.approx([5 + 10 / 3, 5, -5 - 5 / 3, -5 - 5 / 3, -5])


def test_gigpo_penalty_is_taken_after_discounting():
    # one group, both at "a" then "b"; γ = 0.5; step returns A 5, 10; B 0, 0; B's second step is penalised by 1
    rewards, texts = [[0.0, 10.0], [0.0, 0.0]], [["a", "b"], ["a", "b"]]
    advantages = ESTIMATORS["gigpo"](
        rewards, texts, gamma=0.5, step_norm="mean", std=False, penalties=[[0.0, 0.0], [0.0, 1.0]]
    )
    # step part: a: 5, 0 → ±2.5 (no share of the penalty); b: 10, −1 → ±5.5. Episode: 5, 5, −5, −6
    assert flat(advantages) == pytest.approx([7.5, 10.5, -7.5, -11.5])


def test_gigpo_step_sets_do_not_cross_groups():
    rewards, texts = [[1.0], [0.0]], [["same"], ["same"]]
    alone = ESTIMATORS["gigpo"](rewards, texts, groups=[0, 1], std=False)
    assert flat(alone) == [1.0, 0.0]


def test_gigpo_equal_discounted_returns_give_exactly_zero():
    # 0.95 · 0.95 · 10 in three trajectories: in float32 the set came out at ±0.3 to 0.5
    rewards = [[0.0, 0.0, 10.0]] * 3
    texts = [["a", "b", "c"]] * 3
    assert flat(ESTIMATORS["gigpo"](rewards, texts, gamma=0.95)) == [0.0] * 9


def naive_gigpo(rewards, texts, groups, penalties, gamma, step_weight, step_norm, baseline, std):
    """The definition, written out step by step with the standard library alone."""

    def normalised(value: float, pool: list[float], divide: bool, alone: float) -> float:
        if len(pool) == 1:
            return alone
        if max(pool) == min(pool):
            return 0.0 if divide else value - pool[0]
        centred = value - statistics.fmean(pool)
        return centred / (statistics.stdev(pool) + EPSILON) if divide else centred

    result = []
    for i, trajectory in enumerate(rewards):
        row = []
        members = [j for j in range(len(rewards)) if groups[j] == groups[i] and len(rewards[j])]
        for t in range(len(trajectory)):
            pool = []
            for j in members:
                steps = range(len(rewards[j])) if baseline == "steps" else [0]
                pool += [sum(rewards[j]) - penalties[j][k] for k in steps]
            score = sum(trajectory) - penalties[i][t]
            episode = normalised(score, pool, std, score / (1 + EPSILON) if std else score)
            step_pool = []
            for j in members:
                for k in range(len(rewards[j])):
                    if texts[j][k] == texts[i][t]:
                        discounted = sum(gamma ** (m - k) * rewards[j][m] for m in range(k, len(rewards[j])))
                        step_pool.append(discounted - penalties[j][k])
            own = sum(gamma ** (m - t) * trajectory[m] for m in range(t, len(trajectory))) - penalties[i][t]
            row.append(episode + step_weight * normalised(own, step_pool, step_norm == "mean_std", 0.0))
        result.append(row)
    return result


@pytest.mark.parametrize("seed", range(12))
def test_gigpo_agrees_with_the_definition_written_out(seed: int):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 7, size=9)
    rewards = [generator.choice([0.0, 1.0, 2.5], size=n, p=[0.6, 0.2, 0.2]).tolist() for n in lengths]
    texts = [generator.choice(["a", "b", "c"], size=n).tolist() for n in lengths]
    penalties = [(0.1 * (generator.random(n) < 0.2)).tolist() for n in lengths]
    groups = generator.integers(0, 3, size=9).tolist()
    knobs = {
        "gamma": [0.95, 1.0, 0.5, 0.0][seed % 4],
        "step_weight": [1.0, 0.3][seed % 2],
        "step_norm": ["mean_std", "mean"][seed // 2 % 2],
        "baseline": ["steps", "trajectories"][seed // 3 % 2],
        "std": bool(seed // 6 % 2),
    }
    found = ESTIMATORS["gigpo"](rewards, texts, groups=groups, penalties=penalties, **knobs)
    expected = naive_gigpo(rewards, texts, groups, penalties, **knobs)
    assert flat(found) == pytest.approx([x for row in expected for x in row], rel=1e-9, abs=1e-9)


# --- laws ----------------------------------------------------------------------------------------------------------

rewards_of = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=5)
batches = st.lists(rewards_of, min_size=2, max_size=6)
wins_of = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=5)
batches_of_wins = st.lists(wins_of, min_size=2, max_size=6)
EVERY = ["grpo", "rloo", "gigpo", "hgpo", "graphgpo", "maxrl", "reinforce++", "reinforce++-baseline", "stratified"]
COMPARING = [name for name in EVERY if name != "reinforce++"]


def texts_for(rewards: list[list[float]]) -> list[list[str]]:
    return [[f"state {(i + t) % 3}" for t in range(len(r))] for i, r in enumerate(rewards)]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(rewards=batches_of_wins, data=st.data())
def test_the_order_of_trajectories_does_not_matter(name: str, rewards: list[list[float]], data: st.DataObject):
    order = data.draw(st.permutations(range(len(rewards))))
    texts, groups = texts_for(rewards), [i % 2 for i in range(len(rewards))]
    straight = ESTIMATORS[name](rewards, texts, groups=groups)
    mixed = ESTIMATORS[name]([rewards[i] for i in order], [texts[i] for i in order], groups=[groups[i] for i in order])
    for place, index in enumerate(order):
        np.testing.assert_allclose(mixed[place], straight[index], atol=1e-9)


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 10.0])
@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_group_of_equal_episodes_gets_exactly_zero(name: str, value: float, count: int, kind: type):
    """Beside another group, which differs; episodes of two steps, whose texts are the same in all of them."""
    # Whitening is over both groups, and takes off the mean, which has to be zero then.
    others = [[0.0, 1.0], [0.0, -1.0 if name == "reinforce++-baseline" else 3.0]]
    rewards = [np.array([0.0, value], dtype=kind)] * count + [np.array(each) for each in others]
    texts, groups = [["a", "b"]] * (count + 2), [0] * count + [1, 1]
    found = ESTIMATORS[name](rewards, texts, groups=groups, final_observations=["c"] * (count + 2))
    assert flat(found[:count]) == [0.0] * (2 * count)
    assert flat(found[count:]) != [0.0] * 4


@pytest.mark.parametrize("knobs", [{}, {"std": False}])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(rewards=batches, shift=st.integers(-50, 50))
def test_a_constant_added_to_every_return_changes_nothing(
    knobs: dict[str, Any], rewards: list[list[float]], shift: int
):
    moved = [[r[0] + shift, *r[1:]] for r in rewards]
    before = ESTIMATORS["grpo"](rewards, no_text(rewards), **knobs)
    after = ESTIMATORS["grpo"](moved, no_text(rewards), **knobs)
    np.testing.assert_allclose(flat(before), flat(after), atol=1e-9)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(rewards=batches)
def test_advantages_sum_to_zero_over_what_the_baseline_counts(name: str, rewards: list[list[float]]):
    over_trajectories = ESTIMATORS[name](rewards, no_text(rewards))
    assert sum(a[0] for a in over_trajectories) == pytest.approx(0, abs=1e-9)
    if sum(map(len, rewards)) > 1:
        assert sum(flat(ESTIMATORS[name](rewards, no_text(rewards), baseline="steps"))) == pytest.approx(0, abs=1e-8)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rewards=batches)
def test_std_one_over_the_pool(rewards: list[list[float]]):
    first = np.array([a[0] for a in ESTIMATORS["grpo"](rewards, no_text(rewards))])
    if np.any(first != 0):
        assert first.std(ddof=1) == pytest.approx(1, abs=1e-5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rewards=batches)
def test_gigpo_without_step_weight_is_grpo(rewards: list[list[float]]):
    texts = texts_for(rewards)
    assert flat(ESTIMATORS["gigpo"](rewards, texts, step_weight=0.0)) == flat(ESTIMATORS["grpo"](rewards, texts))


# --- the contract's edges ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_shapes_and_types(name: str):
    rewards = [np.array([0, 1], dtype=np.int64), np.array([], dtype=np.float32), np.array([2.0], dtype=np.float32)]
    found = ESTIMATORS[name](
        rewards, [["a", "b"], [], ["a"]], groups=np.array([3, 3, 3]), values=None, strata=None, final_observations=None
    )
    assert [a.shape for a in found] == [(2,), (0,), (1,)]
    assert all(a.dtype == np.float64 for a in found)
    assert rewards[0].tolist() == [0, 1]
    assert ESTIMATORS[name]([], []) == []


def test_a_trajectory_without_steps_does_not_count():
    with_empty = ESTIMATORS["grpo"]([[1.0], [], [3.0]], [["a"], [], ["a"]], std=False)
    assert flat(with_empty) == [-1.0, 1.0]


def test_idle_knobs_are_accepted():
    rewards = [[1.0], [0.0]]
    found = ESTIMATORS["gigpo"](rewards, no_text(rewards), step_weight=0.0, gamma=0.3, step_norm="mean")
    assert flat(found) == flat(ESTIMATORS["grpo"](rewards, no_text(rewards)))


def test_knobs_are_told_with_their_defaults():
    assert ESTIMATORS["grpo"].knobs == {"baseline": "trajectories", "std": True}
    assert ESTIMATORS["gigpo"].knobs["gamma"] == 0.95


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ESTIMATORS["gripo"], "unknown advantage estimator 'gripo'; did you mean 'g"),
        (lambda: ESTIMATORS["grpo"]([[1.0]], [["a"]], baselin="steps"), "'baselin'; did you mean 'baseline'?"),
        (
            lambda: ESTIMATORS["grpo"]([[1.0]], [["a"]], gamma=0.9),
            "estimator 'grpo' has no setting 'gamma'",
        ),
        (lambda: ESTIMATORS["grpo"]([[1.0]], [["a"]], baseline="step"), "cannot be 'step'; did you mean 'steps'?"),
        (lambda: ESTIMATORS["gigpo"]([[1.0]], [["a"]], step_norm="std"), "step_norm cannot be 'std'"),
        (lambda: ESTIMATORS["gigpo"]([[1.0]], [["a"]], gamma=1.5), "gamma must be between 0 and 1, not 1.5"),
        (lambda: ESTIMATORS["gigpo"]([[1.0]], [["a"]], step_weight=-1.0), "step_weight must be 0 or more, not -1.0"),
        (
            lambda: ESTIMATORS["grpo"]([[1.0, 2.0]], [["a"]]),
            "observations must have the shape of rewards: trajectory 0",
        ),
        (
            lambda: ESTIMATORS["grpo"]([[1.0]], [["a"]], penalties=[]),
            "penalties must have the shape of rewards: 0 traj",
        ),
        (
            lambda: ESTIMATORS["grpo"]([[1.0]], [["a"]], groups=[1, 2]),
            "groups must hold an id or text a trajectory: 2 for 1",
        ),
        (
            lambda: ESTIMATORS["grpo"]([[float("nan")]], [["a"]]),
            "trajectory 0 (counted from 0) has a reward or penalty",
        ),
        (lambda: ESTIMATORS["grpo"]([[[1.0]]], [["a"]]), "one flat array of step rewards a trajectory"),
    ],
)
def test_mistakes_are_sentences(call, words: str):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)


def test_advantages_need_no_torch_and_are_reached_from_the_package():
    assert envrl.objective.advantage.ESTIMATORS is ESTIMATORS
    code = "import sys, envrl; envrl.objective.advantage.ESTIMATORS['grpo']; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
