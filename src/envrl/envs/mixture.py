"""The world `mixture`: the tasks of several worlds in one run, each with its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from envrl.envs.protocol import TextEnv
from envrl.envs.registry import make
from envrl.errors import UserError
from envrl.sequences import evenly_spaced
from envrl.types import Observation, Step, Task

_BETWEEN = "/"
"""What stands in a task's id between its world's name and its own id."""


class Mixture:
    """Several worlds as one: every task is one of theirs, and its kind is its world's name.

    A split holds the tasks of the worlds that have a split of that name. There each world has its share: as many tasks
    as the shares allow of the one that runs out first, evenly spaced over its split. See `TextEnv` for the methods.
    """

    def __init__(
        self,
        *,
        worlds: tuple[str, ...] = ("household", "webshop"),  # their names, each once
        shares: tuple[float, ...] = (),  # of the tasks of a split, one a world, in proportion; empty: equal ones
    ) -> None:
        if len(worlds) < 2 or len(set(worlds)) < len(worlds) or "mixture" in worlds:
            raise UserError(f"env.mixture.worlds must name at least two other worlds, each once, not {list(worlds)}")
        if shares and (len(shares) != len(worlds) or not all(0 < share < float("inf") for share in shares)):
            raise UserError(
                f"env.mixture.shares must give each of the {len(worlds)} worlds a number above 0, not {list(shares)}"
            )
        self._worlds = {name: make(name) for name in worlds}
        self._shares = dict(zip(worlds, shares or [1.0] * len(worlds), strict=True))
        self._splits: dict[str, list[Task]] = {}
        self._listed: dict[tuple[str, str], dict[str, Task]] = {}
        self._playing = ""
        self._task: Task | None = None
        for name in ("expert", "walkthrough", "save", "load"):  # what a world may offer, the mixture of all that do
            if all(hasattr(world, name) for world in self._worlds.values()):
                setattr(self, name, getattr(self, f"_{name}"))

    @property
    def slow(self) -> bool:
        """Whether one of the worlds is."""
        return any(getattr(world, "slow", False) for world in self._worlds.values())

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split, world after world; raises `UserError` where no world has a split of that name.

        What a world says that is not there (a split, its data) is said where all say it.
        """
        if split not in self._splits:
            found: dict[str, Sequence[Task]] = {}
            reasons = []
            for name, world in self._worlds.items():
                try:
                    found[name] = world.tasks(split)
                except UserError as error:
                    reasons.append(f"{name}: {error}")
            found = {name: tasks for name, tasks in found.items() if tasks}
            if not found:
                raise UserError(f"none of the mixture's worlds has a split '{split}' ({'; '.join(reasons)})")
            unit = min(len(tasks) / self._shares[name] for name, tasks in found.items())
            self._splits[split] = [
                replace(task, id=f"{name}{_BETWEEN}{task.id}", kind=name)
                for name, tasks in found.items()
                for task in map(tasks.__getitem__, evenly_spaced(len(tasks), max(1, round(unit * self._shares[name]))))
            ]
        return self._splits[split]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start a task in its world."""
        name, own = self._own(task)
        self._playing, self._task = name, task
        return self._worlds[name].reset(own, seed)

    def step(self, action: str) -> Step:
        """Carry out one command in the world of the present task."""
        return self._present().step(action)

    def _save(self) -> Any:
        """Return the present state and whose it is."""
        return self._task, self._asked("save")()

    def _load(self, state: Any) -> None:
        """Go back to a saved state, in whichever world it is of."""
        self._task, inner = state
        assert self._task is not None
        self._playing, _ = self._own(self._task)
        self._asked("load")(inner)

    def _expert(self, seed: int) -> Callable[[Observation], str]:
        """Return the expert of the world of the present task, which is asked for with the first observation."""
        acting: list[Callable[[Observation], str]] = []

        def act(observation: Observation) -> str:
            if not acting:
                acting.append(self._asked("expert")(seed))
            return acting[0](observation)

        return act

    def _walkthrough(self, task: Task) -> Sequence[str]:
        """Return the commands that solve a task."""
        name, own = self._own(task)
        return getattr(self._worlds[name], "walkthrough")(own)  # noqa: B009 - there, since every world has one

    def close(self) -> None:
        """Close every world that can be."""
        for world in self._worlds.values():
            if callable(close := getattr(world, "close", None)):
                close()

    def _present(self) -> TextEnv:
        if not self._playing:
            raise RuntimeError("step was called before the first reset")
        return self._worlds[self._playing]

    def _asked(self, method: str) -> Callable[..., Any]:
        return getattr(self._present(), method)

    def _own(self, task: Task) -> tuple[str, Task]:
        """Return the name of a task's world, and the task as that world knows it."""
        name, _, own = task.id.partition(_BETWEEN)
        if name not in self._worlds:
            raise UserError(f"the task '{task.id}' belongs to none of the mixture's worlds")
        if (name, task.split) not in self._listed:
            self._listed[name, task.split] = {each.id: each for each in self._worlds[name].tasks(task.split)}
        return name, self._listed[name, task.split].get(own) or replace(task, id=own, kind="")
