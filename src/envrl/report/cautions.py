"""What a comparison should be read with: budgets, data and evaluations that differ, runs that are not whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from envrl.report.compare import Arm
from envrl.report.read import RunData, number, setting
from envrl.report.results import outcomes_of

_BUDGET = ("rollout.tasks", "rollout.group_size", "rollout.max_steps", "train.epochs")
_EVALUATION = ("env.max_steps", "eval.protocol", "eval.temperature", "eval.seed", "eval.final", "rollout.actions")
_FEW = 5
"""Seeds below which a bootstrap over seeds is too narrow."""


def cautions(arms: Sequence[Arm], splits: Sequence[str]) -> list[str]:
    """Return sentences about what makes the arms' figures less comparable than they look."""
    runs = [run for arm in arms for run in arm.runs]
    return [
        *(sentence for run in runs for sentence in _half_written(run)),
        *_budgets(arms, runs),
        *_evaluations(runs),
        *(sentence for split in splits for sentence in _games(runs, split)),
        *_seeds(arms),
    ]


def _half_written(run: RunData) -> Iterator[str]:
    for name in ("metrics.jsonl", "eval.jsonl"):
        if _cut_short(run.path / name):
            yield f"the last line of {run.path / name} is not whole, and is left out"
    if not run.finished:
        yield f"{run.name} is not finished: it is used up to update {run.updates} of {run.updates_planned}"


def _cut_short(file: Path) -> bool:
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as lines:
        lines.seek(-1, 2)
        return lines.read() != b"\n"


def _budgets(arms: Sequence[Arm], runs: Sequence[RunData]) -> Iterator[str]:
    updates = {arm.name: min(run.updates for run in arm.runs) for arm in arms}
    if len(set(updates.values())) > 1:
        yield f"budgets differ: updates are {', '.join(f'{count} ({name})' for name, count in updates.items())}"
    yield from _differing("budgets differ", runs, _BUDGET)


def _evaluations(runs: Sequence[RunData]) -> Iterator[str]:
    yield from _differing("evaluations differ", runs, _EVALUATION)


def _differing(what: str, runs: Sequence[RunData], keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        values = {str(setting(run.config, key)): run.name for run in runs}
        if len(values) > 1:
            yield f"{what}: {key} is {', '.join(f'{value} ({name})' for value, name in values.items())}"


def _games(runs: Sequence[RunData], split: str) -> Iterator[str]:
    """Say where runs have other data of a split, or played others of its games in the end."""
    data = {digest: run.name for run in runs if (digest := run.data.get(split))}
    if len(data) > 1:
        yield f"the data of {split} differs: {', '.join(data.values())} played other games"
    numbers = {number(run.evals[split][-1], "episodes"): run.name for run in runs if run.evals.get(split)}
    if len(numbers) > 1:
        games = ", ".join(f"{count:.0f} ({name})" for count, name in numbers.items() if count is not None)
        yield f"the evaluations of {split} differ: games are {games}"
        return
    last = {run.name: games[max(games)].sha256 for run in runs if (games := outcomes_of(run).get(split))}
    if len(set(last.values())) > 1 and len(data) < 2:
        names = {digest: name for name, digest in last.items()}
        yield f"the evaluations of {split} differ: {', '.join(names.values())} played other games"


def _seeds(arms: Sequence[Arm]) -> Iterator[str]:
    seeds = {arm.name: {setting(run.config, "seed") for run in arm.runs} for arm in arms}
    everywhere = set.intersection(*seeds.values())
    if alone := {name: sorted(map(str, own - everywhere)) for name, own in seeds.items() if own - everywhere}:
        words = ", ".join(f"{name} {' '.join(own)}" for name, own in alone.items())
        yield f"seeds without a pair in every arm: {words}; a difference is over the seeds that both arms have"
    one = [name for name, own in seeds.items() if len(own) == 1]
    few = [name for name, own in seeds.items() if 1 < len(own) < _FEW]
    if one:
        yield f"one seed says nothing of how seeds differ, so there is no interval: {', '.join(one)}"
    if few:
        yield f"with fewer than {_FEW} seeds the bootstrap's intervals are too narrow: {', '.join(few)}"
