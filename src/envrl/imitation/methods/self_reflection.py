"""Self-reflection: the policy writes why the expert's command is better than its own alternatives, given what the world
answered to each, and learns to think so before the command (arXiv 2510.08558, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from envrl.imitation.alternatives import Tried, try_alternatives
from envrl.imitation.method import Gathered, Lesson, Player, bare
from envrl.ranges import Positive
from envrl.registry import register
from envrl.rendering.formats import trim
from envrl.types import Example, Transition


@register("warm_start", "self_reflection", thinks=True)
class SelfReflection:
    """One round on the demonstrations, and on the policy's own thoughts before their commands.

    L = − Σ log p(cᵢ, aᵢ | sᵢ) − Σ log p(aᵢ | sᵢ), where aᵢ is the expert's command in a state sᵢ of a demonstration,
    and cᵢ is what the policy writes when it is shown sᵢ, the world's answer to aᵢ, and its answers to commands of its
    own.
    """

    def __init__(
        self,
        epochs: int,
        *,
        states: Positive = 512,  # states of the demonstrations, spread over them, at which alternatives are tried
        alternatives: Positive = 3,  # commands that the policy draws at each; equal ones and the expert's are left out
        question: str = "Think aloud in a few sentences, as before you choose: why is it the better one?",  # asked then
    ) -> None:
        self.passes = (epochs,)
        self._states, self._alternatives, self._question = states, alternatives, question

    def gather(self, round: int, demonstrations: Sequence[Lesson], player: Player) -> Gathered:
        tried, drawn = try_alternatives(round, demonstrations, player, self._states, self._alternatives)
        asked = [each for each in tried if each.others]
        examples = [Example(each.lesson.trajectory, each.step, _shown(each, self._question)) for each in asked]
        thoughts: dict[int, dict[int, str]] = {}
        for each, thought in zip(asked, player.thoughts(examples), strict=True):
            if thought:
                thoughts.setdefault(id(each.lesson), {})[each.step] = thought
        lessons = [_reflected(each, thoughts[id(each)]) for each in demonstrations if id(each) in thoughts]
        written = sum(map(len, thoughts.values()))
        figures = {"states": len(tried), "drawn": drawn, "asked": len(asked), "reflections": written}
        return Gathered(lessons, figures)

    def learns(self, round: int, demonstrations: Sequence[Lesson], gathered: Sequence[Lesson]) -> list[Lesson]:
        reflected = {_key(each): each for each in gathered}
        return [reflected.get(_key(each), each) for each in demonstrations]


def _shown(tried: Tried, question: str) -> str:
    """Return what the policy is asked: the commands that were tried in its place, the expert's, their answers."""
    others = [_answered(each.transitions[-1]) for each in tried.others]
    own = _answered(tried.lesson.trajectory.transitions[tried.step])
    return "\n\n".join(
        ["These commands were tried here, each by itself:", *others, "This one is better:", own, question]
    )


def _answered(step: Transition) -> str:
    return f"Command: {step.action.text}\nAnswer: {trim(step.next_observation.text)}"


def _reflected(lesson: Lesson, thoughts: dict[int, str]) -> Lesson:
    """Return a demonstration with thoughts before the commands of some of its steps."""
    steps = enumerate(lesson.trajectory.transitions)
    labels = tuple(step.action.text if t in thoughts else "" for t, step in steps)
    trajectory = bare(lesson.trajectory)
    return replace(
        lesson, trajectory=trajectory, labels=labels, thoughts=tuple(thoughts.get(t, "") for t in range(len(labels)))
    )


def _key(lesson: Lesson) -> tuple[str, ...]:
    return (lesson.trajectory.task.id, *(step.action.text for step in lesson.trajectory.transitions))
