"""Early experience: the policy tries its own alternatives at expert states and learns what the world answers
(implicit world modelling, arXiv 2510.08558, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.imitation.method import Gathered, Lesson, Player, bare
from envrl.ranges import Positive
from envrl.registry import register
from envrl.sequences import evenly_spaced
from envrl.types import Assignment


@register("warm_start", "early_experience")
class EarlyExperience:
    """Round 0 predicts what the world answers to the policy's alternatives; round 1 imitates the demonstrations.

    L = − Σᵢ Σⱼ log p(sᵢʲ | sᵢ, aᵢʲ), where sᵢ is a state of a demonstration, aᵢʲ ~ π(· | sᵢ) differs from the
    expert's aᵢ, and sᵢʲ is the next state that the world gave.
    """

    def __init__(
        self,
        epochs: int,
        *,
        states: Positive = 512,  # states of the demonstrations, spread over them, at which alternatives are tried
        alternatives: Positive = 3,  # commands that the policy draws at each; equal ones and the expert's are left out
        passes: Positive = 1,  # epochs of the round that predicts
    ) -> None:
        self.passes = (passes, epochs)
        self._states, self._alternatives = states, alternatives

    def gather(self, round: int, demonstrations: Sequence[Lesson], player: Player) -> Gathered:
        if round:
            return Gathered()
        places = [(lesson, t) for lesson in demonstrations for t in range(len(lesson.imitated)) if lesson.imitated[t]]
        chosen = [places[i] for i in evenly_spaced(len(places), min(self._states, len(places)))]
        assignments, experts = [], {}
        for lesson, t in chosen:
            *start, expert = (step.action.text for step in lesson.trajectory.transitions[: t + 1])
            task = lesson.trajectory.task
            assignments.append(Assignment(task, self._alternatives, max_steps=t + 1, start=tuple(start)))
            experts[task.id, tuple(start)] = expert
        branches: dict[tuple[str, tuple[str, ...]], Lesson] = {}
        played = player.play(round, assignments)
        for each in played:
            commands = tuple(step.action.text for step in each.transitions)
            if commands and experts.get((each.task.id, commands[:-1])) not in (None, commands[-1]):
                branches[each.task.id, commands] = Lesson(bare(each), (False,) * len(commands), predicted=True)
        figures = {"states": len(chosen), "branches": len(branches), "drawn": len(played)}
        return Gathered(list(branches.values()), figures)

    def learns(self, round: int, demonstrations: Sequence[Lesson], gathered: Sequence[Lesson]) -> list[Lesson]:
        return list(demonstrations) if round else list(gathered)
