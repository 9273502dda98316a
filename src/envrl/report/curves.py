"""The charts of a run: which figures are drawn over which, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from envrl.report.plots import Line, Pair, line_chart, pair_chart, stacked_chart
from envrl.report.read import Record, RunData, before_and_after, interval, number, series, title
from envrl.report.scale import running_mean
from envrl.report.svg import Point, figure, percent


@dataclass(frozen=True, slots=True)
class Curve:
    """One small chart: its title, the figures' keys with their labels, and whether they are rates."""

    title: str
    keys: Mapping[str, str]
    unit: str = ""
    rate: bool = False


NATS = "nats a token"

UPDATE_CURVES = (
    Curve("Policy loss", {"loss/policy": ""}),
    Curve("Entropy of the policy", {"entropy": ""}, NATS),
    Curve("KL to the policy before RL", {"kl": ""}),
    Curve("Norm of the gradient", {"grad_norm": ""}),
    Curve("Clipped tokens", {"clip_fraction": ""}, rate=True),
    Curve("Groups whose returns differ", {"train/groups_used": ""}, rate=True),
    Curve("Turns an episode", {"train/turns": ""}),
    Curve("Mean return", {"train/return": ""}),
    Curve("Admissible actions in training", {"train/admissible_action_rate": ""}, rate=True),
    Curve("Episodes ended by a full context", {"train/context_full": ""}, rate=True),
    Curve("Skipped: loss or gradient not finite", {"skipped": ""}, rate=True),
)

WARM_START_CURVES = (
    Curve("Imitation loss", {"loss/imitation": "training", "held_out/imitation": "held out"}, NATS),
    Curve("Whole actions right, held out", {"held_out/action_accuracy": ""}, rate=True),
    Curve("Entropy, held out", {"held_out/entropy": ""}, NATS),
)

EVALUATION_CURVES = (
    Curve("Loss of state prediction", {"state_nll": ""}, NATS),
    Curve("Next observation predicted exactly", {"state_exact": ""}, rate=True),
    Curve("Inverse dynamics: action right", {"inverse_accuracy": ""}, rate=True),
    Curve("The same, act not named in the text", {"inverse_accuracy_unnamed": ""}, rate=True),
    Curve("Turns an episode", {"turns": ""}),
    Curve("Free text: admissible actions", {"free/admissible_action_rate": ""}, rate=True),
    Curve("Free text: imagined observations", {"free/imagined_observation_rate": ""}, rate=True),
    Curve("Free text: success", {"free/success_rate": ""}, rate=True),
)


_OTHER_LOSSES = ("policy", "imitation", "value")
_COINCIDENCES = "_coincidences"


def auxiliary_curves(records: Sequence[Record]) -> list[Curve]:
    """Return the curves of the auxiliary objectives that these records name: losses, weights, and their placebo's."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    losses = [key for key in keys if key.startswith("loss/") and key.removeprefix("loss/") not in _OTHER_LOSSES]
    curves = [Curve(f"Loss of {title(key.removeprefix('loss/'))}", {key: ""}, NATS) for key in losses]
    weights = {key: key.removeprefix("weight/") for key in keys if key.startswith("weight/")}
    exchanged = {
        key: key.removeprefix("placebo/").removesuffix(_COINCIDENCES)
        for key in keys
        if key.startswith("placebo/") and key.endswith("coincidences")
    }
    curves += [Curve("Weights of the auxiliary losses", weights)] * bool(weights)
    return curves + [Curve("Placebo: targets equal to the true ones", exchanged)] * bool(exchanged)


def learning_lines(run: RunData) -> list[Line]:
    """Return success over updates: the training episodes, their running mean, and each split with its intervals."""
    played = series(run.metrics, "update", "train/success_rate")
    lines = [Line("", played, 0, faint=True), Line("training", running_mean(played), 0)] if played else []
    for index, (split, records) in enumerate(run.evals.items()):
        bounds = [(number(record, "update") or 0.0, interval(record)) for record in records]
        whiskers = [(update, *pair) for update, pair in bounds if pair]
        lines.append(
            Line(split, series(records, "update", "success_rate"), 1 + index % 6, whiskers, marks=True),
        )
    return lines


def learning_chart(run: RunData, width: float, height: float) -> str:
    """Return the learning curve on an axis from 0 to 100 %, empty where nothing was played yet."""
    return line_chart(
        learning_lines(run),
        width=width,
        height=height,
        name="Success rate over updates, with 95 % intervals",
        rate=True,
        y_range=(0.0, 1.0),
    )


def task_chart(split: str, records: Sequence[Record], colour: int) -> str:
    """Return success by task type before and after, empty where the evaluation knows no task types."""
    before, after = before_and_after(records)
    first, last = _by_task(before), _by_task(after)
    kinds = sorted({**first, **last})
    pairs = [
        Pair(kind, _rate(first.get(kind)), _rate(last.get(kind)), _games(last.get(kind) or first.get(kind)))
        for kind in kinds
    ]
    return pair_chart(pairs, width=400, colour=colour, name=f"Success by task type, {split}") if pairs else ""


def split_chart(records: Sequence[Record], colour: int, name: str) -> str:
    """Return one split's success before and after on one axis."""
    before, after = before_and_after(records)
    return pair_chart([Pair("", _rate(before), _rate(after))], width=400, colour=colour, name=name, words=False)


def small_charts(curves: Iterable[Curve], draw: Callable[[Curve], str]) -> list[tuple[Curve, str]]:
    """Return the curves for which `draw` finds figures, with their charts."""
    drawn = [(curve, draw(curve)) for curve in curves]
    return [(curve, chart) for curve, chart in drawn if chart]


def record_curve(records: Sequence[Record], x: str) -> Callable[[Curve], str]:
    """Return how a curve is drawn from the lines of metrics.jsonl or warm_start.jsonl, over `x`."""

    def draw(curve: Curve) -> str:
        lines = [
            Line(name, points, 1 + index, marks=len(points) <= 12)
            for index, (key, name) in enumerate(curve.keys.items())
            if (points := series(records, x, key))
        ]
        # What is 0 throughout was not in use, such as the clipped share where a batch makes one optimiser step.
        in_use = any(y for line in lines for _, y in line.points)
        return _small(lines, curve, x) if in_use else ""

    return draw


def split_curve(run: RunData) -> Callable[[Curve], str]:
    """Return how a curve is drawn from evaluations: a line for each split."""

    def draw(curve: Curve) -> str:
        lines = [
            Line(split.removeprefix("valid_"), points, 1 + index % 6, marks=True)
            for index, (split, records) in enumerate(run.evals.items())
            for key in curve.keys
            if (points := series(records, "update", key))
        ]
        return _small(lines, curve, "update")

    return draw


def phases(run: RunData) -> dict[str, list[Point]]:
    """Return the seconds of each phase over updates; what no phase accounts for is "other"."""
    names = ["rollout", "env", "rows", "update"]
    beside = {"total", "ahead"}  # episodes are played ahead while the other phases go on
    found = {name for record in run.metrics for name in _seconds(record)} - beside
    names = [name for name in names if name in found] + sorted(found - set(names))
    layers: dict[str, list[Point]] = {name: [] for name in [*names, "other"]}
    for record in run.metrics:
        update = number(record, "update")
        if update is None:
            continue
        spent = {name: number(record, f"seconds > {name}") or 0.0 for name in names}
        total = number(record, "seconds > total") or 0.0
        for name, seconds in (spent | {"other": max(0.0, total - sum(spent.values()))}).items():
            layers[name].append((update, seconds))
    whole = sum(seconds for points in layers.values() for _, seconds in points)
    if sum(seconds for _, seconds in layers["other"]) < 0.005 * whole:
        del layers["other"]
    return layers if whole > 0 else {}


def phase_chart(layers: Mapping[str, list[Point]], width: float, height: float) -> str:
    """Return the seconds of an update, phase upon phase; empty where there are fewer than two updates."""
    if not layers or len(next(iter(layers.values()))) < 2:
        return ""
    return stacked_chart(
        list(layers.items()), width=width, height=height, name="Seconds by phase", unit="s", x_name="update"
    )


def show_change(before: Record | None, after: Record | None, key: str, rate: bool) -> str:
    """Return "41 % → 74 %" for a figure of two evaluations, a dash where neither has it."""
    values = [number(record, key) for record in (before, after) if record]
    known = [
        percent(value, 0 if value in (0, 1) else 1) if rate else figure(value) for value in values if value is not None
    ]
    return " \N{RIGHTWARDS ARROW} ".join(known) or "\N{EN DASH}"


def _small(lines: list[Line], curve: Curve, x_name: str) -> str:
    return line_chart(
        lines,
        width=340,
        height=190,
        name=curve.title,
        x_name=x_name,
        rate=curve.rate,
        labels=len(lines) > 1,
    )


def _rate(record: Record | None) -> tuple[float, float, float] | None:
    rate = number(record, "success_rate") if record else None
    if rate is None or record is None:
        return None
    return (rate, *(interval(record) or (rate, rate)))


def _by_task(record: Record | None) -> Mapping[str, Record]:
    found = record.get("by_task") if record else None
    return {str(k): v for k, v in found.items() if isinstance(v, Mapping)} if isinstance(found, Mapping) else {}


def _games(record: Record | None) -> str:
    episodes = number(record, "episodes") if record else None
    return f"  of {episodes:.0f}" if episodes else ""


def _seconds(record: Record) -> Mapping[str, object]:
    found = record.get("seconds")
    return found if isinstance(found, Mapping) else {}
