"""The common base of curriculum, replay and memory: it attributes their exceptions, and saves their state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from envrl.config.schema import Config
from envrl.curriculum import HasState, Plan, figures_of
from envrl.errors import RunError, UserError
from envrl.registry import Entry, blame
from envrl.samples.store import from_json, to_json


def plan_of(config: Config) -> Plan:
    """Return the plan of a recipe's updates."""
    rollout = config.rollout
    most = rollout.max_steps or config.env.max_steps
    return Plan(config.seed, rollout.tasks, rollout.group_size, most, config.train.updates)


class Component:
    """An object of a registered class, built-in or a user's, that `make` creates for a run.

    Raises `UserError` if it has only one of `state()` and `load(state)`.
    """

    def __init__(self, entry: Entry, make: Callable[[], Any]) -> None:
        self.entry = entry
        self.made = self.do(make)
        if hasattr(self.made, "state") != hasattr(self.made, "load"):
            names = ("state()", "load(state)")
            have, lack = names if hasattr(self.made, "state") else names[::-1]
            raise UserError(f"the {entry.called} has {have} and no {lack}: a resumed run needs both")

    def do(self, work: Callable[[], Any]) -> Any:
        """Return the result of `work`; its exceptions become a `UserError` that names the object."""
        with blame(self.entry):
            return work()

    def state(self) -> Any:
        """Return the object's state as plain JSON, None if it has none; raise `UserError` if it is not JSON."""
        if not isinstance(self.made, HasState):
            return None
        state = self.do(self.made.state)
        try:
            return to_json(state)
        except RunError as error:
            raise UserError(f"the {self.entry.called} cannot be saved: {error}") from error

    def figures(self) -> dict[str, float]:
        """Return the object's figures for the log, as KIND/NAME; raise `UserError` if one is no number."""
        figures = self.do(lambda: figures_of(self.entry.called, self.made))
        return {f"{self.entry.kind}/{name}": value for name, value in figures.items()}

    def load(self, state: Any) -> None:
        """Restore the state from a checkpoint."""
        if isinstance(self.made, HasState):
            self.do(lambda: self.made.load(from_json(state)))
