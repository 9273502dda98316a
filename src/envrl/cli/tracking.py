"""Experiment trackers that `envrl tail RUN --to NAME` writes a run's figures to: TensorBoard, W&B, trackio."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from envrl.errors import UserError, suggest

Record = Mapping[str, Any]


class Tracker(Protocol):
    """Takes figures by name."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Keep the figures of an update, or of a step of the warm start."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class TensorBoard:
    """Event files in `RUN/tensorboard`, written anew: they hold what the run's files hold."""

    def __init__(self, run: Path, config: Record) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        self.place = f"tensorboard --logdir {folder}"

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """An offline run in `RUN/wandb`, which `wandb sync` uploads; nothing is sent from here."""

    def __init__(self, run: Path, config: Record) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        settings = wandb.Settings(silent=True)
        name = run.resolve().name
        self._run = wandb.init(
            project="envrl", name=name, dir=str(run), config=dict(config), mode="offline", settings=settings
        )
        self.place = f"wandb sync {Path(self._run.dir).parent}"

    def log(self, figures: Mapping[str, float], step: int) -> None:
        # Updates and steps of the warm start are counted apart, and W&B has one count: it stands among the figures.
        self._run.log({**figures, "step": step})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the project `envrl` in trackio's own database on this machine."""

    def __init__(self, run: Path, config: Record) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio = trackio
        trackio.init(project="envrl", name=run.resolve().name, config=dict(config), embed=False)
        self.place = "trackio show --project envrl"

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(figures), step=step)

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: dict[str, Callable[[Path, Record], Any]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}


def open_tracker(name: str, run: Path, config: Record) -> Any:
    """Return a tracker; raises `UserError` where there is none of this name, or its package is not installed."""
    check_tracker(name)
    return TRACKERS[name](run, config)


def check_tracker(name: str) -> None:
    """Raise `UserError` where there is no tracker of this name, or its package is not installed."""
    if name not in TRACKERS:
        raise UserError(f"--to {name} is no tracker{suggest(name, TRACKERS)}")
    if find_spec(name) is None:
        raise UserError(f"--to {name} needs the package {name}: pip install 'envrl[{name}]'")


def flat(record: Record, prefix: str = "") -> dict[str, float]:
    """Return a record's figures by name, those of a table inside it as `table/name`; texts and lists are left out."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found


def entry(kind: str, record: Record) -> tuple[dict[str, float], int]:
    """Return the figures of a line of a run's file (`warm_start`, `metrics`, `eval`), and the step that they are of."""
    counted = "step" if kind == "warm_start" else "update"
    prefix = {"warm_start": "warm_start/", "metrics": "", "eval": f"eval/{record.get('split', '')}/"}[kind]
    figures = flat({name: value for name, value in record.items() if name != counted}, prefix)
    step = record.get(counted)
    return figures, int(step) if isinstance(step, (int, float)) else 0
