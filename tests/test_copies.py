"""Sampling with weights of less precision than those that are trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import envrl.trainer.rollouts as rollouts
from boxes import tiny
from envrl.models.admission import admit
from envrl.models.copies import sampling_copy
from envrl.models.load import LanguageModel, build_model
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.policy import Policy
from envrl.trainer.loop import train

QUICK = {"every": 0, "split": ("valid_b",), "episodes": 2, "free_episodes": 0, "probe_episodes": 0}


def model() -> LanguageModel:
    return build_model(tiny().model, ["You open box 1 and find the key."] * 20, 0)


def test_a_copy_in_bf16_follows_its_master_and_leaves_it_alone() -> None:
    master = model()
    sampler = OwnSampler(master, "bf16")
    copied = sampler.model
    admit(copied.network, ())
    embedding, output = copied.network.get_input_embeddings(), copied.network.get_output_embeddings()
    assert embedding is not None
    assert output is not None
    assert embedding.weight is output.weight, "tied weights stay tied"
    frequencies = {b.dtype for name, b in copied.network.named_buffers() if "inv_freq" in name}
    assert frequencies == {torch.float32}
    with torch.no_grad():
        for parameter in master.network.parameters():
            parameter.add_(0.01)
    before = [parameter.clone() for parameter in master.network.parameters()]
    sampler.load(master.named_parameters(), 3)
    for mine, theirs, old in zip(copied.network.parameters(), master.network.parameters(), before, strict=True):
        assert (mine.dtype, mine.requires_grad, theirs.dtype) == (torch.bfloat16, False, torch.float32)
        assert torch.equal(mine, theirs.bfloat16())
        assert torch.equal(theirs, old)


def test_without_less_precision_there_is_no_copy() -> None:
    master = model()
    assert sampling_copy(master, "fp32") is master
    sampler = OwnSampler(master)
    sampler.load([], 1)
    assert sampler.model is master


def test_a_run_samples_with_the_copy_of_the_weights_before_its_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[tuple[torch.dtype, float]] = []
    play = rollouts.play_episodes

    def record(policy: Policy, *rest: object, **named: object) -> object:
        assert isinstance(policy.sampler, OwnSampler)
        weight = next(policy.sampler.model.parameters())
        sampled.append((weight.dtype, float(weight.float().sum())))
        return play(policy, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(rollouts, "play_episodes", record)
    config = tiny(rollout={"precision": "bf16"}, train={"updates": 3, "learning_rate": 0.01}, eval=QUICK)
    run = train(replace(config, checkpoint=replace(config.checkpoint, every=1, keep=5)), tmp_path / "run")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(1e-6 < r["sampler_mismatch"] < 0.3 for r in records if "sampler_mismatch" in r)
    assert any("sampler_mismatch" in r for r in records)
    assert [dtype for dtype, _ in sampled] == [torch.bfloat16] * 3
    for number, (_, total) in enumerate(sampled):
        weights = load_file(run / "checkpoints" / f"step-{number:06d}" / "model.safetensors")
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())
        assert total == pytest.approx(float(weights["model.embed_tokens.weight"].bfloat16().float().sum()), abs=1e-3)
