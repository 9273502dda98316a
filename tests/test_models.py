"""Models: what is admitted and refused, reloading with transformers' own classes, and one sentence for a bad folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from envrl.config.schema import ModelConfig
from envrl.errors import UserError
from envrl.models.admission import admit
from envrl.models.forward import log_softmax_and_entropy, restricted_logits, row_states, vocabulary_size
from envrl.models.load import LanguageModel, build_model, find_device, load_model, save_model
from envrl.models.tiny import build_tiny
from envrl.models.tokenizer import MARKS, train_tokenizer

TEXTS = ["You arrive at drawer 1. On the drawer 1, you see a cup 2.", "go to drawer 1", "take cup 2 from drawer 1"] * 12
SHAPE = ModelConfig(hidden_size=32, layers=3, heads=2, vocabulary=320, context=128)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build_model(SHAPE, TEXTS, seed=3)


@pytest.fixture(scope="module")
def saved(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "saved"
    save_model(model, folder)
    return folder


def small(kind: str, **settings: Any) -> PreTrainedModel:
    """A random network of a family, drawn widely enough for log-probs to differ between tokens."""
    common = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config: PretrainedConfig = AutoConfig.for_model(
        kind, **common, intermediate_size=48, max_position_embeddings=64, initializer_range=0.3, **settings
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


ADMITTED = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "gpt2": {},
}


@pytest.mark.parametrize("kind", ADMITTED)
def test_families_whose_cached_and_full_logprobs_agree_are_admitted(kind: str) -> None:
    network = small(kind, **ADMITTED[kind])
    admit(network, ())
    spread = network(input_ids=torch.arange(20)[None]).logits[0].log_softmax(-1).std()
    assert spread > 0.1, "with a constant output any two passes would agree"


def test_bf16_weights_have_a_tolerance_of_their_own() -> None:
    admit(small("qwen3", **ADMITTED["qwen3"]).bfloat16(), ())


REFUSED = {
    "gpt_oss": (
        {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        "models of type 'gpt_oss' are not supported: their cached and full",
    ),
    "mamba2": (
        {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
        "models of type 'mamba2' (are not supported|cannot be sampled with our slot cache)",
    ),
    "bloom": ({}, "models of type 'bloom' cannot be sampled with our slot cache"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_families_are_refused_in_one_sentence(kind: str) -> None:
    settings, words = REFUSED[kind]
    with pytest.raises(UserError, match=words) as error:
        admit(small(kind, **settings), ())
    assert "use a model of the families Qwen, Llama, Gemma, Phi-3 or LFM2" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cache_that_forgets_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from envrl.models import admission

    class Forgetful(admission.SlotCache):
        def commit(self) -> None:
            super().commit()
            for store in self._values.values():
                store[:, :, 0] = 0.0

    monkeypatch.setattr(admission, "SlotCache", Forgetful)
    with pytest.raises(UserError, match="cached and full log-probs differ by"):
        admit(small("llama", num_key_value_heads=2), ())


def test_transformers_reloads_what_was_saved_with_the_same_logits_and_ids(model: LanguageModel, saved: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    ids = torch.tensor([model.codec.encode("You arrive at drawer 1. On the shelf 22 lies nothing.")])
    assert type(network) is type(model.network)
    assert tokenizer.encode("You arrive at drawer 1. On the shelf 22 lies nothing.") == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(network.eval()(input_ids=ids).logits, model.network(input_ids=ids).logits)


def test_our_own_loader_gives_the_same_model(model: LanguageModel, saved: Path) -> None:
    again = load_model(saved)
    state, expected = again.network.state_dict(), model.network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert again.codec.marks == model.codec.marks
    assert again.context == model.context == 128
    assert not again.network.training


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return list(build_tiny(SHAPE, 300, 0, 5, seed).state_dict().values())

    torch.manual_seed(1)
    first = weights(7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = weights(7)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights(8), strict=True))


def test_the_preset_is_a_convolution_before_attention_drawn_with_deviation_one_over_root_width() -> None:
    network: Any = build_tiny(ModelConfig(heads=4, key_heads=4), 820, 0, 5, seed=0)
    assert network.config.layer_types == ["conv", "full_attention", "full_attention", "full_attention"]
    assert sum(parameter.numel() for parameter in network.parameters()) == 762_048
    assert float(network.model.layers[1].self_attn.q_proj.weight.detach().std()) == pytest.approx(128**-0.5, rel=0.02)
    shared = build_tiny(ModelConfig(heads=4, key_heads=2), 820, 0, 5, seed=0)
    assert sum(p.numel() for p in shared.parameters()) == 762_048 - 3 * 2 * 128 * 64, "half the keys and values"


def test_a_width_that_the_heads_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.hidden_size = 36 .* twice model\.heads = 4"):
        build_tiny(ModelConfig(hidden_size=36, heads=4), 300, 0, 5, seed=0)
    with pytest.raises(UserError, match=r"model\.heads = 4 is not a multiple of model\.key_heads = 3"):
        build_tiny(ModelConfig(heads=4, key_heads=3), 300, 0, 5, seed=0)


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown model\.preset 'tinny'; did you mean 'tiny'"):
        build_model(ModelConfig(preset="tinny"), TEXTS, seed=0)


def test_a_foreign_tokenizer_gets_our_marks_and_the_embedding_rows_for_them(tmp_path: Path) -> None:
    network = small("llama", num_key_value_heads=2)
    core = train_tokenizer(TEXTS, 320, 128).backend_tokenizer
    foreign = json.loads(core.to_str())
    gone = {*MARKS.values(), *list(foreign["model"]["vocab"])[96 + len(MARKS) :]}
    foreign["model"]["vocab"] = {t: i for i, t in enumerate(t for t in foreign["model"]["vocab"] if t not in gone)}
    foreign["model"]["merges"], foreign["added_tokens"] = [], []
    (tmp_path / "core.json").write_text(json.dumps(foreign))
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "core.json")).save_pretrained(tmp_path / "m")
    network.save_pretrained(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert sorted(loaded.codec.marks.values()) == list(range(96, 96 + len(MARKS)))
    assert vocabulary_size(loaded.network) == 96 + len(MARKS)
    assert not loaded.codec.mark_ids & set(loaded.codec.encode("go <|end|> <|pad|>"))


def _truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _change(**settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    return change


def _empty_tokenizer(model: Path) -> None:
    whole = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    whole["model"] |= {"vocab": {}, "merges": []}
    (model / "tokenizer.json").write_text(json.dumps({**whole, "added_tokens": []}), encoding="utf-8")


def _no_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def _sharded(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def _pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"nothing")


def _gguf(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model.gguf")


def _foreign_adapter(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "config.json").rename(model / "adapter_config.json")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda m: (m / "config.json").unlink(), "is not a model folder: it has no config.json"),
    "config not JSON": (lambda m: (m / "config.json").write_text("{"), "names a model_type"),
    "config a list": (lambda m: (m / "config.json").write_text("[]"), "names a model_type"),
    "unknown type": (_change(model_type="nope"), "model type `nope`"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "has no model.safetensors"),
    "half the weights": (_truncate, "cannot be loaded"),
    "other width": (
        _change(intermediate_size=48),
        r"another shape than the model\.layers\.0\.feed_forward\.w1\.weight",
    ),
    "a layer more": (
        _change(num_hidden_layers=4, layer_types=["conv", *["full_attention"] * 3]),
        r"nothing for the model\.layers\.3\.feed_forward\.w1\.weight",
    ),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "cannot be loaded|has no vocabulary"),
    "an empty tokenizer": (_empty_tokenizer, "has no vocabulary: its tokenizer.json is missing or empty"),
    "no tokenizer at all": (_no_tokenizer, "has no tokenizer.json"),
    "weights of zero bytes": (lambda m: (m / "model.safetensors").write_bytes(b""), "cannot be loaded"),
    "a shard that is not there": (_sharded, "has no model-00001-of-00002.safetensors"),
    "a pickle of nothing": (_pickled, "Weights only load failed"),
    "a GGUF file alone": (_gguf, "it has a GGUF file and no model.safetensors; take the model's original weights"),
    "quantised": (
        _change(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"are quantised \(gptq\)",
    ),
    "an encoder-decoder": (_change(model_type="t5"), "of the kind T5, which is no causal language model"),
    "which says so": (_change(model_type="t5", is_encoder_decoder=True), r"is an encoder with a decoder \(t5\), not a"),
    "no language model": (_change(model_type="clip"), "of the kind CLIP, which is no causal language model"),
    "code of its own": (_change(model_type="nope", auto_map={"AutoConfig": "a.B"}), "brings code of its own"),
    "heads in words": (_change(num_attention_heads="two"), "Field 'num_attention_heads' expected int"),
    "no heads": (_change(num_attention_heads=0), "cannot be loaded"),
    "an adapter of others": (_foreign_adapter, "an adapter of another program: merge it into its model with 'peft'"),
    "tokenizer not JSON": (lambda m: (m / "tokenizer.json").write_text("{"), "cannot be loaded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_model_folder_is_one_sentence(name: str, saved: Path, tmp_path: Path) -> None:
    spoil, words = BROKEN[name]
    shutil.copytree(saved, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(UserError, match=words) as error:
        load_model(tmp_path / "model")
    assert str(tmp_path / "model") in str(error.value)
    assert ". " not in str(error.value).replace("config.json;", "")
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(UserError, match="'nowhere' is not a model folder"):
        load_model("nowhere")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"train\.device = 'cuda' is not there: this machine has no CUDA devices"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(UserError, match="'cuda:1' is not there: this machine has 1 CUDA device;"):
        find_device("cuda:1")
    with pytest.raises(UserError, match="must be 'cpu', 'cuda' or 'cuda:N', not 'gpu'"):
        find_device("gpu")


def test_padding_on_the_right_of_a_row_changes_nothing_before_it(model: LanguageModel) -> None:
    ids = torch.tensor([model.codec.encode(TEXTS[0])])
    padded = torch.nn.functional.pad(ids, (0, 9))
    with torch.no_grad():
        short, long = row_states(model.network, ids), row_states(model.network, padded)
    assert torch.allclose(short, long[:, : ids.shape[1]], atol=1e-5)


def test_restricted_logits_and_entropy_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    allowed = torch.tensor([[0, 3, -1], [1, 2, 3]])
    logprobs, entropies = log_softmax_and_entropy(restricted_logits(logits, allowed))
    expected = torch.tensor([[5 / 6, 1 / 6, 0.0], [2 / 9, 3 / 9, 4 / 9]])
    assert torch.allclose(logprobs.exp(), expected)
    by_hand = torch.tensor([0.4505612, 1.0608566])  # -Σ p ln p
    assert torch.allclose(entropies, by_hand)
