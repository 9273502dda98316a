"""How much `rollout.ahead` saves: the same recipe with a slow world (20 ms a step) and with a fast one.

    taskset -c 0,1 python benchmarks/play_ahead.py

Prints seconds an update, the ratio to `ahead = 0`, and the bound: with play and learning side by side an update takes
as long as the longer of the two. Runs take turns, since machines change their speed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from envrl.config.load import load_recipe, override
from envrl.envs.household.sources import GeneratedGames
from envrl.envs.household.world import Household
from envrl.envs.registry import register_env
from envrl.trainer.loop import train
from envrl.types import Step

STEP = 0.02
SETTINGS = {
    "train.threads": "1",
    "rollout.tasks": "4",
    "rollout.group_size": "4",
    "rollout.max_steps": "12",
    "objective.idle_rows": "count",
    "warm_start.demonstrations": "24",
    "warm_start.epochs": "1",
    "warm_start.held_out": "2",
    "eval.every": "0",
    "eval.final": "1",
    "eval.free_episodes": "0",
    "eval.probe_episodes": "0",
    "train.trajectories": "0",
    "checkpoint.every": "100",
}


class Slow(Household):
    """Household games whose steps take a while, as those of a browser or a simulator."""

    def step(self, action: str) -> Step:
        time.sleep(STEP)
        return super().step(action)


def seconds(world: str, ahead: int, updates: int, folder: Path) -> dict[str, float]:
    """Return the median seconds of an update by phase, the first one (which waits for its own play) left out."""
    settings = SETTINGS | {"env.name": world, "rollout.ahead": str(ahead), "train.updates": str(updates)}
    run = train(override(load_recipe("household-demo"), list(settings.items())), folder)
    lines = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    return {name: median(line.get(name, 0.0) for line in lines) for name in lines[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    register_env("slow-household", lambda: Slow(GeneratedGames()))
    for world in ("slow-household", "household"):
        found: dict[int, list[dict[str, float]]] = defaultdict(list)
        with tempfile.TemporaryDirectory() as folder:
            for number in range(arguments.rounds):
                for ahead in (0, 1, 2):
                    run = Path(folder) / f"{world}-{ahead}-{number}"
                    found[ahead].append(seconds(world, ahead, arguments.updates, run))
        whole = {ahead: median(each["total"] for each in runs) for ahead, runs in found.items()}
        play = median(each["rollout"] + each["env"] for each in found[0])
        bound = whole[0] / max(play, whole[0] - play)
        for ahead, total in whole.items():
            print(f"{world}  ahead {ahead}  {total:.2f} s an update  {whole[0] / total:.2f} x  (at most {bound:.2f} x)")


if __name__ == "__main__":
    main()
