"""Admission: models pass with a margin, however coarsely they round, and every fault is refused, in a real one, too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MistralConfig, PreTrainedModel

from boxes import tiny
from envrl.errors import UserError
from envrl.imitation import warm_start
from envrl.models import admission
from envrl.models.admission import PASSAGE, admit
from envrl.models.load import build_model, load_model, save_model
from envrl.models.rounding import most_roundings, rounded_anew, roundings_apart
from envrl.models.tokenizer import Codec
from envrl.trainer import start
from envrl.trainer.loop import train
from faults import FAULTS, fault, faults_of
from test_families import CODEC, FAMILIES, small

TEXT = CODEC.encode(PASSAGE)
REFUSED = "(cached|trained) and full log-probs differ by .* times what rounding explains"


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> PreTrainedModel:
    kind, settings = FAMILIES[request.param]
    return small(kind, **settings)


@contextmanager
def margin(factor: float) -> Iterator[None]:
    """Let two ways be so much nearer to each other than they have to be; above 1: so much farther apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "most_roundings", lambda model: factor * most_roundings(model))
        yield


@contextmanager
def same_passes_once() -> Iterator[None]:
    """Run the passes that no fault of the cache touches for the first admission alone: own, own anew, padded."""
    found: dict[str, list[list[Tensor]]] = {"_own_logprobs": [], "_padded_logprobs": []}

    def once(name: str, most: int) -> Callable[..., list[Tensor]]:
        run, kept = getattr(admission, name), found[name]

        def passes(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
            kept.append(run(model, rows) if len(kept) < most else kept[-most])
            return kept[-1]

        return passes

    with pytest.MonkeyPatch.context() as patch:
        for name, most in (("_own_logprobs", 2), ("_padded_logprobs", 1)):
            patch.setattr(admission, name, once(name, most))
        yield


def assert_refused(network: PreTrainedModel, text: Sequence[int], name: str) -> None:
    with fault(name), pytest.raises(UserError, match=REFUSED) as error:
        _admit_unlike(network, text, name)
    assert str(error.value).endswith(": use a model of the families Qwen, Llama, Gemma, Phi-3 or LFM2")


def _admit_unlike(network: PreTrainedModel, text: Sequence[int], name: str) -> None:
    admit(network, text)
    pytest.fail(f"{network.config.model_type} with {name} is admitted")


def test_models_as_they_are_pass_with_a_margin_of_five(network: PreTrainedModel) -> None:
    with margin(1 / 5):
        admit(network, TEXT)
        admit(network, ())


def test_every_fault_is_refused_with_a_margin_of_a_hundred(network: PreTrainedModel) -> None:
    with margin(100), same_passes_once():
        admit(network, TEXT)
        for name in faults_of(network):
            assert_refused(network, TEXT, name)


def test_the_faults_are_gone_afterwards_and_each_is_one_in_some_family() -> None:
    networks = [small(kind, **settings) for kind, settings in FAMILIES.values()]
    assert {name for each in networks for name in faults_of(each)} == set(FAULTS)
    admit(networks[0], TEXT)


@pytest.mark.parametrize("name", ["Llama 3", "Gemma 2", "LFM2"])
def test_faults_in_weights_as_transformers_draws_them_are_refused(name: str) -> None:
    """With a deviation of 0.02 a toy hardly attends to anything: position and state move log-probs by 1e-5 alone."""
    kind, settings = FAMILIES[name]
    network = small(kind, **settings, initializer_range=0.02)
    with same_passes_once():
        admit(network, TEXT)
        for each in faults_of(network):
            if each == "caps on scores left out":  # no score is near a cap
                continue
            assert_refused(network, TEXT, each)


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bf16_what_shows_beyond_its_rounding_is_refused(name: str) -> None:
    kind, settings = FAMILIES[name]
    network = small(kind, **settings).bfloat16()
    with margin(1 / 2):
        admit(network, TEXT)
    faults = ["the first key hidden", "the next token seen", "keys of slots swapped"]
    for each in faults + ["states of convolutions stale"] * (name == "LFM2"):
        assert_refused(network, TEXT, each)


def test_the_yardstick_is_as_long_as_float64_shows_the_rounding_to_be(network: PreTrainedModel) -> None:
    rows = admission._rows(network, TEXT)
    with torch.no_grad(), admission._narrow_window(network, 4):
        own = admission._own_logprobs(network, rows)
        with rounded_anew(network):
            anew = admission._own_logprobs(network, rows)
        exact = copy.deepcopy(network).double()
        true = [exact(input_ids=row[None]).logits[0].log_softmax(-1).float() for row in rows]
    assert 1 / 5 < roundings_apart(true, own, anew) < 2


def test_a_network_that_rounds_coarsely_passes_and_its_faults_do_not() -> None:
    """Twelve layers of wide weights: log-probs are right to a hundredth of a nat, which is a hundred times too coarse
    for any fixed tolerance that would find a fault in a toy."""
    network = small("llama", num_hidden_layers=12)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(8.0 if weight.dim() > 1 else 1.0)
        rows = admission._rows(network, TEXT)
        cached, own = admission._cached_logprobs(network, rows), admission._own_logprobs(network, rows)
    assert max(float((one - other).abs().max()) for one, other in zip(cached, own, strict=True)) > 1e-3
    with same_passes_once():
        with margin(1 / 2):
            admit(network, TEXT)
        for name in ("later chunks shifted by a position", "the first key hidden", "keys of slots swapped"):
            assert_refused(network, TEXT, name)


def test_one_activation_that_is_a_thousand_times_the_others_does_not_matter() -> None:
    """As in large models, where a few numbers of the first tokens are."""
    network: Any = small("llama", num_hidden_layers=6)
    with torch.no_grad():
        network.model.embed_tokens.weight[:, 3] = 3000.0
        admit(network, TEXT)
    assert_refused(network, TEXT, "the first key hidden")


# --- the real model ---------------------------------------------------------------------------------------------------


def real(folder: Path, kind: str) -> tuple[PreTrainedModel, tuple[int, ...]]:
    """The real model and the passage's ids; as a Mistral it is the same Llama with a window."""
    config = AutoConfig.from_pretrained(folder)
    if kind == "mistral":
        own = config.to_dict()
        for name in ("model_type", "architectures", "dtype", "transformers_version"):
            own.pop(name, None)
        config = MistralConfig(**own, sliding_window=4096)
    network = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    return network, Codec(AutoTokenizer.from_pretrained(folder)).encode(PASSAGE)


REAL_FAULTS = {
    "llama": [
        "later chunks shifted by a position",
        "the last key before a chunk hidden",
        "keys of slots swapped",
    ],
    "mistral": ["window a token too wide", "window a token too narrow"],
}


@pytest.mark.parametrize("kind", REAL_FAULTS)
def test_a_real_model_passes_with_a_margin_of_five_and_its_faults_are_refused(kind: str, smollm2_folder: Path) -> None:
    network, text = real(smollm2_folder, kind)
    with same_passes_once():
        with margin(1 / 5):
            admit(network, text)
        for name in REAL_FAULTS[kind]:
            with margin(100):
                assert_refused(network, text, name)


# --- when it is done --------------------------------------------------------------------------------------------------

SHORT = {"every": 0, "split": ("valid_b",), "episodes": 2, "free_episodes": 0, "probe_episodes": 0}


@pytest.fixture
def admitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters each model has that is tried, in a process that has admitted none yet."""
    tried: list[int] = []
    run = admission.admit

    def record(network: PreTrainedModel, passage: Sequence[int]) -> None:
        assert len(passage) > 8
        tried.append(network.num_parameters())
        run(network, passage)

    monkeypatch.setattr(admission, "_ADMITTED", set())
    monkeypatch.setattr(admission, "admit", record)
    return tried


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(build_model(tiny().model, ["You open box 1 and find the key."] * 20, 0), folder)
    return folder


def test_a_run_admits_its_model_once_before_it_is_made_and_not_again_after_the_warm_start(
    folder: Path, tmp_path: Path, admitted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    create = start.create_run
    monkeypatch.setattr(start, "create_run", lambda *given: (made.append(len(admitted)), create(*given)))
    config = tiny(model={"path": str(folder)}, train={"updates": 1}, objective={"kl_weight": 0.1}, eval=SHORT)
    run = train(config, tmp_path / "run")
    assert made == [1]
    assert len(admitted) == 1
    shared = tiny(warm_start={"path": str(run / "warm_start")}, train={"updates": 0}, eval=SHORT)
    train(shared, tmp_path / "shared")
    assert len(admitted) == 1, "the same architecture, however it was trained"


def test_a_preset_is_admitted_once_from_its_building_to_its_reference(tmp_path: Path, admitted: list[int]) -> None:
    train(tiny(train={"updates": 1}, objective={"kl_weight": 0.1}, eval=SHORT), tmp_path / "run")
    assert len(admitted) == 1


def test_another_architecture_type_or_attention_is_tried_by_itself(folder: Path, admitted: list[int]) -> None:
    model = load_model(folder)
    load_model(folder)
    assert len(admitted) == 1
    model.network.bfloat16()
    admission.admit_once(model.network, model.codec)
    model.network.float().config.rope_parameters["rope_theta"] = 9.0
    admission.admit_once(model.network, model.codec)
    model.network.set_attn_implementation("eager")
    admission.admit_once(model.network, model.codec)
    assert len(admitted) == 4


@pytest.mark.parametrize("key", ["model", "warm_start"])
def test_a_model_that_is_refused_leaves_no_run(
    key: str, folder: Path, tmp_path: Path, admitted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder
    if key == "warm_start":
        source = train(tiny(train={"updates": 0}, eval=SHORT), tmp_path / "first") / "warm_start"
        admission._ADMITTED.clear()
    collected: list[object] = []
    monkeypatch.setattr(warm_start, "collect", lambda *given: collected.append(given))
    with fault("states of convolutions stale"), pytest.raises(UserError, match=REFUSED):
        train(tiny(**{key: {"path": str(source)}}, eval=SHORT), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not collected


@pytest.mark.parametrize("passes", ["_own_logprobs", "_cached_logprobs"])
def test_a_model_too_large_to_be_tried_is_one_sentence(
    passes: str, folder: Path, tmp_path: Path, admitted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(admission, passes, full)
    with pytest.raises(UserError, match=r"memory ran out as the model in .* was tried on train\.device = 'cpu': "):
        train(tiny(model={"path": str(folder)}, eval=SHORT), tmp_path / "run")
    assert not (tmp_path / "run").exists()
