"""Episodes at the sampler: each in a slot, with its world; where one ends, the next that waits takes its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from envrl.envs.vector import Start, VectorEnv
from envrl.models.load import LanguageModel
from envrl.rollout.meter import Meter
from envrl.rollout.renderer import Prompt, Renderer
from envrl.rollout.sampler import Draft, Sampler
from envrl.rollout.transcript import Transcript
from envrl.rollout.trie import Commands
from envrl.types import Action, Observation, Step, StopReason, Task, Transition

_QUORUM = 0.25
"""Share of the open responses that the worlds wait for where responses are free text, of unlike lengths. Without
waiting, every response that closes costs a pass of its own for the prompt behind it; with waiting for all, passes run
with few open responses left. Measured in docs/rollout.md."""


@dataclass(frozen=True, slots=True)
class PlaySettings:
    """How episodes are played with a language model; the keys are those of the recipe's `rollout` and `env`."""

    max_steps: int
    temperature: float
    actions: str = "admissible"
    response_tokens: int = 24
    top_k: int = 0
    top_p: float = 1.0
    slots: int = 0
    """Episodes that are played at a time; 0: all."""
    reward: str = "world"
    reward_scale: float = 1.0


@dataclass(slots=True)
class RolloutStats:
    """Seconds spent in the worlds, apart from those of the network, and what befell on the way."""

    env: float = 0.0
    replaced: int = 0
    """Worker processes that were replaced meanwhile."""
    mismatches: int = 0
    """Steps whose recorded tokens are not those that the network was fed: a fault of the program."""
    meter: Meter = field(default_factory=Meter)


@dataclass(slots=True)
class Episode:
    """An episode being played, and its tokens."""

    task: Task
    member: int
    observation: Observation
    key: int = 0
    """What its random numbers are had from."""
    max_steps: int = 0
    """Steps after which it is cut off."""
    start: tuple[str, ...] = ()
    """Commands that are played before the policy's first."""
    place: int = 0
    """The slot of its world."""
    prompt: Prompt | None = None
    """What its next action is asked with."""
    transitions: list[Transition] = field(default_factory=list)
    transcript: Transcript = field(default_factory=Transcript)
    fed: bool = False
    """Whether the sampler's slot holds its transcript."""
    stop_reason: StopReason | None = None

    def advance(self, action: Action, step: Step | None, settings: PlaySettings) -> None:
        """Record what the world answered, and see whether the episode is over."""
        if step is None:
            self.stop_reason = StopReason.SET_ASIDE
            return
        reward = step.reward if settings.reward == "world" else float(step.done and step.success)
        self.transitions.append(
            Transition(
                *(self.observation, action, reward * settings.reward_scale),
                *(step.observation, step.done, step.success),
            )
        )
        self.observation = step.observation
        if step.done:
            self.stop_reason = StopReason.DONE
        elif len(self.transitions) >= self.max_steps:
            self.stop_reason = StopReason.MAX_STEPS


def room_for(observation: Observation, commands: Commands, settings: PlaySettings) -> int:
    """Return how many tokens the longest response may take."""
    longest = 0 if settings.actions == "free" else commands.longest(observation)
    return max(settings.response_tokens, longest)


class EpisodeScheduler:
    """The episodes that are played at present, one in each slot of a sampler, and those that wait for a slot."""

    def __init__(
        self,
        model: LanguageModel,
        renderer: Renderer,
        worlds: VectorEnv,
        episodes: Sequence[Episode],
        settings: PlaySettings,
        stats: RolloutStats,
    ) -> None:
        self._renderer, self._worlds, self._settings, self._stats = renderer, worlds, settings, stats
        count = min(settings.slots or len(episodes), len(episodes))
        self._sampler = Sampler(
            *(model, count, settings.temperature, settings.response_tokens, renderer.stops),
            top_k=settings.top_k,
            top_p=settings.top_p,
            meter=stats.meter,
        )
        self._commands = Commands(model.codec, renderer)
        self._playing, self._waiting = list(episodes[:count]), deque(episodes[count:])
        self._open(range(count))

    def ask(self) -> bool:
        """Ask for the next action of every episode that has none under way; return whether any episode goes on."""
        self._write(self._idle())
        while self._waiting and (ended := [n for n, episode in enumerate(self._playing) if episode.stop_reason]):
            taken = ended[: len(self._waiting)]
            for position in taken:
                self._playing[position] = self._waiting.popleft()
            self._open(taken)
            self._write(self._idle())
        for position in self._idle():
            self._make_room(position)
        self._compact()
        free = self._settings.actions == "free"
        for position in (idle := self._idle()):
            episode = self._playing[position]
            assert episode.prompt is not None
            ids, held = episode.prompt.ids, self._sampler.length(position) if episode.prompt.fresh else 0
            if not episode.fed and not episode.prompt.fresh:
                ids = (*episode.transcript.ids, *ids)
            episode.fed = True
            trie = None if free else self._commands.trie(episode.observation)
            self._sampler.ask(position, ids[held:], trie, episode.key, len(episode.transitions))
        return bool(idle) or any(self._sampler.is_open(n) for n in range(len(self._playing)))

    def _make_room(self, position: int) -> None:
        """Leave of a slot's sequence what its next prompt goes on from."""
        episode = self._playing[position]
        if not episode.fed:  # what the slot held was another episode's; a group shares its first prompt
            self._sampler.forget([position])
        elif episode.prompt is not None and episode.prompt.fresh:
            self._sampler.rewind(position, episode.prompt.ids)

    def answer(self) -> None:
        """Draw until enough responses are closed, and carry out what they say."""
        open_count = sum(self._sampler.is_open(n) for n in range(len(self._playing)))
        free = self._settings.actions == "free"
        closed = self._sampler.run(max(1, round(_QUORUM * open_count)) if free else None)
        acting = [(self._playing[position], position, closed[position]) for position in sorted(closed)]
        actions = []
        for episode, position, draft in acting:
            assert episode.prompt is not None
            response = tuple(draft.token_ids)
            text = self._renderer.text_of(response)
            episode.transcript.add(len(episode.transitions), episode.prompt, response, text)
            self._stats.mismatches += not self._sampler.ends_with(position, episode.transcript.ids)
            actions.append(self._read(episode.observation, draft))
        began = self._stats.meter.clock()
        steps = self._worlds.step(
            [(episode.place, action.text) for (episode, *_), action in zip(acting, actions, strict=True)]
        )
        for (episode, *_), action, step in zip(acting, actions, steps, strict=True):
            episode.advance(action, step, self._settings)
            if step is None:
                episode.transcript.take_back()
        self._stats.env += self._stats.meter.clock() - began

    def _read(self, observation: Observation, draft: Draft) -> Action:
        """Return what a response does; a restricted one says a command of the world's in the world's own text."""
        action = self._renderer.read(draft)
        command = None if draft.free else self._commands.command(observation, action.token_ids)
        return action if command is None else replace(action, text=command, fault="", imagined=False)

    def _idle(self) -> list[int]:
        """Return the slots whose episodes go on and have no response under way."""
        return [
            number
            for number, episode in enumerate(self._playing)
            if not episode.stop_reason and not self._sampler.is_open(number)
        ]

    def _open(self, positions: Sequence[int]) -> None:
        """Start the worlds of the episodes in these slots."""
        began = self._stats.meter.clock()
        starts = [Start(n, self._playing[n].task, self._playing[n].task.seed) for n in positions]
        for start, observation in zip(starts, self._worlds.reset(starts), strict=True):
            episode = self._playing[start.slot]
            episode.place = start.slot
            episode.observation = observation or episode.observation
            episode.stop_reason = StopReason.SET_ASIDE if observation is None else None
        self._start([self._playing[n] for n in positions])
        self._stats.env += self._stats.meter.clock() - began

    def _start(self, episodes: Sequence[Episode]) -> None:
        """Play the commands that these episodes start with, all of them at once."""
        for turn in range(max((len(episode.start) for episode in episodes), default=0)):
            going = [episode for episode in episodes if turn < len(episode.start) and not episode.stop_reason]
            steps = self._worlds.step([(episode.place, episode.start[turn]) for episode in going])
            for episode, step in zip(going, steps, strict=True):
                episode.advance(Action(episode.start[turn]), step, self._settings)
                if step is None:
                    continue
                *past, known = episode.transitions
                if not episode.transcript.write(self._renderer, past, known):
                    episode.stop_reason = StopReason.CONTEXT

    def _write(self, positions: Sequence[int]) -> None:
        """Write the prompts of these episodes; one is over where prompt and longest response do not fit the context."""
        for episode in (self._playing[n] for n in positions):
            room = room_for(episode.observation, self._commands, self._settings)
            episode.prompt = self._renderer.prompt(
                episode.transitions, episode.observation, episode.transcript.segment, room
            )
            if episode.prompt is None:
                episode.stop_reason = StopReason.CONTEXT

    def _compact(self) -> None:
        """Give up the slots of finished episodes once they are a fifth, or nothing is held: copying is not free."""
        going = [number for number, episode in enumerate(self._playing) if not episode.stop_reason]
        held = any(self._sampler.length(number) for number in going)
        if going and len(going) <= (0.8 if held else 0.99) * len(self._playing):
            self._sampler.keep(going)
            self._playing = [self._playing[number] for number in going]
