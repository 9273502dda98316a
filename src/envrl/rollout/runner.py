"""Playing episodes: a batch of them with a language model, or one with a script; either way a `Trajectory` results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from envrl.envs.pool import Start, VectorEnv, vector_of
from envrl.envs.protocol import TextEnv
from envrl.models.load import LanguageModel
from envrl.rollout.randomness import key_of
from envrl.rollout.sampler import Draft, Sampler
from envrl.rollout.transcript import Transcript
from envrl.rollout.trie import Commands
from envrl.rollout.wording import Prompt, Wording
from envrl.types import Action, Observation, Step, Task, Trajectory, Transition

SET_ASIDE = "set aside"
"""Why an episode stopped whose world failed again and again."""


@dataclass(frozen=True, slots=True)
class PlaySettings:
    """How episodes are played with a language model; the keys are those of the recipe's `rollout` and `env`."""

    max_steps: int
    temperature: float
    actions: str = "admissible"
    response_tokens: int = 24
    reward: str = "world"
    reward_scale: float = 1.0


@dataclass(slots=True)
class Clock:
    """Seconds spent in the worlds, apart from those of the network, and what befell on the way."""

    env: float = 0.0
    replaced: int = 0
    """Worker processes that were replaced meanwhile."""
    mismatches: int = 0
    """Steps whose recorded tokens are not those that the network was fed: a fault of the program."""


@dataclass(slots=True)
class _Episode:
    """An episode being played, and its tokens."""

    task: Task
    member: int
    observation: Observation
    transitions: list[Transition] = field(default_factory=list)
    transcript: Transcript = field(default_factory=Transcript)
    stop_reason: str = ""


def play_model(
    model: LanguageModel,
    wording: Wording,
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
    worlds = vector_of(make_env)
    replaced = worlds.replaced
    began = time.perf_counter()
    episodes = _start(worlds, tasks, members)
    clock.env += time.perf_counter() - began
    keys = np.array([key_of(seed, update, t.id, m) for t, m in zip(tasks, members, strict=True)], dtype=np.uint64)
    sampler = Sampler(model, len(episodes), settings.temperature, settings.response_tokens, wording.stops)
    commands = Commands(model.codec, wording)
    slots = list(range(len(episodes)))  # slots[i]: the episode in the sampler's slot i
    for turn in range(settings.max_steps):
        poll()
        slots = _compact(sampler, episodes, slots, wording)
        if not slots:
            break
        prompts = [_prompt(wording, episodes[index], commands, settings) for index in slots]
        sampler.forget([position for position, prompt in enumerate(prompts) if prompt is not None and prompt.fresh])
        free = settings.actions == "free"
        tries = [None if free else commands.trie(episodes[index].observation) for index in slots]
        drafts = sampler.sample([p.ids if p is not None else None for p in prompts], tries, keys[slots], turn)
        actions: list[tuple[int, Action]] = []
        for position, (index, prompt, draft) in enumerate(zip(slots, prompts, drafts, strict=True)):
            if prompt is not None and draft is not None:
                actions.append((index, _act(wording, episodes[index], prompt, draft)))
                clock.mismatches += not sampler.ends_with(position, episodes[index].transcript.ids)
        began = time.perf_counter()
        steps = worlds.step([(index, action.text) for index, action in actions])
        for (index, action), step in zip(actions, steps, strict=True):
            _advance(episodes[index], action, step, settings)
        clock.env += time.perf_counter() - began
    clock.replaced += worlds.replaced - replaced
    for episode in episodes:
        episode.transcript.close()
    return [_finish(episode, update) for episode in episodes]


def _start(worlds: VectorEnv, tasks: Sequence[Task], members: Sequence[int]) -> list[_Episode]:
    starts = [Start(slot, task, task.seed) for slot, task in enumerate(tasks)]
    episodes = []
    for task, member, observation in zip(tasks, members, worlds.reset(starts), strict=True):
        stop_reason = SET_ASIDE if observation is None else ""
        observation = observation or Observation("")
        episodes.append(_Episode(task, member, observation, stop_reason=stop_reason))
    return episodes


def _compact(sampler: Sampler, episodes: list[_Episode], slots: list[int], wording: Wording) -> list[int]:
    """Drop finished episodes from the sampler once they are a fifth of its slots; copying the cache is not free."""
    active = [position for position, index in enumerate(slots) if not episodes[index].stop_reason]
    if wording.form.layout == "steps":
        sampler.reset(len(active))
        return [slots[position] for position in active]
    if len(active) > 0.8 * len(slots):
        return slots
    if active:
        sampler.keep(active)
    return [slots[position] for position in active]


def _prompt(wording: Wording, episode: _Episode, commands: Commands, settings: PlaySettings) -> Prompt | None:
    """Return what is to be fed before this episode's next action, or None where the episode is over.

    It is over, too, where prompt and longest response would not fit the context.
    """
    if episode.stop_reason:
        return None
    longest = 0 if settings.actions == "free" else commands.longest(episode.observation)
    room = max(settings.response_tokens, longest)
    prompt = wording.prompt(episode.transitions, episode.observation, episode.transcript.told, room)
    if prompt is None:
        episode.stop_reason = "context"
    return prompt


def _act(wording: Wording, episode: _Episode, prompt: Prompt, draft: Draft) -> Action:
    """Record the tokens of a response, and return what it does."""
    response = tuple(draft.token_ids)
    episode.transcript.add(len(episode.transitions), prompt, response, wording.text_of(response))
    return wording.read(draft)


def _advance(episode: _Episode, action: Action, step: Step | None, settings: PlaySettings) -> None:
    """Record what the world answered, and see whether the episode is over."""
    if step is None:
        episode.stop_reason = SET_ASIDE
        episode.transcript.take_back()
        return
    episode.transitions.append(
        Transition(
            episode.observation,
            action,
            (step.reward if settings.reward == "world" else float(step.done and step.success)) * settings.reward_scale,
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


def _finish(episode: _Episode, update: int = 0) -> Trajectory:
    return Trajectory(
        episode.task,
        episode.member,
        tuple(episode.transitions),
        tuple(episode.transcript.segments),
        episode.stop_reason or "max_steps",
        policy_version=update,
    )


Script = Callable[[Observation], str]


def play_script(env: TextEnv, task: Task, script: Script, max_steps: int) -> Trajectory:
    """Play one episode with a script (observation → command); its actions carry no tokens."""
    observation = env.reset(task, seed=task.seed)
    episode = _Episode(task, 0, observation)
    return _finish(_run_script(env, episode, script, max_steps))


def _run_script(env: TextEnv, episode: _Episode, script: Script, max_steps: int) -> _Episode:
    for _ in range(max_steps):
        command = script(episode.observation)
        step = env.step(command)
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
