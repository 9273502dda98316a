"""AAWM: targets that the agent writes itself, out of what its episodes show about what it needs to know."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import log

from envrl.objective.auxiliary.state import steps_of
from envrl.randomness import key_of
from envrl.ranges import Positive
from envrl.registry import register
from envrl.types import Example, Trajectory, TrajectoryGroup, Transition

Write = Callable[[Sequence[Example]], list[str]]
"""Returns what the policy answers to each example's question; its targets are not read."""


@register("auxiliary", "aawm", title="agent-authored targets", writes=True, chat=True)
def aawm(
    groups: Sequence[TrajectoryGroup],
    write: Write,
    *,
    states: Positive = 16,  # of an update that are asked about
    evidence: Positive = 4,  # transitions of the update that are shown for each, beside its own
    need: str = "What do you not know about how this world answers? Name one thing, in a sentence.",  # asked first
    answer: str = "What do these records say about that? Answer in one or two sentences.",  # asked with records
    question: str = "What should you know about how this world answers, before you act here?",  # asked in the row
) -> Iterator[Example]:
    """Yield … sₜ, question → what the policy makes of the records that fit its own need (AAWM, arXiv 2606.25421).

    At each of so many states the policy says what it needs to know. The state's own transition and those of the update
    that share most with the need, by the words' inverse frequencies, are shown to it, and it answers. The answer is the
    target; one without words is left out.
    """
    asked = _chosen(groups, states)
    needs = write([Example(trajectory, step, need) for trajectory, step in asked])
    records = [_record(transition) for _, _, transition in steps_of(groups, True)]
    shown = retrieve(needs, [_words(each) for each in records], evidence)
    prompts = []
    for (trajectory, step), wanted, numbers in zip(asked, needs, shown, strict=True):
        own = _record(trajectory.transitions[step])
        read = dict.fromkeys([own, *(records[number] for number in numbers)])
        prompts.append(Example(trajectory, step, "\n\n".join([*read, need, wanted, answer])))
    for (trajectory, step), text in zip(asked, write(prompts), strict=True):
        if _words(text):
            yield Example(trajectory, step, question, text.strip())


def retrieve(queries: Sequence[str], records: Sequence[Counter[str]], count: int) -> list[list[int]]:
    """Return for each query the records that share most of its words, best first; equal ones in their order.

    A word that n of N records hold weighs log(N / n): one that all hold weighs nothing. A record that shares none is
    left out, and so is a repeat.
    """
    holding = Counter(word for record in records for word in record)
    weights = {word: log(len(records) / number) for word, number in holding.items()}
    first = {frozenset(record.items()): n for n, record in reversed(list(enumerate(records)))}
    found = []
    for query in queries:
        wanted = _words(query)
        scores = {n: sum(weights[word] for word in wanted if word in records[n]) for n in sorted(first.values())}
        best = sorted(scores, key=lambda n: -scores[n])[:count]
        found.append([n for n in best if scores[n] > 0])
    return found


def _chosen(groups: Sequence[TrajectoryGroup], count: int) -> list[tuple[Trajectory, int]]:
    """Return so many states of these episodes, a function of what they are."""

    def draw(place: tuple[Trajectory, int]) -> int:
        trajectory, step = place
        return key_of("aawm", trajectory.policy_version, trajectory.task.id, trajectory.member, step)

    return sorted(((trajectory, step) for trajectory, step, _ in steps_of(groups, True)), key=draw)[:count]


def _record(transition: Transition) -> str:
    seen, answer = transition.observation.text, transition.next_observation.text
    return f"Observation: {seen}\nCommand: {transition.action.text}\nAnswer: {answer}"


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))
