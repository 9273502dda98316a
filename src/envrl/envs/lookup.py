"""One task of a world, by its number in a split or by its id: how other libraries' callers ask for one."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.errors import UserError, suggest
from envrl.types import Task

_COMPARED = 2_000  # ids among which the nearest one is looked for


def find_task(tasks: Sequence[Task], wanted: int | str | Task, split: str) -> Task:
    """Return the task with this number (0 is the first) or this id; raises `UserError` where the split has none."""
    if isinstance(wanted, Task):
        wanted = wanted.id
    if isinstance(wanted, str):
        found = next((task for task in tasks if task.id == wanted), None)
        if found is None:
            near = suggest(wanted, [task.id for task in tasks[:_COMPARED]]) if len(tasks) <= _COMPARED else ""
            near = near if "did you mean" in near else f"; its first is '{tasks[0].id}'"
            raise UserError(f"the split '{split}' has no task '{wanted}'{near}")
        return found
    if isinstance(wanted, bool) or not hasattr(wanted, "__index__"):
        raise UserError(f"a task is asked for by its number or its id, not by {wanted!r:.60}")
    if not 0 <= int(wanted) < len(tasks):
        raise UserError(f"the split '{split}' has tasks 0 to {len(tasks) - 1}, not {wanted}")
    return tasks[int(wanted)]
