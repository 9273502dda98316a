"""LoRA: what is trained and saved, exact resume, the reference, the base that must be the same, the merged export."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import envrl.trainer.run as running
from boxes import Boxes, files, tiny
from chat_models import save_chat_model
from envrl.cli.main import main
from envrl.config.load import load_recipe
from envrl.config.schema import Config
from envrl.engine.local import LocalEngine
from envrl.engine.optimizer import adamw
from envrl.engine.update import LossSettings, policy_logprobs
from envrl.errors import Interrupted, UserError
from envrl.eval.evaluate import evaluate
from envrl.models.adapters import add_adapter, check_peft, merge_adapter, other_adapter, read_adapter, trained_tensors
from envrl.models.load import load_model, load_policy
from envrl.models.tokenizer import Codec, train_tokenizer
from envrl.trainer.loop import train
from envrl.trainer.start import check_inputs
from test_update import TEXTS, make_rows

QUICK: dict[str, Any] = {"every": 0, "split": ("valid_b",), "free_episodes": 0, "probe_episodes": 0, "episodes": 2}


EXPERTS: dict[str, dict[str, int]] = {
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
"""Families whose feed-forward part is a choice of experts, which `peft` wraps twice."""


def make_base(folder: Path, seed: int = 0, family: str = "Llama") -> Path:
    tokenizer = train_tokenizer([*TEXTS, *(f"open box {n}" for n in (1, 2, 3, 4))] * 8, 320, 256, True)
    marks = Codec(tokenizer).marks
    shape = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        pad_token_id=marks["pad"],
        bos_token_id=None,
        eos_token_id=marks["end"],
        **EXPERTS.get(family, {}),
    )
    torch.manual_seed(seed)
    getattr(transformers, f"{family}ForCausalLM")(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="pip install 'envrl[lora]'")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


def recipe(base: Path, **settings: Any) -> Config:
    merged = {"train": {"updates": 3}, "eval": QUICK, **settings}
    return tiny(model={"path": str(base), "lora_rank": 4, "lora_alpha": 8.0}, **merged)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft")
    settings = {"objective": {"kl_weight": 0.05}, "auxiliary": {"state": {"weight": 0.2}}}
    return train(recipe(base, **settings), tmp_path_factory.mktemp("runs") / "run")


@needs_peft
def test_only_the_adapter_changes(base: Path, tmp_path: Path) -> None:
    config, model = recipe(base), load_model(base)
    before = {name: p.clone() for name, p in model.network.state_dict().items()}
    add_adapter(model.network, base, 4, 8.0, seed=0)
    named = dict(model.network.named_parameters())
    trained = [name for name, p in named.items() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7, "two matrices beside each of seven linear layers, in two layers"
    assert all("lora_" in name for name in trained)
    rows = make_rows(model, config)
    optimizer = adamw(model, 1e-2)
    start = {name: tensor.clone() for name, tensor in trained_tensors(model.network).items()}
    LocalEngine(config, model, optimizer, tmp_path, lambda: None).step(rows, {}, 1)
    assert len(optimizer.tensors()) == 3 * len(trained), "two moments and a count each"
    moved = [not torch.equal(tensor, start[name]) for name, tensor in trained_tensors(model.network).items()]
    assert sum(moved) == len(trained) // 2, "at first B alone has a gradient, as A stands behind zeros"
    for name, tensor in before.items():
        parts = name.rpartition(".")
        now = model.network.state_dict()
        assert torch.equal(now.get(name, now.get(f"{parts[0]}.base_layer.{parts[2]}")), tensor)


def test_a_checkpoint_holds_the_adapter_and_names_its_base(run: Path, base: Path) -> None:
    folder = run / "checkpoints" / "latest"
    names = {path.name for path in folder.iterdir()}
    model = {"adapter_config.json", "adapter_model.safetensors", "base.json"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert names == model | tokenizer | {"manifest.json", "state.json", "state.safetensors"}
    named = json.loads((folder / "base.json").read_text())
    assert named["folder"] == str(base.resolve())
    assert len(named["weights"]) == 64
    weights = read_adapter(folder)
    count = sum(each.numel() for each in weights.values())
    assert count == 2 * 4 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3), "rank · (in + out) of every linear layer"
    assert (folder / "adapter_model.safetensors").stat().st_size < 4 * count + 8192
    started = read_adapter(run / "warm_start")
    assert not any(torch.equal(weights[name], started[name]) for name in weights)


def test_transformers_loads_the_checkpoint_onto_its_base(run: Path) -> None:
    folder = run / "checkpoints" / "latest"
    ours, ids = load_model(folder), torch.arange(40)[None]
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, ours.network(input_ids=ids).logits, atol=1e-6)


def test_an_interrupted_run_ends_the_same_bit_for_bit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipe(str(run / "config.toml"))
    build = running.build_batch

    def stop(*arguments: Any) -> Any:
        if arguments[3] == 3:
            raise Interrupted
        return build(*arguments)

    monkeypatch.setattr(running, "build_batch", stop)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run")
    monkeypatch.setattr(running, "build_batch", build)
    train(config, tmp_path / "run", resume=True)
    whole, resumed = (files(each / "checkpoints" / "step-000003") for each in (run, tmp_path / "run"))
    assert whole.keys() == resumed.keys()
    for name in ("adapter_model.safetensors", "state.safetensors", "base.json"):
        assert whole[name] == resumed[name]


def test_the_reference_is_the_adapter_that_rl_started_from(run: Path, base: Path, tmp_path: Path) -> None:
    config, model = load_recipe(str(run / "config.toml")), load_model(run / "checkpoints" / "latest")
    rows = [row for row in make_rows(model, config) if row.terms[0].component == "policy"]
    settings = LossSettings({"policy": 1.0})
    now = policy_logprobs(model, rows, settings)
    with other_adapter(model.network, read_adapter(run / "warm_start")):
        start = policy_logprobs(model, rows, settings)
    expected = policy_logprobs(load_model(run / "warm_start"), rows, settings)
    again = policy_logprobs(model, rows, settings)
    for name in now:
        assert start[name].tobytes() == expected[name].tobytes()
        assert again[name].tobytes() == now[name].tobytes()
        assert start[name].tobytes() != now[name].tobytes()
    fresh = load_model(base)
    off = policy_logprobs(fresh, rows, settings)
    add_adapter(fresh.network, base, 4, 8.0, seed=0)
    for name, each in policy_logprobs(fresh, rows, settings).items():
        assert each.tobytes() == off[name].tobytes(), "a new adapter is as good as none"
    for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        assert record["kl"] >= 0.0


def test_the_export_is_a_plain_model_with_the_same_logits(run: Path, base: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "plain")]) == 0
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if name.startswith(("adapter", "base", "state"))}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert type(plain) is LlamaForCausalLM
    adapted, ids = load_model(run / "checkpoints" / "latest"), torch.arange(60)[None]
    with torch.no_grad():
        logits, merged = adapted.network(input_ids=ids).logits, plain(input_ids=ids).logits
        unadapted = load_model(base).network(input_ids=ids).logits
    assert float((merged - logits).abs().max()) < 1e-5
    assert float((merged - unadapted).abs().max()) > 1e-3
    text = "There are four boxes. You open box 2."
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tuple(tokenizer.encode(text, add_special_tokens=False)) == adapted.codec.encode(text)
    merge_adapter(adapted.network)
    assert not any("lora" in name for name, _ in adapted.network.named_parameters())


@needs_peft
@pytest.mark.parametrize("family", EXPERTS)
def test_an_export_of_experts_is_what_peft_merges(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = make_base(tmp_path / "base", family=family)
    run = train(recipe(base, train={"updates": 1}), tmp_path / "run")
    latest, ids = run / "checkpoints" / "latest", torch.arange(60)[None]
    assert any(".experts." in name for name in read_adapter(latest))
    assert main(["export", str(run), str(tmp_path / "plain")]) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    bare = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        logits, unadapted = plain(input_ids=ids).logits, bare(input_ids=ids).logits
        merged: Any = PeftModel.from_pretrained(bare, str(latest)).merge_and_unload()  # type: ignore[operator]
        theirs, adapted = merged.eval()(input_ids=ids).logits, load_model(latest).network(input_ids=ids).logits
    assert float((logits - theirs).abs().max()) <= 1.6e-7
    assert float((logits - adapted).abs().max()) < 1e-5 * float(adapted.abs().max())
    assert float((logits - unadapted).abs().max()) > 1e-2


@needs_peft
def test_an_adapter_is_warmed_up_by_muon(base: Path, tmp_path: Path) -> None:
    """As in `household-demo`: all that an adapter trains are matrices, so nothing is left for AdamW."""
    warm = {"optimizer": "muon", "demonstrations": 8, "epochs": 3, "held_out": 0}
    run = train(recipe(base, warm_start=warm, train={"updates": 1}), tmp_path / "run")
    losses = [line["loss/imitation"] for line in read_lines(run, "warm_start.jsonl")]
    assert losses[-1] < losses[0] - 0.1
    moved = read_adapter(run / "warm_start")
    assert all(bool(tensor.any()) for tensor in moved.values()), "the matrices B, which are 0 at first, too"


def test_runs_are_evaluated_with_their_adapter(run: Path) -> None:
    (record,) = evaluate(run, split="valid_a")
    assert record["episodes"] == 10
    (same,) = evaluate(run / "checkpoints" / "latest", split="valid_a")
    assert same["success_rate"] == record["success_rate"]


@needs_peft
@pytest.mark.parametrize("rollout", [{"format": "action", "layout": "steps"}, {"format": "marks"}], ids=str)
def test_a_chat_model_with_or_without_marks_added_is_adapted_and_exported(rollout: dict, tmp_path: Path) -> None:
    """Qwen2 with every setting of a large run; marks that its tokenizer lacks need rows that each load makes alike."""
    base = save_chat_model("qwen2", tmp_path / "base")
    rollout = {**rollout, "response_tokens": 12}
    large = {"updates": 1, "precision": "bf16", "checkpointing": True}
    run = train(
        recipe(base, rollout=rollout, train=large, objective={"importance_cap": 2.0, "kl_weight": 0.01}),
        tmp_path / "run",
    )
    (record,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert 0.0 < record["sampler_mismatch"] <= record["sampler_mismatch_max"] < 0.1
    assert record["importance"] == pytest.approx(1.0, abs=0.1)
    config, latest = load_recipe(str(run / "config.toml")), run / "checkpoints" / "latest"
    assert main(["export", str(run), str(tmp_path / "plain")]) == 0
    first, second = load_policy(latest, config), load_policy(latest, config)
    plain = load_policy(tmp_path / "plain", config)
    assert all("lora_" in name for name in read_adapter(latest)), "no embedding among them"
    ids = torch.arange(len(first.codec))[None]
    with torch.no_grad():
        logits = [model.network(input_ids=ids).logits for model in (first, second, plain)]
    assert torch.equal(logits[0], logits[1])
    assert float((logits[2] - logits[0]).abs().max()) < 1e-5 * float(logits[0].abs().max())
    text = "<|im_start|>user\nopen box 2<|im_end|>"
    assert plain.codec.encode_special(text) == first.codec.encode_special(text)


@needs_peft
@pytest.mark.parametrize("added", [False, True], ids=["own template", "chatml added"])
def test_a_run_of_chats_resumes_bit_for_bit_and_is_evaluated(
    added: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its second update; the evaluation by the command line is the run's own last one."""
    base = save_chat_model("llama" if added else "qwen2", tmp_path / "base")
    if added:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(base)
    config = recipe(
        base,
        rollout={"format": "action", "layout": "concat", "response_tokens": 12, "show_admissible": True},
        warm_start={"demonstrations": 2, "held_out": 1, "epochs": 1},
        objective={"kl_weight": 0.05},
        auxiliary={"state": {"weight": 0.2}, "inverse": {"weight": 0.1}},
        train={"updates": 2, "trajectories_every": 1},
        checkpoint={"every": 1},
    )
    config = replace(config, model=replace(config.model, chat_template="chatml" if added else ""))
    whole, build = train(config, tmp_path / "whole"), running.build_batch

    def stop(*arguments: Any) -> Any:
        if arguments[3] == 2:
            raise Interrupted
        return build(*arguments)

    monkeypatch.setattr(running, "build_batch", stop)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "resumed")
    monkeypatch.setattr(running, "build_batch", build)
    resumed = train(config, tmp_path / "resumed", resume=True)
    last = [files(each / "checkpoints" / "step-000002") for each in (whole, resumed)]
    assert {"adapter_model.safetensors", "state.safetensors"} < last[0].keys()
    lengths = {"manifest.json", "state.json"}  # of lines with seconds in them
    assert {name for name in last[0] if last[0][name] != last[1][name]} <= lengths
    figures = [
        [{k: v for k, v in line.items() if k not in ("seconds", "rate", "memory")} for line in read_lines(each, name)]
        for each in (whole, resumed)
        for name in ("metrics.jsonl", "eval.jsonl")
    ]
    assert figures[:2] == figures[2:]
    assert [line["train/token_mismatches"] for line in figures[0]] == [0, 0]

    command = ["eval", str(resumed), "--split", "valid_b", "--json", str(tmp_path / "found.json")]
    assert main(command) == 0
    (record,) = json.loads((tmp_path / "found.json").read_text())
    end = figures[1][-1]
    shared = end.keys() & record.keys() - {"seconds"}
    assert {"success_rate", "turns", "valid_action_rate", "by_task"} <= shared
    assert {name: record[name] for name in shared} == {name: end[name] for name in shared}


def read_lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@needs_peft
def test_a_base_that_is_gone_or_another_is_refused(tmp_path: Path, run: Path) -> None:
    base = make_base(tmp_path / "base")
    own = train(recipe(base, train={"updates": 0}, warm_start={"demonstrations": 0}), tmp_path / "own")
    make_base(tmp_path / "base", seed=1)
    with pytest.raises(UserError, match=r"holds an adapter of the model in '.*base', whose weights have changed since"):
        load_model(own / "warm_start")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"holds an adapter of the model in '.*base', which is not there; put that"):
        evaluate(own)
    with pytest.raises(UserError, match="is an adapter itself; merge it with 'envrl export'"):
        train(recipe(run / "warm_start"), tmp_path / "third")
    assert not (tmp_path / "third").exists()


@needs_peft
def test_a_base_that_was_moved_is_found_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Moved together it is found where it lies as seen from the run, elsewhere by `--model.path`; hashes tell."""
    home, moved = tmp_path / "home", tmp_path / "moved"
    base = make_base(home / "base")
    run = train(recipe(base, train={"updates": 1}), home / "run")
    (before,) = evaluate(run)
    home.rename(moved)
    (found,) = evaluate(moved / "run")
    assert found["success_rate"] == before["success_rate"]

    elsewhere, run = tmp_path / "elsewhere", moved / "run"
    (moved / "base").rename(elsewhere)
    other = make_base(tmp_path / "other", seed=1)
    assert main(["eval", str(run)]) == 2
    assert "which is not there; put that model back, or name its new place by --model.path" in capsys.readouterr().err
    for command in (["eval", str(run)], ["export", str(run), str(tmp_path / "plain")], resuming(run)):
        assert main([*command, "--model.path", str(other)]) == 2
        assert f"model.path = '{other}' is not the model of the adapter in" in capsys.readouterr().err
        assert main([*command, "--model.path", str(tmp_path / "gone")]) == 2
        assert "is neither a folder here" in capsys.readouterr().err
    assert load_recipe(str(run / "config.toml")).model.path == str(base)
    assert main(["eval", str(run), "--model.path", str(elsewhere)]) == 0
    assert main(["export", str(run), str(tmp_path / "plain"), "--model.path", str(elsewhere)]) == 0
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")) is LlamaForCausalLM
    assert main([*resuming(run), "--model.path", str(elsewhere), "--train.updates", "2"]) == 0
    assert load_recipe(str(run / "config.toml")).model.path == str(elsewhere)
    assert json.loads((run / "checkpoints" / "latest" / "base.json").read_text())["folder"] == str(elsewhere)
    assert len(read_lines(run, "metrics.jsonl")) == 2
    assert main([*resuming(run), "--train.updates", "3"]) == 0, "it is remembered"
    whole = train(tiny(train={"updates": 0}, eval=QUICK), tmp_path / "whole")
    capsys.readouterr()
    assert main(["eval", str(whole), "--model.path", str(elsewhere)]) == 2
    assert "holds a whole model, not an adapter: model.path says where an adapter's base" in capsys.readouterr().err


def resuming(run: Path) -> list[str]:
    return ["train", str(run / "config.toml"), "--run", str(run), "--resume"]


def test_without_peft_one_sentence_says_what_to_install(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("peft"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UserError, match=r"needs the package 'peft': pip install 'envrl\[lora\]'"):
        check_peft()
    with pytest.raises(UserError, match="peft"):
        check_inputs(recipe(base), Boxes, warm_start=True)
    with pytest.raises(UserError, match="peft"):
        train(recipe(base), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_needs_a_model_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "household-demo", "--model.lora_rank", "8"]) == 2
    assert "model.lora_rank = 8 needs model.path" in capsys.readouterr().err


def test_a_run_without_adapter_is_exported_without_its_trainer_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny(train={"updates": 0}, eval=QUICK), tmp_path / "run")
    assert main(["export", str(run), str(tmp_path / "model")]) == 0
    whole, alone = files(run / "checkpoints" / "step-000000"), files(tmp_path / "model")
    assert alone.keys() == whole.keys() - {"state.json", "state.safetensors"}
    assert alone["model.safetensors"] == whole["model.safetensors"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for folder, words in (
        (tmp_path / "model", "is there already; name a folder that is not"),
        (tmp_path / "no" / "model", "cannot be made: there is no folder"),
    ):
        assert main(["export", str(run), str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert main(["export", "expert", str(tmp_path / "expert")]) == 2
    assert "'expert' is a script, not a model" in capsys.readouterr().err
