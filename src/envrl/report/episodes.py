"""Whole episodes to read: what was seen, done and with what probability, and the predicted beside the true answer."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from html import escape

from envrl.report.read import EpisodeFile, Record, RunData, number, read_lines
from envrl.report.svg import figure, percent

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_LONGEST_TEXT = 4000
_MOST_WORDS = 800
_UPDATE_FILES = 4


def episodes_section(run: RunData) -> str:
    """Return the episodes of the page as HTML, empty where the run has none: evaluations in pairs, then training."""
    played = [file for file in run.episode_files if file.split is None]
    evaluated = [file for file in run.episode_files if file.split is not None]
    parts = [_split_html(evaluated, split) for split in dict.fromkeys(file.split for file in evaluated)]
    if played:
        parts.append(_training_html(played))
    return "".join(parts)


def choose_pairs(before: Sequence[Record], after: Sequence[Record]) -> list[tuple[Record, Record | None]]:
    """Return games to show, before and after: up to three that only the later policy won, one of each other outcome.

    Without a later evaluation, the first four.
    """
    later = {_key(episode): episode for episode in after}
    pairs = [(episode, later[_key(episode)]) for episode in before if _key(episode) in later]
    if not pairs:
        return [(episode, None) for episode in before[:4]]
    chosen: list[tuple[Record, Record | None]] = []
    for outcome, most in (((False, True), 3), ((True, True), 1), ((False, False), 1), ((True, False), 1)):
        fitting = [pair for pair in pairs if (_won(pair[0]), _won(pair[1])) == outcome]
        chosen += fitting[:most]
    return chosen


def choose_members(episodes: Sequence[Record]) -> list[Record]:
    """Return up to four members of one group: the first that was both won and lost, two of each; else the first."""
    groups: dict[str, list[Record]] = {}
    for episode in episodes:
        groups.setdefault(str(episode.get("task")), []).append(episode)
    if not groups:
        return []
    mixed = [group for group in groups.values() if len({_won(episode) for episode in group}) == 2]
    group = (mixed or list(groups.values()))[0]
    won = [episode for episode in group if _won(episode)]
    lost = [episode for episode in group if not _won(episode)]
    return won[: max(2, 4 - len(lost))] + lost[: max(2, 4 - len(won))]


def evenly(files: Sequence[EpisodeFile], most: int) -> list[EpisodeFile]:
    """Return at most `most` of the files, evenly spread, the first and the last among them."""
    if len(files) <= most:
        return list(files)
    return [files[round(index * (len(files) - 1) / (most - 1))] for index in range(most)]


def compare(true: str, predicted: str) -> tuple[str, str]:
    """Return both texts as HTML, marking the words of the true one that the other misses, and those it got wrong."""
    ours, theirs = _WORDS.findall(true), _WORDS.findall(predicted)
    if len(ours) + len(theirs) > _MOST_WORDS:  # matching takes time that grows with the product of the lengths
        return escape(true), escape(predicted)
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    left, right = [], []
    for kind, a, b, c, d in matcher.get_opcodes():
        left.append(_marked("".join(ours[a:b]), kind != "equal", "mark"))
        right.append(_marked("".join(theirs[c:d]), kind != "equal", 'mark class="wrong"'))
    return "".join(left), "".join(right)


def episode_html(episode: Record, title: str, open_: bool = False) -> str:
    """Return one episode, folded: the first observation, then each action with its probability and what came of it."""
    steps = [step for step in _list(episode.get("steps")) if isinstance(step, dict)]
    first = str(steps[0].get("observation", "")) if steps else ""
    won = _won(episode)
    outcome = "won" if won else "lost"
    ending = {"max_steps": ", stopped by the step limit", "context": ", stopped by the context's length"}
    said = f"{outcome} {'in' if won else 'after'} {len(steps)} turn{'' if len(steps) == 1 else 's'}"
    said += "" if won else ending.get(str(episode.get("stop_reason")), "")
    summary = f'{escape(title)} <span class="outcome {outcome}">{"✓" if won else "✗"} {said}</span>'
    body = f'<p class="says soft">{escape(_cut(first))}</p>'
    body += f'<ol class="steps">{"".join(_step(step) for step in steps)}</ol>'
    return f'<details class="episode"{" open" if open_ else ""}><summary>{summary}</summary>{body}</details>'


def _split_html(files: Iterable[EpisodeFile], split: str | None) -> str:
    files = [file for file in files if file.split == split]
    first, last = files[0], files[-1]
    before = read_lines(first.path)
    after = read_lines(last.path) if last is not first else []
    names = f"update {first.update}", f"update {last.update}"
    games = []
    for a, b in choose_pairs(before, after):
        sides = episode_html(a, names[0]) + (episode_html(b, names[1]) if b else "")
        games.append(f'<div class="game">{_game_title(a)}<div class="sides">{sides}</div></div>')
    total = len(before) + len(after)
    note = (
        "The same games before and after; chosen: up to three that only the later policy won, and the first of every "
        "other outcome."
        if after
        else "The first games of the first evaluation."
    )
    note += f" All {total} recorded episodes are in the run's folder trajectories."
    return f'<section class="card"><h3>{escape(split or "")}</h3><p class="soft">{note}</p>{"".join(games)}</section>'


def _training_html(files: Sequence[EpisodeFile]) -> str:
    games = []
    for file in evenly(files, _UPDATE_FILES):
        chosen = choose_members(read_lines(file.path))
        if not chosen:
            continue
        sides = "".join(episode_html(episode, f"member {episode.get('member', 0)}") for episode in chosen)
        title = _game_title(chosen[0], f"update {file.update}: ")
        games.append(f'<div class="game">{title}<div class="sides">{sides}</div></div>')
    note = "Members of one group: the same game from the same start, chosen where some won and some did not."
    return f'<section class="card"><h3>Training episodes</h3><p class="soft">{note}</p>{"".join(games)}</section>'


def _game_title(episode: Record, before: str = "") -> str:
    """Return the last line of the game's first observation, which holds the goal in most worlds, its kind and id."""
    steps = _list(episode.get("steps"))
    text = str(steps[0].get("observation", "")) if steps and isinstance(steps[0], dict) else ""
    goal = (text.strip().splitlines() or [""])[-1][:160]
    rest = " · ".join(str(part)[:200] for part in (episode.get("kind"), episode.get("task")) if part)
    return f'<b>{escape(before)}{escape(goal)}</b><br><span class="soft">{escape(rest)}</span>'


def _step(step: Record) -> str:
    command, fault = str(step.get("action", "")), str(step.get("fault", ""))
    action = f"<code>&gt; {escape(command)}</code>" if command else f"<code>no command: {escape(fault)}</code>"
    response = str(step.get("response", ""))
    written = f'<p class="says written">{escape(_cut(response))}</p>' if response else ""
    chance, nll, reward = number(step, "probability"), number(step, "state_nll"), number(step, "reward")
    notes = []
    if chance is not None:
        wide = max(0.0, min(1.0, chance)) * 100
        notes.append(f'<span class="bar"><i style="width:{wide:.0f}%"></i></span>{_chance(chance)}')
    if reward:
        notes.append(f"reward {figure(reward)}")
    if nll is not None:
        notes.append(f"surprise {nll:.2f}")
    told = "".join(f'<span class="chance">{note}</span>' for note in notes)
    return f'<li>{written}<div class="act">{action}{told}</div>{_answer(step)}</li>'


def _answer(step: Record) -> str:
    true = _cut(str(step.get("next_observation", "")))
    predicted = step.get("predicted_observation")
    if predicted is None:
        return f'<p class="says">{escape(true)}</p>'
    predicted = _cut(str(predicted))
    if predicted == true:
        return f'<p class="says">{escape(true)}<b class="won">✓ predicted word for word</b></p>'
    left, right = compare(true, predicted)
    return (
        f'<div class="two"><p class="says"><b>the world</b>{left}</p><p class="says"><b>predicted</b>{right}</p></div>'
    )


def _marked(text: str, differs: bool, element: str) -> str:
    if not text or not differs or text.isspace():
        return escape(text)
    return f"<{element}>{escape(text)}</{element.split()[0]}>"


def _chance(probability: float) -> str:
    return percent(probability) if probability >= 0.0995 or probability == 0 else percent(probability, 1)


def _cut(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}… ({len(text) - _LONGEST_TEXT} more characters)"


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _won(episode: Record | None) -> bool:
    return bool(episode and episode.get("success"))


def _key(episode: Record) -> tuple[str, str]:
    return str(episode.get("task")), str(episode.get("member"))
