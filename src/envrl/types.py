"""Frozen, torch-free records, which flow one way through the program: from worlds to training rows.

Arrays are ragged. A suffix names the axis: `_T` tokens of a sequence, `_S` steps of a trajectory, `_G` episodes of a
group.
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
    """One game or goal of a world. `id` is stable across machines and versions; reports group tasks by `kind`."""

    id: str
    split: str
    seed: int = 0
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A group of episodes of one task for an update to play.

    `max_steps` limits their length (0: the recipe's limit). The commands in `start` are played first; they are steps of
    the episode, but the policy did not choose them.
    """

    task: Task
    episodes: int
    max_steps: int = 0
    start: tuple[str, ...] = ()
    help: str = ""
    """What the policy is told beside the first observation."""


@dataclass(frozen=True, slots=True)
class Template:
    """A command with free text between two fixed parts; `words` are the task's suggestions for that text."""

    before: str
    words: tuple[str, ...]
    after: str

    def __str__(self) -> str:
        return f"{self.before}<words>{self.after}"

    def accepts(self, command: str) -> bool:
        """Return whether a command has both fixed parts and a non-blank text between them."""
        inner = command.removeprefix(self.before).removesuffix(self.after)
        return command == f"{self.before}{inner}{self.after}" and bool(inner.strip())


@dataclass(frozen=True, slots=True)
class Observation:
    """The world's full text, the commands it accepts now (None if unknown), and anything else in `info`.

    `templates` are commands with free words that it accepts in addition to the admissible ones.
    """

    text: str
    admissible: tuple[str, ...] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    templates: tuple[Template, ...] = ()
    help: str = ""
    """Of an episode's first one: what the policy is told beside it, which is not the world's."""

    def accepts(self, command: str) -> bool:
        """Return whether the world accepts a command now (True if it does not list its commands)."""
        listed = self.admissible is None or command in self.admissible
        return listed or any(template.accepts(command) for template in self.templates)


@dataclass(frozen=True, slots=True)
class Step:
    """The world's answer to a command. `done` means that the world ended the episode, never a length limit."""

    observation: Observation
    reward: float
    done: bool
    success: bool
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Action:
    """A command and how it was sampled.

    `token_ids` are the sampled ids, including the closing mark; `logprobs` are their log-probabilities (nats) under the
    distribution they were sampled from; `allowed[i]` holds the ids that token i was sampled from, or None for the whole
    vocabulary. Scripts and people leave all three empty.
    """

    text: str
    token_ids: Ids = ()
    logprobs: tuple[float, ...] = ()
    allowed: tuple[Ids | None, ...] = ()
    fault: str = ""
    """Why the response has no command in the prompt format's form (docs/prompts.md); empty if it has one."""
    imagined: bool = False
    """True if the response went on to invent the next observation."""
    summary: str = ""
    """The policy's notes for its own later turns, if the form asks for them."""
    plan: int = 0
    """The number of tokens before the part with its command, if the form tells them apart."""
    switches: bool = False
    """True if the response takes a new sub-goal."""

    @property
    def well_formed(self) -> bool:
        return not self.fault


@dataclass(frozen=True, slots=True)
class Completion:
    """A response: its tokens, their log-probs, and the ids that each was sampled from (None: the whole vocabulary).

    An endpoint does not give tokens: it fills `text` instead, and sets `cut` if the length limit cut the text off.
    """

    token_ids: Ids = ()
    logprobs: tuple[float, ...] = ()
    allowed: tuple[Ids | None, ...] = ()
    free: bool = True
    """True if sampling was unrestricted."""
    text: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of an episode: the observation, the action, and the world's answer."""

    observation: Observation
    action: Action
    reward: float
    next_observation: Observation
    done: bool
    success: bool

    @property
    def admissible(self) -> bool:
        """True if the world accepts the action at this observation, or does not list its commands."""
        return self.observation.accepts(self.action.text)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start:stop` of a segment, which belong to step `step`."""

    step: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A sequence of tokens that was fed and sampled without a break: exactly what the sampler's KV cache held."""

    token_ids: IntArray
    spans: tuple[Span, ...]
    answers: tuple[Span, ...] = ()
    """The tokens of the world's answer to each step, for those answers that lie in this segment."""


class StopReason(StrEnum):
    """Why an episode ended: the world ended it, its step limit, a full context, or a world that kept failing."""

    DONE = "done"
    MAX_STEPS = "max_steps"
    CONTEXT = "context"
    SET_ASIDE = "set aside"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode, recorded once: its text is never tokenised again.

    `policy_version` is the update that began with the weights which played it: its own, or with `rollout.ahead` an
    earlier one.
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
    """Any number of episodes of one task, which are compared with each other."""

    task: Task
    trajectories: tuple[Trajectory, ...]
    policy_version: int = 0
    source: str = "policy"
    advantages_G: tuple[float, ...] = ()
    """The advantage of each episode, from a replay that knows it; empty: the estimator works it out."""
    weight: float = 1.0
    """Of the loss, if the advantages are given: it is then the loss component `replay`, beside the policy's."""

    @property
    def returns_G(self) -> NDArray[np.float64]:
        """The total reward of each episode."""
        return np.array([trajectory.total_reward for trajectory in self.trajectories], dtype=np.float64)

    @property
    def differs(self) -> bool:
        """True if its episodes have different returns."""
        returns_G = self.returns_G
        return bool(len(returns_G) and returns_G.max() != returns_G.min())


def episodes_of(groups: Iterable[TrajectoryGroup]) -> list[Trajectory]:
    """Return the episodes of all groups in one list, group by group."""
    return [trajectory for group in groups for trajectory in group.trajectories]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Lists of ids laid end to end: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: IntArray
    offsets: IntArray


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One loss component of a row: Σ weights · ℓ(token at positions) / N_c.

    `positions_T` index the row's *predicted* tokens (≥ 1: token p is predicted from the tokens before it).
    `token_count` is the row's share of the component's denominator N_c, which is summed over the rows of one optimiser
    step: the row's number of counted tokens, or 1 if all rows weigh the same. `streams` hold one number per position:
    `advantages` and `sampled_logprobs` of the policy's tokens, `old_logprobs` if an earlier policy sampled them,
    `returns` for a head, `targets` if the token to predict is not the row's own. An empty id list in `allowed` means
    the whole vocabulary.
    """

    component: str
    positions_T: IntArray
    weights_T: FloatArray
    token_count: float
    streams: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    allowed: Ragged | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to train on: its tokens and its loss terms."""

    token_ids: IntArray
    terms: tuple[LossTerm, ...]
    origin: str = ""
    """Where the row came from; unique within an update."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row of an auxiliary objective: a question about a step of an episode, and its answer `target`.

    The prompt is the situation before the step, written as in the policy's prompt; then, if given, the `command` of the
    step, the observation after it (`following`), and the commands to choose from (`choices`); then the question.
    """

    trajectory: Trajectory
    step: int
    question: str = ""
    target: str = ""
    command: str | None = None
    following: str | None = None
    choices: tuple[str, ...] = ()
    weight: float = 1.0
    """Multiplies the loss of its tokens; it does not change the denominator."""
    task: bool = True
    """True if the situation states the task, as the policy's prompt does."""
    commands: bool = True
    """True if the situation lists the admissible commands, if the policy's prompt does and there are no choices."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An example in tokens: the prompt, and the target to predict."""

    prompt: Ids
    target: Ids
    weight: float = 1.0


Part = Literal["observation", "response"]


@dataclass(frozen=True, slots=True)
class InPass:
    """Tokens of the policy's own row that an auxiliary objective predicts: the world's answer to a step, or the
    policy's response in it. An answer that begins a new segment is in no row, and is left out.

    `masked` are texts inside it that are not predicted, or all of it if not `predicted`; if `whole`, a row's own mean
    counts them all the same.
    """

    trajectory: Trajectory
    step: int
    part: Part = "observation"
    weight: float = 1.0
    masked: tuple[str, ...] = ()
    predicted: bool = True
    whole: bool = False
