"""Records of panels beside each other: whether a repeat ended as before, and models on the same tasks as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envrl.errors import UserError
from envrl.panels import Outcome, PanelRecord, is_record, of_same_tasks, read_record
from envrl.report.read import has_scores
from envrl.report.summary import score_words
from envrl.statistics import paired_interval, sign_test

_SHOWN = 20
"""Games of another outcome that are named."""
_DASH = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the episodes of two records of the same agent and tasks agree: their number, and those of another outcome.

    `same_commands` episodes are the same to the last command.
    """

    episodes: int
    changed: tuple[tuple[Outcome, Outcome], ...]
    same_commands: int


def agreement(before: PanelRecord, after: PanelRecord) -> Agreement:
    """Compare two records game by game; raises `UserError` where they are not of the same episodes."""
    of_same_tasks([("the record", before), ("its repeat", after)])
    now = {each.who: each for each in after.outcomes}
    pairs = [(each, now[each.who]) for each in before.outcomes]
    changed = tuple(pair for pair in pairs if pair[0].success != pair[1].success)
    return Agreement(len(pairs), changed, sum(a.commands == b.commands for a, b in pairs))


def agreement_lines(before: PanelRecord, after: PanelRecord) -> list[str]:
    """Return whether a repeat ended as before, in words: what is not as it was then, and the games that differ."""
    found = agreement(before, after)
    lines = [f"not as then: {', '.join(other)}"] if (other := _other(before, after)) else []
    same = f"{found.episodes - len(found.changed)} of" if found.changed else "all"
    lines.append(f"{same} {found.episodes} games end as they did; {found.same_commands} by the same commands")
    for was, now in found.changed[:_SHOWN]:
        lines.append(f"  {was.split} {was.task}: {_ended(was)} then, {_ended(now)} now")
    if len(found.changed) > _SHOWN:
        lines.append(f"  and {len(found.changed) - _SHOWN} more")
    return lines


def are_records(files: Sequence[Path]) -> bool:
    """Return whether files hold records of panels; raises `UserError` where some do and others do not."""
    held = [file.suffix == ".json" and is_record(file) for file in files]
    if any(held) and not all(held):
        one, other = files[held.index(True)], files[held.index(False)]
        raise UserError(f"{one} is the record of a panel and {other} is none: records are compared with records")
    return any(held)


def panel_table(files: Sequence[Path]) -> str:
    """Return a Markdown table of records of the same tasks, and of each after the first how it does game by game.

    Raises `UserError` for a file that is no record or is given twice, and where two are not of the same tasks.
    """
    for index, file in enumerate(files):
        if file.resolve() in [each.resolve() for each in files[:index]]:
            raise UserError(f"the record {file} is given twice; leave one out")
    records = {str(file): read_record(file) for file in files}
    of_same_tasks(list(records.items()))
    names = _names(files)
    first = records[str(files[0])]
    splits = list(first.panel.splits)
    scored = has_scores(result for record in records.values() for result in record.results)
    header = ["", *(f"{split}{kind}" for split in splits for kind in ("", " score")[: 1 + scored]), "asked", "actions"]
    rows = [header, ["---"] * len(header)]
    for name, record in zip(names, records.values(), strict=True):
        by_split = {result["split"]: result for result in record.results}
        cells = [name]
        for split in splits:
            low, high = by_split[split]["ci95"]
            rate = by_split[split]["success_rate"]
            cells.append(f"{100 * rate:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
            cells += [score_words(by_split[split])] * scored
        rows.append([*cells, record.prompt.get("format", _DASH), record.sampling.get("actions", _DASH)])
    table = [f"| {' | '.join(row)} |" for row in rows]
    about = f"panel {first.panel.name}, {first.panel.tasks:,} tasks, SHA-256 {first.panel.sha256}"
    pairs = [
        _paired(split, names[0], first, name, record)
        for name, record in list(zip(names, records.values(), strict=True))[1:]
        for split in splits
    ]
    return "\n".join([about, "", *table, *(["", *pairs] if pairs else [])])


def _paired(split: str, name: str, first: PanelRecord, other_name: str, other: PanelRecord) -> str:
    """Return how two agents do on the same games of a split, as an item of a Markdown list."""
    won = {each.who: each.success for each in first.outcomes if each.split == split}
    counts = Counter((won[each.who], each.success) for each in other.outcomes if each.split == split)
    gained, lost, games = counts[False, True], counts[True, False], sum(counts.values())
    low, high = paired_interval(gained, lost, games)
    return (
        f"- {split}, {games} games: both win {counts[True, True]}, {other_name} alone {gained}, {name} alone {lost}, "
        f"neither {counts[False, False]}; {other_name} {100 * (gained - lost) / games:+.1f} points "
        f"({100 * low:+.1f} to {100 * high:+.1f}), sign test p = {sign_test(gained, lost):.2g}"
    )


def _names(files: Sequence[Path]) -> list[str]:
    """Return the files' names without their ending, or whole paths where names are the same."""
    names = [file.stem for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]


def _other(before: PanelRecord, after: PanelRecord) -> list[str]:
    """Return what is not as it was: packages, the machine, the prompts."""
    tables: list[tuple[str, Mapping[str, object], Mapping[str, object]]] = [
        ("", before.packages, after.packages),
        ("", before.machine, after.machine),
        ("prompt ", before.prompt, after.prompt),
        ("sampling ", before.sampling, after.sampling),
    ]
    return [
        f"{what}{name} ({_short(old.get(name))}, now {_short(new.get(name))})"
        for what, old, new in tables
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name) and name != "example"
    ]


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _ended(outcome: Outcome) -> str:
    return f"{'won' if outcome.success else 'lost'} ({outcome.stop_reason}, {outcome.steps} steps)"
