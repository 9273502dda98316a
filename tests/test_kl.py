"""Estimates of the KL to the start of RL: their gradients summed over all outcomes, and k1 in the reward of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from boxes import grouped, tiny
from envrl.batches.batch import Asks, build_batch
from envrl.batches.divergence import kl_of_steps, less_divergence
from envrl.build import form_of, renderer_of
from envrl.cli.main import main
from envrl.config.check import check_together
from envrl.config.load import dump_config
from envrl.engine.local import loss_settings
from envrl.engine.update import policy_logprobs
from envrl.errors import UserError
from envrl.objective.losses.kl import KL_LOSSES
from envrl.samples.rows import free_tokens, policy_rows
from envrl.types import episodes_of
from test_update import make_model, play

REWARD = {"kl_weight": 0.1, "kl_estimator": "k1", "kl_in": "reward"}


def of_logits(logits: torch.Tensor, reference: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradients in question with respect to the logits, each summed over all outcomes."""
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    p, q, d = log_p.exp().detach(), log_q.exp(), (log_p - log_q).detach()

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    k3 = KL_LOSSES["k3"](log_p, log_q).detach()
    return {
        "KL(p, q)": gradient((log_p.exp() * (log_p - log_q)).sum()),
        "KL(q, p)": gradient((q * (log_q - log_p)).sum()),
        "k1 as a loss": gradient((p * log_p).sum()),  # of log p − log q, each outcome by its probability
        "k2 as a loss": gradient((p * KL_LOSSES["k2"](log_p, log_q)).sum()),
        "k3 as a loss": gradient((p * KL_LOSSES["k3"](log_p, log_q)).sum()),
        "k1 in the reward": gradient((p * d * log_p).sum()),  # REINFORCE, of the cost d
        "k2 in the reward": gradient((p * 0.5 * d.square() * log_p).sum()),
        "k3 in the reward": gradient((p * k3 * log_p).sum()),
    }


@pytest.mark.parametrize("seed", range(3))
def test_each_estimate_has_the_gradient_that_the_page_says(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(6, generator=generator, dtype=torch.float64)
    logits = (reference + torch.randn(6, generator=generator, dtype=torch.float64)).requires_grad_()
    found = of_logits(logits, reference)
    assert float(found["KL(p, q)"].norm()) > 0.05
    torch.testing.assert_close(found["k1 as a loss"], torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(found["k2 as a loss"], found["KL(p, q)"])
    torch.testing.assert_close(found["k1 in the reward"], found["KL(p, q)"])
    torch.testing.assert_close(found["k3 as a loss"], found["KL(q, p)"])
    torch.testing.assert_close(found["k3 in the reward"], found["KL(p, q)"] - found["KL(q, p)"])
    assert float((found["k2 in the reward"] - found["KL(p, q)"]).norm()) > 0.01


def test_near_the_reference_k3_in_the_reward_pulls_nowhere() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(6, generator=generator, dtype=torch.float64)
    shift = torch.randn(6, generator=generator, dtype=torch.float64)
    shares = []
    for step in (1e-1, 1e-2, 1e-3):
        found = of_logits((reference + step * shift).requires_grad_(), reference)
        shares.append(float(found["k3 in the reward"].norm() / found["KL(p, q)"].norm()))
        torch.testing.assert_close(found["KL(q, p)"], found["KL(p, q)"], rtol=2 * step, atol=step * step)
    assert shares[0] < 0.1
    assert shares[1] == pytest.approx(shares[0] / 10, rel=0.1)
    assert shares[2] == pytest.approx(shares[1] / 10, rel=0.1)


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_the_kl_of_a_step_is_the_sum_over_its_sampled_tokens(layout: str) -> None:
    """The reference is another network: log-probs recorded while playing less its own, beside a pass of each row."""
    config = tiny(rollout={"layout": layout}, objective=REWARD)
    model, other = make_model(config), make_model(config, seed=1)
    episodes = play(model, config)
    settings = loss_settings(config, {})
    found = kl_of_steps(episodes, lambda rows: policy_logprobs(other, rows, settings))
    own = policy_logprobs(
        model, [row for e in episodes for row in policy_rows(e, np.ones(len(e.transitions)), "token_mean")], settings
    )
    theirs = policy_logprobs(
        other, [row for e in episodes for row in policy_rows(e, np.ones(len(e.transitions)), "token_mean")], settings
    )
    total = sum(float((own[name] - theirs[name]).sum()) for name in own)
    assert sum(map(np.sum, found)) == pytest.approx(total, abs=1e-3)
    assert max(abs(each).max() for each in found) > 0.1
    assert [len(each) for each in found] == [len(episode.transitions) for episode in episodes]
    charged, figures = less_divergence(
        grouped(episodes, 4), config, lambda rows: policy_logprobs(other, rows, settings)
    )
    for kl_S, before, after in zip(found, episodes, episodes_of(charged), strict=True):
        rewards = [step.reward for step in before.transitions]
        assert [step.reward for step in after.transitions] == pytest.approx(rewards - 0.1 * kl_S)
    tokens = sum(len(free_tokens(step.action)) for episode in episodes for step in episode.transitions)
    assert figures["kl"] == pytest.approx(total / tokens, abs=1e-4)


def test_the_kl_in_the_reward_is_a_part_of_the_return() -> None:
    """Dr.GRPO's advantages: the return with the KL taken off, less its mean over the group."""
    config = tiny(objective=REWARD, owned={"objective.grpo.std": False})
    model, other = make_model(config), make_model(config, seed=1)
    groups = grouped(play(model, config, tasks=1), 4)
    settings = loss_settings(config, {})

    def reference(rows):
        return policy_logprobs(other, rows, settings)

    batch = build_batch(groups, config, renderer_of(model, form_of(config)), 1, Asks(reference=reference))
    kl = [each.sum() for each in kl_of_steps(episodes_of(groups), reference)]
    returns = groups[0].returns_G - 0.1 * np.array(kl)
    for row, advantage in zip(batch.rows, returns - returns.mean(), strict=True):
        assert row.terms[0].streams["advantages"] == pytest.approx(advantage, abs=1e-5)


def test_a_run_with_the_kl_in_its_reward(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(dump_config(tiny(objective=REWARD, train={"updates": 2})))
    assert main(["train", str(recipe), "--run", str(tmp_path / "run")]) == 0
    first, second = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert first["kl"] == pytest.approx(0.0, abs=1e-5)  # the policy is the reference still
    assert abs(second["kl"]) > 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_estimator": "k1"}, "does nothing: the mean of its gradient is 0; set kl_in = 'reward'"),
        ({"kl_estimator": "k2", "kl_in": "reward"}, "in the reward, k2 is not the KL in the mean"),
        ({"kl_estimator": "k3", "kl_in": "reward"}, "in the reward, k3 hardly pulls the policy back"),
        ({**REWARD, "estimator": "maxrl"}, "'maxrl' is for returns from 0 on"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(settings: dict, message: str) -> None:
    config = tiny(objective={"kl_weight": 0.1, **settings})
    with pytest.raises(UserError) as caught:
        check_together(config)
    assert message in str(caught.value)
