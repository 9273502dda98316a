"""Playing episodes: a batch of them with a language model, or one with a script; either way a `Trajectory` comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from envrl.envs.protocol import TextEnv
from envrl.models.load import LanguageModel
from envrl.models.tokenizer import Codec
from envrl.rollout.formats import observation_ids, steps_prompt, task_text
from envrl.rollout.randomness import key_of
from envrl.rollout.sampler import Draft, Sampler
from envrl.rollout.trie import Commands, Node
from envrl.types import Action, Observation, Segment, Span, Task, Trajectory, Transition


@dataclass(frozen=True, slots=True)
class PlaySettings:
    """How episodes are played with a language model; the keys are those of the recipe's `rollout` and `env`."""

    max_steps: int
    temperature: float
    layout: str = "concat"
    history: int = 2
    actions: str = "admissible"
    show_admissible: bool = False
    response_tokens: int = 24
    reward_scale: float = 1.0
    dtype: torch.dtype = torch.float32


@dataclass(slots=True)
class Clock:
    """Seconds spent in the worlds, apart from those of the network."""

    env: float = 0.0


@dataclass(slots=True)
class _Episode:
    """An episode being played, and the tokens of its present segment."""

    task: Task
    member: int
    env: TextEnv
    observation: Observation
    task_sentence: str
    transitions: list[Transition] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    stop_reason: str = ""

    def close_segment(self) -> None:
        if self.spans:
            stop = self.spans[-1].stop
            self.segments.append(Segment(np.array(self.ids[:stop], dtype=np.int32), tuple(self.spans)))
        self.ids, self.spans = [], []


def play_model(
    model: LanguageModel,
    make_env: Callable[[], TextEnv],
    tasks: Sequence[Task],
    members: Sequence[int],
    settings: PlaySettings,
    *,
    seed: int,
    update: int = 0,
    clock: Clock | None = None,
    poll: Callable[[], None] = lambda: None,
) -> list[Trajectory]:
    """Play one episode for each (task, member), all at once, and return their trajectories in that order.

    What is drawn depends on (seed, update, task, member, turn, token) alone. `poll` is called every turn and may raise.
    """
    clock = clock or Clock()
    began = time.perf_counter()
    episodes = [_start(make_env(), task, member) for task, member in zip(tasks, members, strict=True)]
    clock.env += time.perf_counter() - began
    keys = np.array([key_of(seed, update, t.id, m) for t, m in zip(tasks, members, strict=True)], dtype=np.uint64)
    sampler = Sampler(model, len(episodes), settings.temperature, settings.response_tokens, settings.dtype)
    commands = Commands(model.codec)
    slots = list(range(len(episodes)))  # slots[i]: the episode in the sampler's slot i
    for turn in range(settings.max_steps):
        poll()
        slots = _compact(sampler, episodes, slots, settings)
        if not slots:
            break
        prompts = [_prompt(model.codec, episodes[index], settings) for index in slots]
        for position, prompt in enumerate(prompts):
            if prompt is not None and sampler.length(position) + len(prompt) + settings.response_tokens > model.context:
                episodes[slots[position]].stop_reason = "context"
                prompts[position] = None
        tries = [_trie(commands, episodes[index].observation, settings) for index in slots]
        drafts = sampler.sample(prompts, tries, keys[slots], turn)
        began = time.perf_counter()
        for index, prompt, draft in zip(slots, prompts, drafts, strict=True):
            if prompt is not None and draft is not None:
                _advance(episodes[index], prompt, draft, model.codec, settings)
        clock.env += time.perf_counter() - began
    for episode in episodes:
        episode.close_segment()
    return [_finish(episode) for episode in episodes]


def _start(env: TextEnv, task: Task, member: int) -> _Episode:
    observation = env.reset(task, seed=task.seed)
    return _Episode(task, member, env, observation, task_text(observation))


def _compact(sampler: Sampler, episodes: list[_Episode], slots: list[int], settings: PlaySettings) -> list[int]:
    """Drop finished episodes from the sampler once they are a fifth of its slots; copying the cache is not free."""
    active = [position for position, index in enumerate(slots) if not episodes[index].stop_reason]
    if settings.layout == "steps":
        sampler.reset(len(active))
        return [slots[position] for position in active]
    if len(active) > 0.8 * len(slots):
        return slots
    if active:
        sampler.keep(active)
    return [slots[position] for position in active]


def _prompt(codec: Codec, episode: _Episode, settings: PlaySettings) -> tuple[int, ...] | None:
    """Return what is new to the sampler before this episode's next action, or None where the episode is over."""
    if episode.stop_reason:
        return None
    if settings.layout == "concat":
        return observation_ids(codec, episode.observation, settings.show_admissible)
    past = episode.transitions[-settings.history :] if settings.history else []
    turns = [(t.observation, t.action.text) for t in past]
    return steps_prompt(codec, episode.task_sentence, turns, episode.observation, settings.show_admissible)


def _trie(commands: Commands, observation: Observation, settings: PlaySettings) -> Node | None:
    if settings.actions == "free" or not observation.admissible:
        return None
    return commands.trie(observation.admissible)


def _advance(episode: _Episode, prompt: Sequence[int], draft: Draft, codec: Codec, settings: PlaySettings) -> None:
    """Record a response, carry it out, and see whether the episode is over."""
    if settings.layout == "steps":
        episode.close_segment()
    start = len(episode.ids) + len(prompt)
    episode.ids += [*prompt, *draft.token_ids]
    episode.spans.append(Span(len(episode.transitions), start, start + len(draft.token_ids)))
    action = to_action(draft, codec)
    step = episode.env.step(action.text)
    episode.transitions.append(
        Transition(
            episode.observation,
            action,
            step.reward * settings.reward_scale,
            step.observation,
            step.done,
            step.success,
        )
    )
    episode.observation = step.observation
    if step.done:
        episode.stop_reason = "done"
    elif len(episode.transitions) == settings.max_steps:
        episode.stop_reason = "max_steps"


def to_action(draft: Draft, codec: Codec) -> Action:
    """Return the command that a response holds; one without the closing mark, or with marks inside, is not well formed."""
    end, observation = codec.marks["end"], codec.marks["observation"]
    body = draft.token_ids[:-1] if draft.token_ids[-1:] == [end] else draft.token_ids
    first_mark = next((i for i, token in enumerate(body) if token in codec.mark_ids), len(body))
    return Action(
        text=codec.decode(body[:first_mark]),
        token_ids=tuple(draft.token_ids),
        logprobs=tuple(draft.logprobs),
        allowed=tuple(draft.allowed),
        well_formed=first_mark == len(body) < len(draft.token_ids),
        imagined=observation in body,
    )


def _finish(episode: _Episode) -> Trajectory:
    return Trajectory(
        episode.task,
        episode.member,
        tuple(episode.transitions),
        tuple(episode.segments),
        episode.stop_reason or "max_steps",
    )


Script = Callable[[Observation], str]


def play_script(env: TextEnv, task: Task, script: Script, max_steps: int) -> Trajectory:
    """Play one episode with a script (observation → command); its actions carry no tokens."""
    return _finish(_run_script(_start(env, task, 0), script, max_steps))


def _run_script(episode: _Episode, script: Script, max_steps: int) -> _Episode:
    for _ in range(max_steps):
        command = script(episode.observation)
        step = episode.env.step(command)
        episode.transitions.append(
            Transition(episode.observation, Action(command), step.reward, step.observation, step.done, step.success)
        )
        episode.observation = step.observation
        if step.done:
            episode.stop_reason = "done"
            break
    return episode


def batches(count: int, size: int) -> Iterator[range]:
    """Return consecutive ranges of at most `size` that cover `range(count)`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
