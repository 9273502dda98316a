"""The records that flow through the program: frozen, free of torch, one way from worlds to rows.

Arrays are ragged by nature; a suffix says over what they run: `_T` over the tokens of a sequence, `_S` over the steps
of a trajectory, `_G` over the episodes of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
Ids = tuple[int, ...]
"""Token ids."""


@dataclass(frozen=True, slots=True)
class Task:
    """One game or goal of a world: `id` is stable over machines and versions, `kind` groups tasks in reports."""

    id: str
    split: str
    seed: int = 0
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Episodes of a task that an update plays, as one group.

    `max_steps` cuts them off (0: the recipe's); the commands of `start` are played first, and are steps of the episode
    that the policy did not choose.
    """

    task: Task
    episodes: int
    max_steps: int = 0
    start: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """A command with free words between two fixed parts; any text will do, `words` are those that the task suggests."""

    before: str
    words: tuple[str, ...]
    after: str

    def __str__(self) -> str:
        return f"{self.before}<words>{self.after}"

    def accepts(self, command: str) -> bool:
        """Return whether a command has the two parts and something other than blanks between them."""
        inner = command.removeprefix(self.before).removesuffix(self.after)
        return command == f"{self.before}{inner}{self.after}" and bool(inner.strip())


@dataclass(frozen=True, slots=True)
class Observation:
    """What the world says: its whole text, the commands it would accept (None where unknown), and anything else.

    `templates` are commands with free words that it would accept besides the admissible ones.
    """

    text: str
    admissible: tuple[str, ...] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    templates: tuple[Template, ...] = ()

    def accepts(self, command: str) -> bool:
        """Return whether the world would accept a command (True where it lists none)."""
        listed = self.admissible is None or command in self.admissible
        return listed or any(template.accepts(command) for template in self.templates)


@dataclass(frozen=True, slots=True)
class Step:
    """What the world answers to a command; `done` is the world's own end, never a length limit."""

    observation: Observation
    reward: float
    done: bool
    success: bool
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Action:
    """A command and how it was sampled.

    `token_ids` are the sampled ids, the closing mark included; `logprobs` their log-probabilities (nats) under the
    distribution that they were drawn from; `allowed[i]` the ids that token i was drawn from, or None where it was drawn
    from the whole vocabulary. Scripts and people leave all three empty.
    """

    text: str
    token_ids: Ids = ()
    logprobs: tuple[float, ...] = ()
    allowed: tuple[Ids | None, ...] = ()
    fault: str = ""
    """Why the response held no command in the prompt format's form (docs/prompts.md), empty where it did."""
    imagined: bool = False
    """True where the response went on to write an observation of its own."""
    summary: str = ""
    """What the policy wrote down for its own later turns, where the form asks for that."""

    @property
    def well_formed(self) -> bool:
        return not self.fault


@dataclass(frozen=True, slots=True)
class Completion:
    """A response: its tokens, their log-probs, and what each was drawn from (None: the whole vocabulary).

    Where tokens are not known (an endpoint) it has its `text`, and `cut` where that was cut off at its longest.
    """

    token_ids: Ids = ()
    logprobs: tuple[float, ...] = ()
    allowed: tuple[Ids | None, ...] = ()
    free: bool = True
    """Whether no restriction applied."""
    text: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of an episode: the observation, the action taken in it, and what the world answered."""

    observation: Observation
    action: Action
    reward: float
    next_observation: Observation
    done: bool
    success: bool

    @property
    def admissible(self) -> bool:
        """Whether the action was one of the commands that the world would accept (True where it lists none)."""
        return self.observation.accepts(self.action.text)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start:stop` of a segment belong to step `step`."""

    step: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that was fed and sampled without a break: exactly what the sampler's cache held."""

    token_ids: IntArray
    spans: tuple[Span, ...]
    answers: tuple[Span, ...] = ()
    """The tokens that the world gave as its answer to a step of this segment, where they stand in it."""


class StopReason(StrEnum):
    """Why an episode ended: the world ended it, its length limit, a full context, or a world that kept failing."""

    DONE = "done"
    MAX_STEPS = "max_steps"
    CONTEXT = "context"
    SET_ASIDE = "set aside"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode, recorded once: nothing is ever re-tokenised from it.

    `policy_version` is the update that it was played for.
    """

    task: Task
    member: int
    transitions: tuple[Transition, ...]
    segments: tuple[Segment, ...]
    stop_reason: StopReason
    policy_version: int = 0

    @property
    def success(self) -> bool:
        return bool(self.transitions) and self.transitions[-1].success

    @property
    def total_reward(self) -> float:
        return sum(t.reward for t in self.transitions)


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """Episodes of one task that are compared with each other, however many."""

    task: Task
    trajectories: tuple[Trajectory, ...]
    policy_version: int = 0
    source: str = "policy"

    @property
    def returns_G(self) -> NDArray[np.float64]:
        """The episodes' total rewards."""
        return np.array([trajectory.total_reward for trajectory in self.trajectories], dtype=np.float64)

    @property
    def differs(self) -> bool:
        """Whether its episodes have unequal returns."""
        returns_G = self.returns_G
        return bool(len(returns_G) and returns_G.max() != returns_G.min())


def episodes_of(groups: Iterable[TrajectoryGroup]) -> list[Trajectory]:
    """Return the episodes of groups, group after group."""
    return [trajectory for group in groups for trajectory in group.trajectories]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Lists of ids laid end to end: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: IntArray
    offsets: IntArray


@dataclass(frozen=True, slots=True)
class LossTerm:
    """What one component of the loss asks of a row: Σ weights · ℓ(token at positions), over N_c.

    `positions_T` index the row's *predicted* tokens (≥ 1: token p is predicted from the tokens before it).
    `token_count` is the row's part of N_c, the component's denominator, which is the sum over the rows of one optimiser
    step: its counted tokens, or 1 where every row weighs the same. `streams` hold one number a position: `advantages`
    and `sampled_logprobs` of the policy's tokens, `old_logprobs` where an earlier policy drew them, `returns` for a
    head, `targets` where a token is to be predicted that is not the row's own. An id list of `allowed` that is empty
    stands for the whole vocabulary.
    """

    component: str
    positions_T: IntArray
    weights_T: FloatArray
    token_count: float
    streams: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    allowed: Ragged | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence for the trainer: its tokens, what the components ask of it, and where it came from."""

    token_ids: IntArray
    terms: tuple[LossTerm, ...]
    origin: str = ""
    """Where it came from, different for every row of an update."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row of an auxiliary objective: a question about a step of an episode, and the `target` that answers it.

    The prompt is the situation before the step, as the policy's prompt has it; then, where they are given, the
    `command` of the step, what was seen behind it (`following`), and commands to choose from; then the question.
    """

    trajectory: Trajectory
    step: int
    question: str = ""
    target: str = ""
    command: str | None = None
    following: str | None = None
    choices: tuple[str, ...] = ()
    weight: float = 1.0
    """Multiplies the loss of its tokens; the denominator counts them as they are."""
    task: bool = True
    """Whether the situation has the task's sentence, as the policy's prompt does."""
    commands: bool = True
    """Whether it lists the admissible commands where the policy's prompt does, and there are no choices."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An example in tokens: what is given, and what is to be predicted."""

    prompt: Ids
    target: Ids
    weight: float = 1.0


Part = Literal["observation", "response"]


@dataclass(frozen=True, slots=True)
class InPass:
    """Tokens of the policy's own row that an auxiliary objective predicts: what the world answered to a step, or the
    policy's response in it. What stands in no row (an answer that begins a new segment) is left out."""

    trajectory: Trajectory
    step: int
    part: Part = "observation"
    weight: float = 1.0
