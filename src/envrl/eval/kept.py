"""Keep the episodes of an evaluation, in memory and in a file from which an interrupted evaluation resumes.

The first line of the file describes the evaluation; the others are episodes (docs/evaluation.md) and an endpoint's
answers. The first line has only what an episode depends on, not which or how many others are played, so the file of a
few episodes can be continued for a whole split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from envrl.errors import UserError
from envrl.eval.client import Question, Reply
from envrl.files import JsonLines
from envrl.locks import held
from envrl.types import Action, Observation, StopReason, Task, Template, Trajectory, Transition

BATCH = 128
"""Episodes played at once; fixed, since log-probs depend on the batch size by rounding."""
Who = tuple[str, int]
"""A task's id and the member, which identify an episode of a split."""


class Texts(NamedTuple):
    """What decodes a response's tokens: as a whole (empty without a chat's text), and token by token."""

    response: Callable[[tuple[int, ...]], str]
    tokens: Callable[[tuple[int, ...]], Sequence[str]]


NO_TEXTS = Texts(lambda _: "", lambda _: ())


class Kept:
    """The episodes that have ended, by action mode ("admissible", "free", …), split, task and member."""

    def __init__(self, file: JsonLines | None = None, *, lists: bool = False) -> None:
        """`lists`: the agent sees the admissible commands, so they are part of the episode's text.

        `texts` may be set to what decodes a response's tokens; the file then has the texts for people to read.
        """
        self._file, self._lists = file, lists
        self.texts = NO_TEXTS
        self._episodes: dict[tuple[str, str, Who], Trajectory] = {}
        self._answers: dict[str, Reply | None] = {}

    def find(self, played: str, split: str, chosen: Iterable[tuple[Task, int]]) -> list[Trajectory]:
        """Return the chosen episodes that have ended, in order."""
        episodes = (self._episodes.get((played, split, (task.id, member))) for task, member in chosen)
        return [trajectory for trajectory in episodes if trajectory is not None]

    def missing(self, played: str, split: str, chosen: Iterable[tuple[Task, int]]) -> list[tuple[Task, int]]:
        """Return the (task, member) of the chosen episodes that have not ended."""
        return [(task, m) for task, m in chosen if (played, split, (task.id, m)) not in self._episodes]

    def add(self, played: str, split: str, trajectory: Trajectory) -> None:
        """Keep an episode; one whose world failed is kept only in memory, so that a later evaluation plays it again."""
        key = (played, split, (trajectory.task.id, trajectory.member))
        if key in self._episodes:
            return
        self._episodes[key] = trajectory
        if self._file is not None and trajectory.stop_reason is not StopReason.SET_ASIDE:
            about = {"split": split, "actions": played}
            self._file.append(about | episode_record(trajectory, self._lists, self.texts))

    def answered(self, question: Question) -> bool:
        return _key(question) in self._answers

    def answer(self, question: Question) -> Reply | None:
        return self._answers[_key(question)]

    def add_answer(self, question: Question, reply: Reply | None) -> None:
        """Keep an endpoint's reply, None if the question was too long for it."""
        self._answers[_key(question)] = reply
        if self._file is not None:
            self._file.append({"answer": _key(question), **({} if reply is None else reply._asdict())})

    def sync(self) -> None:
        """Wait until the file is on the disk."""
        if self._file is not None:
            self._file.sync()

    def load(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Load the lines of a file after its first; raise `KeyError`, `TypeError` or `ValueError` for a bad line."""
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
    """Yield the episodes in a file of the evaluation that `about` describes; new ones are appended. None: no file.

    Raises `UserError` if the file is not of this evaluation, or another process writes it.
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
    """Yield the kept episodes of a run's own evaluation; a file of another evaluation is overwritten."""
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
    """Return the complete lines of a file and their size in bytes; an incomplete last line is left out."""
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
    valid = all(isinstance(line, dict) for line in lines)
    if (data and not lines) or not valid or (lines and not isinstance(lines[0].get("evaluation"), dict)):
        raise UserError(refusal)
    return lines, len(whole)


def episode_record(trajectory: Trajectory, lists: bool, texts: Texts) -> dict[str, Any]:
    """Return an episode as JSON, with all that `trajectory_of` needs; `lists`: with the admissible commands."""
    steps = trajectory.transitions
    end = {"end": _observation_record(steps[-1].next_observation, lists)} if steps else {}
    return {
        "task": trajectory.task.id,
        "kind": trajectory.task.kind,
        "seed": trajectory.task.seed,
        "member": trajectory.member,
        "success": trajectory.success,
        "stop_reason": trajectory.stop_reason,
        "return": trajectory.total_reward,
        "steps": [_step(step, lists, texts) for step in steps],
        **end,
    }


def _step(step: Transition, lists: bool, texts: Texts) -> dict[str, Any]:
    action = step.action
    response, tokens = texts.response(action.token_ids), texts.tokens(action.token_ids)
    sampled = {"tokens": action.token_ids, "logprobs": action.logprobs}
    sampled |= {"token_texts": tokens} if tokens else {}
    sampled |= {"response": response} if response else {}
    marks = {"fault": action.fault, "imagined": action.imagined, "summary": action.summary}
    ends = {"done": step.done, "success": step.success}
    return {
        **_observation_record(step.observation, lists),
        **(sampled if action.token_ids else {}),
        "action": action.text,
        "admissible": step.admissible,
        **{name: value for name, value in marks.items() if value},
        "reward": step.reward,
        **{name: value for name, value in ends.items() if value},
    }


def _observation_record(observation: Observation, lists: bool) -> dict[str, Any]:
    listed = lists and observation.admissible is not None
    templates = [(each.before, each.words, each.after) for each in observation.templates]
    return {
        "observation": observation.text,
        **({"commands": observation.admissible} if listed else {}),
        **({"templates": templates} if listed and templates else {}),
        **({"told": observation.help} if observation.help else {}),
    }


def trajectory_of(record: Mapping[str, Any]) -> Trajectory:
    """Return the episode of a record, with everything that its metrics and its text depend on.

    Commands that were not shown are lost, except for whether the given one was among them.
    """
    steps = record["steps"]
    observations = [*steps, record["end"]] if steps else []
    transitions = [
        Transition(
            _observation(step, [step["action"]] if step["admissible"] else []),
            Action(
                step["action"],
                tuple(step.get("tokens", ())),
                _logprobs(step),
                fault=step.get("fault", ""),
                imagined=step.get("imagined", False),
                summary=step.get("summary", ""),
            ),
            step["reward"],
            _observation(observations[number + 1], []),
            step.get("done", False),
            step.get("success", False),
        )
        for number, step in enumerate(steps)
    ]
    task = Task(record["task"], record["split"], record["seed"], record["kind"])
    return Trajectory(task, record["member"], tuple(transitions), (), StopReason(record["stop_reason"]))


def _logprobs(step: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the log-probs of a response's tokens; files of earlier versions hold their sum alone."""
    return (step["logprob"],) if "logprob" in step else tuple(step.get("logprobs", ()))


def _observation(record: Mapping[str, Any], accepted: Sequence[str]) -> Observation:
    templates = (Template(before, tuple(words), after) for before, words, after in record.get("templates", ()))
    commands = tuple(record.get("commands", accepted))
    return Observation(record["observation"], commands, templates=tuple(templates), help=record.get("told", ""))


def _key(question: Question) -> str:
    text = json.dumps([question.messages, question.seed])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
