"""A toy world for tests: something lies in one of four boxes; the sentence of the task says what, never where.

Each kind of thing has its usual box, which is what RL can learn. An answer names the command where it finds the thing
("You open box 2 and find the key.") and does not where the box is empty.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from envrl.config.keys import find_key
from envrl.config.schema import Config, EnvConfig, EvalConfig, ModelConfig, TrainConfig, WarmStartConfig
from envrl.envs.registry import register_env
from envrl.errors import UserError
from envrl.types import Observation, Step, Task, Trajectory, TrajectoryGroup

THINGS = {"key": 3, "coin": 1, "ring": 4, "pen": 2}
"""What there is, and the number of its box."""
SIZES = {"train": 48, "valid_a": 10, "valid_b": 7}
COMMANDS = tuple(f"open box {number}" for number in (1, 2, 3, 4))


class Boxes:
    """A `TextEnv` with an expert (opens box after box) and walkthroughs."""

    def tasks(self, split: str) -> Sequence[Task]:
        if split not in SIZES:
            raise UserError(f"boxes has no split '{split}'; choose from {', '.join(SIZES)}")
        kinds = list(THINGS)
        return [Task(f"{split}/{i}", split, i, kinds[i % len(kinds)]) for i in range(SIZES[split])]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.thing, self.over = task.kind, False
        text = f"There are four boxes in room {task.seed}.\n\nYour task is to: find the {self.thing}"
        return Observation(text, COMMANDS)

    def step(self, action: str) -> Step:
        if action not in COMMANDS or self.over:
            return Step(Observation("Nothing happens.", COMMANDS), 0.0, self.over, False)
        if action != f"open box {THINGS[self.thing]}":
            return Step(Observation("It is empty.", COMMANDS), 0.0, False, False)
        self.over = True
        return Step(Observation(f"You {action} and find the {self.thing}.", COMMANDS), 1.0, True, True)

    def walkthrough(self, task: Task) -> Sequence[str]:
        return [f"open box {THINGS[task.kind]}"]

    def expert(self, seed: int) -> Callable[[Observation], str]:
        untried = iter(COMMANDS)
        return lambda observation: next(untried, "look")


HALF = "\ud83d"
"""Half of a surrogate pair, as a world may say it that cuts its texts in the wrong place."""


class Halves(Boxes):
    """The boxes, with halves of surrogate pairs in every text, and in every command but the first."""

    def reset(self, task: Task, seed: int = 0) -> Observation:
        return _halved(super().reset(task, seed))

    def step(self, action: str) -> Step:
        step = super().step(action.replace(HALF, ""))
        return replace(step, observation=_halved(step.observation))

    def walkthrough(self, task: Task) -> Sequence[str]:
        return [command + HALF for command in super().walkthrough(task)]


def _halved(observation: Observation) -> Observation:
    first, *others = observation.admissible or ()
    return Observation(f"{HALF}{observation.text}{HALF}", (first, *(command + HALF for command in others)))


def register() -> None:
    """Make the worlds `boxes` and `halves` known; harmless a second time."""
    register_env("boxes", Boxes)
    register_env("halves", Halves)


Tables = dict[str, dict[str, Any]]
"""Settings of auxiliary objectives, by their names."""


def tiny(
    *, auxiliary: Tables | None = None, warm_auxiliary: Tables | None = None, **settings: dict[str, Any] | int
) -> Config:
    """Return a recipe that trains in a second; `settings` are sections with the keys to change, or `seed`.

    `auxiliary` are the tables `[auxiliary.NAME]`, `warm_auxiliary` those of the warm start.
    """
    register()
    config = Config(
        env=EnvConfig(name="boxes", max_steps=3),
        model=ModelConfig(hidden_size=32, layers=2, heads=2, vocabulary=320, context=256),
        warm_start=WarmStartConfig(demonstrations=8, epochs=2, batch=4, held_out=4, every=3),
        train=TrainConfig(updates=3, threads=1, micro_batch_tokens=1024, trajectories=1, trajectories_every=2),
        eval=EvalConfig(every=2, split=("valid_a", "valid_b"), episodes=4, free_episodes=4, probe_episodes=4),
    )
    config = replace(
        config,
        rollout=replace(config.rollout, tasks=3, group_size=4, response_tokens=12),
        checkpoint=replace(config.checkpoint, every=2),
    )
    for name, value in settings.items():
        old = getattr(config, name)
        changed = replace(old, **value) if isinstance(value, dict) and name != "owned" else value
        config = replace(config, **{name: changed})
    return with_tables(config, auxiliary or {}, warm_auxiliary or {})


def with_tables(config: Config, auxiliary: Tables, warm: Tables | None = None) -> Config:
    """Return a recipe with settings of auxiliary objectives changed, in RL and in the warm start."""
    owned = dict(config.owned)
    for above, tables in (("auxiliary", auxiliary), ("warm_start.auxiliary", warm or {})):
        owned |= {f"{above}.{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    known = {name: key for name in owned if (key := find_key(name)) is not None}
    assert known.keys() == owned.keys(), owned.keys() - known.keys()
    return replace(config, owned={name: value for name, value in owned.items() if value != known[name].default})


def grouped(episodes: Sequence[Trajectory], size: int) -> list[TrajectoryGroup]:
    """Return episodes that lie group after group, `size` in a row, as their groups."""
    from envrl.trainer.rollouts import as_groups  # which imports torch: a world's process needs none

    return as_groups(episodes, [number // size for number in range(len(episodes))])


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by its relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


if __name__ == "__main__":
    from envrl.cli.main import main

    register()
    sys.exit(main(sys.argv[1:]))
