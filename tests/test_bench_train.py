"""`envrl bench train`: its figures are those of the batch, and measuring changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from boxes import register, tiny
from envrl.bench.flops import batch_flops, row_flops
from envrl.bench.measure import Bench, deal_returns
from envrl.bench.train import PHASES, arms, bench_train, table
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.errors import UserError
from envrl.models.load import build_model
from envrl.models.random_weights import SHAPES, build_shape
from envrl.models.template import ChatTemplate
from envrl.types import LossTerm, Row, episodes_of


def test_the_figures_are_those_of_the_batch() -> None:
    config = tiny(objective={"kl_weight": 0.01}, train={"minibatches": 2, "epochs": 2, "threads": 1})
    figures = bench_train(config, repeats=2, compare=False)
    assert (figures["episodes"], figures["optimiser_steps"], figures["returns"]) == (12, 4, "the world's")
    assert figures["rows"] in (4, 8, 12), "whole groups with an advantage"
    seconds = figures["seconds"]
    assert all(seconds[name]["median"] > 0 for name in PHASES), "two steps need old log-probs, a KL term the reference"
    assert all(each["min"] <= each["median"] <= each["max"] for each in (seconds[name] for name in PHASES))
    assert figures["tokens"]["scored"] < figures["tokens"]["run"] < figures["tokens"]["trained"]
    assert figures["tokens"]["scored"] < figures["tokens"]["trained"]
    rate = figures["mfu"]["passes"] * figures["peak_gflops"] * seconds["passes"]["median"]
    assert rate == pytest.approx(figures["gflop"]["useful"]), "MFU times peak times seconds are the operations"
    assert figures["mfu"]["update"] < figures["mfu"]["passes"]
    assert "compared" not in figures
    assert "12 episodes, " in table(figures)


def test_measuring_leaves_the_weights_and_is_the_same_twice() -> None:
    config = tiny(auxiliary={"state": {"weight": 0.3}, "inverse": {"weight": 0.2}})
    bench = Bench(config)
    before = {name: value.clone() for name, value in bench.model.network.state_dict().items()}
    played = deal_returns(bench.play(config), 1.0)
    rows = [bench.update(config, played, bench.watch()) for _ in range(2)]
    assert [row.origin for row in rows[0]] == [row.origin for row in rows[1]]
    assert {term.component for row in rows[0] for term in row.terms} == {"policy", "state", "inverse"}
    for name, value in bench.model.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_whole_updates_are_compared_with_the_fractions_of_the_recipe() -> None:
    config = tiny(auxiliary={"state": {"fraction": 0.5}, "inverse": {"fraction": 0.25}})
    compared = bench_train(config, repeats=1)["compared"]
    assert list(compared) == ["none", "state in pass", "state and inverse rows"]
    assert compared["none"]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    tokens = [each["trained_tokens"] for each in compared.values()]
    assert tokens[2] > tokens[0] > 0
    for each in compared.values():
        parts = {name: value for name, value in each["seconds"].items() if name != "total"}
        assert set(parts) == {"rollout", *PHASES}
        assert each["seconds"]["total"] == pytest.approx(sum(parts.values()))
    steps = tiny(rollout={"layout": "steps"})
    assert list(arms(steps)) == ["none", "state and inverse rows"], "no row of that layout holds the next observation"


def test_returns_are_dealt_to_every_second_episode_of_a_group() -> None:
    config = tiny()
    dealt = deal_returns(Bench(config).play(config), 10.0)
    assert [t.total_reward for t in episodes_of(dealt)] == [0.0, 10.0] * 6


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_torch_counts(tied: bool) -> None:
    """On a network without padding or unscored tokens, where torch counts attention in full."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    torch.manual_seed(0)
    network = Qwen2ForCausalLM(Qwen2Config(**shape, **heads, tie_word_embeddings=tied, attn_implementation="eager"))
    length = 24
    row = Row(np.arange(length, dtype=np.int32), (_scored(length),))
    found = row_flops(network, [row])
    with FlopCounterMode(display=False) as counter:
        loss = network(torch.arange(length)[None]).logits.sum()
        forward = counter.get_total_flops()
        loss.backward()
    attention = 2 * 2 * 32 * length**2  # half of what the scores and their sums take without a causal mask
    assert found.forward == forward - attention
    assert found.both == counter.get_total_flops() - 3 * attention
    assert found.again - found.both == found.forward - 2 * 97 * 32 * length, "logits are not counted twice"


def _scored(count: int, at: int = 0) -> LossTerm:
    places = np.arange(at, at + count, dtype=np.int32)
    return LossTerm("imitation", places, np.ones(count, dtype=np.float32), float(count))


def test_frozen_matrices_cost_no_gradient_of_their_own() -> None:
    network = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            vocab_size=97,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )
    row = Row(np.arange(8, dtype=np.int32), (_scored(8),))
    trained = row_flops(network, [row])
    network.requires_grad_(False)
    assert row_flops(network, [row]).forward == trained.forward
    assert trained.both - row_flops(network, [row]).both == 2 * 8 * (4 * 32 * 32 + 3 * 32 * 48 + 97 * 32)


def test_what_rows_share_is_counted_once() -> None:
    """Two rows of 6 and 8 tokens, 5 of them alike: 9 tokens, which see 1 + … + 6 and 6 + 7 + 8 of their rows."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
    network = Qwen2ForCausalLM(Qwen2Config(**shape, num_attention_heads=4, num_key_value_heads=4))
    ids = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7, 8, 9]
    rows = [Row(np.array(row, dtype=np.int32), (_scored(len(row)),)) for row in ids]
    weights, head, attended = 2 * (4 * 32 * 32 + 3 * 32 * 48), 97 * 32, 2 * 32
    found = batch_flops(network, [rows], padded=False).forward
    assert found == 2 * weights * 9 + 2 * attended * (36 + 64 - 25) + 2 * head * 14
    unscored = [replace(rows[0], terms=()), replace(rows[1], terms=(_scored(1, at=7),))]
    spared = 2 * (2 * 32 * 32 + 3 * 32 * 48) * (9 - 1)  # in the last layer: queries, result and feed-forward part
    fewer = batch_flops(network, [unscored], padded=False)
    assert fewer.forward == found - 2 * head * 13 - spared
    assert fewer.both == 3 * fewer.forward
    assert batch_flops(network, [rows], padded=True) == row_flops(network, rows)
    assert batch_flops(network, [[row] for row in rows], padded=False) == row_flops(network, rows)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2-100m", 100_108_032),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-7b", 7_615_616_512),
    ],
)
def test_shapes_have_as_many_parameters_as_the_published_models(name: str, parameters: int) -> None:
    network = build_shape(name, 0, 1, 0, torch.device("meta"))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_a_shape_comes_with_a_tokenizer_that_writes_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**SHAPES["qwen2-100m"], "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    monkeypatch.setattr("envrl.models.random_weights.SHAPES", {"small": small})
    config = tiny(model={"chat_template": "chatml"}).model
    model = build_model(config, ["open box 2"] * 20, 0, shape="small")
    assert model.network.config.vocab_size == 32_000
    assert model.codec.decode(ChatTemplate(model.codec).encode("open box 2")) == "open box 2"
    with pytest.raises(UserError, match="unknown shape 'smal'; did you mean 'small'"):
        build_model(config, ["open box 2"], 0, shape="smal")


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register()
    recipe, file = tmp_path / "boxes.toml", tmp_path / "figures.json"
    recipe.write_text(dump_config(tiny()))
    arguments = ["bench", "train", str(recipe), "--rollout.tasks", "2", "--repeats", "1", "--json", str(file)]
    assert main(arguments) == 0
    assert "whole     state in pass: " in capsys.readouterr().out
    assert json.loads(file.read_text())["episodes"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["household-dmo"], "household-demo"),
        (["household-demo", "--repeats", "0"], "at least 1"),
        (["household-demo", "--json", "x.txt"], "ends with .json"),
        (["household-demo", "--shape", "qwen2.5-1.5"], "did you mean 'qwen2.5-1.5b'"),
        (
            [
                "qwen2.5-1.5b-alfworld-grpo",
                "--train.device",
                "cpu",
                "--env.name",
                "household",
                "--shape",
                "qwen2-100m",
                "--model.lora_rank",
                "8",
            ],
            "set model.lora_rank = 0",
        ),
        ([], "RECIPE"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
