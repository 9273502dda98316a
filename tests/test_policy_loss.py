"""Policy losses: values by hand, gradients against hand formulas, and what the aggregation makes of them."""

from __future__ import annotations

import doctest
import importlib
from math import exp, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import envrl
from envrl.errors import UserError
from envrl.objective.aggregation import row_weights
from envrl.objective.losses.kl import kl_k3
from envrl.objective.policy import LOSSES, TOKEN_LOSSES, entropy, truncated_importance
from envrl.registry import register

torch.set_num_threads(1)
EVERY = ["cispo", "clip_cov", "gspo", "ppo"]
SEPARABLE = [name for name in EVERY if name != "clip_cov"]
"""What looks at no other row. The others are told of all rows of a step before it (tests/test_update.py)."""


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def batch(seed: int, sequences: int = 4, tokens: int = 6, spread: float = 0.3):
    """Log-probs that need a gradient, old ones near them, advantages a sequence, and a ragged mask."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(sequences, tokens, generator=generator, dtype=torch.float64) * 3
    new = (old + spread * torch.randn(sequences, tokens, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(sequences, 1, generator=generator, dtype=torch.float64).expand(sequences, tokens)
    lengths = torch.randint(1, tokens + 1, (sequences, 1), generator=generator)
    return new, old, advantages, torch.arange(tokens)[None, :] < lengths


def per_token(name: str, ratios: list[float], advantages: list[float], **knobs: float | None):
    """The loss of single-token rows with these ratios, and the gradient with respect to their log-probs."""
    old = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    new = (old + tensor(*ratios).log()).requires_grad_()
    loss, clipped = TOKEN_LOSSES[name](new, old, tensor(*advantages), torch.arange(len(ratios)), **knobs)
    loss.sum().backward()
    assert new.grad is not None
    return loss.tolist(), clipped.tolist(), new.grad.tolist()


# --- PPO -----------------------------------------------------------------------------------------------------------


def test_ppo_by_hand():
    # A = 1: r = 1.5 is cut at 1.2, r = 0.5 is not; A = −1: r = 0.5 is held at 0.8, r = 1.5 is not
    loss, clipped, gradient = per_token("ppo", [1.5, 0.5, 0.5, 1.5, 1.0], [1, 1, -1, -1, 2])
    assert loss == pytest.approx([-1.2, -0.5, 0.8, 1.5, -2.0])
    assert clipped == [True, False, True, False, False]
    # −A r where nothing is clipped, 0 where it is
    assert gradient == pytest.approx([0, -0.5, 0, 1.5, -2.0])


def test_ppo_clip_higher():
    loss, clipped, _ = per_token("ppo", [1.25, 1.3, 0.85], [1, 1, -1], clip_low=0.1, clip_high=0.28)
    assert loss == pytest.approx([-1.25, -1.28, 0.9])
    assert clipped == [False, True, True]


def test_dual_clip_by_hand():
    # A = −2, c = 3: r = 5 → min(max(10, 2.4), 6) = 6 without a gradient; r = 2 → 4; A = 2: untouched
    loss, clipped, gradient = per_token("ppo", [5.0, 2.0, 5.0], [-2, -2, 2], dual_clip=3.0)
    assert loss == pytest.approx([6.0, 4.0, -2.4])
    assert clipped == [True, False, True]
    assert gradient == pytest.approx([0.0, 4.0, 0.0])
    assert per_token("ppo", [5.0], [-2.0])[0] == pytest.approx([10.0])
    assert per_token("ppo", [5.0], [-2.0], dual_clip=0)[0] == pytest.approx([10.0])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    ratio=st.floats(0.05, 8.0),
    advantage=st.floats(-3, 3),
    low=st.floats(0, 0.9),
    high=st.floats(0, 2.0),
    dual=st.sampled_from([None, 1.5, 3.0]),
)
def test_ppo_is_the_formula(ratio: float, advantage: float, low: float, high: float, dual: float | None):
    r = exp(log(ratio))
    expected = max(-advantage * r, -advantage * min(max(r, 1 - low), 1 + high))
    if advantage < 0 and dual:
        expected = min(expected, -advantage * dual)
    loss, _, _ = per_token("ppo", [ratio], [advantage], clip_low=low, clip_high=high, dual_clip=dual)
    assert loss[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_the_examples_of_the_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"envrl.objective.losses.{name}"))
    assert result.attempted >= 3
    assert result.failed == 0


def test_at_ratio_one_every_loss_has_the_policy_gradient():
    old = tensor(-0.3, -1.0, -2.0, -0.7)
    advantages = tensor(1.5, 1.5, -0.5, -0.5)
    for name in EVERY:
        new = old.clone().requires_grad_()
        loss, clipped = TOKEN_LOSSES[name](new, old, advantages, torch.tensor([0, 0, 1, 1]))
        loss.sum().backward()
        assert new.grad is not None
        torch.testing.assert_close(new.grad, -advantages)
        assert not clipped.any()


def test_huge_ratios_stay_finite_in_float32():
    # exp(100) overflows float32, and 0 · inf is not a number
    old, new = torch.full((3,), -100.0), torch.zeros(3, requires_grad=True)
    for name in EVERY:
        loss, _ = TOKEN_LOSSES[name](new, old, torch.tensor([1.0, 0.0, -1.0]), torch.arange(3))
        (gradient,) = torch.autograd.grad(loss.sum(), new)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


# --- GSPO ----------------------------------------------------------------------------------------------------------


def test_gspo_has_one_ratio_a_sequence():
    # log-ratios 0.1 and 0.3 of row 0: mean 0.2; −0.4 of row 1
    old, row = tensor(-1, -1, -1), torch.tensor([0, 0, 1])
    new = tensor(-0.9, -0.7, -1.4)
    loss, clipped = TOKEN_LOSSES["gspo"](new, old, tensor(1, 1, -1), row, clip_low=0.5, clip_high=0.5)
    assert loss.tolist() == pytest.approx([-exp(0.2), -exp(0.2), exp(-0.4)])
    assert not clipped.any()
    loss, clipped = TOKEN_LOSSES["gspo"](new, old, tensor(1, 1, -1), row)
    assert loss.tolist() == pytest.approx([-1.2, -1.2, 0.8])
    assert clipped.all()


def test_gspo_gradient_reaches_each_token_through_its_own_logprob():
    # unequal advantages inside a row: token t gets −A_t s, not a share of the others'
    old = tensor(-1, -1, -1)
    new = tensor(-0.95, -0.9, -1.03).requires_grad_()
    advantages = tensor(2.0, -1.0, 0.0)
    loss, _ = TOKEN_LOSSES["gspo"](new, old, advantages, torch.zeros(3, dtype=torch.long))
    loss.sum().backward()
    s = exp((0.05 + 0.1 - 0.03) / 3)
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-2 * s, s, 0.0])


def test_gspo_sequence_mean_has_the_gradient_of_the_sequence_objective():
    # with one advantage a sequence: L = −mean_i A_i exp(mean_t log-ratio), differentiated as it stands
    new, old, advantages, mask = batch(0, spread=0.05)
    (found,) = torch.autograd.grad(LOSSES["gspo"](new, old, advantages, mask), new)
    counts = mask.sum(1)
    mean = ((new - old) * mask).sum(1) / counts
    (expected,) = torch.autograd.grad(-(advantages[:, 0] * mean.exp()).mean(), new)
    torch.testing.assert_close(found, expected)


def test_gspo_does_not_depend_on_the_order_of_tokens_or_the_numbering_of_rows():
    old, new, advantages = tensor(-1, -2, -1, -0.5), tensor(-1.1, -1.7, -1.2, -0.4), tensor(1, 1, -1, -1)
    straight, _ = TOKEN_LOSSES["gspo"](new, old, advantages, torch.tensor([0, 0, 1, 1]))
    order = torch.tensor([2, 0, 3, 1])
    mixed, _ = TOKEN_LOSSES["gspo"](new[order], old[order], advantages[order], torch.tensor([5, 2, 5, 2]))
    torch.testing.assert_close(mixed, straight[order])


# --- CISPO ---------------------------------------------------------------------------------------------------------


def test_cispo_by_hand_keeps_a_gradient_where_ppo_has_none():
    # weights clip(r) = 1.2, 0.8, 1.1; loss −w A logprob with logprob = −1 + log r
    loss, clipped, gradient = per_token("cispo", [1.5, 0.5, 1.1], [1, -1, 2])
    assert loss == pytest.approx([-1.2 * (-1 + log(1.5)), 0.8 * (-1 + log(0.5)), -2.2 * (-1 + log(1.1))])
    assert gradient == pytest.approx([-1.2, 0.8, -2.2])
    assert clipped == [True, True, False]


def test_cispo_dual_clip_caps_the_weight_of_negative_advantages():
    _, _, gradient = per_token("cispo", [6.0, 6.0], [-1, 1], clip_high=4.0, dual_clip=3.0)
    assert gradient == pytest.approx([3.0, -5.0])


# --- Clip-Cov ------------------------------------------------------------------------------------------------------


def test_clip_cov_draws_among_the_tokens_within_its_bounds() -> None:
    """Ten tokens of A = ±1 (mean 0); log-probs −1 … −10 (mean −5.5), so covariances 4.5, −3.5, 2.5, −1.5, 0.5, 0.5, …

    The sixth to tenth have A = −1, 1, −1, 1, −1: 0.5, −1.5, 2.5, −3.5, 4.5.
    """
    logprobs = -np.arange(1.0, 11.0)
    advantages = np.resize([1.0, -1.0], 10)
    loss = TOKEN_LOSSES["clip_cov"]

    def dropped(key: int, **knobs: float) -> list[int]:
        return np.flatnonzero(loss.beforehand(logprobs, advantages, key, **knobs)).tolist()

    assert dropped(0, cov_ratio=1.0, cov_low=1.0, cov_high=5.0) == [0, 2, 7, 9]
    assert dropped(0, cov_ratio=1.0, cov_low=1.0, cov_high=3.0) == [2, 7]
    assert dropped(0, cov_ratio=0.0) == []
    assert dropped(0, cov_ratio=0.5, cov_low=4.6) == []
    drawn = [tuple(dropped(key, cov_ratio=0.2)) for key in range(40)]
    assert {len(each) for each in drawn} == {2}
    assert {token for each in drawn for token in each} == {0, 2, 7, 9}
    assert dropped(7, cov_ratio=0.2) == list(drawn[7])
    assert {len(dropped(key, cov_ratio=0.01)) for key in range(10)} == {1}  # at least one, as the published code


def test_clip_cov_is_ppo_on_all_other_tokens() -> None:
    new, old, advantages, mask = batch(4, sequences=8)
    given = new[mask], old[mask], advantages[mask], mask.nonzero()[:, 0]
    plain, clipped = TOKEN_LOSSES["ppo"](*given, dual_clip=3.0)
    knobs = {"dual_clip": 3.0, "cov_ratio": 0.3, "cov_low": 0.2}
    loss, left_out = TOKEN_LOSSES["clip_cov"](*given, **knobs)
    dropped = torch.from_numpy(TOKEN_LOSSES["clip_cov"].beforehand(given[1].numpy(), given[2].numpy(), **knobs)) > 0
    assert 0 < int(dropped.sum()) <= 0.3 * len(dropped)
    assert torch.equal(loss, plain.masked_fill(dropped, 0.0))
    assert torch.equal(left_out, clipped | dropped)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    assert not gradient[mask][dropped].any()


# --- a loss of one's own -------------------------------------------------------------------------------------------


def test_a_loss_of_ones_own_may_look_at_all_tokens_beforehand() -> None:
    """The share of the tokens with the largest advantages learns; a function that returns anything else is refused."""

    def largest(logprobs_N: np.ndarray, advantages_N: np.ndarray, key: int, *, share: float) -> np.ndarray:
        return (advantages_N >= np.quantile(advantages_N, 1.0 - share)).astype(float)

    @register("loss", "best", beforehand=largest)
    def best(logprobs_N, old_logprobs_N, advantages_N, row_N, best_N, *, share: float = 0.5):
        return -best_N * advantages_N * logprobs_N

    @register("loss", "short", beforehand=lambda logprobs_N, advantages_N, key: advantages_N[1:])
    def short(logprobs_N, old_logprobs_N, advantages_N, row_N, told_N):
        return logprobs_N

    given = tensor(-1, -1, -1, -1), tensor(-1, -1, -1, -1), tensor(4, 3, 2, 1), torch.tensor([0, 0, 1, 1])
    assert TOKEN_LOSSES["best"](*given).loss_N.tolist() == [4, 3, 0, 0]
    assert TOKEN_LOSSES["best"](*given, share=0.25).loss_N.tolist() == [4, 0, 0, 0]
    assert TOKEN_LOSSES["best"](*given, tensor(0, 0, 0, 1)).loss_N.tolist() == [0, 0, 0, 1]  # told of a whole step
    padded = [each.reshape(2, 2) for each in given[:3]]
    assert LOSSES["best"](*padded, torch.ones(2, 2)).item() == pytest.approx(7 / 4)
    with pytest.raises(UserError, match=r"'short' is told beforehand must be one number a token, 4 in all"):
        TOKEN_LOSSES["short"](*given)
    with pytest.raises(UserError, match="has no setting 'shar'; did you mean 'share'"):
        TOKEN_LOSSES["best"].beforehand(np.zeros(4), np.zeros(4), shar=0.5)


# --- aggregation ---------------------------------------------------------------------------------------------------


def test_row_weights_by_hand():
    weights, shares = row_weights([3, 0, 1], "token_mean")
    assert (weights.tolist(), shares.tolist()) == ([1, 0, 1], [3, 0, 1])
    weights, shares = row_weights([4, 0, 1], "sequence_mean")
    assert (weights.tolist(), shares.tolist()) == ([0.25, 0, 1], [1, 0, 1])
    weights, shares = row_weights([4, 0, 1], "constant", 8)
    assert (weights.tolist(), shares.tolist()) == ([1, 0, 1], [8, 0, 8])


def test_aggregations_by_hand():
    # ratio 1, so the token loss is −A: sequences of 1 and 3 tokens with A = 4 and 1
    old = torch.zeros(2, 3, dtype=torch.float64)
    advantages = torch.tensor([[4.0, 0, 0], [1, 1, 1]], dtype=torch.float64)
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])

    def loss(name: str = "ppo", **knobs) -> float:
        return LOSSES[name](old, old, advantages, mask, **knobs).item()

    assert loss() == pytest.approx(-7 / 4)
    assert loss(aggregation="token_mean") == pytest.approx(-7 / 4)
    assert loss(aggregation="sequence_mean") == pytest.approx(-5 / 2)
    assert loss(aggregation="constant", constant=10) == pytest.approx(-7 / 20)
    assert loss("gspo") == pytest.approx(-5 / 2)
    assert loss("gspo", aggregation="token_mean") == pytest.approx(-7 / 4)
    assert loss("cispo") == 0.0  # log-probs of 0


@pytest.mark.parametrize("name", SEPARABLE)
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_micro_batches_add_up_exactly(name: str, aggregation: str):
    new, old, advantages, mask = batch(3, sequences=7)
    knobs = {"aggregation": aggregation, "constant": 6.0, "dual_clip": 3.0}
    whole = LOSSES[name](new, old, advantages, mask, **knobs)
    (expected,) = torch.autograd.grad(whole, new)
    _, shares = row_weights(mask.sum(1).tolist(), aggregation, 6.0)
    total = torch.zeros_like(new)
    for rows in ([0], [1, 2, 3], [4, 5], [6]):
        part = LOSSES[name](new[rows], old[rows], advantages[rows], mask[rows], **knobs)
        total += torch.autograd.grad(part * float(shares[rows].sum() / shares.sum()), new)[0]
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_what_is_masked_out_never_counts(name: str, aggregation: str):
    new, old, advantages, mask = batch(5)
    knobs = {"aggregation": aggregation, "constant": 6.0}
    clean = LOSSES[name](new, old, advantages, mask, **knobs)
    # a row without tokens and garbage outside the mask
    dirty_new = torch.cat([new.detach().masked_fill(~mask, float("nan")), torch.full((1, 6), float("nan"))])
    dirty_new.requires_grad_()
    dirty = LOSSES[name](
        dirty_new,
        torch.cat([old.masked_fill(~mask, -float("inf")), torch.zeros(1, 6)]),
        torch.cat([advantages, torch.ones(1, 6)]),
        torch.cat([mask, torch.zeros(1, 6, dtype=torch.bool)]),
        **knobs,
    )
    assert dirty.item() == clean.item()
    (gradient,) = torch.autograd.grad(dirty, dirty_new)
    assert torch.isfinite(gradient).all()
    assert not gradient[:-1][~mask].any()


@pytest.mark.parametrize("name", EVERY)
def test_nothing_counted_is_a_loss_of_zero(name: str):
    new = torch.zeros(2, 3, requires_grad=True)
    loss = LOSSES[name](new, new.detach(), new.detach(), torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == 0
    assert new.grad is not None
    assert not new.grad.any()


@pytest.mark.parametrize("name", EVERY)
def test_the_wrapper_is_the_token_loss_and_its_weights(name: str):
    new, old, advantages, mask = batch(8)
    row = mask.nonzero()[:, 0]
    loss, _ = TOKEN_LOSSES[name](new[mask], old[mask], advantages[mask], row, clip_high=0.3)
    weights, shares = row_weights(mask.sum(1).tolist(), "sequence_mean")
    by_hand = (torch.from_numpy(weights)[row] * loss).sum() / shares.sum()
    torch.testing.assert_close(
        LOSSES[name](new, old, advantages, mask, clip_high=0.3, aggregation="sequence_mean"), by_hand
    )


# --- KL and entropy ------------------------------------------------------------------------------------------------


def test_k3_by_hand():
    # d = log(0.5/0.25) = log 2: 2 − log 2 − 1; the gradient with respect to logprob is 1 − exp(d) = −1
    logprob = tensor(log(0.25)).requires_grad_()
    value = kl_k3(logprob, tensor(log(0.5)))
    value.sum().backward()
    assert value.item() == pytest.approx(1 - log(2))
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(-1.0)


def test_k3_has_the_kl_as_its_mean_and_is_never_negative():
    p, q = tensor(0.7, 0.2, 0.1), tensor(0.5, 0.25, 0.25)
    assert (p * kl_k3(p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item())
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(1000, generator=generator) * 1e-4
    assert (kl_k3(near, torch.zeros(1000)) >= -1e-10).all()  # float32, where exp(d) − d − 1 is off by 6e-8


def test_entropy_of_restricted_distributions():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 3.0, -2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    ruled_out = torch.tensor([[False, False, True, False], [True, False, True, True]])
    logprobs = logits.masked_fill(ruled_out, -float("inf")).log_softmax(-1)
    found = entropy(logprobs)
    assert found.tolist() == pytest.approx([log(3), 0.0])
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(gradient).all()
    full = logits.detach().log_softmax(-1)
    torch.testing.assert_close(entropy(full), torch.distributions.Categorical(logits=logits.detach()).entropy())


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("pppo", {}, "unknown policy loss 'pppo'; did you mean 'ppo'?"),
        ("ppo", {"clip_hi": 0.3}, "the policy loss 'ppo' has no setting 'clip_hi'; did you mean 'clip_high'?"),
        ("gspo", {"clip_low": 1.5}, "clip_low must be between 0 and 1"),
        ("ppo", {"dual_clip": 0.5}, "dual_clip must be above 1"),
        ("clip_cov", {"cov_low": 5.0}, "cov_low = 5 must be below cov_high = 5"),
        ("ppo", {"cov_low": 5.0}, "the policy loss 'ppo' has no setting 'cov_low'"),
        ("ppo", {"aggregation": "tokens_mean"}, "did you mean 'token_mean'?"),
        ("ppo", {"aggregation": "constant"}, "needs constant="),
    ],
)
def test_mistakes_are_sentences(name: str, knobs: dict, words: str):
    x = torch.zeros(1, 2)
    with pytest.raises(UserError) as caught:
        LOSSES[name](x, x, x, torch.ones(1, 2), **knobs)
    assert words in str(caught.value)


def test_unequal_shapes_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(UserError, match=r"advantages \(2,\)"):
        LOSSES["ppo"](x, x, torch.zeros(2), torch.ones(2, 3))


def test_reached_from_the_package():
    assert envrl.objective.policy.LOSSES is LOSSES
    assert sorted(LOSSES) == EVERY
    assert np.allclose(envrl.objective.aggregation.row_weights([2], "token_mean")[1], 2)


def test_truncated_importance_is_the_ratio_up_to_the_cap() -> None:
    old, sampled = torch.tensor([-1.0, -1.0, -1.0, -90.0, -1.0]), torch.tensor([-1.0, -0.5, -1.5, -1.0, -90.0])
    old.requires_grad_()
    found = truncated_importance(old, sampled, 1.5)
    assert found.tolist() == pytest.approx([1.0, exp(-0.5), 1.5, exp(-20.0), 1.5])
    assert not found.requires_grad
