"""Early experience: the policy tries its own alternatives at expert states and learns what the world answers
(implicit world modelling, arXiv 2510.08558, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.imitation.alternatives import try_alternatives
from envrl.imitation.method import Gathered, Lesson, Player
from envrl.ranges import Positive
from envrl.registry import register


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
        tried, drawn = try_alternatives(round, demonstrations, player, self._states, self._alternatives)
        branches = [
            Lesson(each, (False,) * len(each.transitions), predicted=True) for place in tried for each in place.others
        ]
        return Gathered(branches, {"states": len(tried), "branches": len(branches), "drawn": drawn})

    def learns(self, round: int, demonstrations: Sequence[Lesson], gathered: Sequence[Lesson]) -> list[Lesson]:
        return list(demonstrations) if round else list(gathered)
