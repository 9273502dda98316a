"""What an update learns from besides what it played: the recipe's replay, looked at as it works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from envrl.config.schema import Config
from envrl.curriculum import HasState
from envrl.errors import UserError
from envrl.registry import failed, find
from envrl.samples.store import from_json
from envrl.trainer.tasks import check_state, plan_of, saved
from envrl.types import TrajectoryGroup


class Replaying:
    """The recipe's replay."""

    def __init__(self, config: Config) -> None:
        self._entry = find("replay", config.replay.name)
        self._replay = self._do(lambda: self._entry.target(plan_of(config), **config.settings("replay")))
        check_state(self._entry, self._replay)

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> list[TrajectoryGroup]:
        """Return the groups that an update learns from; raises `UserError` where the replay gives something else."""
        mixed = self._do(lambda: list(self._replay.mix(groups, update)))
        for group in mixed:
            if not isinstance(group, TrajectoryGroup):
                raise UserError(f"the {self._entry.called} gave {group!r:.80}, which is no group of episodes")
            if any(trajectory.policy_version > update for trajectory in group.trajectories):
                raise UserError(f"the {self._entry.called} gave episodes of a later update than {update}")
        return mixed

    def state(self) -> Any:
        """Return what survives a checkpoint, as plain JSON."""
        return saved(self._entry, self._do(self._replay.state)) if isinstance(self._replay, HasState) else None

    def load(self, state: Any) -> None:
        """Take up what a checkpoint holds."""
        if isinstance(self._replay, HasState):
            self._do(lambda: self._replay.load(from_json(state)))

    def _do(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # anybody's class may raise anything
            raise failed(self._entry, error) from error
