"""Model families at tiny random size: sampling in live slots, training's states, and the model's own pass agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from envrl.errors import UserError
from envrl.models import forward, scores
from envrl.models.admission import admit
from envrl.models.forward import logits_of, longest_sequence, row_states
from envrl.models.load import LanguageModel
from envrl.models.tokenizer import Codec, train_tokenizer
from envrl.rollout.slot_sampler import SlotSampler
from playing import sample

CODEC = Codec(train_tokenizer(["You arrive at drawer 1."] * 9, 300, 64))
WINDOW = 6
GEMMA = {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0}
                          | {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}),
    "Qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen2 with windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW}),
    "Qwen3": ("qwen3", {"head_dim": 16}),
    "Gemma": ("gemma", {"head_dim": 16}),
    "Gemma 2": ("gemma2", {**GEMMA, **MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "Gemma 3": ("gemma3_text", {**GEMMA, **MIXED}),
    "Phi-3": ("phi3", {"pad_token_id": 0}),
    "Phi-3 with a window": ("phi3", {"pad_token_id": 0, "sliding_window": WINDOW}),
    "Phi-4 mini": ("phi3", {"pad_token_id": 0, "partial_rotary_factor": 0.5}),
    "Phi": ("phi", {"partial_rotary_factor": 0.5}),
    "Mistral with a window": ("mistral", {"sliding_window": WINDOW}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "GPT-2": ("gpt2", {}),
}  # fmt: skip


def small(kind: str, **settings: Any) -> PreTrainedModel:
    """A random network of a family, drawn widely enough for scores to reach the caps, and log-probs to differ."""
    shape = {"vocab_size": len(CODEC), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    ends = {"bos_token_id": None, "eos_token_id": CODEC.marks["end"]}
    config = AutoConfig.for_model(kind, **{**shape, **ends, "initializer_range": 0.3, **settings})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> PreTrainedModel:
    kind, settings = FAMILIES[request.param]
    return small(kind, **settings)


@torch.no_grad()
def full_logprobs(network: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("wide", [1, 1000])
def test_sampling_in_ragged_slots_past_the_window_gives_the_models_own_logprobs(
    network: PreTrainedModel, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_WIDE", wide)  # slots one by one, or all at once
    admit(network, ())
    sampler = SlotSampler(LanguageModel(network, CODEC), 4, 1.0, 9, frozenset({-1}))
    keys, generator = np.arange(4, dtype=np.uint64), np.random.default_rng(0)
    fed: list[list[int]] = [[] for _ in range(4)]
    for turn in range(3):
        lengths = [2 + 5 * ((slot + turn) % 4) for slot in range(4)]
        prompts = [generator.integers(9, len(CODEC), length).tolist() for length in lengths]
        prompts[turn] = prompts[turn] if turn == 2 else None
        drafts = sample(sampler, prompts, [None] * 4, keys, turn)
        for slot, (prompt, draft) in enumerate(zip(prompts, drafts, strict=True)):
            if prompt is None or draft is None:
                continue
            fed[slot] += [*prompt, *draft.token_ids]
            assert len(draft.token_ids) == 9
            rows = full_logprobs(network, fed[slot])[-10:-1]
            expected = rows.gather(1, torch.tensor(draft.token_ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(draft.logprobs), expected, atol=1e-4)
    assert min(map(len, fed)) > 4 * WINDOW
    assert float(full_logprobs(network, fed[0]).std()) > 0.5, "with a constant output any two passes would agree"


@torch.no_grad()
def test_the_trainers_states_of_padded_rows_give_the_models_own_logprobs(network: PreTrainedModel) -> None:
    rows = torch.randint(9, len(CODEC), (3, 40), generator=torch.Generator().manual_seed(1))
    rows[1, 17:], rows[2, 3:] = 0, 0
    states = row_states(network, rows)
    for row, found, length in zip(rows, states, (40, 17, 3), strict=True):
        expected = full_logprobs(network, row[:length].tolist())
        assert torch.allclose(logits_of(network, found[:length]).log_softmax(-1), expected, atol=1e-4)


def test_scores_of_tokens_are_those_of_the_models_own_logits_in_chunks_too(
    network: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(9, len(CODEC), (30,), generator=torch.Generator().manual_seed(2))
    states = row_states(network, ids[None])[0, :-1].detach()
    expected = network(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    found = []
    for most in (scores.KEPT, 0):
        monkeypatch.setattr(scores, "KEPT", most)
        monkeypatch.setattr(scores, "CHUNK", 7 * len(CODEC))
        leaf = states.clone().requires_grad_()
        logprobs = scores.score_tokens(network, leaf, ids[1:]).logprobs
        assert torch.allclose(logprobs, expected, atol=1e-4)
        found.append(torch.autograd.grad((logprobs * torch.arange(29)).sum(), leaf)[0])
    assert torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize("name", ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window"])
def test_what_is_particular_to_gemma_2_changes_the_numbers_here(name: str) -> None:
    """Otherwise the tests above would pass without it."""
    kind, settings = FAMILIES["Gemma 2"]
    ids = list(range(9, 40))
    plain, other = small(kind, **settings), small(kind, **{**settings, name: 64 if name == "sliding_window" else None})
    assert float((full_logprobs(plain, ids) - full_logprobs(other, ids)).abs().max()) > 0.05


def test_a_window_is_tried_when_a_model_is_admitted_however_wide_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from envrl.models.slots import SlotCache

    network = small("mistral", sliding_window=50)
    admit(network, ())
    assert network.config.sliding_window == 50
    monkeypatch.setattr(SlotCache, "windowed", lambda self, mask, window: mask)
    with pytest.raises(UserError, match="cached and full log-probs differ by"):
        admit(network, ())
    assert network.config.sliding_window == 50


def test_states_that_the_trainer_would_learn_from_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from envrl.models import admission

    monkeypatch.setattr(admission, "row_states", lambda model, ids: 0.9 * row_states(model, ids))
    with pytest.raises(UserError, match="trained and full log-probs differ by"):
        admit(small("llama"), ())


def test_a_slot_beside_a_longer_chunk_never_reaches_beyond_the_context() -> None:
    """The padding beside a chunk has positions too, which learned ones are looked up by."""
    sampler = SlotSampler(LanguageModel(small("gpt2"), CODEC), 2, 1.0, 1, frozenset({-1}))
    keys = np.arange(2, dtype=np.uint64)
    sample(sampler, [[9] * 60, [9]], [None] * 2, keys, 0)
    late, _ = sample(sampler, [[10], [9] * 40], [None] * 2, keys, 1)
    assert late is not None


def test_positions_that_would_change_with_the_length_end_the_context() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **factors}
    longrope = small("phi3", pad_token_id=0, rope_parameters=rope, original_max_position_embeddings=32)
    assert longest_sequence(longrope) == 32
    assert longest_sequence(small("phi3", pad_token_id=0)) == 64
