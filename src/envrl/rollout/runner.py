"""Playing episodes: a batch of them with a language model, or one with a script; either way a `Trajectory` results."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from envrl.envs.pool import Start, VectorEnv, vector_of
from envrl.envs.protocol import TextEnv
from envrl.models.load import LanguageModel
from envrl.models.tokenizer import Codec
from envrl.rollout.formats import Ids, observation_ids, steps_prompt, task_text
from envrl.rollout.randomness import key_of
from envrl.rollout.sampler import Draft, Sampler
from envrl.rollout.trie import Commands
from envrl.types import Action, Observation, Segment, Span, Step, Task, Trajectory, Transition

SET_ASIDE = "set aside"
"""Why an episode stopped whose world failed again and again."""
_ANSWER = re.compile(r"\S\s*\n\s*\S|(?:\A|\s)You\s")
"""What a response holds that goes on beyond its command: another line, or a sentence that begins with "You"."""


@dataclass(frozen=True, slots=True)
class PlaySettings:
    """How episodes are played with a language model; the keys are those of the recipe's `rollout` and `env`."""

    max_steps: int
    temperature: float
    layout: str = "concat"
    history: int = 2
    actions: str = "admissible"
    show_admissible: bool = False
    repeat_task: bool = False
    response_tokens: int = 24
    top_k: int = 0
    top_p: float = 1.0
    reward: str = "world"
    reward_scale: float = 1.0


@dataclass(slots=True)
class Clock:
    """Seconds spent in the worlds, apart from those of the network, and what befell their processes."""

    env: float = 0.0
    replaced: int = 0
    """Worker processes that were replaced meanwhile."""


@dataclass(slots=True)
class _Episode:
    """An episode being played, and the tokens of its present segment."""

    task: Task
    member: int
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
    worlds = vector_of(make_env)
    replaced = worlds.replaced
    began = time.perf_counter()
    episodes = _start(worlds, tasks, members)
    clock.env += time.perf_counter() - began
    keys = np.array([key_of(seed, update, t.id, m) for t, m in zip(tasks, members, strict=True)], dtype=np.uint64)
    sampler = Sampler(
        *(model, len(episodes), settings.temperature, settings.response_tokens),
        top_k=settings.top_k,
        top_p=settings.top_p,
    )
    commands = Commands(model.codec)
    slots = list(range(len(episodes)))  # slots[i]: the episode in the sampler's slot i
    for turn in range(settings.max_steps):
        poll()
        slots = _compact(sampler, episodes, slots, settings)
        if not slots:
            break
        prompts = [
            _prompt(model, episodes[index], commands, settings, fed=sampler.length(position))
            for position, index in enumerate(slots)
        ]
        free = settings.actions == "free"
        tries = [None if free else commands.trie(episodes[index].observation) for index in slots]
        drafts = sampler.sample(prompts, tries, keys[slots], turn)
        actions = [
            (index, _act(episodes[index], prompt, draft, model.codec, settings))
            for index, prompt, draft in zip(slots, prompts, drafts, strict=True)
            if prompt is not None and draft is not None
        ]
        began = time.perf_counter()
        steps = worlds.step([(index, action.text) for index, action in actions])
        for (index, action), step in zip(actions, steps, strict=True):
            _advance(episodes[index], action, step, settings)
        clock.env += time.perf_counter() - began
    clock.replaced += worlds.replaced - replaced
    for episode in episodes:
        episode.close_segment()
    return [_finish(episode, update) for episode in episodes]


def _start(worlds: VectorEnv, tasks: Sequence[Task], members: Sequence[int]) -> list[_Episode]:
    starts = [Start(slot, task, task.seed) for slot, task in enumerate(tasks)]
    episodes = []
    for task, member, observation in zip(tasks, members, worlds.reset(starts), strict=True):
        stop_reason = SET_ASIDE if observation is None else ""
        observation = observation or Observation("")
        episodes.append(_Episode(task, member, observation, task_text(observation), stop_reason=stop_reason))
    return episodes


def _compact(sampler: Sampler, episodes: list[_Episode], slots: list[int], settings: PlaySettings) -> list[int]:
    """Drop finished episodes from the sampler once they are a fifth of its slots; copying the cache is not free."""
    active = [position for position, index in enumerate(slots) if not episodes[index].stop_reason]
    if settings.layout == "steps":
        sampler.forget(range(len(slots)))
        sampler.keep(active)
        return [slots[position] for position in active]
    if len(active) > 0.8 * len(slots):
        return slots
    if active:
        sampler.keep(active)
    return [slots[position] for position in active]


def _prompt(
    model: LanguageModel, episode: _Episode, commands: Commands, settings: PlaySettings, *, fed: int
) -> Ids | None:
    """Return what is new to the sampler before this episode's next action, or None where the episode is over.

    It is over, too, where prompt and longest response would not fit the context behind the `fed` tokens.
    """
    if episode.stop_reason:
        return None
    if settings.layout == "concat":
        repeated = episode.task_sentence if settings.repeat_task else ""
        prompt = observation_ids(model.codec, episode.observation, settings.show_admissible, repeated)
    else:
        past = episode.transitions[-settings.history :] if settings.history else []
        turns = [(t.observation, t.action.text) for t in past]
        shown = settings.show_admissible
        prompt = steps_prompt(model.codec, episode.task_sentence, turns, episode.observation, shown)
    longest = 0 if settings.actions == "free" else commands.longest(episode.observation)
    room = max(settings.response_tokens, longest)
    if fed + len(prompt) + room > model.context:
        episode.stop_reason = "context"
        return None
    return prompt


def _act(episode: _Episode, prompt: Sequence[int], draft: Draft, codec: Codec, settings: PlaySettings) -> Action:
    """Record the tokens of a response, and return what it does."""
    if settings.layout == "steps":
        episode.close_segment()
    start = len(episode.ids) + len(prompt)
    episode.ids += [*prompt, *draft.token_ids]
    episode.spans.append(Span(len(episode.transitions), start, start + len(draft.token_ids)))
    return to_action(draft, codec)


def _advance(episode: _Episode, action: Action, step: Step | None, settings: PlaySettings) -> None:
    """Record what the world answered, and see whether the episode is over."""
    if step is None:
        episode.stop_reason = SET_ASIDE
        episode.spans.pop()  # a response without an answer is no step
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


def to_action(draft: Draft, codec: Codec) -> Action:
    """Return the command that a response holds: its text before the first mark.

    A response without the closing mark, or with another mark inside, is not well formed. It *imagines* an observation
    where it was drawn freely and holds a mark that begins one (`<observation>` or `<next>`), text on a second line, or
    a sentence that begins with "You".
    """
    end, begins = codec.marks["end"], {codec.marks["observation"], codec.marks["next"]}
    body = draft.token_ids[:-1] if draft.token_ids[-1:] == [end] else draft.token_ids
    first_mark = next((i for i, token in enumerate(body) if token in codec.mark_ids), len(body))
    text = codec.decode(body[:first_mark])
    return Action(
        text=text,
        token_ids=tuple(draft.token_ids),
        logprobs=tuple(draft.logprobs),
        allowed=tuple(draft.allowed),
        well_formed=first_mark == len(body) < len(draft.token_ids),
        imagined=None in draft.allowed and (not begins.isdisjoint(body) or _ANSWER.search(text) is not None),
    )


def _finish(episode: _Episode, update: int = 0) -> Trajectory:
    return Trajectory(
        episode.task,
        episode.member,
        tuple(episode.transitions),
        tuple(episode.segments),
        episode.stop_reason or "max_steps",
        policy_version=update,
    )


Script = Callable[[Observation], str]


def play_script(env: TextEnv, task: Task, script: Script, max_steps: int) -> Trajectory:
    """Play one episode with a script (observation → command); its actions carry no tokens."""
    observation = env.reset(task, seed=task.seed)
    episode = _Episode(task, 0, observation, task_text(observation))
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
