"""Play the episodes that the curriculum assigns to an update, and return them as groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from envrl import ranks
from envrl.batches.retried import joined, second_attempts
from envrl.build import training_settings
from envrl.config.schema import Config
from envrl.envs.pool import Worlds
from envrl.errors import RunError, UserError
from envrl.memories.remembering import Asked, Remembering
from envrl.progress import Reporter
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.scheduler import RolloutStats
from envrl.rollout.splitter import BatchSplitter
from envrl.trainer.tasks import Playing, Tasks
from envrl.types import StopReason, Trajectory, TrajectoryGroup


@dataclass(frozen=True, slots=True)
class Played:
    """An update's complete groups, those admitted, the number of episodes played, and the curriculum's figures."""

    groups: list[TrajectoryGroup]
    admitted: list[TrajectoryGroup]
    episodes: int
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Plays the episodes of an update."""

    config: Config
    make_env: Worlds
    tasks: Tasks
    policy: Policy
    splitter: BatchSplitter
    poll: Callable[[], None]
    reporter: Reporter
    memory: Remembering

    def play(self, update: int, stats: RolloutStats, version: int | None = None) -> Played:
        """Play an update, in more rounds as long as the curriculum refuses groups (at most `Tasks.rounds`).

        `version` is that of the policy, the update's own by default. Raises `RunError` if every group of a round has an
        episode in which the world failed.
        """
        met = Counter[str]()
        groups: list[TrajectoryGroup] = []
        admitted: list[TrajectoryGroup] = []
        wanted = episodes = 0
        for _ in range(self.tasks.rounds):
            playing = self.tasks.next(update, met)
            drawn = self._round(playing, update, stats, version)
            whole = whole_groups(drawn, self.config.env.name, self.make_env.vector().set_aside)
            wanted, episodes = wanted or len(drawn), episodes + len(playing)
            self.tasks.observe(whole)
            groups += whole
            admitted += self.tasks.admitted(whole)
            if len(admitted) >= wanted:
                break
        if len(admitted) < wanted and self.tasks.refuses:
            which = f"{len(groups) - len(admitted)} of {len(groups)}" if admitted else f"all {len(groups)}"
            self.reporter.say(f"update {update}: the curriculum refused {which} groups of {self.tasks.rounds} rounds")
        learned, figures = self._tried_again(admitted[:wanted], met, update, stats, version)
        figures |= self.memory.observe(self.policy.renderer, groups, Asked(self.config.seed, update))
        return Played(groups, learned, episodes + int(figures.get("retry/tried", 0)), self.tasks.figures() | figures)

    def _tried_again(
        self, groups: list[TrajectoryGroup], met: Counter[str], *when: Any
    ) -> tuple[list[TrajectoryGroup], dict[str, float]]:
        """Return the groups with the recipe's second attempts, which are played here, and figures of these."""
        again = second_attempts(groups, self.config, self.make_env)
        places = [Playing(number, each, met[each.task.id] + n) for n, (number, each) in enumerate(again)]
        return joined(groups, [each.group for each in places], self._round(places, *when)) if again else (groups, {})

    def _round(
        self, playing: Sequence[Playing], update: int, stats: RolloutStats, version: int | None
    ) -> list[TrajectoryGroup]:
        settings, here = training_settings(self.config), RolloutStats(clock=stats.clock)
        tell = self.memory.teller(self.policy.renderer, Asked(self.config.seed, update))

        def play(part: range) -> list[Trajectory]:
            some = [playing[mine[i]] for i in part]
            return play_episodes(
                self.policy,
                self.make_env,
                [each.assignment.task for each in some],
                [each.member for each in some],
                settings,
                assignments=[each.assignment for each in some],
                tell=tell,
                seed=self.config.seed,
                update=update,
                version=version,
                stats=here,
                poll=self.poll,
                watch=lambda done: phase.show(part.start + done),
            )

        if any(plan != playing for plan in ranks.gather(list(playing))):
            raise UserError(
                f"update {update}: the curriculum '{self.config.curriculum.name}' plans other episodes in each "
                "process; let what it draws depend on plan.seed and the update alone"
            )
        mine = ranks.dealt([each.group for each in playing])
        with self.reporter.phase("playing", len(mine), unit="episodes") as phase:
            drawn = ranks.in_order(mine, self.splitter.play(len(mine), play))
        stats.env += here.env
        for mismatches, replaced in ranks.gather((here.mismatches, here.replaced)):
            stats.mismatches += mismatches
            stats.replaced += replaced
        return as_groups(drawn, [each.group for each in playing])


def as_groups(trajectories: Sequence[Trajectory], numbers: Sequence[int]) -> list[TrajectoryGroup]:
    """Return the episodes as groups, given each episode's group number, in order of first appearance."""
    groups: dict[int, TrajectoryGroup] = {}
    for trajectory, number in zip(trajectories, numbers, strict=True):
        group = groups.get(number) or TrajectoryGroup(trajectory.task, (), trajectory.policy_version)
        groups[number] = replace(group, trajectories=(*group.trajectories, trajectory))
    return list(groups.values())


def whole_groups(
    groups: Sequence[TrajectoryGroup], world: str = "", set_aside: Mapping[str, str] | None = None
) -> list[TrajectoryGroup]:
    """Return the groups in which no episode was set aside; raise `RunError` if none is left.

    `set_aside` holds the reason of the last failure, by task id.
    """
    whole = [group for group in groups if all(e.stop_reason is not StopReason.SET_ASIDE for e in group.trajectories)]
    if not whole:
        task = groups[-1].task.id
        raise RunError(
            f"every task of an update was set aside, since the world '{world}' failed again and again in all of them; "
            f"in '{task}', {(set_aside or {}).get(task, 'as was said')}"
        )
    return whole
