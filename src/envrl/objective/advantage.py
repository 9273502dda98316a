"""Step advantages from step rewards: `ESTIMATORS[name](rewards, observations, ...)`, in float64, without torch.

The registered function of an estimator (a file each in `objective/estimators/`) takes the concatenated steps of all
trajectories (`Steps`) and returns one number per step. Suffix `_N`: over all steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envrl.errors import UserError
from envrl.registry import Entry, View, blame, check_settings

VALUE = "value"
"""The head of `Steps.values_N`."""
Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps of one call, concatenated; steps `offsets[i]:offsets[i + 1]` belong to trajectory i.

    `strata` and `final_observations` hold one entry a trajectory, `values_N` the values of a step: one, or one for each
    of its judged tokens; `heads` those of further heads, by name. They are empty where they are not given. `valid_N` is
    False for a step whose command was none (`rollout.invalid`).
    """

    rewards_N: Array
    penalties_N: Array
    observations_N: tuple[str, ...]
    commands_N: tuple[str, ...]
    groups_N: tuple[Hashable, ...]
    offsets: Indices
    strata: tuple[Hashable, ...] = ()
    final_observations: tuple[str, ...] = ()
    values_N: tuple[Array, ...] = ()
    heads: Mapping[str, tuple[Array, ...]] = field(default_factory=dict)
    valid_N: tuple[bool, ...] = ()
    switches_N: tuple[bool, ...] = ()
    """True for a step whose response took a new sub-goal."""

    def per_trajectory(self, values_N: Array) -> list[Array]:
        return np.split(values_N, self.offsets[1:-1]) if len(self.offsets) > 1 else []


@dataclass(frozen=True, slots=True)
class Credit:
    """Advantages, and the returns that a value head is to learn, for each value of each step (`Steps.values_N`).

    `heads` holds what further heads are to learn, each in the shape of its values.
    """

    advantages_N: tuple[Array, ...]
    returns_N: tuple[Array, ...]
    heads: Mapping[str, tuple[Array, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Estimator:
    """A registered advantage estimator; `knobs` are its settings with their defaults."""

    entry: Entry

    @property
    def knobs(self) -> dict[str, Any]:
        return {name: setting.default for name, setting in self.entry.settings.items()}

    @property
    def reads_values(self) -> bool:
        """True if it needs the values of a head."""
        return "values" in self.entry.traits.get("reads", ())

    def levels(self, knobs: Mapping[str, Any]) -> dict[str, str]:
        """Return the heads that it reads, each with what has a value: every "token", a "step", its "last" token, or
        its "parts" (`envrl.samples.rows.judged_offsets`).

        The head `value` is read by `reads=("values",)`, at the level of the setting or trait `level`; the trait `heads`
        names further ones.
        """
        if not self.reads_values:
            return {}
        return {VALUE: str(knobs.get("level", self.entry.traits.get("level", "step"))), **self.more_heads}

    @property
    def more_heads(self) -> dict[str, str]:
        """The heads beside `value` that it reads, each with its level."""
        return dict(self.entry.traits.get("heads", {}))

    def __call__(self, rewards: Sequence[ArrayLike], observations: Sequence[Sequence[str]], **more: Any) -> list[Array]:
        """Return the advantage of every step: one float64 array per trajectory, in the shape of `rewards`.

        See `credit` for what is given. Where a step has several values, its entry is an array of as many advantages.
        """
        return self.credit(rewards, observations, **more)[0]

    def credit(
        self,
        rewards: Sequence[ArrayLike],
        observations: Sequence[Sequence[str]],
        *,
        groups: Iterable[Hashable] | None = None,
        values: Sequence[Sequence[ArrayLike]] | None = None,
        strata: Sequence[Hashable] | None = None,
        penalties: Sequence[ArrayLike] | None = None,
        final_observations: Sequence[str] | None = None,
        commands: Sequence[Sequence[str]] | None = None,
        heads: Mapping[str, Sequence[Sequence[ArrayLike]]] | None = None,
        valid: Sequence[Sequence[bool]] | None = None,
        switches: Sequence[Sequence[bool]] | None = None,
        **knobs: Any,
    ) -> tuple[list[Array], dict[str, list[Array]]]:
        """Return the advantages of every step, and what each head is to learn that the estimator reads, by its name.

        `rewards` holds one array of step rewards per trajectory, `observations` the text before each step, `commands`
        the command in it, `groups` one id per trajectory (default: one group). `penalties` are subtracted from a step's
        own score and its own discounted return, not from those of its neighbours. `final_observations` (the text after
        the last step) and `strata` hold one per trajectory. `values` holds one number a step, or an array of those of
        its tokens, `heads` as much for each further head, `valid` whether a step's command was one (default: all were),
        `switches` whether it took a new sub-goal (default: none did). Each estimator reads what it needs. Raises
        `UserError` for shapes that disagree, a number that is not finite, an unknown setting, and values that are
        needed and missing.
        """
        check_settings(f"the {self.entry.called}", knobs, self.knobs)
        if self.reads_values and values is None:
            raise UserError(f"the {self.entry.called} needs values: a number for each step (values=[[…], …])")
        for name in self.more_heads:
            if name not in (heads or {}):
                raise UserError(f"the {self.entry.called} needs the values of its head (heads={{'{name}': [[…], …]}})")
        read = {} if values is None else {VALUE: values}
        read |= heads or {}
        steps = _lay_out(
            rewards, observations, groups, penalties, commands, strata, final_observations, read, valid, switches
        )
        with blame(self.entry):
            found = self.entry.target(steps, **knobs)
        if not isinstance(found, Credit):
            return steps.per_trajectory(self._checked(found, len(steps.rewards_N))), {}
        counts = [len(values) for values in steps.values_N]
        returns = {VALUE: self._laid(found.returns_N, counts)}
        for name, learned in found.heads.items():
            returns[name] = self._laid(learned, [len(values) for values in steps.heads[name]])
        advantages_N = steps.per_trajectory(self._laid(found.advantages_N, counts))
        return advantages_N, {name: steps.per_trajectory(of_head) for name, of_head in returns.items()}

    def _laid(self, parts: Sequence[Array], lengths: list[int]) -> Array:
        """Return checked figures, an entry a step: a number, or an array where a step of the call has several."""
        checked = self._checked(np.concatenate([np.zeros(0), *parts]), sum(lengths))
        if all(length == 1 for length in lengths):
            return checked
        laid = np.empty(len(lengths), dtype=object)
        for step, part in enumerate(np.split(checked, np.cumsum(lengths)[:-1])):
            laid[step] = part
        return laid

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
    heads: Mapping[str, Sequence[Sequence[ArrayLike]]],
    valid: Sequence[Sequence[bool]] | None,
    switches: Sequence[Sequence[bool]] | None,
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
    flags = {"valid": valid or [[True] * n for n in lengths], "switches": switches or [[False] * n for n in lengths]}
    for name, flag in flags.items():
        _check_lengths(name, [len(f) for f in flag], lengths)
    judged: dict[str, tuple[Array, ...]] = {}
    for name, values in heads.items():
        called = "values" if name == VALUE else f"heads['{name}']"
        _check_lengths(called, [len(v) for v in values], lengths)
        judged[name] = tuple(np.atleast_1d(np.asarray(v, dtype=np.float64)) for of_one in values for v in of_one)
        if not all(v.ndim == 1 and len(v) and np.isfinite(v).all() for v in judged[name]):
            raise UserError(f"{called} must hold a finite number for each step, or one for each of its tokens")
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
        values_N=judged.pop(VALUE, ()),
        heads=judged,
        **{f"{name}_N": tuple(bool(one) for of_one in flag for one in of_one) for name, flag in flags.items()},
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
