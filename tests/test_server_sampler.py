"""A run whose episodes an inference server plays, or vLLM in this process: token-exact, or refused."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import envrl.serving.server_sampler as server_sampler
import vllm_stand_in
from boxes import register, tiny
from envrl.cli.main import main
from envrl.config.load import dump_config, override
from envrl.config.schema import Config
from envrl.serving import sampler
from inference_server import inference_server
from test_curriculum import lines


def recipe(address: str, folder: Path, **settings: Any) -> Config:
    config = tiny(
        rollout={"sampler": "server", "actions": "free", "response_tokens": 8} | settings.pop("rollout", {}),
        train={"updates": 3, "threads": 1, "learning_rate": 3e-3, "epochs": 2},
        objective={"idle_rows": "count"},
        auxiliary={"state": {"weight": 1.0}},  # weights change in every update, whatever the policy learns
        eval={"every": 0, "final": 2, "free_episodes": 0, "probe_episodes": 0},
        checkpoint={"every": 1},
    )
    ours = {"address": address, "folder": str(folder)} | settings
    return override(config, [(f"rollout.server.{name}", str(value)) for name, value in ours.items()])


def run(tmp_path: Path, config: Config, *more: str) -> int:
    register()
    (tmp_path / "recipe.toml").write_text(dump_config(config))
    return main(["train", str(tmp_path / "recipe.toml"), "--run", str(tmp_path / "run"), *more])


@pytest.mark.parametrize(("kind", "ahead"), [("vllm", 0), ("sglang", 0), ("vllm", 1)])
def test_the_trainer_learns_from_the_tokens_and_the_log_probs_of_the_server(
    tmp_path: Path, kind: str, ahead: int
) -> None:
    """After every update the server has the new weights: its log-probs stay the trainer's, to fp32's rounding."""
    with inference_server() as server:
        config = recipe(server.address, tmp_path / "weights", kind=kind, rollout={"ahead": ahead})
        assert run(tmp_path, config) == 0
        assert server.loads == 5  # one an update, and one an evaluation
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert len(metrics) == 3
    for line in metrics:
        assert line["train/token_mismatches"] == 0
    for line in metrics[:1] if ahead else metrics:
        assert 0.0 < line["sampler_mismatch_max"] < 2e-3
    assert metrics[-1].get("staleness", 0) == ahead


def test_a_warm_start_that_plays_hands_its_weights_over_and_the_run_is_evaluated_without_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inference_server() as server:
        own = ("--warm_start.method=rejection", "--warm_start.rejection.tasks=2", "--warm_start.rejection.episodes=2")
        config = recipe(server.address, tmp_path / "weights")
        assert run(tmp_path, config, "--train.updates=1", "--warm_start.demonstrations=2", *own) == 0
        assert server.loads == 4  # one more, for the round that is played
    measured = ("--episodes", "2", "--free", "0", "--probe", "0", "--json", str(tmp_path / "found.json"))
    assert main(["eval", str(tmp_path / "run"), *measured]) == 0, capsys.readouterr().err
    assert [record["episodes"] for record in json.loads((tmp_path / "found.json").read_text())] == [2, 2]


def test_asked_again_it_draws_the_same(tmp_path: Path) -> None:
    """Two runs that ask a server with seeds of their own learn the same."""
    found = []
    for name in ("one", "two"):
        with inference_server() as server:
            server.failing = 2 if name == "two" else 0  # it is busy at first, and asked again
            (tmp_path / name).mkdir()
            config = recipe(server.address, tmp_path / name / "weights")
            assert run(tmp_path / name, config, "--train.updates", "2") == 0
        metrics = lines(tmp_path / name / "run" / "metrics.jsonl")
        found.append([(line["tokens"], line["train/return"], line["entropy"]) for line in metrics])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("token_ids", "gives no token ids (return_token_ids, vLLM 0.10.2 or newer): start it with"),
        ("logprobs", "gives no log-probs: start it with 'VLLM_SERVER_DEV_MODE=1 vllm serve"),
        ("prompt", "changes the prompt's tokens, so what it answers cannot be learned from"),
        ("own stop", "which is no end of a response for the prompt format"),
        ("raw log-probs", "gives other log-probs than the trained model has"),
        ("never loads", "holds another model, did not read the new weights"),
    ],
)
def test_a_server_that_is_not_token_exact_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, said: str
) -> None:
    with inference_server(None, fault) as server:
        assert run(tmp_path, recipe(server.address, tmp_path / "weights", rollout={"temperature": 0.3})) == 2
    assert said in capsys.readouterr().err


def test_a_prompt_that_is_too_long_for_the_server_ends_its_episode(tmp_path: Path) -> None:
    with inference_server(None, "context") as server:
        assert run(tmp_path, recipe(server.address, tmp_path / "weights")) == 0
    assert [line["train/context_full"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1.0] * 3


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"address": "http://127.0.0.1:9"}, "the server http://127.0.0.1:9 does not answer"),
        ({"address": "http://local host:port"}, "the server http://local host:port does not answer (Invalid"),
        ({"address": "localhost:8000"}, "rollout.server.address is an address such as http://localhost:8000"),
        ({"folder": ""}, "rollout.server.folder names the folder in which the server finds new weights, and is empty"),
        ({"kind": "vlm"}, "rollout.server.kind"),
        ({"model": {"lora_rank": 8}}, "rollout.sampler = 'server' takes whole weights, and no adapter yet"),
        ({"rollout": {"actions": "admissible"}}, "cannot restrict sampling to the admissible commands"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], said: str
) -> None:
    with inference_server() as server:
        tables = {"rollout.server": {name: value for name, value in keys.items() if name not in ("model", "rollout")}}
        tables |= {name: keys[name] for name in ("model", "rollout") if name in keys}
        overrides = [f"--{table}.{name}={value}" for table, some in tables.items() for name, value in some.items()]
        assert run(tmp_path, recipe(server.address, tmp_path / "weights"), *overrides) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_server_that_dies_ends_the_run_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_sampler, "PAUSE", 0.01)
    with inference_server() as server:
        config = recipe(server.address, tmp_path / "weights")
        load = server.load

        def dies(folder: str) -> None:
            load(folder)
            server.failing = 10**6 if server.loads == 3 else 0

        server.load = dies  # type: ignore[method-assign]
        assert run(tmp_path, config) == 1
    assert "tried 4 times, failed (status 503)" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "latest").is_dir()


# vLLM in the trainer's process, as far as it can be tried without a GPU: a stand-in with its names and signatures


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "vllm", vllm_stand_in)
    monkeypatch.setattr(sampler.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(vllm_stand_in.LLM, "made", [])
    return vllm_stand_in


def with_vllm(memory: float = 0.5, **settings: Any) -> Config:
    config = recipe("", Path(), **settings)
    owned = {name: value for name, value in config.owned.items() if not name.startswith("rollout.")}
    owned |= {"rollout.vllm.memory": memory}
    return replace(config, rollout=replace(config.rollout, sampler="vllm"), owned=owned)


@pytest.mark.parametrize("ahead", [0, 1])
def test_vllm_plays_with_weights_from_memory(tmp_path: Path, vllm: Any, ahead: int) -> None:
    assert run(tmp_path, with_vllm(rollout={"ahead": ahead})) == 0
    (engine,) = vllm.LLM.made
    assert (engine.loads, engine.resets) == (5, 5)
    assert not engine.llm_engine.requests
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["train/token_mismatches"] for line in metrics] == [0, 0, 0]
    for line in metrics[:1] if ahead else metrics:
        assert 0.0 < line["sampler_mismatch_max"] < 2e-3


def test_weights_that_vllm_does_not_take_are_noticed(
    tmp_path: Path, vllm: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm.LLM, "deaf", True)
    assert run(tmp_path, with_vllm()) == 2
    assert "vLLM gives other log-probs than the trained model has" in capsys.readouterr().err


@pytest.mark.usefixtures("vllm")
def test_what_vllm_raises_at_its_start_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, with_vllm(memory=0.95)) == 2
    assert "vLLM cannot be started (ValueError: Free memory on device is less than" in capsys.readouterr().err


def test_without_vllm_nothing_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed")
    assert run(tmp_path, with_vllm()) == 2
    assert "rollout.sampler = 'vllm' needs the package 'vllm' and a GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
