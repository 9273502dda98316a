"""Our loss beside TRL's on the same numbers, and the benchmark that compares the two trainers (skipped without TRL)."""

from __future__ import annotations

import importlib.util
import os
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from boxes import tiny
from envrl.bench.measure import Bench, deal_returns
from envrl.engine.loss_settings import LossSettings, Totals
from envrl.engine.policy_part import policy_part
from envrl.models.scores import TokenScores
from envrl.objective.policy import LOSSES, TOKEN_LOSSES
from envrl.objective.rewards.overlong import penalty
from envrl.samples.packing import denominators
from envrl.samples.rows import counted_term
from envrl.types import Row

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl", reason="needs TRL: pip install 'envrl[trl]'")
torch.set_num_threads(1)


LONGEST = 16
"""The most tokens of a completion, which `dr_grpo` divides by."""


def theirs(new: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any], **settings: Any) -> torch.Tensor:
    """Return what TRL's trainer makes of given log-probs, with nothing of a trainer but what its loss reads."""
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, entropies, None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=settings.get("level", "token"),
        beta=settings.get("beta", 0.0),
        loss_type=settings["loss_type"],
        epsilon_low=0.2,
        epsilon_high=settings.get("epsilon_high", 0.2),
        args=SimpleNamespace(
            delta=settings.get("delta"),
            use_bias_correction_kl=settings.get("corrected", False),
            steps_per_generation=1,
        ),
        use_vllm="importance" in settings,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        _entropy_bonus_enabled="entropy" in settings,
        use_adaptive_entropy=False,
        entropy_coef=settings.get("entropy", 0.0),
        accelerator=SimpleNamespace(
            gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1, sync_gradients=True
        ),
        _metrics={"train": defaultdict(list)},
    )
    if how := settings.get("importance"):
        inputs = {**inputs, "importance_sampling_ratio": their_importance(inputs, *how)}
    return trl.GRPOTrainer._compute_loss(trainer, None, inputs)


def their_importance(inputs: dict[str, Any], mode: str, low: float | None, high: float) -> torch.Tensor:
    """Return TRL's weights (`_generate_and_score_completions`): its ratio clipped, or 0 outside of the bounds."""
    ratio = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]).exp()
    if mode == "token_truncate":
        return ratio.clamp(min=low, max=high)
    return ratio.masked_fill((ratio < (low or 0.0)) | (ratio > high), 0.0)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return log-probs and entropies that need a gradient, and what TRL is given beside them: rows of several turns."""
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> torch.Tensor:  # numbers that a stream of a row holds exactly
        return torch.randn(5, 9, generator=generator).double()

    old = -drawn().abs()
    new = (old + 0.4 * drawn()).requires_grad_()
    entropies = drawn().abs().requires_grad_()
    lengths = torch.randint(3, 10, (5, 1), generator=generator)
    ids = torch.zeros(5, 9, dtype=torch.long)
    turns = torch.rand(5, 9, generator=generator) < 0.6
    turns[:, 0] = True
    return (
        new,
        entropies,
        {
            "prompt_ids": ids[:, :2],
            "prompt_mask": torch.ones(5, 2, dtype=torch.long),
            "completion_ids": ids,
            "completion_mask": (torch.arange(9) < lengths).long(),
            "tool_mask": turns.long(),
            "num_items_in_batch": ((torch.arange(9) < lengths) & turns).sum(),
            "advantages": torch.randn(5, generator=generator).double(),
            "old_per_token_logps": old,
            "ref_per_token_logps": old + 0.2 * drawn(),
            "sampling_per_token_logps": (old + 0.5 * drawn()).float().double(),
        },
    )


def ours(
    new: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any], aggregation: str, settings: LossSettings
) -> torch.Tensor:
    """Return what an optimiser step of ours makes of the same numbers: rows with their shares, in two micro-batches."""
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    rows, tables = [], {"old_per_token_logps": {}, "ref_per_token_logps": {}}
    for number, counted in enumerate(mask):
        streams = {
            "advantages": inputs["advantages"][number].expand(int(counted.sum())).float().numpy(),
            "sampled_logprobs": inputs["sampling_per_token_logps"][number][counted].float().numpy(),
        }
        positions = (counted.nonzero()[:, 0] + 1).tolist()
        term = counted_term("policy", positions, aggregation, streams=streams, constant=LONGEST)
        rows.append(Row(np.zeros(10, dtype=np.int32), (term,), f"row/{number}"))
        for name, table in tables.items():
            table[f"row/{number}"] = inputs[name][number][counted].numpy()
    whole, loss = denominators(rows)["policy"], torch.zeros((), dtype=torch.float64)
    for part in (slice(0, 2), slice(2, 5)):
        scores = TokenScores(new[part][mask[part]], entropies[part][mask[part]])
        weights_N = torch.from_numpy(np.concatenate([row.terms[0].weights_T for row in rows[part]])).double() / whole
        reference = tables["ref_per_token_logps"] if settings.weights["kl"] else None
        loss = loss + policy_part(
            rows[part], "policy", scores, weights_N, Totals(), settings, tables["old_per_token_logps"], reference
        )
    return loss


def recipe(**settings: Any) -> LossSettings:
    """Return our settings; `weights` of KL and entropy, all else as in `LossSettings`."""
    weights = {"policy": 1.0, "entropy": 0.0, "kl": 0.0, **settings.pop("weights", {})}
    return LossSettings(weights, **settings)


def knobs(high: float = 0.2, dual: float = 0.0, low: float = 0.2) -> dict[str, Any]:
    return {"knobs": {"clip_low": low, "clip_high": high, "dual_clip": dual}}


BOTH: dict[str, tuple[dict[str, Any], str, LossSettings]] = {
    "grpo": ({"loss_type": "grpo"}, "sequence_mean", recipe(**knobs())),
    "bnpo": ({"loss_type": "bnpo"}, "token_mean", recipe(**knobs())),
    "dr_grpo": ({"loss_type": "dr_grpo"}, "constant", recipe(**knobs())),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, "token_mean", recipe(**knobs(0.28))),
    # TRL's epsilon_high is CISPO's bound itself, and there is no lower one
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.3},
        "token_mean",
        recipe(policy_loss="cispo", **knobs(0.3, low=1.0)),
    ),
    "gspo": ({"loss_type": "grpo", "level": "sequence"}, "sequence_mean", recipe(policy_loss="gspo", **knobs())),
    "gspo, token mean": (
        {"loss_type": "bnpo", "level": "sequence"},
        "token_mean",
        recipe(policy_loss="gspo", **knobs()),
    ),
    "gspo, constant": (
        {"loss_type": "dr_grpo", "level": "sequence"},
        "constant",
        recipe(policy_loss="gspo", **knobs()),
    ),
    "delta": (
        {"loss_type": "grpo", "epsilon_high": 0.28, "delta": 1.5},
        "sequence_mean",
        recipe(**knobs(0.28, dual=1.5)),
    ),
    "delta, gspo": (
        {"loss_type": "grpo", "level": "sequence", "delta": 1.25},
        "sequence_mean",
        recipe(policy_loss="gspo", **knobs(dual=1.25)),
    ),
    "beta": ({"loss_type": "grpo", "beta": 0.3}, "sequence_mean", recipe(weights={"kl": 0.3}, **knobs())),
    "beta, dr_grpo": ({"loss_type": "dr_grpo", "beta": 0.3}, "constant", recipe(weights={"kl": 0.3}, **knobs())),
    "entropy": ({"loss_type": "bnpo", "entropy": 0.1}, "token_mean", recipe(weights={"entropy": 0.1}, **knobs())),
    "truncated": (
        {"loss_type": "grpo", "importance": ("token_truncate", None, 1.5)},
        "sequence_mean",
        recipe(importance_cap=1.5, **knobs()),
    ),
    "masked": (
        {"loss_type": "dapo", "importance": ("token_mask", 1 / 1.5, 1.5)},
        "token_mean",
        recipe(importance_cap=1.5, importance_mask=1.5, **knobs()),
    ),
    "all at once": (
        {
            "loss_type": "bnpo",
            "epsilon_high": 0.28,
            "delta": 1.5,
            "beta": 0.3,
            "entropy": 0.1,
            "importance": ("token_truncate", None, 1.5),
        },
        "token_mean",
        recipe(importance_cap=1.5, weights={"kl": 0.3, "entropy": 0.1}, **knobs(0.28, dual=1.5)),
    ),
}
"""TRL's settings, and those of ours that are the same."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", BOTH)
def test_loss_and_gradient_are_those_of_trl(name: str, seed: int) -> None:
    """In float64 to 1e-6, with respect to log-probs and entropies; rows of unequal length, some tokens not ours."""
    told, aggregation, settings = BOTH[name]
    new, entropies, inputs = batch(seed)
    losses = (ours(new, entropies, inputs, aggregation, settings), theirs(new, entropies, inputs, **told))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    for leaf in (new, entropies):
        mine, other = (torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)[0] for loss in losses)
        pair = [torch.zeros_like(leaf) if each is None else each for each in (mine, other)]
        torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6)
    assert float(torch.autograd.grad(losses[1], new)[0].abs().max()) > 0.01


def test_each_setting_changes_the_loss() -> None:
    """Else two settings that do nothing would be equal, too."""
    drawn = [batch(seed) for seed in range(4)]
    values = {tuple(round(theirs(*each, **told).item(), 9) for each in drawn) for told, *_ in BOTH.values()}
    assert len(values) == len(BOTH)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["ppo", "gspo"])
def test_the_losses_of_python_are_those_of_trl(name: str, seed: int) -> None:
    new, entropies, inputs = batch(seed)
    found = LOSSES[name](
        new,
        inputs["old_per_token_logps"],
        inputs["advantages"][:, None].expand_as(new),
        (inputs["completion_mask"] * inputs["tool_mask"]).bool(),
        aggregation="sequence_mean",
        clip_high=0.28,
    )
    level = "sequence" if name == "gspo" else "token"
    other = theirs(new, entropies, inputs, loss_type="grpo", level=level, epsilon_high=0.28)
    torch.testing.assert_close(found, other)
    torch.testing.assert_close(*(torch.autograd.grad(loss, new)[0] for loss in (found, other)))


def test_their_corrected_k3_has_the_gradient_of_k2() -> None:
    """At a ratio of 1, token by token: ∇(r k3) = (k3 + 1 − exp(d)) ∇log p = −d ∇log p = ∇k2 (docs/algorithms/kl.md)."""
    new, entropies, inputs = batch(9)
    inputs["old_per_token_logps"] = new.detach()

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, new)[0]

    settings = recipe(kl_estimator="k2", weights={"kl": 0.3}, **knobs())
    found = gradient(ours(new, entropies, inputs, "token_mean", settings))
    corrected = gradient(theirs(new, entropies, inputs, loss_type="bnpo", beta=0.3, corrected=True))
    torch.testing.assert_close(found, corrected, rtol=1e-6, atol=1e-6)
    plain = gradient(theirs(new, entropies, inputs, loss_type="bnpo", beta=0.3))
    assert float((plain - found).abs().max()) > 1e-4


def test_a_mask_alone_does_not_weigh_what_it_keeps() -> None:
    """On purpose: TRL's `token_mask` weighs kept tokens by their ratio, ours where `importance_cap` asks for that."""
    new, entropies, inputs = batch(3)
    found = ours(new, entropies, inputs, "token_mean", recipe(importance_mask=1.5, **knobs()))
    kept = their_importance(inputs, "token_mask", 1 / 1.5, 1.5) > 0
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    loss_N, _ = TOKEN_LOSSES["ppo"](
        new[mask],
        inputs["old_per_token_logps"][mask],
        inputs["advantages"][:, None].expand_as(new)[mask],
        mask.nonzero()[:, 0],
    )
    torch.testing.assert_close(found, (loss_N * kept[mask]).sum() / mask.sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("limit", "buffer"), [(100, 20), (7, 7), (512, 128)])
def test_the_overlong_penalty_is_that_of_trl(limit: int, buffer: int) -> None:
    punish = importlib.import_module("trl.rewards").get_soft_overlong_punishment(limit, buffer)
    lengths = range(1, 2 * limit)
    assert punish([[0] * n for n in lengths]) == pytest.approx([penalty(n, limit, buffer) for n in lengths])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "beside_trl.py"
    spec = importlib.util.spec_from_file_location("beside_trl", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("micro", [1, 4])
def test_trl_is_given_the_very_same_update(script: ModuleType, micro: int) -> None:
    """The gradient of TRL's whole step, on episodes of several turns and lengths, is as long as ours."""
    config = script.comparable(tiny())
    bench = Bench(config)
    dealt = deal_returns(bench.play(config), 1.0)
    ours = script.Ours(bench.model, config)
    rows = ours.rows(dealt)
    assert len(rows) == 12
    assert len({len(row.token_ids) for row in rows}) > 1
    told = script.recorded(rows, [float(row.terms[0].streams["advantages"][0]) for row in rows])
    norms = [ours.step(dealt, budget)[1] for budget in (64, 1024)]
    other = script.Theirs(bench.model, config, told).steps(micro, 2)
    assert norms[0] > 0
    assert [lap["norm"] for lap in other] == pytest.approx(norms, rel=1e-5)
