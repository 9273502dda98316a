"""What a curriculum and a replay have in common: mistakes are told as theirs, and a state goes to the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from envrl.curriculum import HasState
from envrl.errors import RunError, UserError
from envrl.registry import Entry, told_of
from envrl.samples.store import from_json, to_json


class Component:
    """A thing of a user's or ours that was made for a run; `make` makes it.

    Raises `UserError` where it gives its state and does not take it up again, or the reverse.
    """

    def __init__(self, entry: Entry, make: Callable[[], Any]) -> None:
        self.entry = entry
        self.made = self.do(make)
        if hasattr(self.made, "state") != hasattr(self.made, "load"):
            names = ("state()", "load(state)")
            have, lack = names if hasattr(self.made, "state") else names[::-1]
            raise UserError(f"the {entry.called} has {have} and no {lack}: a resumed run needs both")

    def do(self, work: Callable[[], Any]) -> Any:
        """Return what the work gives; what it raises is told as the thing's."""
        with told_of(self.entry):
            return work()

    def state(self) -> Any:
        """Return what survives a checkpoint, as plain JSON; raises `UserError` where it is something else."""
        if not isinstance(self.made, HasState):
            return None
        state = self.do(self.made.state)
        try:
            return to_json(state)
        except RunError as error:
            raise UserError(f"the {self.entry.called} cannot be saved: {error}") from error

    def load(self, state: Any) -> None:
        """Take up what a checkpoint holds."""
        if isinstance(self.made, HasState):
            self.do(lambda: self.made.load(from_json(state)))
