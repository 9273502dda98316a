"""Our loss beside TRL's on the same numbers, and the benchmark that compares the two trainers (skipped without TRL)."""

from __future__ import annotations

import importlib.util
import os
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from boxes import tiny
from envrl.bench.measure import Bench, deal_returns
from envrl.objective.losses.kl import kl_k3
from envrl.objective.policy import LOSSES

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl", reason="needs TRL: pip install 'envrl[trl]'")
torch.set_num_threads(1)


def theirs(loss_type: str, new: torch.Tensor, inputs: dict[str, Any], level: str, **settings: Any) -> torch.Tensor:
    """Return what TRL's trainer makes of given log-probs, with nothing of a trainer but what its loss reads."""
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=settings.get("beta", 0.0),
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.28,
        args=SimpleNamespace(delta=settings.get("delta"), use_bias_correction_kl=False),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=16,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
    )
    return trl.GRPOTrainer._compute_loss(trainer, None, inputs)


def batch(seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return log-probs that need a gradient, and what TRL is given beside them: episodes of several turns."""
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> torch.Tensor:
        return torch.randn(5, 9, generator=generator, dtype=torch.float64)

    old = -drawn().abs()
    new = (old + 0.3 * drawn()).requires_grad_()
    lengths = torch.randint(3, 10, (5, 1), generator=generator)
    ids = torch.zeros(5, 9, dtype=torch.long)
    turns = torch.rand(5, 9, generator=generator) < 0.6
    turns[:, 0] = True
    return new, {
        "prompt_ids": ids[:, :2],
        "prompt_mask": torch.ones(5, 2, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": (torch.arange(9) < lengths).long(),
        "tool_mask": turns.long(),
        "advantages": torch.randn(5, generator=generator, dtype=torch.float64),
        "old_per_token_logps": old,
        "ref_per_token_logps": old + 0.2 * drawn(),
    }


@pytest.mark.parametrize(
    ("loss_type", "level", "name", "aggregation"),
    [
        ("grpo", "token", "ppo", "sequence_mean"),
        ("bnpo", "token", "ppo", "token_mean"),
        ("dr_grpo", "token", "ppo", "constant"),
        ("grpo", "sequence", "gspo", "sequence_mean"),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_are_those_of_trl(loss_type: str, level: str, name: str, aggregation: str, seed: int) -> None:
    new, inputs = batch(seed)
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    constant = 16 if aggregation == "constant" else None
    ours = LOSSES[name](
        new,
        inputs["old_per_token_logps"],
        inputs["advantages"][:, None].expand_as(new),
        mask,
        aggregation=aggregation,
        constant=constant,
        clip_high=0.28,
    )
    other = theirs(loss_type, new, inputs, level)
    torch.testing.assert_close(ours, other)
    torch.testing.assert_close(*(torch.autograd.grad(loss, new)[0] for loss in (ours, other)))


def test_the_kl_term_is_that_of_trl() -> None:
    new, inputs = batch(9)
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    gap = theirs("bnpo", new, inputs, "token", beta=0.3) - theirs("bnpo", new, inputs, "token")
    kl = kl_k3(new, inputs["ref_per_token_logps"])
    torch.testing.assert_close(0.3 * (kl * mask).sum() / mask.sum(), gap)


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
