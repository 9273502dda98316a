"""Episodes as logs of Inspect (`inspect_ai`), one for each update of training and each evaluation of a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from envrl.errors import UserError
from envrl.report.read import setting
from envrl.report.store import RunStore

Record = Mapping[str, Any]


def write_logs(store: RunStore, episodes: Iterable[Record], folder: Path) -> int:
    """Write the logs into a folder and return the number of episodes; raises `UserError` without `inspect_ai`."""
    try:
        from inspect_ai.log import write_eval_log  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--as inspect needs the package inspect_ai: pip install 'envrl[inspect]'") from None

    groups: dict[tuple[int, str], list[Record]] = {}
    for episode in episodes:
        name = (episode["split"] or "train") + ("-free" if episode["free"] else "")
        groups.setdefault((episode["update"], name), []).append(episode)
    begun = datetime.fromtimestamp((store.path / "config.toml").stat().st_mtime, UTC)
    for (update, name), group in groups.items():
        # Inspect finds files whose names begin with a time, and sorts by it.
        file = folder / f"{begun:%Y-%m-%dT%H-%M-%S+00-00}_{name.replace('_', '-')}_{update:06d}.json"
        write_eval_log(_log(store, update, name, group, begun), str(file))
    return sum(map(len, groups.values()))


def _log(store: RunStore, update: int, name: str, episodes: list[Record], begun: datetime) -> Any:
    from inspect_ai.log import (  # pyright: ignore[reportMissingImports]
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalScore,
        EvalSpec,
    )

    config = store.load().config
    model = setting(config, "model.path") or setting(config, "model.preset") or "policy"
    metadata = {"run": store.path.resolve().name, "update": update, "split": name}
    spec = EvalSpec(
        created=begun.isoformat(timespec="seconds"),
        task=f"{setting(config, 'env.name') or 'envrl'}/{name}",
        dataset=EvalDataset(name=name, samples=len(episodes)),
        model=f"envrl/{Path(str(model)).name}",
        config=EvalConfig(),
        metadata=metadata,
    )
    won = sum(episode["success"] for episode in episodes) / len(episodes)
    score = EvalScore(name="success", scorer="success", metrics={"mean": EvalMetric(name="mean", value=won)})
    results = EvalResults(total_samples=len(episodes), completed_samples=len(episodes), scores=[score])
    samples = [_sample(place, episode) for place, episode in enumerate(episodes, 1)]
    return EvalLog(status="success", eval=spec, results=results, samples=samples)


def _sample(place: int, episode: Record) -> Any:
    """Return an episode as a sample: the world speaks as the user, the policy as the assistant."""
    from inspect_ai.log import EvalSample  # pyright: ignore[reportMissingImports]
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput  # pyright: ignore[reportMissingImports]
    from inspect_ai.scorer import Score  # pyright: ignore[reportMissingImports]

    messages: list[Any] = []
    for step in episode["steps"]:
        known = {name: step[name] for name in ("admissible", "probability", "advantage", "state_nll", "reward")}
        said = step["response"] or step["action"]
        metadata = {name: value for name, value in known.items() if value is not None}
        messages += [
            ChatMessageUser(content=step["observation"]),
            ChatMessageAssistant(content=said, metadata=metadata),
        ]
    if episode["steps"]:
        messages.append(ChatMessageUser(content=episode["steps"][-1]["next_observation"]))
    score = Score(value=float(episode["success"]), explanation=episode["failure"])
    kept = ("kind", "member", "stop_reason", "return")
    return EvalSample(
        id=f"{place}: {episode['task']}",
        epoch=1,
        input=episode["goal"] or episode["task"],
        target="success",
        messages=messages,
        output=ModelOutput(),
        scores={"success": score},
        metadata={name: episode[name] for name in kept},
    )
