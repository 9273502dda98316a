"""Fewer slots than episodes: the next one takes the slot of one that ends, and what is played stays the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from boxes import Boxes
from envrl.config.schema import ModelConfig
from envrl.envs.pool import ProcessPool, Worlds
from envrl.models.load import LanguageModel, build_model
from envrl.rendering.marks import MarksRenderer
from envrl.rendering.renderer import Form, SegmentState
from envrl.rollout import slot_sampler as module
from envrl.rollout.scheduler import PlaySettings, RolloutStats
from envrl.types import Observation, Step, StopReason, Task, Trajectory
from frail import Frail
from playing import play_model, sample

STEPS = 6
SETTINGS = PlaySettings(max_steps=STEPS, temperature=1.0, response_tokens=5)
COMMANDS = ("left", "right", "jump", "jump high")


class Corridor:
    """Find the way out by going right; a task's seed is how far it is. Notes the tasks that were opened."""

    opened: ClassVar[list[str]] = []

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}/{length}", split, length) for length in (1, 3, 2, 40)]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.left = seed
        Corridor.opened.append(task.id)
        return Observation(f"You stand in a corridor of {seed} yards.\n\nYour task is to: leave it", COMMANDS)

    def step(self, action: str) -> Step:
        self.left = max(0, self.left + {"right": -1, "jump": -1, "jump high": -2, "left": 1}.get(action, 0))
        text = f"You have {self.left} yards to go." + " It is dark." * (self.left % 3)
        return Step(Observation(text, COMMANDS), float(self.left == 0), self.left == 0, self.left == 0)


TEXTS = [f"You have {n} yards to go. It is dark. You stand in a corridor of {n} yards." for n in range(40)] * 3


def qwen() -> LanguageModel:
    codec = build_model(ModelConfig(hidden_size=32, layers=2, heads=2, vocabulary=330, context=400), TEXTS, 1).codec
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": codec.marks["end"]}
    config = Qwen2Config(vocab_size=len(codec), num_key_value_heads=2, max_position_embeddings=400, **shape, **ends)
    return LanguageModel(Qwen2ForCausalLM(config).eval(), codec)


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    tiny = build_model(ModelConfig(hidden_size=32, layers=3, heads=2, vocabulary=330, context=400), TEXTS, 1)
    return {"qwen2": qwen(), "lfm2": tiny}


def play(
    model: LanguageModel, layout: str, slots: int, *, worlds: Any = Corridor, actions: str = "free", members: int = 3
) -> tuple[list[Trajectory], RolloutStats]:
    renderer, stats = MarksRenderer(model.codec, Form(layout=layout), model.context), RolloutStats()
    tasks = [task for task in Corridor().tasks("train") for _ in range(members)]
    settings = replace(SETTINGS, slots=slots, actions=actions)
    found = play_model(model, renderer, worlds, tasks, [*range(members)] * 4, settings, seed=0, stats=stats)
    return found, stats


def assert_same(found: Sequence[Trajectory], expected: Sequence[Trajectory]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.task, one.member, one.stop_reason) == (other.task, other.member, other.stop_reason)
        assert [s.next_observation for s in one.transitions] == [s.next_observation for s in other.transitions]
        assert [s.action.token_ids for s in one.transitions] == [s.action.token_ids for s in other.transitions]
        for mine, theirs in zip(one.segments, other.segments, strict=True):
            assert mine.token_ids.tolist() == theirs.token_ids.tolist()
            assert mine.spans == theirs.spans
        for mine, theirs in zip(one.transitions, other.transitions, strict=True):
            assert np.allclose(mine.action.logprobs, theirs.action.logprobs, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "lfm2"])
@pytest.mark.parametrize("actions", ["free", "admissible"])
@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_the_number_of_slots_changes_nothing(
    layout: str, actions: str, kind: str, models: dict[str, LanguageModel]
) -> None:
    everyone, stats = play(models[kind], layout, 0, actions=actions)
    assert len({t.stop_reason for t in everyone}) == (1 if actions == "free" else 2)
    assert stats.mismatches == 0
    for slots in (1, 3, 99):
        found, stats = play(models[kind], layout, slots, actions=actions)
        assert_same(found, everyone)
        assert stats.mismatches == 0, "what is recorded is what was fed"


def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of all chunks from now on."""
    shapes, original = [], module.chunk_states

    def record(network: Any, cache: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return original(network, cache, ids, *rest)

    monkeypatch.setattr(module, "chunk_states", record)
    return shapes


@pytest.mark.parametrize("actions", ["free", "admissible"])
def test_never_more_sequences_than_slots_and_worlds_open_when_they_get_one(
    actions: str, models: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = widths(monkeypatch)
    Corridor.opened, alive = [], []
    renderer = MarksRenderer(models["qwen2"].codec, Form(), 400)
    tasks = [task for task in Corridor().tasks("train") for _ in range(3)]
    settings = replace(SETTINGS, slots=3, actions=actions)
    play_model(
        *(models["qwen2"], renderer, Corridor, tasks, [0, 1, 2] * 4, settings),
        seed=0,
        poll=lambda: alive.append(len(Corridor.opened)),
    )
    assert max(rows for rows, _ in shapes) == 3
    assert alive[0] == 3, "three worlds are open in the first turn"
    assert Corridor.opened == [task.id for task in tasks]


def test_a_group_member_that_comes_later_copies_what_its_group_began_with(
    models: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slots for five episodes of one task: the third runs one token of its first prompt, not all."""
    task = Corridor().tasks("train")[0]
    renderer = MarksRenderer(models["qwen2"].codec, Form(), 400)
    opening = len(renderer.prompt((), Corridor().reset(task, 1), SegmentState(), 5).ids)  # type: ignore[union-attr]
    shapes = widths(monkeypatch)
    settings = replace(SETTINGS, slots=2, actions="admissible")
    play_model(models["qwen2"], renderer, Corridor, [task] * 5, [*range(5)], settings, seed=3)
    assert sum(columns >= opening for _, columns in shapes) == 1


def test_worker_processes_play_the_same_and_a_task_set_aside_frees_its_slot(
    models: dict[str, LanguageModel], tmp_path: Path
) -> None:
    tasks = [task for task in Boxes().tasks("train")[:4] for _ in range(3)]
    renderer, members = MarksRenderer(models["qwen2"].codec, Form(), 400), [0, 1, 2] * 4
    expected = play_model(models["qwen2"], renderer, Boxes, tasks, members, SETTINGS, seed=0)
    frail = partial(Frail, tmp_path, os.getpid(), (tasks[0].id,), (tasks[6].id,))  # dies once in one, always in another
    worlds, three = Worlds(frail, workers=2), replace(SETTINGS, slots=3)
    try:
        with pytest.warns(UserWarning, match=f"set aside the task '{tasks[6].id}'"):
            found = play_model(models["qwen2"], renderer, worlds, tasks, members, three, seed=0)
    finally:
        pool = worlds.vector()
        assert isinstance(pool, ProcessPool)
        pool.close()
    assert [(t.stop_reason is StopReason.SET_ASIDE) for t in found] == [t.task == tasks[6] for t in expected]
    sound = [number for number, task in enumerate(tasks) if task != tasks[6]]
    assert_same([found[n] for n in sound], [expected[n] for n in sound])


def test_free_responses_do_not_wait_for_the_longest(models: dict[str, LanguageModel]) -> None:
    """One episode writes on and on, the others close at once: they are ahead of it by turns."""
    model = models["qwen2"]
    sampler = module.SlotSampler(model, 4, 1.0, 40, {-1})
    prompt = model.codec.encode("You have 3 yards to go.")
    for slot in range(4):
        sampler.ask(slot, prompt, {7: {8: {}}} if slot else None, slot, 0)
    assert sorted(sampler.run(1)) == [1, 2, 3]
    assert sampler.is_open(0)
    assert not sampler.is_open(1)
    for turn in range(1, 6):
        sampler.ask(1, prompt, {7: {8: {}}}, 1, turn)
        assert sorted(sampler.run(1)) == [1]
    (left,) = sampler.run().values()
    alone = sample(module.SlotSampler(model, 1, 1.0, 40, {-1}), [prompt], [None], np.zeros(1, dtype=np.uint64), 0)[0]
    assert alone is not None
    assert left.token_ids == alone.token_ids
    assert np.allclose(left.logprobs, alone.logprobs, atol=1e-5)
