"""The recipes of the published protocol: what they say, and that each runs, shrunk, with a random Qwen2 model."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from boxes import Boxes, tiny
from chat_models import save_chat_model
from envrl.cli.main import main
from envrl.config.load import config_differences, load_recipe
from envrl.config.recipes_index import recipe_names, recipe_summary
from envrl.config.schema import AuxiliaryConfig
from envrl.engine import local
from envrl.envs.registry import make
from envrl.errors import UserError
from envrl.eval.evaluate import evaluate
from envrl.eval.split import chosen_tasks
from envrl.rendering.formats import task_text
from envrl.rendering.prompts import find_format
from envrl.trainer.loop import train

ALGORITHMS = ("grpo", "gigpo", "envrl-grpo", "envrl-gigpo")
NAMES = [f"qwen2.5-{s}-{w}-{a}" for s in ("1.5b", "7b") for w in ("alfworld", "webshop") for a in ALGORITHMS]
PUBLISHED = {
    ("1.5b", "alfworld"): ("72.8", "86.7", "77.4", "91.8"),
    ("1.5b", "webshop"): ("56.8", "67.4", "67.0", "74.2"),
    ("7b", "alfworld"): ("77.6", "90.8", None, "94.5"),
    ("7b", "webshop"): ("66.1", "75.2", None, "76.3"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_the_published_protocol(name: str) -> None:
    config = load_recipe(name)
    _, size, world, algorithm = name.split("-", 3)
    shop = world == "webshop"
    rollout, objective, training = config.rollout, config.objective, config.train
    assert (config.env.name, config.env.max_steps) == (world, 15 if shop else 50)
    assert (rollout.tasks, rollout.group_size, rollout.temperature) == (16, 8, 1.0)
    assert (rollout.format, rollout.layout, rollout.history, rollout.show_admissible) == ("tags", "steps", 2, True)
    assert (rollout.prompt_tokens, rollout.response_tokens) == (4096 if shop else 2048, 512)
    assert (rollout.reward, rollout.reward_scale, rollout.invalid_penalty, rollout.invalid) == (
        "success",
        10,
        0.1,
        "form",
    )
    assert (training.updates, training.learning_rate, training.epochs, training.max_grad_norm) == (150, 1e-6, 1, 1.0)
    assert training.minibatch_rows == (64 if shop else 256)
    assert (objective.kl_weight, objective.entropy_weight) == (0.01, 0.001)
    assert config.settings("loss") == {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
    assert objective.estimator == algorithm.removeprefix("envrl-")
    if "gigpo" in algorithm:
        step_norm = "mean" if shop else "mean_std"
        expected = {"gamma": 0.95, "step_weight": 1.0, "step_norm": step_norm, "std": True}
        expected |= {"baseline": "steps", "similarity": 1.0}
        assert config.settings("estimator") == expected
    else:
        assert config.settings("estimator") == {"baseline": "steps", "std": True}
    weight = (0.2 if size == "1.5b" else 0.1) if "envrl" in algorithm else 0.0
    auxiliaries = config.auxiliaries()
    assert [each.name for each in auxiliaries] == (["state", "inverse"] if weight else [])
    for each in auxiliaries:
        assert each.common == AuxiliaryConfig(weight=weight, schedule="cosine", schedule_updates=0)
    assert config.eval.split == (("test",) if shop else ("valid_seen", "valid_unseen"))
    assert (config.eval.temperature, config.eval.protocol, config.eval.episodes) == (0.4, "whole", 0)
    figure = PUBLISHED[size, world][ALGORITHMS.index(algorithm)]
    assert f"published: {figure} %" in recipe_summary(name) or (figure is None and "no figure" in recipe_summary(name))


def test_all_sixteen_ship_and_the_sizes_differ_in_the_model_and_the_weights_alone() -> None:
    assert set(NAMES) <= set(recipe_names())
    for name in NAMES[:8]:
        changed = config_differences(load_recipe(name), load_recipe(name.replace("1.5b", "7b")))
        weights = ["auxiliary.state.weight", "auxiliary.inverse.weight"] if "envrl" in name else []
        assert changed == ["model.path", *weights]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random Qwen2 of width 32 whose tokenizer has words for both worlds' texts."""
    texts = []
    for world, split in (("household", "valid_seen"), ("webshop", "train")):
        env = make(world)
        for task in env.tasks(split)[:24]:
            observation = env.reset(task)
            texts += [m.content for m in find_format("tags").messages(task_text(observation), (), observation)]
    return save_chat_model("qwen2", tmp_path_factory.mktemp("model"), texts=texts, vocabulary=2000, context=8192)


@pytest.mark.parametrize("name", NAMES[:8])
def test_a_recipe_runs_shrunk(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates with a small random model: the same code, fewer tasks, turns and tokens.

    Those of 7B differ in the path of the model, which is replaced here, and in weights alone (see above).
    """
    flags = {
        "model.path": str(folder),
        "train.device": "cpu",
        "train.threads": "1",
        "train.updates": "2",
        "train.learning_rate": "1e-3",
        "train.minibatch_rows": "6",
        "rollout.tasks": "1",
        "rollout.group_size": "2",
        "rollout.response_tokens": "8",
        "env.max_steps": "2",
        "eval.split": "test" if "webshop" in name else "valid_seen",
        "eval.protocol": "published",
        "eval.draws": "6",
        "eval.every": "0",
        "eval.probe_episodes": "1",
    }
    if "webshop" not in name:
        flags["env.name"] = "household"
    arguments = [part for key, value in flags.items() for part in (f"--{key}", value)]
    assert main(["train", name, "--run", str(tmp_path / "run"), *arguments]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["update"] for record in records] == [1, 2]
    for record in records:
        assert record["train/token_mismatches"] == 0
        assert record["train/steps"] == 4
        assert ("rows/state" in record, "rows/inverse" in record) == ("envrl" in name, "envrl" in name)


def test_the_published_protocol_draws_128_games_with_repeats() -> None:
    config = tiny(eval={"protocol": "published"})
    drawn = chosen_tasks(Boxes(), "valid_a", config, 0)
    assert len(drawn) == len({(task.id, member) for task, member in drawn}) == 128
    counts = Counter(task.id for task, _ in drawn)
    assert set(counts) == {f"valid_a/{n}" for n in range(10)}
    assert len(set(counts.values())) > 1, "drawn, not dealt"
    assert chosen_tasks(Boxes(), "valid_a", config, 0) == drawn
    assert chosen_tasks(Boxes(), "valid_a", tiny(eval={"protocol": "published", "seed": 1}), 0) != drawn
    assert chosen_tasks(Boxes(), "valid_a", config, 5) == drawn[:5]
    assert [task.id for task, _ in chosen_tasks(Boxes(), "valid_a", tiny(), 0)] == [f"valid_a/{n}" for n in range(10)]


def test_an_evaluation_says_by_which_protocol_it_was_made() -> None:
    (drawn,), (whole,) = (
        evaluate("random", env="household", split="valid_seen", episodes=4, protocol=protocol)
        for protocol in ("published", "whole")
    )
    assert (drawn["protocol"], drawn["episodes"]) == ("published", 4)
    assert "protocol" not in whole
    with pytest.raises(UserError, match="protocol must be 'whole' or 'published', not 'paper'"):
        evaluate("random", protocol="paper")


def test_a_chat_models_folder_is_evaluated_in_a_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_chat_model("llama", tmp_path / "model", context=8192)
    flags = ["--env", "household", "--split", "valid_seen", "--episodes", "2", "--env.max_steps", "2"]
    out = tmp_path / "record.json"
    asked = [*flags, "--format", "react", "--history", "1", "--max-tokens", "9", "--json", str(out)]
    assert main(["eval", str(folder), *asked]) == 0
    (record,) = json.loads(out.read_text())
    assert record["valid_action_rate"] == 0.0
    assert sum(value for key, value in record.items() if key.startswith("fault/")) == pytest.approx(1.0)
    assert (record["format"], record["history"], record["max_tokens"]) == ("react", 1, 9)
    assert main(["eval", str(folder), *flags, "--history", "1"]) == 2
    assert "--history is for a chat model; name its --format too" in capsys.readouterr().err
    assert main(["eval", str(folder), *flags, "--format", "tag"]) == 2
    assert re.search("unknown prompt format 'tag'.*tags", capsys.readouterr().err)


def test_minibatches_by_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ceil(policy rows / minibatch_rows) optimiser steps a pass, every row once."""
    seen: list[tuple[int, int]] = []
    whole = local.optimiser_batches

    def noted(config: Any, rows: Any, update: int) -> Any:
        parts = whole(config, rows, update)
        assert sorted(row.origin for part in parts for row in part) == sorted(row.origin for row in rows)
        seen.append((sum(any(term.component == "policy" for term in row.terms) for row in rows), len(parts)))
        return parts

    monkeypatch.setattr(local, "optimiser_batches", noted)
    config = tiny(
        train={"minibatch_rows": 2, "updates": 2}, rollout={"layout": "steps"}, auxiliary={"inverse": {"weight": 0.1}}
    )
    train(config, tmp_path / "run")
    assert len(seen) == 2
    assert all(parts == max(1, -(-policy // 2)) for policy, parts in seen)
    assert max(parts for _, parts in seen) > 2
