"""A run whose episodes are played by an inference server: token-exact, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import envrl.serving.server_sampler as server_sampler
from boxes import register, tiny
from envrl.cli.main import main
from envrl.config.load import dump_config, override
from envrl.config.schema import Config
from inference_server import inference_server
from test_curriculum import lines


def recipe(address: str, folder: Path, **settings: Any) -> Config:
    config = tiny(
        rollout={"sampler": "server", "actions": "free"} | settings.pop("rollout", {}),
        train={"updates": 3, "threads": 1, "learning_rate": 3e-3, "epochs": 2},
        objective={"idle_rows": "count"},
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


def test_asked_again_it_draws_the_same(tmp_path: Path) -> None:
    """Two runs that ask a server with seeds of their own learn the same."""
    found = []
    for name in ("one", "two"):
        with inference_server() as server:
            server.failing = 2 if name == "two" else 0  # it is busy at first, and asked again
            (tmp_path / name).mkdir()
            assert run(tmp_path / name, recipe(server.address, tmp_path / name / "weights")) == 0
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
        ("raw log-probs", "gives other log-probs than the model in"),
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
        ({"address": "localhost:8000"}, "rollout.server.address is an address such as http://localhost:8000"),
        ({"folder": ""}, "rollout.server.folder names the folder in which the server finds new weights, and is empty"),
        ({"kind": "vlm"}, "rollout.server.kind"),
        ({"rollout": {"actions": "admissible"}}, "cannot restrict sampling to the admissible commands"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], said: str
) -> None:
    with inference_server() as server:
        overrides = [f"--rollout.server.{name}={value}" for name, value in keys.items() if name != "rollout"]
        overrides += [f"--rollout.{name}={value}" for name, value in keys.get("rollout", {}).items()]
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
