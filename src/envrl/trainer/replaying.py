"""The recipe's replay, with checks of its results."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.config.schema import Config
from envrl.registry import find
from envrl.replay import checked
from envrl.trainer.component import Component
from envrl.trainer.tasks import plan_of
from envrl.types import TrajectoryGroup


class Replaying(Component):
    """The recipe's replay."""

    def __init__(self, config: Config) -> None:
        entry = find("replay", config.replay.name)
        super().__init__(entry, lambda: entry.target(plan_of(config), **config.settings("replay")))

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> list[TrajectoryGroup]:
        """Return the groups that an update learns from; raise `UserError` if the replay returns anything else."""
        mixed = self.do(lambda: list(self.made.mix(groups, update)))
        return checked(self.entry.called, mixed, update)
