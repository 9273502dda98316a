"""The contract test of any world: what a rollout relies on, tried on some episodes of random play."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from envrl.envs.answers import BadAnswer, answer, first_observation, listed_tasks, opened, what_happened
from envrl.envs.protocol import SavableEnv, TextEnv, draw_command
from envrl.envs.registry import make
from envrl.envs.vector import same_answer
from envrl.errors import UserError
from envrl.types import Observation, Step, Task

P = ParamSpec("P")
T = TypeVar("T")

STEPS = 30
SLOWEST_STEP = 1.0  # seconds
_REPLAYED = 6  # commands tried in one state where each needs the episode anew
NONSENSE = "qwertyuiop asdfghjkl"
ODD_COMMANDS = (
    "",
    " ",
    "\n",
    NONSENSE,
    "go to",
    "take  from ",
    "\x00\x01\x1b[31m\x7f",
    "look\x00",
    "look\nlook",
    "\ud800",
    "Ω≈ç√ 走って行く 🧹 ‮",
    "%s {0} {} \\ ' \" <b>",
    "look " * 200_000,
)
"""Empty, blank, meaningless, half, with control characters, with a lone surrogate, not ASCII, and of 1 MB."""
_PLAIN_COMMANDS = ("look", "help", "inventory", "wait", "go north")


@dataclass(frozen=True, slots=True)
class Check:
    """One named part of the contract: whether the world keeps it, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """The contract test of a world."""

    env: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{'pass' if c.passed else 'FAIL'}  {c.name:<{width}}  {c.detail}" for c in self.checks]
        verdict = "keeps the contract" if self.passed else "breaks the contract"
        return "\n".join([*lines, f"{self.env} {verdict}"])


class _Broken(Exception):
    """What the world did against the contract."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """An episode: its first observation, and each command with its answer."""

    task: Task
    first: Observation
    steps: tuple[tuple[str, Step], ...]


@dataclass(frozen=True, slots=True)
class _Subject:
    """The world under test, the tasks that it is tested on, and where it is known by name, how to make another."""

    env: TextEnv
    another: Callable[[], TextEnv] | None
    split: str
    listed: Sequence[Task]
    tasks: tuple[Task, ...]
    seed: int


def check_env(
    env: TextEnv | str,
    *,
    data: str | None = None,
    settings: Mapping[str, Any] | None = None,
    split: str = "train",
    episodes: int = 8,
    seed: int = 0,
) -> Report:
    """Return which parts of the contract a world keeps, tried on `episodes` tasks spread over a split.

    `env` is a world, or the name of one (then more is tried: a second instance beside the first), which is made with
    these settings. Raises `UserError` for an unknown world or split, or missing data.
    """
    if isinstance(env, str):
        name, another = env, _factory(env, data, settings or {})
        world = another()
    else:
        name, another, world = type(env).__name__, None, env
    with opened(world) if another else nullcontext():
        listed = listed_tasks(world, split, name)
        if not len(listed):
            raise UserError(f"split '{split}' of the world '{name}' has no tasks to check it on")
        subject = _Subject(world, another, split, listed, spread(listed, episodes), seed)
        return Report(name, tuple(_outcome(title, check, subject) for title, check in _CHECKS.items()))


def spread(tasks: Sequence[Task], count: int) -> tuple[Task, ...]:
    """Return `count` tasks, evenly spaced, or all where there are fewer."""
    count = min(max(1, count), len(tasks))
    return tuple(tasks[index * len(tasks) // count] for index in range(count))


def _factory(name: str, data: str | None, settings: Mapping[str, Any]) -> Callable[[], TextEnv]:
    options = {**settings, **({"data": data} if data else {})}
    return lambda: make(name, **options)


def _outcome(name: str, check: Callable[[_Subject], str], subject: _Subject) -> Check:
    try:
        return Check(name, True, check(subject))
    except _Broken as error:
        return Check(name, False, str(error))
    except (Exception, SystemExit) as error:  # a world may raise anything, and that is what the report is for
        return Check(name, False, what_happened(error).removeprefix("it "))


def _record(env: TextEnv, task: Task, seed: int, commands: Sequence[str] | None = None) -> _Recording:
    """Play a task by the given commands, or at random; ends early where the world says that it is done."""
    generator = random.Random(f"{seed} {task.id}")
    first = observation = _said(task, first_observation, env, task, seed)
    steps: list[tuple[str, Step]] = []
    for turn in range(STEPS if commands is None else len(commands)):
        drawn = draw_command(observation, generator) or generator.choice(_PLAIN_COMMANDS)
        command = commands[turn] if commands is not None else drawn
        step = _said(task, answer, env, command)
        steps.append((command, step))
        observation = step.observation
        if step.done and commands is None:
            break
    return _Recording(task, first, tuple(steps))


def _said(task: Task, ask: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Return what the world says in a task; raises `_Broken` where it cannot be taken, as play would not take it."""
    try:
        return ask(*arguments, **named)
    except BadAnswer as error:
        raise _Broken(f"{task.id}: {error}") from error


def _recordings(subject: _Subject) -> list[_Recording]:
    return [_record(subject.env, task, subject.seed) for task in subject.tasks]


def _require_equal(before: _Recording, after: _Recording, when: str) -> None:
    if not same_answer(before.first, after.first):
        raise _Broken(f"{before.task.id}: another first observation {when}")
    if len(before.steps) != len(after.steps):
        raise _Broken(f"{before.task.id}: {len(after.steps)} steps, not {len(before.steps)}, {when}")
    for turn, ((command, step), (_, again)) in enumerate(zip(before.steps, after.steps, strict=True)):
        if not same_answer(step, again):
            raise _Broken(f"{before.task.id}: another answer to '{command}' at step {turn} {when}")


def _tasks_listed(subject: _Subject) -> str:
    identifiers = [task.id for task in subject.listed]
    if len(set(identifiers)) < len(identifiers):
        raise _Broken("two tasks have the same id")
    if any(task.split != subject.split for task in subject.listed):
        raise _Broken(f"a task of split '{subject.split}' says that it is of another")
    with opened(subject.another()) if subject.another else nullcontext(subject.env) as env:
        again = [task.id for task in env.tasks(subject.split)]
    if again != identifiers:
        raise _Broken("a second listing has other tasks or another order")
    return f"{len(identifiers)} in split '{subject.split}', ids unique, order fixed"


def _refuses_step_before_reset(subject: _Subject) -> str:
    if subject.another is None:
        return "not tried: the world was given ready-made"
    with opened(subject.another()) as fresh:
        try:
            fresh.step("look")
        except RuntimeError:
            return "RuntimeError"
    raise _Broken("step answered before the first reset, where it should raise RuntimeError")


def _deterministic(subject: _Subject) -> str:
    recordings = _recordings(subject)
    for before in recordings:
        _require_equal(before, _record(subject.env, before.task, subject.seed), "when played again")
    return f"{len(recordings)} episodes of up to {STEPS} steps, equal when played again"


def _independent_resets(subject: _Subject) -> str:
    for before, other in zip(_recordings(subject), reversed(subject.tasks), strict=True):
        subject.env.reset(other, seed=subject.seed)
        subject.env.step("look")
        if subject.another is not None:
            with opened(subject.another()) as another:
                _record(another, before.task, subject.seed + 1)
        commands = [command for command, _ in before.steps]
        _record(subject.env, before.task, subject.seed, commands[: len(commands) // 2])
        _require_equal(before, _record(subject.env, before.task, subject.seed, commands), "after other episodes")
    return "episodes given up half way, and another instance, leave no trace"


def _well_formed(subject: _Subject) -> str:
    count = 0
    for recording in _recordings(subject):
        for observation in (recording.first, *[step.observation for _, step in recording.steps]):
            count += 1
            if not observation.text.strip():
                raise _Broken(f"{recording.task.id}: an observation without text")
    return f"{count} observations: text never empty, rewards finite"


def _accepts_admissible(subject: _Subject) -> str:
    tried = 0
    for recording in _recordings(subject):
        played = [command for command, _ in recording.steps]
        observations = [recording.first, *[step.observation for _, step in recording.steps[:-1]]]
        for turn in sorted({0, len(played) // 2, len(played) - 1}):
            offered = observations[turn].admissible or ()
            refusal, *answers = _answers(subject, recording.task, played[:turn], [NONSENSE, *offered])
            tried += len(answers)
            for command, said in zip(offered, answers, strict=False):
                if _equal(said, refusal) and command not in played[:turn]:  # said again, it may well do nothing
                    raise _Broken(f"{recording.task.id}: '{command}' is listed as admissible, and answered as nonsense")
    return f"{tried} commands, none answered as nonsense is" if tried else "the world lists no commands"


def _answers(subject: _Subject, task: Task, before: list[str], commands: list[str]) -> list[tuple[str, Any]]:
    """Return what each command does after others: the text, and the state that it leads to where states compare.

    A world need not say in its text that it took note of a command. Without save and load only the first few commands
    are tried.
    """
    env = subject.env
    if not isinstance(env, SavableEnv):
        few = commands[:_REPLAYED]
        return [(_record(env, task, subject.seed, [*before, c]).steps[-1][1].observation.text, None) for c in few]
    _record(env, task, subject.seed, before)
    state = env.save()
    comparable = _equal(state, env.save())
    answers = []
    for command in commands:
        env.load(state)
        text = _said(task, answer, env, command).observation.text
        answers.append((text, env.save() if comparable else None))
    return answers


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays, for one, which are neither equal nor unequal
        return False


def _survives_odd_commands(subject: _Subject) -> str:
    for before in _recordings(subject):
        subject.env.reset(before.task, seed=subject.seed)
        for command in ODD_COMMANDS:
            shown = repr(command if len(command) < 40 else f"{command[:20]}… ({len(command)} characters)")
            try:
                step = answer(subject.env, command)
            except BadAnswer as error:
                raise _Broken(f"{before.task.id}: {error}") from error
            except Exception as error:
                raise _Broken(f"{before.task.id}: {shown} raised {type(error).__name__}: {error}"[:300]) from error
            if not step.observation.text.strip():
                raise _Broken(f"{before.task.id}: {shown} was answered without text")
        commands = [command for command, _ in before.steps]
        _require_equal(before, _record(subject.env, before.task, subject.seed, commands), "after odd commands")
    return f"{len(ODD_COMMANDS)} kinds, among them empty, control characters and 1 MB"


def _saves_exactly(subject: _Subject) -> str:
    env = subject.env
    if not isinstance(env, SavableEnv):
        return "not offered"
    for recording in _recordings(subject):
        commands = [command for command, _ in recording.steps]
        half = len(commands) // 2
        _record(env, recording.task, subject.seed, commands[:half])
        state = env.save()
        for _ in range(2):
            answers = [_said(recording.task, answer, env, command) for command in commands[half:]]
            before = [step for _, step in recording.steps[half:]]
            if not all(same_answer(*pair) for pair in zip(answers, before, strict=True)):
                raise _Broken(f"{recording.task.id}: other answers after going back to the state at step {half}")
            env.reset(subject.tasks[0], seed=subject.seed)
            env.load(state)
    return "the answers after a saved state are the same each time"


def _walkthroughs_win(subject: _Subject) -> str:
    walkthrough = getattr(subject.env, "walkthrough", None)
    if walkthrough is None:
        return "not offered"
    for task in subject.tasks:
        recording = _record(subject.env, task, subject.seed, list(walkthrough(task)))
        if not recording.steps or not recording.steps[-1][1].success or not recording.steps[-1][1].done:
            raise _Broken(f"{task.id}: the walkthrough does not win")
        subject.env.step("look")
    return f"{len(subject.tasks)} win, and the world still answers afterwards"


def _fast_enough(subject: _Subject) -> str:
    began = time.perf_counter()
    steps = sum(len(recording.steps) for recording in _recordings(subject))
    seconds = time.perf_counter() - began
    if seconds > SLOWEST_STEP * steps:
        raise _Broken(f"{seconds / steps:.1f} s a step, resets included")
    return f"{steps / seconds:,.0f} steps a second, resets included"


_CHECKS: dict[str, Callable[[_Subject], str]] = {
    "tasks listed": _tasks_listed,
    "step before reset refused": _refuses_step_before_reset,
    "answers well formed": _well_formed,
    "deterministic": _deterministic,
    "resets independent": _independent_resets,
    "admissible commands accepted": _accepts_admissible,
    "odd commands harmless": _survives_odd_commands,
    "save and load exact": _saves_exactly,
    "walkthroughs win": _walkthroughs_win,
    "speed": _fast_enough,
}
