"""Runs for the tests of the page: `python tests/view_runs.py DIR 10000` writes one of so many episodes to look at."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

HOSTILE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'> & \"quoted\" <b>bold</b>"

CONFIG = """
seed = 3
[env]
name = "household"
[warm_start]
demonstrations = 1500
demonstrator = "expert"
[rollout]
actions = "admissible"
temperature = 1.0
[objective]
estimator = "gigpo"
[auxiliary.state]
weight = 0.2
[auxiliary.inverse]
weight = 0.05
[train]
updates = 20
[eval]
temperature = 0.4
"""
GOAL = "You are in a room.\n\nYour task is to: put a cd in desk."
KINDS = ("pick_and_place", "pick_two")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def evaluation(update: int, split: str, rate: float, ci95: list[float], **more: Any) -> dict[str, Any]:
    kinds = {"pick_and_place": {"episodes": 80, "success_rate": rate, "ci95": ci95}}
    base = {"stage": "rl", "update": update, "split": split, "episodes": 500, "success_rate": rate, "ci95": ci95}
    return base | {"by_task": kinds, "state_nll": 0.5, "seconds": {"total": 10.0}} | more


def metric(update: int, **more: Any) -> dict[str, Any]:
    seconds = {"rollout": 1.0, "env": 0.02, "update": 2.0, "total": 3.5}
    base = {"update": update, "env_steps": 1900 * update, "episodes": 128 * update, "train/success_rate": 0.5}
    return base | {"loss/state": 1.0 / update, "weight/state": 0.2, "entropy": 0.3, "seconds": seconds} | more


def steps(commands: list[str], **last: Any) -> list[dict[str, Any]]:
    """Steps with these commands, each answered by what it did; `last` are more fields of the last one."""
    answers = [f"You did: {command}." for command in commands]
    made = [
        {"observation": before, "action": command, "probability": 0.5, "reward": 0.0, "next_observation": after}
        for before, command, after in zip([GOAL, *answers], commands, answers, strict=False)
    ]
    made[-1] |= last
    return made


def episode(task: str, commands: list[str], *, won: bool = False, member: int = 0, **more: Any) -> dict[str, Any]:
    """An episode as `trajectories/` holds it."""
    made = steps(commands, reward=float(won))
    base = {"update": 0, "task": task, "kind": KINDS[len(task) % 2], "member": member, "success": won}
    return base | {"stop_reason": "done" if won else "max_steps", "return": float(won), "steps": made} | more


def kept(task: str, commands: list[str], *, won: bool = False, actions: str = "admissible") -> dict[str, Any]:
    """An episode as `eval/` holds it: what follows a step is the next one's observation, or the end's."""
    made = steps(commands, reward=float(won))
    end = {"observation": made[-1]["next_observation"]}
    for step in made:
        del step["next_observation"], step["probability"]
        step |= {"tokens": [5, 2], "logprobs": [-0.3, -0.2], "admissible": True}
    base = {"split": "valid_seen", "actions": actions, "task": task, "kind": "pick_two", "seed": 0, "member": 0}
    return base | {"success": won, "stop_reason": "done" if won else "max_steps", "steps": made, "end": end}


WON = ["go to shelf 1", "take cd 1 from shelf 1", "move cd 1 to desk 1"]
LOST = {
    "object": ["go to shelf 1", "take pen 1 from shelf 1", "move pen 1 to desk 1", "look"],
    "place": ["go to shelf 1", "take cd 1 from shelf 1", "move cd 1 to bed 1", "look"],
    "loop": ["go to shelf 1", "go to bed 1", "go to shelf 1", "go to bed 1", "go to shelf 1", "go to bed 1"],
    "time": ["go to shelf 1", "go to bed 1", "open drawer 1", "go to drawer 2"],
}
FIGURES = {
    "token_texts": ["move", " cd", " 1 to desk 1", ""],
    "logprobs": [-0.1, -2.5, 0.0, 0.0],
    "entropies": [0.4, 1.2, 0.0, 0.0],
    "advantage": 0.7,
    "advantage_parts": {"episode": 0.9, "step": -0.2},
    "state_nll": 0.42,
    "predicted_observation": "You did: move pen 1 to desk 1.",
    "predicted_action": "move pen 1 to desk 1",
}


def write_run(run: Path) -> Path:
    """A finished run of 20 updates: two evaluations of one split, training episodes, one of each failure.

    `eval/` holds before: task 1 lost, task 2 lost, 3 lost; after: task 1 won (also in `trajectories/`, with figures),
    task 2 lost, task 3 lost in free play.
    """
    run.mkdir()
    (run / "config.toml").write_text(CONFIG)
    write_lines(run / "metrics.jsonl", [metric(update) for update in range(1, 21)])
    rates = {0: (0.4, [0.36, 0.44]), 20: (0.75, [0.71, 0.79])}
    write_lines(run / "eval.jsonl", [evaluation(update, "valid_seen", *rates[update]) for update in rates])
    write_lines(run / "warm_start.jsonl", [{"step": s, "loss/imitation": 2.0 / s} for s in range(1, 9)])
    about = {"evaluation": {"update": 0}}
    before = [kept("task/1", LOST["loop"]), kept("task/2", LOST["object"]), kept("task/3", LOST["time"])]
    write_lines(run / "eval" / "000000-valid_seen.jsonl", [about, *before])
    after = [kept("task/1", WON, won=True), kept("task/2", LOST["place"])]
    free = kept("task/3", LOST["time"], actions="free")
    write_lines(run / "eval" / "000020-valid_seen.jsonl", [about, *after, free])
    told = episode("task/1", WON, won=True)
    told["steps"][-1] |= FIGURES
    write_lines(run / "trajectories" / "eval-000020-valid_seen.jsonl", [told])
    group = [episode("train/7", commands, member=member) for member, commands in enumerate(LOST.values())]
    group[3]["steps"][2] |= {"admissible": False, "next_observation": "Nothing happens."}
    write_lines(run / "trajectories" / "update-000010.jsonl", group)
    return run


def write_large(run: Path, count: int) -> Path:
    """A run with so many episodes of thirty turns."""
    run.mkdir()
    (run / "config.toml").write_text(CONFIG)
    write_lines(run / "eval.jsonl", [evaluation(0, "valid_seen", 0.5, [0.4, 0.6])])
    commands = [f"go to place {number}" for number in range(30)]
    made = [kept(f"task/{number}", commands, won=number % 3 == 0) for number in range(count)]
    for number, each in enumerate(made):
        each["steps"][0]["observation"] = f"{'You see many things. ' * 10}\n\nYour task is to: find thing {number}."
    write_lines(run / "eval" / "000000-valid_seen.jsonl", made)
    return run


def data_of(html: str) -> dict[str, Any]:
    """The data that a report holds."""
    found = re.search(r'<script type="application/json" id="data">([^<]*)</script>', html)
    assert found, "the report holds no data"
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


if __name__ == "__main__":
    write_large(Path(sys.argv[1]), int(sys.argv[2]))
