"""Rejection sampling: the policy's own wins join the demonstrations (RFT, arXiv 2308.01825; STaR, arXiv 2203.14465)."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.imitation.method import Gathered, Lesson, Player
from envrl.ranges import Positive
from envrl.registry import register
from envrl.types import Assignment, Trajectory


@register("warm_start", "rejection")
class Rejection:
    """Round 0 imitates the demonstrations; before each further round the policy plays, and its wins are added.

    Of a task's wins the shortest are kept, each sequence of commands once.
    """

    def __init__(
        self,
        epochs: int,
        *,
        rounds: Positive = 1,  # rounds of play and imitation, after the one on the demonstrations
        tasks: Positive = 64,  # that are played before each
        episodes: Positive = 4,  # of each task
        keep: Positive = 1,  # wins of a task that are kept, the shortest
        passes: Positive = 1,  # epochs of each round, over all lessons so far
    ) -> None:
        self.passes = (epochs, *(passes for _ in range(rounds)))
        self._tasks, self._episodes, self._keep = tasks, episodes, keep

    def gather(self, round: int, demonstrations: Sequence[Lesson], player: Player) -> Gathered:
        if not round:
            return Gathered()
        tasks = {task.id: task for task in player.tasks(round, self._tasks)}
        played = player.play(round, [Assignment(task, self._episodes) for task in tasks.values()])
        of_task: dict[str, list[Trajectory]] = {task: [] for task in tasks}
        for each in played:
            of_task[each.task.id].append(each)
        kept = [win for episodes in of_task.values() for win in shortest_wins(episodes, self._keep)]
        return Gathered(
            [Lesson(win, (True,) * len(win.transitions)) for win in kept],
            {
                "success_rate": sum(each.success for each in played) / max(1, len(played)),
                "solved": sum(any(e.success for e in episodes) for episodes in of_task.values()) / len(of_task),
                "kept": len(kept),
            },
        )

    def learns(self, round: int, demonstrations: Sequence[Lesson], gathered: Sequence[Lesson]) -> list[Lesson]:
        return [*demonstrations, *gathered]


def shortest_wins(episodes: Sequence[Trajectory], count: int) -> list[Trajectory]:
    """Return the `count` shortest wins, the earlier of two equally long ones first, each sequence of commands once."""
    wins: dict[tuple[str, ...], Trajectory] = {}
    for each in episodes:
        if each.success:
            wins.setdefault(tuple(step.action.text for step in each.transitions), each)
    return sorted(wins.values(), key=lambda win: len(win.transitions))[:count]
