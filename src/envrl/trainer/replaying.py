"""The recipe's replay, with checks of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from envrl.component import Component, plan_of
from envrl.config.schema import Config
from envrl.registry import find
from envrl.replay import checked
from envrl.replays.other_run import begin
from envrl.types import TrajectoryGroup


class Replaying(Component):
    """The recipe's replay."""

    def __init__(self, config: Config) -> None:
        self._config, entry = config, find("replay", config.replay.name)
        super().__init__(entry, lambda: entry.target(plan_of(config), **config.settings("replay")))

    def begin(self, vocabulary: Mapping[str, int] | None = None) -> None:
        """Take over the episodes of the run `replay.start`; raise `UserError` if this run cannot learn from them.

        They were written with this `vocabulary`, as far as it is known yet.
        """
        if self._config.replay.start:
            begin(self._config, self.load, vocabulary)

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> list[TrajectoryGroup]:
        """Return the groups that an update learns from; raise `UserError` if the replay returns anything else."""
        mixed = self.do(lambda: list(self.made.mix(groups, update)))
        return checked(self.entry.called, mixed, update)
