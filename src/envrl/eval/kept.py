"""Episodes of an evaluation as they end: in memory, and in a file from which an interrupted evaluation goes on.

The first line of the file says what was evaluated; the others are episodes (docs/evaluation.md) and, of an endpoint,
its answers. Whatever an episode does not depend on (which others are played, and how many) is no part of the first
line, so the file of a few episodes serves a whole split as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envrl.errors import UserError
from envrl.eval.client import Question, Reply
from envrl.files import JsonLines
from envrl.locks import held
from envrl.types import Action, Observation, StopReason, Task, Template, Trajectory, Transition

Who = tuple[str, int]
"""A task's id and a member: which episode of a split it is."""


class Kept:
    """The episodes that have ended, by how they were played ("admissible", "free", …), split, task and member."""

    def __init__(self, file: JsonLines | None = None, *, lists: bool = False) -> None:
        """`lists`: the agent is shown the admissible commands, so they are part of the episode's text.

        `text_of` may be set to what decodes a response's tokens; it is written down for people to read.
        """
        self._file, self._lists = file, lists
        self.text_of: Callable[[tuple[int, ...]], str] = lambda _: ""
        self._episodes: dict[tuple[str, str, Who], Trajectory] = {}
        self._answers: dict[str, Reply | None] = {}

    def find(self, played: str, split: str, chosen: Iterable[tuple[Task, int]]) -> list[Trajectory]:
        """Return those of the chosen episodes that have ended, in order."""
        found = (self._episodes.get((played, split, (task.id, member))) for task, member in chosen)
        return [trajectory for trajectory in found if trajectory is not None]

    def missing(self, played: str, split: str, chosen: Iterable[tuple[Task, int]]) -> list[tuple[Task, int]]:
        """Return those of the chosen episodes that have not ended."""
        return [(task, m) for task, m in chosen if (played, split, (task.id, m)) not in self._episodes]

    def add(self, played: str, split: str, trajectory: Trajectory) -> None:
        """Keep an episode; one whose world failed is kept in memory alone, and played again another time."""
        key = (played, split, (trajectory.task.id, trajectory.member))
        if key in self._episodes:
            return
        self._episodes[key] = trajectory
        if self._file is not None and trajectory.stop_reason is not StopReason.SET_ASIDE:
            about = {"split": split, "actions": played}
            self._file.append(about | episode_record(trajectory, self._lists, self.text_of))

    def answered(self, question: Question) -> bool:
        return _key(question) in self._answers

    def answer(self, question: Question) -> Reply | None:
        return self._answers[_key(question)]

    def add_answer(self, question: Question, reply: Reply | None) -> None:
        """Keep what an endpoint answered, None where the question was too long for it."""
        self._answers[_key(question)] = reply
        if self._file is not None:
            self._file.append({"answer": _key(question), **({} if reply is None else reply._asdict())})

    def sync(self) -> None:
        """Wait until the file is on the disk."""
        if self._file is not None:
            self._file.sync()

    def load(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take up what a file holds behind its first line; raises `KeyError`, `TypeError` or `ValueError`."""
        for line in lines:
            if "answer" in line:
                reply = {name: value for name, value in line.items() if name != "answer"}
                self._answers[line["answer"]] = Reply(**reply) if reply else None
            else:
                trajectory = trajectory_of(line)
                who = (trajectory.task.id, trajectory.member)
                self._episodes[line["actions"], line["split"], who] = trajectory


@contextmanager
def kept_in(path: str | Path | None, about: Mapping[str, Any], *, lists: bool = False) -> Iterator[Kept]:
    """Yield what a file holds of the evaluation that `about` describes, and keep there what is added; None: nowhere.

    Raises `UserError` where the file is of another evaluation or of something else, or another process writes it.
    """
    if path is None:
        yield Kept(lists=lists)
        return
    lines, whole = _read(path := Path(path))
    about = json.loads(json.dumps(about))
    known = lines[0]["evaluation"] if lines else about
    if other := [name for name in {**about, **known} if about.get(name) != known.get(name)]:
        raise UserError(
            f"{path} holds episodes of another evaluation (other values of {', '.join(other)}): name another file, or "
            "remove it"
        )
    with _opened(path, lines, whole, about, lists) as kept:
        yield kept


@contextmanager
def kept_by_run(path: Path, about: Mapping[str, Any], *, lists: bool) -> Iterator[Kept]:
    """Yield the same for an evaluation inside a run, whose file begins anew where it is of another evaluation."""
    try:
        lines, whole = _read(path)
    except UserError:
        lines, whole = [], 0
    if lines and lines[0]["evaluation"] != json.loads(json.dumps(about)):
        lines, whole = [], 0
    path.parent.mkdir(exist_ok=True)
    with _opened(path, lines, whole, about, lists) as kept:
        yield kept


@contextmanager
def _opened(path: Path, lines: list[Any], whole: int, about: Mapping[str, Any], lists: bool) -> Iterator[Kept]:
    file = JsonLines(path)
    try:
        with held(path, f"another process keeps its episodes in {path}: wait for it, or name another file"):
            file.truncate(whole)
            kept = Kept(file, lists=lists)
            try:
                kept.load(lines[1:])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{path} has a line that is no episode: remove the file, or restore it") from error
            if not lines:
                file.append({"evaluation": about})
            yield kept
    finally:
        file.close()


def _read(path: Path) -> tuple[list[Any], int]:
    """Return the whole lines of a file and how many bytes they are; a line still being written is left out."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    whole = data[: data.rfind(b"\n") + 1]
    refusal = f"{path} is there and holds no episodes of an evaluation: name another file"
    try:
        lines = [json.loads(line) for line in whole.split(b"\n")[:-1]]
    except ValueError as error:
        raise UserError(refusal) from error
    told = all(isinstance(line, dict) for line in lines)
    if (data and not lines) or not told or (lines and not isinstance(lines[0].get("evaluation"), dict)):
        raise UserError(refusal)
    return lines, len(whole)


def episode_record(trajectory: Trajectory, lists: bool, text_of: Callable[[tuple[int, ...]], str]) -> dict[str, Any]:
    """Return an episode as JSON has it, with all that `trajectory_of` needs; `lists`: with the admissible commands."""
    steps = trajectory.transitions
    end = {"end": _told(steps[-1].next_observation, lists)} if steps else {}
    return {
        "task": trajectory.task.id,
        "kind": trajectory.task.kind,
        "seed": trajectory.task.seed,
        "member": trajectory.member,
        "success": trajectory.success,
        "stop_reason": trajectory.stop_reason,
        "return": trajectory.total_reward,
        "steps": [_step(step, lists, text_of) for step in steps],
        **end,
    }


def _step(step: Transition, lists: bool, text_of: Callable[[tuple[int, ...]], str]) -> dict[str, Any]:
    action = step.action
    response = text_of(action.token_ids)
    said = {"tokens": action.token_ids, "logprob": sum(action.logprobs)} | ({"response": response} if response else {})
    marks = {"fault": action.fault, "imagined": action.imagined, "summary": action.summary}
    ends = {"done": step.done, "success": step.success}
    return {
        **_told(step.observation, lists),
        **(said if action.token_ids else {}),
        "action": action.text,
        "admissible": step.admissible,
        **{name: value for name, value in marks.items() if value},
        "reward": step.reward,
        **{name: value for name, value in ends.items() if value},
    }


def _told(observation: Observation, lists: bool) -> dict[str, Any]:
    listed = lists and observation.admissible is not None
    templates = [(each.before, each.words, each.after) for each in observation.templates]
    return {
        "observation": observation.text,
        **({"commands": observation.admissible} if listed else {}),
        **({"templates": templates} if listed and templates else {}),
    }


def trajectory_of(record: Mapping[str, Any]) -> Trajectory:
    """Return the episode of a record: all that its measurements and its text depend on, and no more.

    The commands of a world that were not shown are gone, but for whether the given one was among them.
    """
    steps = record["steps"]
    told = [*steps, record["end"]] if steps else []
    transitions = [
        Transition(
            _observation(step, [step["action"]] if step["admissible"] else []),
            Action(
                step["action"],
                tuple(step.get("tokens", ())),
                (step["logprob"],) if "logprob" in step else (),
                fault=step.get("fault", ""),
                imagined=step.get("imagined", False),
                summary=step.get("summary", ""),
            ),
            step["reward"],
            _observation(told[number + 1], []),
            step.get("done", False),
            step.get("success", False),
        )
        for number, step in enumerate(steps)
    ]
    task = Task(record["task"], record["split"], record["seed"], record["kind"])
    return Trajectory(task, record["member"], tuple(transitions), (), StopReason(record["stop_reason"]))


def _observation(told: Mapping[str, Any], accepted: Sequence[str]) -> Observation:
    templates = (Template(before, tuple(words), after) for before, words, after in told.get("templates", ()))
    return Observation(told["observation"], tuple(told.get("commands", accepted)), templates=tuple(templates))


def _key(question: Question) -> str:
    asked = json.dumps([question.messages, question.seed])
    return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
