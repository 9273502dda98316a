"""Schedule the episodes that are played at the same time: when one ends, the next one takes its world."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from envrl.envs.vector import Start, VectorEnv
from envrl.errors import RunError
from envrl.rendering.renderer import Prompt
from envrl.rollout.policy import Policy
from envrl.rollout.sampler import Request, SamplingSettings
from envrl.rollout.transcript import Transcript
from envrl.rollout.trie import Commands
from envrl.types import Action, Completion, Observation, Step, StopReason, Task, Transition

_QUORUM = 0.25
"""Share of the pending responses to wait for before the worlds step, if responses are free text and vary in length.
Without waiting, each finished response would cost a pass for the prompt that follows it; waiting for all would leave
passes with few open responses. Measured in docs/rollout.md."""


@dataclass(frozen=True, slots=True)
class PlaySettings:
    """How a language model plays episodes; the fields are keys of the recipe's `rollout` and `env` tables."""

    max_steps: int
    temperature: float
    actions: str = "admissible"
    response_tokens: int = 24
    top_k: int = 0
    top_p: float = 1.0
    slots: int = 0
    """Episodes that are played at the same time; 0: all."""
    reward: str = "world"
    reward_scale: float = 1.0


Guide = Callable[[Sequence[Transition], Observation], str]
"""Returns a command to play in place of the policy's, given the steps before and the observation, or "" to leave it to
the policy. It is asked once at every observation."""


Tell = Callable[[Task, int, Observation], str]
"""Returns what the policy is told beside the first observation of a task's episode, given its member, or ""."""


def say_nothing(task: Task, member: int, first: Observation) -> str:
    """Tell nothing."""
    return ""


def play_first(start: Sequence[str]) -> Guide:
    """Return the guide that plays these commands first."""
    return lambda past, observation: start[len(past)] if len(past) < len(start) else ""


_NOTHING_FIRST = play_first(())


@dataclass(slots=True)
class RolloutStats:
    """Counts from playing episodes."""

    env: float = 0.0
    """Seconds in the worlds, by `clock`."""
    replaced: int = 0
    """Worker processes that were replaced."""
    mismatches: int = 0
    """Steps whose recorded tokens differ from the sampler's prompt and response: a bug in this program."""
    clock: Callable[[], float] = time.perf_counter


@dataclass(slots=True)
class Episode:
    """An episode in play, with its tokens."""

    task: Task
    member: int
    observation: Observation
    key: int = 0
    """Random key of its samples, together with the turn and the token's place."""
    max_steps: int = 0
    """Number of steps after which it is cut off."""
    guide: Guide = _NOTHING_FIRST
    help: str = ""
    tell: Tell = say_nothing
    """What it is told, if it has no help of its own."""
    number: int = 0
    """Its index among all episodes, which identifies it to the sampler."""
    slot: int = 0
    """The slot of its world."""
    prompt: Prompt | None = None
    """The prompt of its next action."""
    transitions: list[Transition] = field(default_factory=list)
    transcript: Transcript = field(default_factory=Transcript)
    asked: bool = False
    """True if a response is pending."""
    stop_reason: StopReason | None = None

    def advance(self, action: Action, step: Step | None, settings: PlaySettings) -> None:
        """Record the world's answer (None: the world failed), and set `stop_reason` if the episode is over."""
        if step is None:
            self.stop_reason = StopReason.SET_ASIDE
            return
        reward = step.reward if settings.reward == "world" else float(step.done and step.success)
        self.transitions.append(
            Transition(
                self.observation,
                action,
                reward * settings.reward_scale,
                step.observation,
                step.done,
                step.success,
            )
        )
        self.observation = step.observation
        if step.done:
            self.stop_reason = StopReason.DONE
        elif len(self.transitions) >= self.max_steps:
            self.stop_reason = StopReason.MAX_STEPS


def room_for(observation: Observation, commands: Commands | None, settings: PlaySettings) -> int:
    """Return the most tokens that a response may take; `commands` are those it is restricted to, if any."""
    return max(settings.response_tokens, commands.longest(observation) if commands else 0)


class EpisodeScheduler:
    """Holds the episodes in play, and the queue of those that wait for a free world."""

    def __init__(
        self,
        policy: Policy,
        worlds: VectorEnv,
        episodes: Sequence[Episode],
        settings: PlaySettings,
        stats: RolloutStats,
    ) -> None:
        self._sampler, self._renderer = policy.sampler, policy.renderer
        self._worlds, self._settings, self._stats = worlds, settings, stats
        self._sampling = SamplingSettings(
            settings.temperature, settings.response_tokens, policy.renderer.stops, settings.top_k, settings.top_p
        )
        self._commands = commands_of(policy, settings)
        count = min(settings.slots or len(episodes), len(episodes))
        self._playing, self._waiting = list(episodes[:count]), deque(episodes[count:])
        for slot, episode in enumerate(self._playing):
            episode.slot = slot
        self._open(self._playing)

    def ask(self) -> bool:
        """Ask for the next action of every episode without a pending response; return whether any episode goes on."""
        self._write(self._idle())
        while self._waiting and (ended := [n for n, episode in enumerate(self._playing) if episode.stop_reason]):
            opened = []
            for place in ended[: len(self._waiting)]:
                following = self._waiting.popleft()
                following.slot = self._playing[place].slot
                self._release(self._playing[place])
                self._playing[place] = following
                opened.append(following)
            self._open(opened)
            self._write(opened)
        for episode in self._playing:
            if episode.stop_reason:
                self._release(episode)
        self._playing = [episode for episode in self._playing if not episode.stop_reason]
        for episode in self._idle():
            self._sampler.submit(self._request(episode))
            episode.asked = True
        return bool(self._playing)

    def answer(self) -> None:
        """Wait for enough responses, and step the worlds with their actions."""
        under_way = {episode.number: episode for episode in self._playing if episode.asked}
        enough = max(1, round(_QUORUM * len(under_way))) if self._commands is None else None
        completions = self._sampler.poll(enough)
        _check(completions, under_way)
        acting: list[tuple[Episode, Action]] = []
        for episode in (under_way[number] for number in sorted(completions)):
            episode.asked = False
            completion = completions[episode.number]
            if completion is None:
                episode.stop_reason = StopReason.CONTEXT
            else:
                self._record(episode, completion)
                acting.append((episode, self._read(episode.observation, completion)))
        with self._in_worlds():
            steps = self._worlds.step([(episode.slot, action.text) for episode, action in acting])
            for (episode, action), step in zip(acting, steps, strict=True):
                episode.advance(action, step, self._settings)
                if step is None:
                    episode.transcript.take_back()
            self._play_guided([episode for episode, _ in acting])

    def close(self) -> None:
        """Release every episode from the sampler."""
        for episode in self._playing:
            self._release(episode)

    def _request(self, episode: Episode) -> Request:
        prompt = episode.prompt
        assert prompt is not None
        return Request(
            episode=episode.number,
            prompt=prompt.ids if prompt.fresh else (*episode.transcript.ids, *prompt.ids),
            restriction=self._commands.trie(episode.observation) if self._commands else None,
            key=episode.key,
            turn=len(episode.transitions),
            settings=self._sampling,
            messages=prompt.messages,
        )

    def _record(self, episode: Episode, completion: Completion) -> None:
        """Add the prompt and the response to the transcript, and count a mismatch with the sampler's tokens."""
        prompt, response, transcript = episode.prompt, completion.token_ids, episode.transcript
        assert prompt is not None
        before = [] if prompt.fresh else transcript.ids
        expected = [*before, *prompt.ids, *response]
        transcript.add(len(episode.transitions), prompt, response, self._renderer.text_of(response))
        self._stats.mismatches += transcript.ids != expected

    def _read(self, observation: Observation, completion: Completion) -> Action:
        """Parse a response into an action; a restricted response gives the command in the world's own text."""
        action = self._renderer.read(completion)
        if completion.free or self._commands is None:
            return action
        command = self._commands.command(observation, action.token_ids)
        return action if command is None else replace(action, text=command, fault="", imagined=False)

    def _idle(self) -> list[Episode]:
        """Return the episodes that go on and have no pending response."""
        return [episode for episode in self._playing if not episode.stop_reason and not episode.asked]

    def _open(self, episodes: Sequence[Episode]) -> None:
        """Reset the worlds of these episodes, and play what their guides say first."""
        starts = [Start(episode.slot, episode.task, episode.task.seed) for episode in episodes]
        with self._in_worlds():
            for episode, observation in zip(episodes, self._worlds.reset(starts), strict=True):
                episode.observation = observation or episode.observation
                if observation and (told := episode.help or episode.tell(episode.task, episode.member, observation)):
                    episode.observation = replace(observation, help=told)
                episode.stop_reason = StopReason.SET_ASIDE if observation is None else None
            self._play_guided(episodes)

    def _play_guided(self, episodes: Sequence[Episode]) -> None:
        """Play what the guides of these episodes say, all at once, until each leaves its episode to the policy."""
        while episodes:
            goes_on = [episode for episode in episodes if not episode.stop_reason]
            said = [(episode, episode.guide(episode.transitions, episode.observation)) for episode in goes_on]
            if not (acting := [(episode, command) for episode, command in said if command]):
                return
            steps = self._worlds.step([(episode.slot, command) for episode, command in acting])
            for (episode, command), step in zip(acting, steps, strict=True):
                episode.advance(Action(command), step, self._settings)
                if step is None:
                    continue
                *past, known = episode.transitions
                if not episode.transcript.write(self._renderer, past, known):
                    episode.stop_reason = StopReason.CONTEXT
            episodes = [episode for episode, _ in acting]

    def _write(self, episodes: Sequence[Episode]) -> None:
        """Write the prompts of these episodes; end an episode if prompt and longest response exceed the context."""
        for episode in episodes:
            if episode.stop_reason:
                continue
            room = room_for(episode.observation, self._commands, self._settings)
            episode.prompt = self._renderer.prompt(
                episode.transitions, episode.observation, episode.transcript.segment, room
            )
            if episode.prompt is None:
                episode.stop_reason = StopReason.CONTEXT

    def _release(self, episode: Episode) -> None:
        self._sampler.release(episode.number)

    @contextmanager
    def _in_worlds(self) -> Iterator[None]:
        """Count the seconds of the block as time in the worlds."""
        began = self._stats.clock()
        yield
        self._stats.env += self._stats.clock() - began


def commands_of(policy: Policy, settings: PlaySettings) -> Commands | None:
    """Return the commands that responses are restricted to, or None if responses are free text."""
    if settings.actions == "free":
        return None
    if policy.codec is None:
        raise ValueError("a policy whose tokens are not known cannot be restricted")
    return Commands(policy.codec, policy.renderer)  # type: ignore[arg-type]


def _check(completions: Mapping[int, Completion | None], under_way: Mapping[int, Episode]) -> None:
    """Raise `RunError` for an invalid answer of the sampler, which would stall the loop or be recorded wrongly."""
    if not completions:
        raise RunError(f"the sampler gave none of the {len(under_way)} responses that it was asked for")
    for number, completion in completions.items():
        if number not in under_way:
            raise RunError(f"the sampler gave a response for episode {number}, which it was not asked for")
        if completion is None:
            continue
        if not isinstance(completion, Completion):
            raise RunError(
                f"the sampler gave {type(completion).__name__} for the response of episode {number}, and no "
                "envrl.Completion"
            )
        counts = {len(completion.token_ids), len(completion.logprobs), len(completion.allowed)}
        if len(counts) > 1:
            raise RunError(
                f"the sampler gave {len(completion.token_ids)} tokens, {len(completion.logprobs)} log-probs and "
                f"{len(completion.allowed)} restrictions for one response: they are one a token"
            )
