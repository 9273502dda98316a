"""Playing episodes with a chat model: every turn all of them are asked at once, then their worlds go on in order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from envrl.envs.pool import vector_of
from envrl.envs.protocol import TextEnv
from envrl.envs.vector import Start, VectorEnv
from envrl.randomness import key_of
from envrl.rollout.formats import task_text
from envrl.rollout.marks import last_turns
from envrl.rollout.prompts import Message, PromptFormat
from envrl.types import Action, Observation, StopReason, Task, Trajectory, Transition


class Question(NamedTuple):
    """A chat to be continued, and the seed (31 bits) of what is drawn for it."""

    messages: tuple[Message, ...]
    seed: int


class Reply(NamedTuple):
    """A model's response, its cost in tokens (None where nobody counted them), and how often it was asked for again.

    `cut`: it was cut off at its longest.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retries: int = 0
    cut: bool = False


Ask = Callable[[Sequence[Question]], Sequence[Reply | None]]
"""Returns the reply to each question, None where the chat is longer than the model's context."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How episodes are played with a chat model; the keys are those of the recipe's `rollout` and `env`."""

    form: PromptFormat
    max_steps: int
    history: int = 2
    show_admissible: bool = True
    seed: int = 0
    system_message: str = ""


@dataclass(slots=True)
class Tally:
    """What the questions came to: their number, tokens (None once a reply came without a count), faults by kind."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    faults: Counter[str] = field(default_factory=Counter)
    env: float = 0.0
    """Seconds spent in the worlds."""

    def add(self, reply: Reply | None) -> None:
        self.requests += 1
        if reply is not None:
            self.retries += reply.retries
            self.prompt_tokens = _sum(self.prompt_tokens, reply.prompt_tokens)
            self.completion_tokens = _sum(self.completion_tokens, reply.completion_tokens)


@dataclass(slots=True)
class _Episode:
    task: Task
    member: int
    observation: Observation
    task_sentence: str
    transitions: list[Transition] = field(default_factory=list)
    stop_reason: StopReason | None = None


def play_chat(
    ask: Ask,
    make_env: Callable[[], TextEnv],
    chosen: Sequence[tuple[Task, int]],
    settings: ChatSettings,
    tally: Tally,
    watch: Callable[[float], None] = lambda _: None,
    ended: Callable[[Trajectory], None] = lambda _: None,
) -> list[Trajectory]:
    """Play an episode of each (task, member), all at once, and return their trajectories in order; add to `tally`.

    A response at fault gives its world the empty command, which means nothing to it. Seeds are of (seed, task, turn,
    member). `watch` is told how many episodes are played, those under way by the share of their steps, and `ended` gets
    each when it is over.
    """
    worlds = vector_of(make_env)
    try:
        return _played(ask, worlds, chosen, settings, tally, watch, ended)
    finally:
        worlds.finish()


def _played(
    ask: Ask,
    worlds: VectorEnv,
    chosen: Sequence[tuple[Task, int]],
    settings: ChatSettings,
    tally: Tally,
    watch: Callable[[float], None],
    ended: Callable[[Trajectory], None],
) -> list[Trajectory]:
    began = time.perf_counter()
    observations = worlds.reset([Start(slot, task, task.seed) for slot, (task, _) in enumerate(chosen)])
    tally.env += time.perf_counter() - began
    episodes = [_begin(*who, observation) for who, observation in zip(chosen, observations, strict=True)]
    going = episodes
    for turn in range(settings.max_steps):
        slots = [slot for slot, episode in enumerate(episodes) if not episode.stop_reason]
        if not slots:
            break
        replies = ask([_question(episodes[slot], settings, turn) for slot in slots])
        actions: list[tuple[int, Action]] = []
        for slot, reply in zip(slots, replies, strict=True):
            tally.add(reply)
            if reply is None:
                episodes[slot].stop_reason = StopReason.CONTEXT
            else:
                actions.append((slot, _act(reply, settings.form, tally)))
        _step(worlds, episodes, actions, tally)
        watch(sum(1.0 if e.stop_reason else len(e.transitions) / settings.max_steps for e in episodes))
        for episode in (episode for episode in going if episode.stop_reason):
            ended(_finish(episode))
        going = [episode for episode in going if not episode.stop_reason]
    for episode in going:
        ended(_finish(episode))
    return [_finish(episode) for episode in episodes]


def _finish(episode: _Episode) -> Trajectory:
    stop_reason = episode.stop_reason or StopReason.MAX_STEPS
    return Trajectory(episode.task, episode.member, tuple(episode.transitions), (), stop_reason)


def _begin(task: Task, member: int, observation: Observation | None) -> _Episode:
    if observation is None:
        return _Episode(task, member, Observation(""), "", stop_reason=StopReason.SET_ASIDE)
    return _Episode(task, member, observation, task_text(observation))


def _question(episode: _Episode, settings: ChatSettings, turn: int) -> Question:
    turns = last_turns(episode.transitions, settings.history)
    system = (Message("system", settings.system_message),) if settings.system_message else ()
    messages = settings.form.messages(episode.task_sentence, turns, episode.observation, settings.show_admissible)
    dice = (episode.member,) if episode.member else ()
    return Question((*system, *messages), key_of(settings.seed, episode.task.id, turn, *dice) % 2**31)


def _act(reply: Reply, form: PromptFormat, tally: Tally) -> Action:
    parsed = form.parse(reply.text)
    fault = parsed.fault or ("unclosed" if reply.cut else "")
    if fault:
        tally.faults[fault] += 1
    return Action("" if fault else parsed.command, fault=fault, imagined=fault == "imagined observation")


def _step(worlds: VectorEnv, episodes: list[_Episode], actions: list[tuple[int, Action]], tally: Tally) -> None:
    """Carry out the actions, each in its slot's world, and record what the worlds answered."""
    began = time.perf_counter()
    steps = worlds.step([(slot, action.text) for slot, action in actions])
    tally.env += time.perf_counter() - began
    for (slot, action), step in zip(actions, steps, strict=True):
        episode = episodes[slot]
        if step is None:
            episode.stop_reason = StopReason.SET_ASIDE
            continue
        episode.transitions.append(
            Transition(episode.observation, action, step.reward, step.observation, step.done, step.success)
        )
        episode.observation = step.observation
        episode.stop_reason = StopReason.DONE if step.done else None


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def batches(count: int, size: int) -> Iterator[range]:
    """Return consecutive ranges of at most `size` that cover `range(count)`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
