"""The optimiser step: its loss by hand, accumulation, restriction, several steps a batch, bf16, bad numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxes import Boxes, grouped, tiny
from envrl.batches.batch import build_batch
from envrl.build import form_of, play_settings, renderer_of
from envrl.config.schema import Config
from envrl.engine.local import LocalEngine
from envrl.engine.optimizer import adamw
from envrl.engine.update import LossSettings, Totals, accumulate, clip_gradient, micro_loss, policy_logprobs
from envrl.errors import RunError
from envrl.models.load import LanguageModel, build_model, save_model
from envrl.models.runtime import prepare_torch
from envrl.samples.packing import denominators
from envrl.samples.rows import policy_rows, ragged
from envrl.trainer.regularizing import Regularizers
from envrl.types import LossTerm, Row, Trajectory
from playing import play_model

TEXTS = [
    f"There are four boxes in room {n}. It is empty. You open box {n % 4 + 1} and find the key." for n in range(48)
]
SAME = {"schedule": "constant", "deduplicate": False}
INVERSE = {"inverse": {"weight": 0.1, **SAME}}
AUXILIARY = {"state": {"weight": 0.2, **SAME}, **INVERSE}


def make_model(config: Config | None = None, seed: int = 0) -> LanguageModel:
    prepare_torch(1)
    config = config or tiny()
    return build_model(config.model, [*TEXTS, *(f"open box {n}" for n in (1, 2, 3, 4))] * 8, seed)


def play(model: LanguageModel, config: Config, tasks: int = 4) -> list[Trajectory]:
    chosen = [task for task in Boxes().tasks("train")[:tasks] for _ in range(config.rollout.group_size)]
    members = [i % config.rollout.group_size for i in range(len(chosen))]
    return play_model(
        model,
        renderer_of(model, form_of(config)),
        Boxes,
        chosen,
        members,
        play_settings(config, config.rollout.temperature),
        seed=0,
        update=1,
    )


def make_rows(model: LanguageModel, config: Config) -> list[Row]:
    groups = grouped(play(model, config), config.rollout.group_size)
    return build_batch(groups, config, renderer_of(model, form_of(config)), 1).rows


def gradient(model: LanguageModel) -> torch.Tensor:
    """Return all gradients as one vector, and clear them."""
    found = torch.cat([p.grad.flatten() for p in model.network.parameters() if p.grad is not None])
    model.network.zero_grad(set_to_none=True)
    return found


# --- the loss, by hand -----------------------------------------------------------------------------------------------


def test_a_batch_of_two_rows_has_the_loss_of_the_formula() -> None:
    """λ_c and N_c worked out beside the code: a clipped token, a restricted one, two components of unequal lengths."""
    model = make_model()
    allowed = ragged([(11, 12, 40), None])
    policy = LossTerm(
        "policy",
        np.array([2, 3], dtype=np.int32),
        np.array([0.5, 0.5], dtype=np.float32),
        1.0,
        {"advantages": np.array([1.5, 1.5], dtype=np.float32), "sampled_logprobs": np.zeros(2, dtype=np.float32)},
        allowed,
    )
    row = Row(np.array([30, 31, 12, 33], dtype=np.int32), (policy,), "a")
    state = LossTerm("state", np.array([1, 2, 4], dtype=np.int32), np.ones(3, dtype=np.float32), 3.0)
    other = Row(np.array([50, 51, 52, 53, 54], dtype=np.int32), (state,), "b")
    settings_ = LossSettings(
        {"policy": 1.0, "state": 0.2, "entropy": 0.01, "kl": 0.3}, knobs={"clip_low": 0.2, "clip_high": 0.2}
    )

    def full(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.network(torch.tensor(ids[None].astype(np.int64))).logits[0].double().numpy()

    def log_softmax(values: np.ndarray) -> np.ndarray:
        return values - np.log(np.exp(values - values.max()).sum()) - values.max()

    logits = full(row.token_ids)
    restricted, free = log_softmax(logits[1][[11, 12, 40]]), log_softmax(logits[2])
    first, second = restricted[1], free[33]
    # the first token's ratio e^0.5 is above 1.2 and clipped there, the second one's e^-0.1 is not
    old = {"a": np.array([first - 0.5, second + 0.1])}
    reference = {"a": np.array([first + 0.2, second - 0.4])}
    surrogate = 0.5 * (-1.5 * 1.2) + 0.5 * (-1.5 * math.exp(-0.1))
    entropy = 0.5 * -(np.exp(restricted) * restricted).sum() + 0.5 * -(np.exp(free) * free).sum()
    kl = 0.5 * (math.exp(0.2) - 0.2 - 1) + 0.5 * (math.exp(-0.4) + 0.4 - 1)
    state_logits = full(other.token_ids)
    nll = -sum(log_softmax(state_logits[p - 1])[other.token_ids[p]] for p in (1, 2, 4)) / 3
    expected = surrogate - 0.01 * entropy + 0.3 * kl + 0.2 * nll

    totals, value = accumulate(model, [row, other], settings_, old, reference)
    model.network.zero_grad()
    assert value == pytest.approx(expected, abs=2e-6)
    assert totals.mean("clip_fraction") == 0.5
    assert totals.mean("loss/state") == pytest.approx(nll, abs=1e-6)
    assert totals.mean("kl") == pytest.approx(kl, abs=1e-6)
    assert totals.mean("entropy") == pytest.approx(entropy, abs=1e-6)


def exact(model: LanguageModel) -> None:
    """Have the network calculate in float64, its norms too, which round to fp32 otherwise."""

    def norm(layer: Any, states: torch.Tensor) -> torch.Tensor:
        return layer.weight * states * (states.square().mean(-1, keepdim=True) + layer.variance_epsilon).rsqrt()

    model.network.double()
    for layer in model.network.modules():
        if type(layer).__name__.endswith("RMSNorm"):
            layer.forward = partial(norm, layer)


# --- accumulation ----------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "token_mean": {"auxiliary": AUXILIARY, "objective": {"aggregation": "token_mean"}},
    "sequence_mean": {"auxiliary": AUXILIARY, "objective": {"aggregation": "sequence_mean"}},
    "gspo": {"auxiliary": AUXILIARY, "objective": {"loss": "gspo"}},
    "cispo": {"auxiliary": AUXILIARY, "objective": {"loss": "cispo", "aggregation": "token_mean"}},
    "clip_cov": {
        "auxiliary": AUXILIARY,
        "objective": {"loss": "clip_cov"},
        "owned": {"objective.clip_cov.cov_ratio": 0.2, "objective.clip_cov.cov_low": 0.0},
    },
    "epo": {
        "auxiliary": AUXILIARY,
        "owned": {"regularizer.epo.weight": 0.5, "regularizer.epo.lower": 1.5, "regularizer.epo.upper": 2.0},
    },
    "in_pass": {"auxiliary": {"echo": {"weight": 0.2, **SAME}, **INVERSE}},
    "steps": {"auxiliary": AUXILIARY, "rollout": {"layout": "steps"}},
    "free": {"auxiliary": AUXILIARY, "rollout": {"actions": "free", "invalid_penalty": 0.1}, "env": {"max_steps": 4}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_is_the_same_for_any_micro_batch_size(variant: str) -> None:
    """All five components at once, off the first step (so that ratios are not 1), in float64, to 1e-9."""
    config = tiny(**{"rollout": {}, **VARIANTS[variant]})
    model = make_model(config)
    rows = make_rows(model, config)
    if variant == "free":  # every episode fails, so that no group has a gradient of its own
        rows += [row for trajectory in play(model, config) for row in given_advantages(trajectory)]
    components = {term.component for row in rows for term in row.terms}
    assert components == {"policy", "echo" if variant == "in_pass" else "state", "inverse"}
    weights = {"policy": 1.0, "state": 0.2, "echo": 0.2, "inverse": 0.1, "entropy": 0.01, "kl": 0.05}
    regularizers = Regularizers(config)
    regularizers.observe({"entropy": 0.7})
    weights |= dict.fromkeys(regularizers, 0.5)
    loss = LossSettings(weights, config.objective.loss, config.settings("loss"), regularizers=regularizers)
    old, reference = (policy_logprobs(make_model(config, seed), rows, loss) for seed in (1, 2))
    exact(model)
    found = []
    sizes = set()
    for budget in (1, 64, 200, 10**6):
        totals, value = accumulate(model, rows, replace(loss, micro_batch_tokens=budget), old, reference)
        found.append((value, gradient(model)))
        sizes.add(totals.tokens)
        assert found[-1][1].dtype == torch.float64
    assert len(sizes) == 1
    whole_value, whole = found[-1]
    assert whole.abs().max() > 0.01
    for value, each in found[:-1]:
        assert value == pytest.approx(whole_value, abs=1e-9)
        assert float((each - whole).abs().max()) < 1e-9


def given_advantages(trajectory: Trajectory) -> list[Row]:
    """Return a trajectory's policy rows with advantages 1, 2, … of its steps."""
    return policy_rows(trajectory, np.arange(1.0, len(trajectory.transitions) + 1), "token_mean")


def _with_advantage(term: LossTerm, advantage: float) -> LossTerm:
    if "advantages" not in term.streams:
        return term
    return replace(term, streams={**term.streams, "advantages": np.full_like(term.streams["advantages"], advantage)})


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_the_rows_changes_nothing(seed: int) -> None:
    config = tiny(auxiliary=AUXILIARY)
    model = make_model(config)
    rows = make_rows(model, config)
    exact(model)
    loss = LossSettings({"policy": 1.0, "state": 0.2, "inverse": 0.1}, micro_batch_tokens=300)
    _, value = accumulate(model, rows, loss)
    expected = gradient(model)
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    _, again = accumulate(model, shuffled, loss)
    assert again == pytest.approx(value, abs=1e-12)
    assert float((gradient(model) - expected).abs().max()) < 1e-12


def test_the_policy_gradient_is_that_of_reinforce_at_the_first_step() -> None:
    """With ratio 1 the surrogate's gradient is −Σ w A ∇log p / N: compared with autograd on the plain formula."""
    config = tiny()
    model = make_model(config)
    rows = [row for row in make_rows(model, config) if row.terms[0].component == "policy"]
    loss = LossSettings({"policy": 1.0}, knobs={"clip_low": 0.2, "clip_high": 0.2})
    exact(model)
    accumulate(model, rows, loss)
    found = gradient(model)
    share = denominators(rows)["policy"]
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        term = row.terms[0]
        assert term.allowed is not None
        logits = model.network(torch.tensor(row.token_ids[None].astype(np.int64))).logits[0]
        for place, position in enumerate(term.positions_T):
            choices = term.allowed.values[term.allowed.offsets[place] : term.allowed.offsets[place + 1]].tolist()
            logprobs = logits[position - 1, choices].log_softmax(-1)
            chosen = logprobs[choices.index(int(row.token_ids[position]))]
            total = total - float(term.weights_T[place]) * float(term.streams["advantages"][place]) * chosen / share
    total.backward()
    assert float((gradient(model) - found).abs().max()) < 1e-7


# --- what was sampled is what is trained on --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rollout", [{}, {"layout": "steps"}, {"actions": "free"}, {"show_admissible": True}, {"repeat_task": True}]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_trainer_finds_the_log_probs_that_the_sampler_recorded(rollout: dict, temperature: float) -> None:
    config = tiny(rollout={**rollout, "temperature": temperature}, objective={"aggregation": "token_mean"})
    model = make_model(config)
    batch = play(model, config)
    rows = [row for trajectory in batch for row in given_advantages(trajectory)]
    found = policy_logprobs(model, rows, LossSettings({"policy": 1.0}, temperature=temperature))
    gaps = [np.abs(found[row.origin] - row.terms[0].streams["sampled_logprobs"]).max() for row in rows]
    assert len(gaps) >= len(batch)
    assert max(gaps) < 1e-4
    if not rollout:  # of "open box n" only n is a choice: four numbers, more or less equally likely at the start
        assert all(len(row.terms[0].positions_T) == len(row.terms[0].streams["advantages"]) <= 3 for row in rows)


def test_layers_that_are_run_again_change_no_update(tmp_path: Path) -> None:
    """Also in bf16 and with several steps."""
    plain = tiny(auxiliary=AUXILIARY, train={"epochs": 2, "precision": "bf16"})
    again = replace(plain, train=replace(plain.train, checkpointing=True))
    models = [make_model(plain), make_model(plain)]
    rows = make_rows(models[0], plain)
    figures = [
        optimization(config, model, tmp_path).step(rows, {"state": 0.2, "inverse": 0.1}, 1)
        for config, model in zip((plain, again), models, strict=True)
    ]
    assert figures[0] == figures[1]
    weights = [list(model.network.parameters()) for model in models]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))


# --- sampler and trainer ---------------------------------------------------------------------------------------------


def as_sampled(rows: list[Row], gaps: np.ndarray, logprobs: dict[str, np.ndarray]) -> list[Row]:
    """Return the rows as a sampler would have left them that found each token's log-prob lower by its gap."""
    result, start = [], 0
    for row in rows:
        term = row.terms[0]
        own = gaps[start : start + len(term.positions_T)].astype(np.float32)
        start += len(own)
        result.append(
            replace(
                row, terms=(replace(term, streams={**term.streams, "sampled_logprobs": logprobs[row.origin] - own}),)
            )
        )
    return result


def test_truncated_importance_weighs_each_token_by_what_the_sampler_missed(tmp_path: Path) -> None:
    """min(exp(gap), 2) times the token's own gradient: compared with rows whose weights say the same."""
    config = tiny(objective={"aggregation": "token_mean"})
    model = make_model(config)
    rows = [row for row in make_rows(model, config) if row.terms[0].component == "policy"]
    count = sum(len(row.terms[0].positions_T) for row in rows)
    gaps = np.linspace(-1.0, 1.5, count)
    settings_ = LossSettings({"policy": 1.0}, knobs={"clip_low": 0.2, "clip_high": 0.2})
    rows = as_sampled(rows, gaps, policy_logprobs(model, rows, settings_))
    totals, value = accumulate(model, rows, replace(settings_, importance_cap=2.0))
    found = gradient(model)
    weights, start, weighted = np.minimum(np.exp(gaps), 2.0).astype(np.float32), 0, []
    for row in rows:
        term = row.terms[0]
        own = weights[start : start + len(term.positions_T)]
        start += len(own)
        weighted.append(replace(row, terms=(replace(term, weights_T=term.weights_T * own),)))
    _, expected = accumulate(model, weighted, settings_)
    assert value == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(gradient(model), found, rtol=1e-4, atol=1e-6)
    assert totals.mean("importance") == pytest.approx(weights.mean(), rel=1e-5)
    assert totals.mean("importance_capped") == pytest.approx((gaps >= math.log(2.0)).mean())
    figures = totals.figures()
    assert figures["sampler_mismatch"] == pytest.approx(np.abs(gaps).mean(), rel=1e-4)
    assert figures["sampler_mismatch_max"] == pytest.approx(1.5, rel=1e-4)
    accumulate(model, rows, settings_)
    assert not torch.allclose(gradient(model), found, rtol=1e-2, atol=1e-5), "without a cap nothing is weighed"


@pytest.mark.parametrize(("cap", "mask"), [(0.0, 0.0), (1.5, 0.0), (0.0, 1.5), (3.0, 2.0)])
def test_what_an_earlier_policy_played_is_weighed_by_how_its_probability_changed(cap: float, mask: float) -> None:
    """ρ times the token's own gradient, ρ at most the cap and inside the mask: as rows whose weights say the same."""
    config = tiny(objective={"aggregation": "token_mean"})
    model = make_model(config)
    rows = [row for row in make_rows(model, config) if row.terms[0].component == "policy"]
    gaps = np.linspace(-1.0, 1.5, sum(len(row.terms[0].positions_T) for row in rows))
    unclipped = LossSettings({"policy": 1.0}, knobs={"clip_low": 1.0, "clip_high": 1e6})
    rows = as_sampled(rows, gaps, policy_logprobs(model, rows, unclipped))
    ratios, start, stale, weighted = np.exp(gaps), 0, [], []
    expected_N = np.minimum(ratios, cap or np.inf)
    if mask:
        expected_N = expected_N * ((ratios <= mask) & (ratios >= 1 / mask))
    for row in rows:
        term = row.terms[0]
        own = expected_N[start : start + len(term.positions_T)].astype(np.float32)
        start += len(own)
        weighted.append(replace(row, terms=(replace(term, weights_T=term.weights_T * own),)))
        streams = {**term.streams, "old_logprobs": term.streams["sampled_logprobs"]}
        stale.append(replace(row, terms=(replace(term, streams=streams),)))
    totals, _ = accumulate(model, stale, replace(unclipped, importance_cap=cap, importance_mask=mask))
    found, figures = gradient(model), totals.figures()
    accumulate(model, weighted, unclipped)
    assert torch.allclose(gradient(model), found, rtol=1e-4, atol=1e-6)
    assert figures["effective_sample_size"] == pytest.approx(ratios.mean() ** 2 / (ratios**2).mean(), rel=1e-4)
    assert "sampler_mismatch" not in figures, "nobody knows it: the weights that played are gone"
    if mask:
        assert figures["importance_masked"] == pytest.approx(((ratios > mask) | (ratios < 1 / mask)).mean(), abs=1e-6)
    if cap:
        assert figures["importance_capped"] == pytest.approx((ratios > cap).mean(), abs=1e-6)


def test_the_cap_of_stale_tokens_is_that_of_the_weight_in_the_loss() -> None:
    """CISPO's weight is the clipped ratio and GSPO's that of the row: neither is cut down by a token's own ratio."""
    config = tiny(rollout={"layout": "steps"})
    model = make_model(config)
    rows = [row for row in make_rows(model, config) if row.terms[0].component == "policy"]
    counts = [len(row.terms[0].positions_T) for row in rows]
    gaps = np.linspace(-1.0, 1.5, sum(counts))
    rows = as_sampled(rows, gaps, policy_logprobs(model, rows, LossSettings({"policy": 1.0})))
    stale = []
    for row in rows:
        streams = {**row.terms[0].streams, "old_logprobs": row.terms[0].streams["sampled_logprobs"]}
        stale.append(replace(row, terms=(replace(row.terms[0], streams=streams),)))
    by_row = np.split(gaps, np.cumsum(counts)[:-1])
    means = np.concatenate([np.full(len(part), part.mean()) for part in by_row])
    bounds = {"clip_low": 1.0, "clip_high": 0.5, "dual_clip": 0.0}
    wide = {"clip_low": 1.0, "clip_high": 1e6, "dual_clip": 0.0}
    expected = {
        ("cispo", 2.0): (bounds, np.ones(len(gaps))),  # no weight is above 1.5
        ("cispo", 1.25): (bounds, np.minimum(1.0, 1.25 / np.minimum(np.exp(gaps), 1.5))),
        ("gspo", 1.25): (wide, np.minimum(1.0, 1.25 / np.exp(means))),
    }
    for (name, cap), (knobs, factors) in expected.items():
        plain = LossSettings({"policy": 1.0}, name, knobs)
        accumulate(model, stale, replace(plain, importance_cap=cap))
        found = gradient(model)
        parts = np.split(factors.astype(np.float32), np.cumsum(counts)[:-1])
        weighted = [
            replace(row, terms=(replace(row.terms[0], weights_T=row.terms[0].weights_T * part),))
            for row, part in zip(stale, parts, strict=True)
        ]
        accumulate(model, weighted, plain)
        assert torch.allclose(gradient(model), found, rtol=1e-4, atol=1e-6)


def test_the_largest_mismatch_of_an_update_is_that_of_all_its_steps(tmp_path: Path) -> None:
    config = tiny(train={"minibatches": 3, "micro_batch_tokens": 64}, objective={"importance_cap": 5.0})
    model = make_model(config)
    rows = [row for row in make_rows(model, config) if row.terms[0].component == "policy"]
    gaps = np.zeros(sum(len(row.terms[0].positions_T) for row in rows))
    gaps[1] = -2.5
    rows = as_sampled(rows, gaps, policy_logprobs(model, rows, LossSettings({"policy": 1.0})))
    figures = optimization(config, model, tmp_path, 1e-5).step(rows, {}, 1)
    assert figures["sampler_mismatch_max"] == pytest.approx(2.5, rel=1e-4)
    assert figures["sampler_mismatch"] < 0.5
    assert figures["importance"] < 1.0
    assert figures["importance_capped"] == 0.0


# --- several steps, the reference ------------------------------------------------------------------------------------


def optimization(config: Config, model: LanguageModel, run: Path, rate: float = 1e-3) -> LocalEngine:
    return LocalEngine(config, model, adamw(model, rate), run, lambda: None)


def test_one_step_has_ratio_one_and_more_steps_move_away(tmp_path: Path) -> None:
    config = tiny()
    one, model = make_model(config), make_model(config)
    rows = make_rows(model, config)
    figures = optimization(config, one, tmp_path).step(rows, {}, 1)
    assert figures["clip_fraction"] == 0.0
    assert figures["sampler_mismatch"] < 1e-5
    assert figures["skipped"] == 0.0
    several = tiny(train={"epochs": 4, "minibatches": 2})
    figures = optimization(several, model, tmp_path, 1e-2).step(rows, {}, 1)
    assert figures["clip_fraction"] > 0.0
    assert figures["sampler_mismatch"] < 1e-5, "old log-probs are those before the first step"


def test_old_log_probs_are_those_before_the_first_step(tmp_path: Path) -> None:
    """Two epochs, done by hand with the same pieces, arrive at the same weights bit for bit."""
    config = tiny(train={"epochs": 2})
    by_hand, model = make_model(config), make_model(config)
    rows = make_rows(model, config)
    optimization(config, model, tmp_path).step(rows, {}, 1)
    knobs = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    loss = LossSettings({"policy": 1.0, "entropy": 0.0, "kl": 0.0}, knobs=knobs, micro_batch_tokens=1024)
    old, optimizer = policy_logprobs(by_hand, rows, loss), adamw(by_hand, 1e-3)
    for _ in range(2):
        accumulate(by_hand, rows, loss, old)
        clip_gradient(list(by_hand.network.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(model.network.parameters(), by_hand.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_reference_is_the_model_that_rl_started_from(tmp_path: Path) -> None:
    config = tiny(objective={"kl_weight": 0.5})
    model, start = make_model(config), make_model(config)
    save_model(start, tmp_path / "warm_start")
    rows = make_rows(model, config)
    steps = optimization(config, model, tmp_path)
    first = steps.step(rows, {}, 1)
    second = steps.step(rows, {}, 2)
    assert first["kl"] == pytest.approx(0.0, abs=1e-9)
    assert second["kl"] > 1e-5
    # a weight so large that it is all that counts pulls the policy back
    strong = optimization(replace(config, objective=replace(config.objective, kl_weight=10.0)), model, tmp_path, 3e-4)
    for update in range(30):
        last = strong.step([_without_advantage(row) for row in rows], {}, 3 + update)
    assert last["kl"] < 0.3 * second["kl"]


def _without_advantage(row: Row) -> Row:
    return replace(row, terms=tuple(_with_advantage(term, 0.0) for term in row.terms))


# --- precision -------------------------------------------------------------------------------------------------------


def test_bf16_is_near_fp32_and_leaves_fp32_weights(tmp_path: Path) -> None:
    config = tiny(auxiliary=AUXILIARY, train={"precision": "bf16"})
    model = make_model(config)
    rows = make_rows(model, config)
    weights = {"policy": 1.0, "state": 0.2, "inverse": 0.1}
    values, gradients = [], []
    for precision in ("fp32", "bf16"):
        _, value = accumulate(model, rows, LossSettings(weights, precision=precision))
        values.append(value)
        gradients.append(gradient(model))
    assert values[1] != values[0]
    assert values[1] == pytest.approx(values[0], abs=0.02)
    cosine = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert float(cosine) > 0.99
    before = [p.detach().clone() for p in model.network.parameters()]
    steps = optimization(config, model, tmp_path)
    figures = steps.step(rows, {"state": 0.2, "inverse": 0.1}, 1)
    assert figures["skipped"] == 0.0
    assert all(p.dtype == torch.float32 for p in model.network.parameters())
    assert all(t.dtype == torch.float32 for t in steps.guard.optimizer.tensors().values())
    changes = [float((p.detach() - old).abs().max()) for p, old in zip(model.network.parameters(), before, strict=True)]
    # Adam's first step is the learning rate in every entry: far below what a bf16 weight near 1 could hold
    assert max(changes) == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_parameter_costs_16_bytes_and_2_more_while_the_graph_holds_its_bf16_copy(checkpointing: bool) -> None:
    """fp32 weight, gradient and two moments; a layer that is run again keeps no copy."""
    config = tiny()
    model, copies = make_model(config), dict[int, torch.Tensor]()
    rows = make_rows(model, config)
    optimizer = adamw(model, 1e-3)
    loss = LossSettings({"policy": 1.0}, precision="bf16", checkpointing=checkpointing)

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes:
            copies[tensor.data_ptr()] = tensor
        return tensor

    layers = [p for p in model.network.get_decoder().layers.parameters() if p.ndim == 2]
    shapes = {size for p in layers for size in (tuple(p.shape), tuple(p.shape)[::-1])}
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        part = micro_loss(model, rows, Totals(), denominators(rows), loss)
    assert sum(t.nbytes for t in copies.values()) == (0 if checkpointing else 2 * sum(p.numel() for p in layers))
    part.backward()
    optimizer.step()
    count = model.size
    held = [*model.network.parameters(), *(p.grad for p in model.network.parameters() if p.grad is not None)]
    moments = [tensor for name, tensor in optimizer.tensors().items() if not name.endswith(".step")]
    assert sum(t.nbytes for t in held) == 8 * count
    assert sum(t.nbytes for t in moments) == 8 * count


def test_gradients_are_scaled_to_the_norm_asked_for() -> None:
    config = tiny()
    model = make_model(config)
    accumulate(model, make_rows(model, config), LossSettings({"policy": 1.0}))
    parameters = list(model.network.parameters())
    before = torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None])
    norm = clip_gradient(parameters, 0.25)
    assert norm == pytest.approx(float(before.norm()), rel=1e-5)
    assert norm > 0.25
    after = gradient(model)
    assert float(after.norm()) == pytest.approx(0.25, rel=1e-5)
    assert torch.allclose(after, before * (0.25 / norm), rtol=1e-5)


# --- numbers that are not finite -------------------------------------------------------------------------------------


def poisoned(rows: list[Row]) -> list[Row]:
    """Return the rows with a NaN in one token's weight."""
    term = rows[0].terms[0]
    weights = term.weights_T.copy()
    weights[0] = np.nan
    return [replace(rows[0], terms=(replace(term, weights_T=weights), *rows[0].terms[1:])), *rows[1:]]


def state_of(steps: LocalEngine) -> list[bytes]:
    tensors = [*steps.model.network.parameters(), *steps.guard.optimizer.tensors().values()]
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


def test_a_bad_number_never_reaches_the_weights(tmp_path: Path) -> None:
    config = tiny()
    model = make_model(config)
    rows = make_rows(model, config)
    steps = optimization(config, model, tmp_path)
    steps.step(rows, {}, 1)
    before = state_of(steps)
    figures = steps.step(poisoned(rows), {}, 7)
    assert state_of(steps) == before
    assert figures["skipped"] == 1.0
    assert all(p.grad is None for p in model.network.parameters())
    file = tmp_path / "skipped" / "update-000007.json"
    saved = json.loads(file.read_text())
    assert [row["token_ids"] for row in saved["rows"]] == [row.token_ids.tolist() for row in rows]
    assert saved["loss"] == "nan"
    assert steps.guard.skips == 1
    steps.step(rows, {}, 8)
    assert steps.guard.skips == 0
    assert state_of(steps) != before


def test_the_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    config = tiny(auxiliary={"state": {"weight": 1e308, "schedule": "constant"}, "inverse": {"weight": 0.1}})
    model = make_model(config)
    rows = make_rows(model, config)
    said: list[str] = []
    steps = LocalEngine(config, model, adamw(model, 1e-3), tmp_path, lambda: None, said.append)
    steps.step(rows, {"state": 1e308, "inverse": 0.1}, 1)
    assert [line.split(";")[0] for line in said] == [
        "update-000001: the loss or its gradient is not finite, for state (weight 1e+308)"
    ]


def test_the_third_in_a_row_ends_the_run(tmp_path: Path) -> None:
    config = tiny()
    model = make_model(config)
    rows = make_rows(model, config)
    steps = optimization(config, model, tmp_path)
    before = state_of(steps)
    for update in (1, 2):
        steps.step(poisoned(rows), {}, update)
    with pytest.raises(RunError, match=r"3 batches in a row .* not finite .*update-000003\.json"):
        steps.step(poisoned(rows), {}, 3)
    assert state_of(steps) == before


def test_each_bad_minibatch_is_saved_under_a_name_of_its_own(tmp_path: Path) -> None:
    config = tiny(train={"minibatches": 2})
    model = make_model(config)
    rows = make_rows(model, config)
    steps = optimization(config, model, tmp_path)
    steps.step([poisoned([row])[0] for row in rows], {}, 4)
    saved = sorted((tmp_path / "skipped").iterdir())
    assert len(saved) == 2
    origins = [row["origin"] for file in saved for row in json.loads(file.read_text())["rows"]]
    assert sorted(origins) == sorted(row.origin for row in rows)


def test_a_gradient_that_overflows_is_caught_though_the_loss_is_finite(tmp_path: Path) -> None:
    config = tiny()
    model = make_model(config)
    rows = make_rows(model, config)
    with torch.no_grad():
        model.network.get_input_embeddings().weight[5, 0] = 1e30
    steps = optimization(config, model, tmp_path)
    before = state_of(steps)
    term = rows[0].terms[0]
    huge = replace(term, weights_T=np.full_like(term.weights_T, 3e38))
    figures = steps.step([replace(rows[0], terms=(huge,)), *rows[1:]], {}, 1)
    assert not math.isfinite(figures["grad_norm"])
    assert state_of(steps) == before


def test_a_micro_batch_without_policy_rows_counts_for_the_others() -> None:
    config = tiny(auxiliary=AUXILIARY)
    model = make_model(config)
    rows = make_rows(model, config)
    only = [row for row in rows if row.terms[0].component == "state"]
    totals = Totals()
    loss = micro_loss(model, only, totals, denominators(rows), LossSettings({"state": 0.5}))
    share = denominators(only)["state"] / denominators(rows)["state"]
    assert float(loss.detach()) == pytest.approx(0.5 * share * totals.mean("loss/state"), rel=1e-5)
