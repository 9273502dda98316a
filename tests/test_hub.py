"""Models named by an id of the hub: downloaded, resumed, cached, kept at one commit by a run, refused in a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import hub as fake
import server as web
from boxes import files, tiny
from chat_models import save_chat_model
from envrl.cli.main import main
from envrl.config.load import load_recipe
from envrl.errors import RunError, UserError
from envrl.eval.evaluate import evaluate
from envrl.models.find import model_folder, pinned_revision
from envrl.models.hub import cached_folder
from envrl.trainer.loop import train
from test_adapters import needs_peft

NAME = "some-lab/Small-0.1B"
EVAL: dict[str, Any] = {"every": 0, "split": ("valid_b",), "free_episodes": 0, "probe_episodes": 0, "episodes": 2}
CHAT: dict[str, Any] = {"format": "action", "layout": "steps", "response_tokens": 12}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model("qwen2", tmp_path_factory.mktemp("models") / "model", context=1024)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> Iterator[fake.Hub]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    with fake.serving(monkeypatch, tmp_path / "cache") as here:
        here.put(NAME, model)
        yield here


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    fake.ask("http://127.0.0.1:9", monkeypatch)  # nobody listens there


def test_a_model_comes_once_and_is_then_in_the_cache(
    hub: fake.Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.branches[NAME]["main"]
    for name in ("original/consolidated.00.pth", "model.gguf", "consolidated.safetensors", "pytorch_model.bin"):
        hub.commits[commit][name] = b"for other programs"
    folder = model_folder(NAME)
    assert folder.name == commit == pinned_revision(NAME)
    assert files(folder) == files(model)
    hub.asked.clear()
    assert model_folder(NAME, commit) == folder
    assert hub.asked == [], "a commit that is in the cache needs no network"
    assert model_folder(NAME) == folder
    assert hub.downloads() == []
    go_offline(monkeypatch)
    assert model_folder(NAME) == folder
    assert pinned_revision(NAME) == commit


def test_a_broken_download_goes_on_where_it_broke(hub: fake.Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (model / "model.safetensors").read_bytes()
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4_000)  # what is kept of a broken answer
    etag = f'"{fake._entry(whole)["oid"]}"'
    hub.plan["model.safetensors"] = [web.cut(20_000, etag)]
    folder = model_folder(NAME)
    assert hub.ranges(f"{NAME}/resolve/{folder.name}/model.safetensors") == ["", "bytes=20000-"]
    assert (folder / "model.safetensors").read_bytes() == whole


def test_what_was_cut_off_is_asked_for_again_by_the_next_command(
    hub: fake.Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, tree = hub.branches[NAME]["main"], hub.put(NAME, model)
    assert commit == tree
    hub.plan["model.safetensors"] = [web.status(404)] * 9
    with pytest.raises((UserError, RunError), match=re.escape(NAME)):
        model_folder(NAME)
    go_offline(monkeypatch)
    with pytest.raises(UserError, match=r"its copy in the cache lacks model.safetensors, and the hub cannot be"):
        model_folder(NAME)
    fake.ask(hub.address, monkeypatch)
    hub.plan.clear()
    assert files(model_folder(NAME)) == files(model)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((401, "RepoNotFound"), "no such model on the hub: mind the spelling; a private one needs 'hf auth login'"),
        ((404, "RepoNotFound"), "no such model on the hub"),
        ((403, "GatedRepo"), "is gated on the hub: accept its conditions on its page there, then run 'hf auth login'"),
        ((404, "RevisionNotFound"), "has no revision 'v9' on the hub"),
        ((503, ""), "the cache has no copy, and the hub cannot be reached (it answers 503"),
    ],
    ids=["401", "404", "gated", "revision", "503"],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: fake.Hub, refusal: tuple[int, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refused[NAME] = refusal
    assert main(["models", "get", NAME, "--revision", "v9"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("envrl: ")
    assert said in err
    command = ["train", "household-demo", "--model.path", NAME, "--model.revision", "v9"]
    assert main([*command, "--run", "run"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("run").exists()


def test_without_a_network_one_sentence_says_what_to_do(
    hub: fake.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go_offline(monkeypatch)
    for command in (["eval", NAME], ["train", "household-demo", "--model.path", NAME]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"there is no folder '{NAME}' here, the cache has no copy, and the hub cannot be reached (" in err
        assert f"run 'envrl models get {NAME}' once with a network, or name a folder that holds the model" in err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["eval", NAME]) == 2
    assert "(HF_HUB_OFFLINE is set)" in capsys.readouterr().err


def test_a_run_keeps_the_commit_that_it_began_with(
    hub: fake.Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hub.branches[NAME]["main"]
    config = tiny(
        model={"path": NAME},
        rollout=CHAT,
        warm_start={"demonstrations": 0},
        train={"updates": 0},
        eval=EVAL,
    )
    run = train(config, tmp_path / "run")
    assert load_recipe(str(run / "config.toml")).model.revision == first
    start = (run / "warm_start" / "model.safetensors").read_bytes()
    assert start == (model_folder(NAME, first) / "model.safetensors").read_bytes()

    second = hub.put(NAME, save_chat_model("qwen2", tmp_path / "newer", seed=1, context=1024))
    assert second != first
    more = tiny(model={"path": NAME}, rollout=CHAT, warm_start={"demonstrations": 0}, train={"updates": 1}, eval=EVAL)
    train(more, run, resume=True)
    assert load_recipe(str(run / "config.toml")).model.revision == first
    other = train(config, tmp_path / "other")
    assert load_recipe(str(other / "config.toml")).model.revision == second
    assert (other / "warm_start" / "model.safetensors").read_bytes() != start
    go_offline(monkeypatch)
    (record,) = evaluate(NAME, env="boxes", split="valid_b", episodes=1, format="action", max_tokens=8)
    assert (record["agent"], record["revision"]) == (NAME, second)


@needs_peft
def test_an_adapter_finds_its_base_on_the_hub(hub: fake.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.branches[NAME]["main"]
    config = tiny(
        model={"path": NAME, "lora_rank": 2},
        rollout=CHAT,
        warm_start={"demonstrations": 0},
        train={"updates": 0},
        eval=EVAL,
    )
    run = train(config, tmp_path / "run")
    base = json.loads((run / "warm_start" / "base.json").read_text())
    assert (base["name"], base["revision"]) == (NAME, commit)
    assert json.loads((run / "warm_start" / "adapter_config.json").read_text())["base_model_name_or_path"] == NAME
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "another machine's"))
    (tmp_path / "cache").rename(tmp_path / "gone")
    assert cached_folder(NAME) is None
    (record,) = evaluate(run, episodes=1)
    assert record["episodes"] == 1
    assert cached_folder(NAME, commit) is not None


def test_doctor_reads_the_configuration_and_no_weights(hub: fake.Hub, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "household-demo", "--model.path", NAME])
    out = capsys.readouterr().out
    assert hub.downloads().count("model.safetensors") == 0
    assert f"'{NAME}' is not in the hub's cache: 'envrl models get {NAME}'" in " ".join(out.split())
    assert main(["models", "get", NAME]) == 0
    capsys.readouterr()
    main(["doctor", "household-demo", "--model.path", NAME])
    assert f"ok    model                {NAME}" in capsys.readouterr().out


def test_models_check_compares_with_the_hashes_of_the_cache(hub: fake.Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "check", NAME]) == 2
    assert f"'{NAME}' is not in the hub's cache; 'envrl models get {NAME}' gets it" in capsys.readouterr().err
    assert main(["models", "get", NAME]) == 0
    assert main(["models", "check", NAME]) == 0
    out = capsys.readouterr().out
    assert out.count("as it came") == len(hub.commits[hub.branches[NAME]["main"]])
    weights = (cached_folder(NAME) or Path()) / "model.safetensors"
    with open(weights.resolve(), "r+b") as file:
        file.seek(2000)
        file.write(b"\0\1\2")
    assert main(["models", "check", NAME]) == 1
    assert "FAIL  model.safetensors" in capsys.readouterr().out
