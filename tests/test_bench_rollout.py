"""`envrl bench rollout`: its figures add up, and `generate` is given the same prompts and lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from boxes import register, tiny
from envrl.bench import rollout as bench
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.models.graphs import SETTLED
from envrl.rollout import slot_sampler as sampler
from recordings import record


def test_the_figures_add_up() -> None:
    config = tiny(rollout={"actions": "free", "slots": 5}, env={"max_steps": 3})
    figures = bench.bench_rollout(config, generate=False)
    seconds, tokens = figures["seconds"], figures["tokens"]
    assert figures["episodes"] == 12
    assert 12 <= figures["turns"] <= 36
    assert seconds["total"] == pytest.approx(sum(value for name, value in seconds.items() if name != "total"))
    assert all(seconds[name] > 0 for name in ("prefill", "decode", "draw", "world", "other"))
    assert tokens["with_padding"] >= tokens["fed"] >= tokens["drawn"] >= figures["turns"]
    assert figures["passes"] >= tokens["fed"] / (5 * 60), "a pass holds five slots at most"
    flops = 2 * figures["parameters"] * tokens["fed"] / (seconds["total"] - seconds["world"])
    assert figures["mfu"] == pytest.approx(flops / figures["peak_gflops"] / 1e9)
    assert figures["seconds_are"] == "processor", "one thread does everything, the worlds included"
    assert "generate" not in figures
    assert figures["cuda_graphs"] == {"graphs": 0, "passes": 0, "ordinary": 0}, "there are none on a CPU"
    assert bench.table(figures).splitlines()[1].startswith(f"played    12 episodes, {figures['turns']} turns")


def test_passes_from_recordings_are_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "recorder", lambda device: record)
    config = tiny(rollout={"actions": "free", "response_tokens": 30}, env={"max_steps": 2})
    figures = bench.bench_rollout(config, generate=False)
    seconds, graphs = figures["seconds"], figures["cuda_graphs"]
    assert seconds["total"] == pytest.approx(sum(value for name, value in seconds.items() if name != "total"))
    assert min(seconds["replay"], seconds["record"], seconds["decode"]) > 0
    assert graphs["graphs"] > 0
    assert graphs["ordinary"] >= SETTLED * graphs["graphs"]
    assert graphs["passes"] + graphs["ordinary"] + graphs["graphs"] < figures["passes"]
    each = f"{1e3 * seconds['decode'] / graphs['ordinary']:.1f} ms"
    assert bench.table(figures).splitlines()[2].endswith(f"; {graphs['ordinary']} ordinary ones at {each}")


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_generate_gets_the_prompts_and_lengths_that_were_recorded(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[Any] = []
    batches: list[tuple[list[list[int]], list[int]]] = []
    generate = bench.generate_by_turns

    def recorded(model: Any, trajectories: Any, *rest: Any) -> float:
        own = model.network.generate

        def spy(ids: torch.Tensor, attention_mask: torch.Tensor, **named: Any) -> torch.Tensor:
            found = own(ids, attention_mask=attention_mask, **named)
            lengths = named["stopping_criteria"][0]._lengths.tolist()
            prompts = [row[mask.bool()].tolist() for row, mask in zip(ids, attention_mask, strict=True)]
            batches.append((prompts, lengths))
            assert found.shape[1] == ids.shape[1] + max(lengths), "it goes on until the longest row has its tokens"
            return found

        monkeypatch.setattr(model.network, "generate", spy)
        played.extend(trajectories)
        return generate(model, trajectories, *rest)

    monkeypatch.setattr(bench, "generate_by_turns", recorded)
    config = tiny(rollout={"layout": layout})
    figures = bench.bench_rollout(config)
    assert figures["generate"]["ratio"] > 0
    expected = {}
    for trajectory in played:
        for segment in trajectory.segments:
            for span in segment.spans:
                prompt = segment.token_ids[: span.start].tolist()
                expected.setdefault(span.step, []).append((prompt, span.stop - span.start))
    assert [list(zip(*batch, strict=True)) for batch in batches] == [expected[turn] for turn in sorted(expected)]
    assert sum(sum(lengths) for _, lengths in batches) == figures["tokens"]["drawn"]


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register()
    recipe = tmp_path / "boxes.toml"
    recipe.write_text(dump_config(tiny()))
    file = tmp_path / "figures.json"
    arguments = ["bench", "rollout", str(recipe), "--rollout.tasks", "2", "--without-generate", "--json", str(file)]
    assert main(arguments) == 0
    assert "8 episodes" in capsys.readouterr().out
    assert json.loads(file.read_text())["episodes"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["household-dmo"], "household-demo"),
        (["household-demo", "--rollout.slot", "3"], "did you mean 'rollout.slots'"),
        (["household-demo", "--json", "nowhere/x.json"], "make nowhere first"),
        (["household-demo", "--json", "x.txt"], "ends with .json"),
        ([], "RECIPE"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rollout", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
