"""The charts of a run as data: which figures are drawn over which, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envrl.report.read import Record, RunData, interval, number, series, title
from envrl.report.scale import running_mean, thin

Chart = dict[str, Any]
"""`title`, `unit`, `rate`, `x` (the name of its axis) and `lines`: each a `name`, `points`, `intervals`, `colour`."""


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
    Curve("Policy loss of replayed episodes with advantages of their own", {"loss/replay": ""}),
    Curve("Entropy of the policy", {"entropy": ""}, NATS),
    Curve("KL to the policy before RL", {"kl": ""}),
    Curve("Norm of the gradient", {"grad_norm": ""}),
    Curve("Clipped tokens", {"clip_fraction": ""}, rate=True),
    Curve("Groups whose returns differ", {"train/groups_used": ""}, rate=True),
    Curve("Turns an episode", {"train/turns": ""}),
    Curve("Mean return", {"train/return": ""}),
    Curve("Admissible actions in training", {"train/admissible_action_rate": ""}, rate=True),
    Curve("Imagined observations in training", {"train/imagined_observation_rate": ""}, rate=True),
    Curve(
        "How different the episodes are",
        {
            "train/distinct_states": "different observations a step",
            "train/distinct_episodes": "different episodes of a group",
            "train/repeated_states": "steps where it was before",
        },
        rate=True,
    ),
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
    Curve("The same, numbers alone", {"state_nll_number": ""}, NATS),
    Curve("The same, names before numbers alone", {"state_nll_name": ""}, NATS),
    Curve("Next observation predicted exactly", {"state_exact": ""}, rate=True),
    Curve("Inverse dynamics: action right", {"inverse_accuracy": ""}, rate=True),
    Curve("The same, act not named in the text", {"inverse_accuracy_unnamed": ""}, rate=True),
    Curve("Turns an episode", {"turns": ""}),
    Curve("Free text: admissible actions", {"free/admissible_action_rate": ""}, rate=True),
    Curve("Free text: imagined observations", {"free/imagined_observation_rate": ""}, rate=True),
    Curve("Free text: success", {"free/success_rate": ""}, rate=True),
)


_OTHER_LOSSES = ("policy", "imitation", "replay", "value")
_COINCIDENCES = "_coincidences"


def auxiliary_curves(records: Sequence[Record]) -> list[Curve]:
    """Return the curves of the auxiliary objectives that these records name: losses, weights, and their placebo's."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    losses = [key for key in keys if key.startswith("loss/") and key.removeprefix("loss/") not in _OTHER_LOSSES]
    curves = [Curve(f"Loss of {title('auxiliary', key.removeprefix('loss/'))}", {key: ""}, NATS) for key in losses]
    kinds: dict[str, dict[str, str]] = {}
    for key in (key for key in keys if key.startswith("nll/")):
        _, name, kind = key.split("/")
        kinds.setdefault(name, {})[key] = f"{kind}s"
    curves += [
        Curve(f"Cross-entropy of {title('auxiliary', name)} by kind of token", lines, NATS)
        for name, lines in kinds.items()
    ]
    weights = {key: key.removeprefix("weight/") for key in keys if key.startswith("weight/")}
    exchanged = {
        key: key.removeprefix("placebo/").removesuffix(_COINCIDENCES)
        for key in keys
        if key.startswith("placebo/") and key.endswith("coincidences")
    }
    curves += [Curve("Weights of the auxiliary losses", weights)] * bool(weights)
    return curves + [Curve("Placebo: targets equal to the true ones", exchanged)] * bool(exchanged)


def component_curves(records: Sequence[Record]) -> list[Curve]:
    """Return a curve for every figure of the replay, the curriculum and the memory that these records have."""
    keys = dict.fromkeys(key for record in records for key in record)
    names = [key for key in keys if key.startswith(("replay/", "curriculum/", "memory/"))]
    return [Curve(key.replace("/", ": ", 1).replace("_", " ").capitalize(), {key: ""}) for key in names]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart; `colour` is 1 to 6 (0 is grey), `intervals` are (x, low, high), `faint` recedes."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    intervals: Sequence[tuple[float, float, float]] = ()
    marks: bool = False
    faint: bool = False


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


def learning_chart(run: RunData) -> Chart | None:
    """Return the learning curve, or None where there is nothing to draw."""
    lines = [line for line in learning_lines(run) if line.points]
    drawn = [
        {
            "name": line.label or "each update",
            "points": thin(line.points),
            "intervals": list(line.intervals),
            "colour": line.colour,
            "marks": line.marks,
            "faint": line.faint,
        }
        for line in lines
    ]
    about = {"title": "Success over updates", "unit": "", "rate": True, "x": "update", "range": [0, 1]}
    return about | {"lines": drawn} if drawn else None


def update_charts(run: RunData) -> list[Chart]:
    """Return the charts of metrics.jsonl."""
    curves = [*UPDATE_CURVES, *auxiliary_curves(run.metrics), *component_curves(run.metrics)]
    return _charts(curves, _over(run.metrics, "update"))


def warm_start_charts(run: RunData) -> list[Chart]:
    """Return the charts of warm_start.jsonl."""
    return _charts([*WARM_START_CURVES, *auxiliary_curves(run.warm_start)], _over(run.warm_start, "step"))


def evaluation_charts(run: RunData) -> list[Chart]:
    """Return the charts of what evaluations measure beside success: a line for each split."""

    def draw(curve: Curve) -> Chart:
        lines = [
            _line(split, points, 1 + index % 6)
            for index, (split, records) in enumerate(run.evals.items())
            for key in curve.keys
            if (points := series(records, "update", key))
        ]
        return _chart(curve, lines, "update")

    return _charts(EVALUATION_CURVES, draw)


def _charts(curves: Iterable[Curve], draw: Callable[[Curve], Chart]) -> list[Chart]:
    return [chart for curve in curves if (chart := draw(curve))["lines"]]


def _over(records: Sequence[Record], x: str) -> Callable[[Curve], Chart]:
    """Return how a curve is drawn from the lines of metrics.jsonl or warm_start.jsonl, over `x`."""

    def draw(curve: Curve) -> Chart:
        lines = [
            _line(name, points, 1 + index)
            for index, (key, name) in enumerate(curve.keys.items())
            if (points := series(records, x, key))
        ]
        # What is 0 throughout was not in use, such as the clipped share where a batch makes one optimiser step.
        in_use = any(y for line in lines for _, y in line["points"])
        return _chart(curve, lines if in_use else [], x)

    return draw


def _line(name: str, points: Sequence[tuple[float, float]], colour: int) -> dict[str, Any]:
    return {"name": name, "points": thin(points), "colour": colour, "marks": len(points) <= 12}


def _chart(curve: Curve, lines: list[dict[str, Any]], x: str) -> Chart:
    return {"title": curve.title, "unit": curve.unit, "rate": curve.rate, "x": x, "lines": lines}


def phases(run: RunData) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of each phase over updates; what no phase accounts for is "other"."""
    names = ["rollout", "env", "rows", "update"]
    beside = {"total", "ahead"}  # episodes are played ahead while the other phases go on
    found = {name for record in run.metrics for name in _seconds(record)} - beside
    names = [name for name in names if name in found] + sorted(found - set(names))
    layers: dict[str, list[tuple[float, float]]] = {name: [] for name in [*names, "other"]}
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


def _seconds(record: Record) -> Mapping[str, object]:
    found = record.get("seconds")
    return found if isinstance(found, Mapping) else {}
