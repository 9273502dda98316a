"""Small random chat models of real architectures, with tokenizers that behave as theirs do, and chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRIPPING = (
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen3's does, it leaves the thoughts out of earlier turns."""
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) "
    "+ '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] | title + ': ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
"""Without any special token: turns end in plain text, with which a tokenizer merges what stands before."""

FAMILIES: dict[str, tuple[str, str, tuple[str, ...], dict[str, Any]]] = {
    "qwen2": ("Qwen2", CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), {}),
    "qwen3": ("Qwen3", STRIPPING, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), {"head_dim": 16}),
    "llama": ("Llama", LLAMA, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), {}),
    "gemma": ("Gemma", GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>"), {"head_dim": 16}),
    "phi3": ("Phi3", PHI, ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"), {"pad_token_id": 0}),
    "plain": ("Llama", PLAIN, ("<s>", "</s>"), {}),
}
"""Architecture, chat template, special tokens (the last one ends a sequence), and what the configuration needs."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text: a blank or mark belongs to the word behind it."""
TEXTS = [
    "There are four boxes in room 3.\n\nYour task is to: find the key. It is empty. You open box 2 and find the coin.",
    "<think>It may lie in box 4.</think><action>open box 4</action><summary>box 1 is empty</summary>",
    "User: What you see now: Assistant: open box 1 You act in a world that is described in words.",
    'Thought: hm\nAction: open box 3 {"name": "act", "arguments": {"command": "open box 1"}}',
]


def make_tokenizer(
    family: str, texts: Sequence[str] = TEXTS, vocabulary: int = 420, merging: bool = False
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer; `merging`: its pieces go over blanks, dots and turn borders."""
    _, template, special, _ = FAMILIES[family]
    core = Tokenizer(models.BPE())
    split = Regex(r"[\s\S]+?(?=\n|$)|\n+" if merging else _WORDS)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([*texts] * 8, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=special[0],
        eos_token=special[-1],
        pad_token=special[0],
        additional_special_tokens=list(special[1:-1]),
        chat_template=template,
    )


def make_sentencepiece(family: str = "phi3", texts: Sequence[str] = TEXTS, lowercase: bool = False) -> Any:
    """Return a tokenizer with blanks as sentencepiece has them ("▁blue"; one before every text), which decoding alters.

    With `lowercase` it also takes all letters for small ones.
    """
    _, template, special, _ = FAMILIES[family]
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    if lowercase:
        core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = [*map(chr, range(32, 127)), "▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", *special], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([*texts] * 8, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token=special[-1], pad_token=special[0], chat_template=template
    )


def make_in_python() -> ByT5Tokenizer:
    """Return a tokenizer in Python, which knows no offsets: a token a byte, and ChatML's marks."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens(list(FAMILIES["qwen2"][2][1:]), special_tokens=True)
    tokenizer.chat_template = CHATML
    return tokenizer


def save_chat_model(
    family: str, folder: Path, seed: int = 0, context: int = 4096, tokenizer: Any = None, **tokens: Any
) -> Path:
    """Write a random model of a family and its tokenizer, or another one; `tokens` are those of `make_tokenizer`."""
    architecture, _, _, settings = FAMILIES[family]
    tokenizer = tokenizer or make_tokenizer(family, **tokens)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = getattr(transformers, f"{architecture}ForCausalLM")(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
