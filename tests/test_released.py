"""The losses of EnvRL in both published forms, computed once more by hand with `transformers` alone.

The paper's: a mean over the targets' tokens of an update. The public code's: every text counts once, by the mean over
all of its tokens. The questions are written here as docs/method.md says them, and not by the code under test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from boxes import COMMANDS, Boxes, grouped, tiny
from chat_models import save_chat_model
from envrl.batches.batch import build_batch
from envrl.build import form_of, play_settings, renderer_of
from envrl.config.load import config_differences, load_recipe
from envrl.config.recipes_index import recipe_names
from envrl.config.schema import Config
from envrl.engine.local import loss_settings
from envrl.engine.update import Totals, micro_loss
from envrl.eval.split import chosen_tasks
from envrl.models.load import load_model
from envrl.objective.auxiliary.inverse import listed
from envrl.samples.packing import denominators
from envrl.types import Trajectory
from playing import play_model

STATE = "What does the world answer? Write its next observation, word for word."
INVERSE = "Which command did you give? Write the command alone."
RELEASED = {
    "weight": 0.1,
    "schedule": "constant",
    "tokens": "all",
    "aggregation": "sequence_mean",
    "deduplicate": False,
    "task": False,
    "commands": False,
    "last": False,
}


def question(episode: Trajectory, step: int, *, task: bool, commands: bool, told: str, asked: str) -> str:
    """Return the user's message about a step of an episode of boxes, with the last two turns."""
    steps = episode.transitions
    thing = episode.task.kind
    parts = ["You act in a world that is described in words. Every turn you give it one command."]
    parts += [f"Your task: find the {thing}"] * task
    if past := steps[max(0, step - 2) : step]:
        parts.append("Your last turns, oldest first:")
        parts += [f"Observation: {one.observation.text}\nCommand: {one.action.text}" for one in past]
    parts.append(f"What you see now:\n{steps[step].observation.text}")
    if commands:
        parts.append("\n".join(["The commands that the world accepts now, one a line:", *COMMANDS]))
    return "\n\n".join([*parts, told, asked])


def texts(episodes: list[Trajectory], *, released: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the questions and targets of state prediction and of inverse dynamics."""
    state, inverse = [], []
    for episode in episodes:
        for number, step in enumerate(episode.transitions[: -1 if released else None]):
            situation: dict[str, Any] = {"task": not released, "commands": not released}
            answer, command = step.next_observation.text, step.action.text
            told = f"Your command now: {command}"
            target = f"<observation>{answer}</observation>" if released else answer
            state.append((question(episode, number, **situation, told=told, asked=STATE), target))
            told = f"What you see after your next command:\n{answer}"
            if released:
                told += "\n\n" + "\n".join(["It was one of these commands, one a line:", *listed(episode, number)])
            target = f"<action>{command}</action>" if released else command
            inverse.append((question(episode, number, **situation, told=told, asked=INVERSE), target))
    return state, inverse


def by_hand(folder: Path, pairs: list[tuple[str, str]], *, released: bool) -> float:
    """Return the loss with `transformers` alone: nats a token of the targets, or of every text the mean of its own."""
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    total, count = 0.0, 0.0
    for asked, target in pairs:
        chat = [{"role": "user", "content": asked}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        given = tokenizer.encode(prompt, add_special_tokens=False)
        ids = torch.tensor([[*given, *tokenizer.encode(target, add_special_tokens=False), tokenizer.eos_token_id]])
        with torch.no_grad():
            logprobs = network(ids).logits[0, :-1].double().log_softmax(-1)
        losses = -logprobs.gather(1, ids[0, 1:, None])[:, 0]
        losses = losses if released else losses[len(given) - 1 :]
        total += float(losses.mean() if released else losses.sum())
        count += 1 if released else len(losses)
    return total / count


def shown(config: Config) -> Config:
    return replace(
        config,
        rollout=replace(
            config.rollout, layout="steps", history=2, format="action", show_admissible=True, actions="admissible"
        ),
    )


@pytest.mark.parametrize("released", [False, True], ids=["the paper's", "as released"])
def test_the_losses_of_a_batch_equal_those_computed_by_hand(released: bool, tmp_path: Path) -> None:
    folder = save_chat_model("qwen2", tmp_path)
    same: dict[str, Any] = RELEASED if released else {"weight": 0.1, "deduplicate": False}
    tags = ({"tag": "observation"}, {"tag": "action", "choices": True}) if released else ({}, {})
    config = shown(tiny(auxiliary={"state": same | tags[0], "inverse": same | tags[1]}))
    model = load_model(folder, marks=False)
    renderer = renderer_of(model, form_of(config))
    tasks = [task for task in Boxes().tasks("train")[:2] for _ in range(3)]
    played = play_model(model, renderer, Boxes, tasks, [0, 1, 2] * 2, play_settings(config, 1.0), seed=0, update=1)
    assert any(len(episode.transitions) == 3 for episode in played)
    batch = build_batch(grouped(played, 3), config, renderer, 1)
    rows = [row for row in batch.rows if row.terms[0].component in ("state", "inverse")]
    settings = replace(loss_settings(config, {}), weights={"state": 1.0, "inverse": 0.0})
    state, inverse = texts(played, released=released)
    for name, pairs in (("state", state), ("inverse", inverse)):
        of_one = [row for row in rows if row.terms[0].component == name]
        assert len(of_one) == len(pairs) == batch.figures[f"rows/{name}"]
        weights = replace(settings, weights={name: 1.0})
        with torch.no_grad():
            loss = micro_loss(model, of_one, Totals(), denominators(of_one), weights)
        assert float(loss) == pytest.approx(by_hand(folder, pairs, released=released), rel=1e-6)


# The recipes


AS_RELEASED = [name for name in recipe_names() if name.endswith("as-released")]


def test_each_family_has_its_placebo() -> None:
    assert len(AS_RELEASED) == 4
    for name in AS_RELEASED:
        for arm in (name, name.removesuffix("-as-released")):
            changed = config_differences(load_recipe(arm), load_recipe(f"{arm}-placebo"))
            assert sorted(changed) == ["auxiliary.inverse.placebo", "auxiliary.state.placebo"]


@pytest.mark.parametrize("name", AS_RELEASED)
def test_what_the_public_code_does_differs_from_the_paper_in_these_keys(name: str) -> None:
    config, paper = load_recipe(name), load_recipe(name.removesuffix("-as-released"))
    shop = "webshop" in name
    both = ["weight"] * (not shop) + [
        "schedule",
        "deduplicate",
        "tokens",
        "aggregation",
        "tag",
        "task",
        "commands",
        "last",
    ]
    expected = {f"auxiliary.{kind}.{key}" for kind in ("state", "inverse") for key in both}
    expected -= {"auxiliary.inverse.commands"}  # there the choices take their place
    expected |= {"auxiliary.inverse.choices", "eval.protocol", "eval.draws", "eval.repeats", "eval.episodes"}
    assert set(config_differences(paper, config)) == expected | ({"train.minibatch_rows"} if shop else set())
    weight = 0.2 if shop else 0.1
    assert {each.common.weight for each in config.auxiliaries()} == {weight}
    assert config.train.minibatch_rows == 256
    assert config.objective.idle_rows == paper.objective.idle_rows == "count"


def test_three_evaluations_of_140_draws() -> None:
    config = tiny(eval={"protocol": "published", "draws": 140, "repeats": 3})
    chosen = chosen_tasks(Boxes(), "valid_a", config, 0)
    assert len(chosen) == 420
    assert len({(task.id, member) for task, member in chosen}) == 420
    assert chosen[:128] == chosen_tasks(Boxes(), "valid_a", tiny(eval={"protocol": "published"}), 0)


def test_the_study_of_smollm2_has_arms_that_tell_language_from_dynamics() -> None:
    envrl = load_recipe("smollm2-alfworld-envrl")
    arms = {
        "all-tokens": ["auxiliary.state.tokens", "auxiliary.inverse.tokens"],
        "choices": ["auxiliary.inverse.choices"],
    }
    for arm, keys in arms.items():
        assert config_differences(envrl, load_recipe(f"smollm2-alfworld-{arm}")) == keys
    placebo = load_recipe("smollm2-alfworld-all-tokens-placebo")
    changed = config_differences(load_recipe("smollm2-alfworld-all-tokens"), placebo)
    assert changed == ["auxiliary.state.placebo", "auxiliary.inverse.placebo"]
