"""The packages that worlds of others need, imported when a world is made and not before."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from envrl.errors import UserError


def need(module: str, world: str, extra: str) -> None:
    """Raise `UserError` where `module` is not installed; it is looked for, and not imported."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"the world '{world}' needs the package '{module}': pip install 'envrl[{extra}]'")


def imported(module: str, world: str, extra: str) -> Any:
    """Return the module; raises `UserError` with the command that installs its package where that is missing."""
    need(module.partition(".")[0], world, extra)
    return importlib.import_module(module)
