"""One recorded episode in the form that the page reads, whichever file of a run it comes from."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from envrl.report.failures import failure_of, goal_of, is_invalid, repeats
from envrl.report.read import number

Record = Mapping[str, Any]

LONGEST_TEXT = 20_000
"""Characters of one text that are shown."""
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_MOST_WORDS = 800


def steps_of(record: Record) -> list[dict[str, Any]]:
    """Return an episode's steps, each with the observation after it, which files of `eval/` hold with the next step."""
    steps = [dict(step) for step in _list(record.get("steps")) if isinstance(step, Mapping)]
    end = record.get("end")
    for step, following in zip(steps, [*steps[1:], end if isinstance(end, Mapping) else {}], strict=True):
        step.setdefault("next_observation", following.get("observation", ""))
    return steps


def readable(record: Record) -> dict[str, Any]:
    """Return an episode as the page shows it: every text is a string, every figure finite or null."""
    steps = steps_of(record)
    again = repeats(steps)
    return {
        "task": str(record.get("task", "")),
        "kind": str(record.get("kind", "")),
        "member": number(record, "member") or 0,
        "success": bool(record.get("success")),
        "stop": str(record.get("stop_reason", "")),
        "return": number(record, "return"),
        "goal": goal_of(steps),
        "failure": failure_of(record, steps),
        "steps": [_step(step, repeated) for step, repeated in zip(steps, again, strict=True)],
    }


def word_diff(true: str, predicted: str) -> list[tuple[str, str]]:
    """Return both texts in parts: ("=", in both), ("-", only in the true one), ("+", only in the predicted one).

    Long texts are not matched, which takes time that grows with the product of their lengths.
    """
    ours, theirs = _WORDS.findall(true), _WORDS.findall(predicted)
    if len(ours) + len(theirs) > _MOST_WORDS:
        return [("=", true)] if true == predicted else [("-", true), ("+", predicted)]
    parts: list[tuple[str, str]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(("=", "".join(ours[a:b])))
            continue
        parts += [(sign, text) for sign, text in (("-", "".join(ours[a:b])), ("+", "".join(theirs[c:d]))) if text]
    return parts


def _step(step: Record, repeated: bool) -> dict[str, Any]:
    true, predicted = _text(step, "next_observation"), step.get("predicted_observation")
    shown: dict[str, Any] = {
        "observation": _text(step, "observation"),
        "action": _text(step, "action"),
        "answer": true,
        "probability": probability_of(step),
        "reward": number(step, "reward"),
    }
    for key in ("response", "fault", "summary", "told"):
        if step.get(key):
            shown[key] = _text(step, key)
    if is_invalid(step):
        shown["invalid"] = True
    if repeated:
        shown["repeated"] = True
    if step.get("imagined"):
        shown["imagined"] = True
    if (surprise := number(step, "state_nll")) is not None:
        shown["surprise"] = surprise
    if predicted is not None:
        shown["predicted"] = word_diff(true, _cut(str(predicted)))
    if step.get("predicted_action") is not None:
        shown["guess"] = _text(step, "predicted_action")
    return shown | _tokens(step)


def _tokens(step: Record) -> dict[str, Any]:
    """Return the tokens of a response with their figures by name, where as many were recorded as there are tokens."""
    tokens = step.get("token_texts")
    texts = isinstance(tokens, list) and bool(tokens) and all(isinstance(each, str) for each in tokens)
    figures = {name: _figures(step.get(key)) for name, key in (("logprob", "logprobs"), ("entropy", "entropies"))}
    advantages = {"advantage": number(step, "advantage")}
    parts = step.get("advantage_parts")
    if isinstance(parts, Mapping):
        advantages |= {f"advantage: {name}": number(parts, str(name)) for name in parts}
    known = {name: value for name, value in advantages.items() if value is not None}
    shown: dict[str, Any] = {"advantages": known} if known else {}
    if isinstance(tokens, list) and texts:
        shown["tokens"] = tokens
        shown |= {name: values for name, values in figures.items() if len(values) == len(tokens)}
    return shown


def probability_of(step: Record) -> float | None:
    """Return the probability of a step's whole response, which files of `eval/` hold as log-probabilities."""
    chance = number(step, "probability")
    each = [value for value in _figures(step.get("logprobs")) if value is not None]
    logprob = number(step, "logprob") if "logprob" in step else sum(each) if each else None
    if chance is None and logprob is not None and logprob <= 0:
        return math.exp(logprob)
    return chance


def _figures(values: object) -> list[float | None]:
    return [number({"": value}, "") for value in _list(values)]


def _text(record: Record, key: str) -> str:
    value = record.get(key, "")
    return _cut(value if isinstance(value, str) else str(value))


def _cut(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT} more characters)"


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []
