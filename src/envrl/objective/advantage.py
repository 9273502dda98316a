"""Step advantages from step rewards: `ESTIMATORS[name](rewards, observations, ...)`, in float64, without torch.

The registered function of an estimator (a file each in `objective/estimators/`) takes the concatenated steps of all
trajectories (`Steps`) and returns one number per step. Suffix `_N`: over all steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envrl.errors import UserError
from envrl.registry import Entry, View, blame, check_settings

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps of one call, concatenated; steps `offsets[i]:offsets[i + 1]` belong to trajectory i.

    `strata` and `final_observations` hold one entry a trajectory, and are empty where they are not given.
    """

    rewards_N: Array
    penalties_N: Array
    observations_N: tuple[str, ...]
    commands_N: tuple[str, ...]
    groups_N: tuple[Hashable, ...]
    offsets: Indices
    strata: tuple[Hashable, ...] = ()
    final_observations: tuple[str, ...] = ()

    def per_trajectory(self, values_N: Array) -> list[Array]:
        return np.split(values_N, self.offsets[1:-1]) if len(self.offsets) > 1 else []


@dataclass(frozen=True, slots=True)
class Estimator:
    """A registered advantage estimator; `knobs` are its settings with their defaults."""

    entry: Entry

    @property
    def knobs(self) -> dict[str, Any]:
        return {name: setting.default for name, setting in self.entry.settings.items()}

    def __call__(
        self,
        rewards: Sequence[ArrayLike],
        observations: Sequence[Sequence[str]],
        *,
        groups: Iterable[Hashable] | None = None,
        values: Sequence[ArrayLike] | None = None,
        strata: Sequence[Hashable] | None = None,
        penalties: Sequence[ArrayLike] | None = None,
        final_observations: Sequence[str] | None = None,
        commands: Sequence[Sequence[str]] | None = None,
        **knobs: Any,
    ) -> list[Array]:
        """Return the advantage of every step: one float64 array per trajectory, in the shape of `rewards`.

        `rewards` holds one array of step rewards per trajectory, `observations` the text before each step, `commands`
        the command in it, `groups` one id per trajectory (default: one group). `penalties` are subtracted from a step's
        own score and its own discounted return, not from those of its neighbours. `final_observations` (the text after
        the last step) and `strata` hold one per trajectory. Each estimator reads what it needs; none reads `values`
        yet. Raises `UserError` for shapes that disagree, a reward that is not finite, or an unknown setting.
        """
        check_settings(f"the {self.entry.called}", knobs, self.knobs)
        steps = _lay_out(rewards, observations, groups, penalties, commands, strata, final_observations)
        with blame(self.entry):
            advantages = self.entry.target(steps, **knobs)
        return steps.per_trajectory(self._checked(advantages, len(steps.rewards_N)))

    def _checked(self, advantages: Any, count: int) -> Array:
        """Return the function's result as float64; raise `UserError` if it is not one finite number per step."""
        try:
            advantages_N = np.asarray(advantages, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(
                f"the {self.entry.called} must return an array of numbers, not {advantages!r:.80}"
            ) from None
        if advantages_N.shape != (count,):
            raise UserError(
                f"the {self.entry.called} must return one number a step, {count} in all, not an array of shape "
                f"{advantages_N.shape}"
            )
        if not np.isfinite(advantages_N).all():
            step = int(np.flatnonzero(~np.isfinite(advantages_N))[0])
            raise UserError(f"the {self.entry.called} returned {advantages_N[step]} for step {step} (counted from 0)")
        return advantages_N


ESTIMATORS = View("estimator", Estimator)
"""Estimators by name: the built-in ones and those that `envrl.register("estimator", name)` registered."""


def _lay_out(
    rewards: Sequence[ArrayLike],
    observations: Sequence[Sequence[str]],
    groups: Iterable[Hashable] | None,
    penalties: Sequence[ArrayLike] | None,
    commands: Sequence[Sequence[str]] | None,
    strata: Sequence[Hashable] | None,
    final_observations: Sequence[str] | None,
) -> Steps:
    arrays = [np.asarray(r, dtype=np.float64) for r in rewards]
    if any(a.ndim != 1 for a in arrays):
        raise UserError("rewards must be one flat array of step rewards a trajectory")
    lengths = [len(a) for a in arrays]
    if penalties is None:
        penalties = [np.zeros(n) for n in lengths]
    penalty_arrays = [np.asarray(p, dtype=np.float64) for p in penalties]
    _check_lengths("observations", [len(o) for o in observations], lengths)
    _check_lengths("penalties", [p.size for p in penalty_arrays], lengths)
    if commands is None:
        commands = [[""] * n for n in lengths]
    _check_lengths("commands", [len(c) for c in commands], lengths)
    ids = [0] * len(arrays) if groups is None else list(groups)
    for name, given in (("groups", ids), ("strata", strata), ("final_observations", final_observations)):
        if given is not None and len(given) != len(arrays):
            raise UserError(f"{name} must hold an id or text a trajectory: {len(given)} for {len(arrays)} trajectories")
    for index, (reward, penalty) in enumerate(zip(arrays, penalty_arrays, strict=True)):
        if not (np.isfinite(reward).all() and np.isfinite(penalty).all()):
            raise UserError(f"trajectory {index} (counted from 0) has a reward or penalty that is not a finite number")
    return Steps(
        rewards_N=np.concatenate([np.zeros(0), *arrays]),
        penalties_N=np.concatenate([np.zeros(0), *(p.reshape(-1) for p in penalty_arrays)]),
        observations_N=tuple(str(text) for trajectory in observations for text in trajectory),
        commands_N=tuple(str(command) for trajectory in commands for command in trajectory),
        groups_N=tuple(group for group, length in zip(ids, lengths, strict=True) for _ in range(length)),
        offsets=np.cumsum([0, *lengths]),
        strata=tuple(strata or ()),
        final_observations=tuple(final_observations or ()),
    )


def _check_lengths(name: str, found: list[int], expected: list[int]) -> None:
    if len(found) != len(expected):
        raise UserError(f"{name} must have the shape of rewards: {len(found)} trajectories, not {len(expected)}")
    for index, (has, needs) in enumerate(zip(found, expected, strict=True)):
        if has != needs:
            raise UserError(
                f"{name} must have the shape of rewards: trajectory {index} (counted from 0) has {has} entries for "
                f"{needs} rewards"
            )
