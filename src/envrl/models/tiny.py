"""The preset `tiny`: an LFM2 network of about a million parameters, built from scratch.

Its first layer is a short convolution, which gives every token its two predecessors: copying "drawer 2" from an
observation into a command needs them, and a small network with attention only learns this last (see docs/models.md).
"""

from __future__ import annotations

import torch
from transformers import Lfm2Config, Lfm2ForCausalLM

from envrl.config.schema import ModelConfig
from envrl.errors import UserError

PRESETS = ("tiny",)


def build_tiny(config: ModelConfig, vocabulary: int, pad: int, end: int, seed: int) -> Lfm2ForCausalLM:
    """Return a randomly initialised LFM2; weights are a function of (shape, seed), with standard deviation 1/√width.

    Raises `UserError` if the width does not split into heads of an even width, which rotary positions need.
    """
    if config.hidden_size % (2 * config.heads):
        raise UserError(
            f"model.hidden_size = {config.hidden_size} is not a multiple of twice model.heads = {config.heads}; "
            "make it one"
        )
    if config.heads % config.key_heads:
        raise UserError(
            f"model.heads = {config.heads} is not a multiple of model.key_heads = {config.key_heads}; make it one"
        )
    layers = ["conv"] + ["full_attention"] * (config.layers - 1)
    shape = Lfm2Config(
        vocab_size=vocabulary,
        hidden_size=config.hidden_size,
        intermediate_size=2 * config.hidden_size,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_heads,
        layer_types=layers,
        conv_L_cache=3,
        max_position_embeddings=config.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=config.hidden_size**-0.5,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Lfm2ForCausalLM(shape)
