"""Evaluate a model or a script on a split in its fixed order, for one line of eval.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from envrl.build import form_of, play_settings, policy_of, renderer_of
from envrl.config.schema import Config
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.pool import vector_of
from envrl.envs.protocol import TextEnv
from envrl.eval.kept import Kept, Texts
from envrl.eval.record import action_rates, check_played, success_summary, summarize
from envrl.memories.remembering import Asked, Remembering, told_figures
from envrl.progress import Reporter
from envrl.randomness import key_of
from envrl.rollout.scheduler import say_nothing
from envrl.rollout.scripts import attempt_script, make_script
from envrl.sequences import evenly_spaced
from envrl.types import Task, Trajectory

if TYPE_CHECKING:  # the evaluation of scripts and endpoints needs no torch
    from envrl.models.load import LanguageModel
    from envrl.rollout.policy import Policy
    from envrl.rollout.splitter import BatchSplitter

T = TypeVar("T")

SCRIPT = "script"
"""The `actions` of a script's episodes; those of a model's are "admissible" or "free"."""


def chosen_tasks(env: TextEnv, split: str, config: Config, episodes: int) -> list[tuple[Task, int]]:
    """Return (task, member) of an evaluation's episodes: a split (`episodes` spread over it, 0: all), or draws.

    The draws of `eval.protocol = "published"` are a function of (split, `eval.seed`); a task that is drawn again gets
    another member number, and so other random numbers.
    """
    tasks = list(listed_tasks(env, split, config.env.name))
    if config.eval.protocol == "whole":
        return [(task, 0) for task in spread(tasks, episodes, lambda task: task.kind)]
    generator = np.random.Generator(np.random.PCG64(key_of(config.eval.seed, "draws", split)))
    count = config.eval.draws * config.eval.repeats
    drawn = generator.integers(len(tasks), size=count).tolist()[: episodes or None]
    return [(tasks[index], drawn[:place].count(index)) for place, index in enumerate(drawn)]


def spread(items: Sequence[T], count: int, kind: Callable[[T], str]) -> list[T]:
    """Return `count` of the items (0: all) in their order; the choice is deterministic.

    Every kind gets its share, up to one item, and the items of a kind are evenly spaced: the first tasks of a split are
    often all of one kind.
    """
    if not 0 < count < len(items):
        return list(items)
    by_kind = sorted(range(len(items)), key=lambda place: kind(items[place]))
    return [items[place] for place in sorted(by_kind[middle] for middle in evenly_spaced(len(items), count))]


def in_proportion(count: int, part: int, whole: int) -> int:
    """Return `count` in proportion to a part of a split (0: the whole split), rounded up."""
    return math.ceil(count * part / whole) if 0 < part < whole else count


def evaluate_split(
    model: LanguageModel,
    make_env: Callable[[], TextEnv],
    split: str,
    config: Config,
    *,
    episodes: int = 0,
    free: int | None = None,
    probed: int | None = None,
    policy: Policy | None = None,
    poll: Callable[[], None] = lambda: None,
    splitter: BatchSplitter | None = None,
    reporter: Reporter | None = None,
    kept: Kept | None = None,
    whole_batches: bool = False,
    memory: Remembering | None = None,
) -> tuple[dict[str, Any], list[Trajectory]]:
    """Return the line of eval.jsonl for a split (`episodes` spread over it, 0: all), and its trajectories.

    `free` and `probed` are the numbers of unrestricted and of scripted episodes; by default the recipe's, in proportion
    to `episodes`. The default `policy` is the recipe's with this model. Episodes in `kept` are not played again, and
    new ones are added to it (see `Player`). What the `memory` recalls is told; it learns nothing of it.
    """
    from envrl.eval.play import Player
    from envrl.eval.probe import probe, probe_episodes
    from envrl.eval.questions import ask
    from envrl.rollout.splitter import BatchSplitter

    began, reporter = time.perf_counter(), reporter or Reporter()
    renderer, kept = renderer_of(model, form_of(config)), Kept() if kept is None else kept
    kept.texts = Texts(renderer.text_of, model.codec.texts)
    player = Player(
        policy or policy_of(model, config, renderer),
        make_env,
        split,
        config.eval.seed,
        kept,
        splitter or BatchSplitter(reporter.say),
        reporter,
        poll,
        whole_batches=whole_batches,
        tell=memory.teller(renderer, Asked(config.eval.seed, 0, learning=False)) if memory else say_nothing,
    )
    with opened(make_env()) as env:
        chosen, whole = chosen_tasks(env, split, config, episodes), len(chosen_tasks(env, split, config, 0))
        free = in_proportion(config.eval.free_episodes, episodes, whole) if free is None else free
        probed = in_proportion(config.eval.probe_episodes, episodes, whole) if probed is None else probed
        free_tasks = chosen_tasks(env, split, config, free) if free else []

    settings = play_settings(config, config.eval.temperature)
    played = player.play(f"evaluation of {split}", chosen, settings)
    check_played(played, config.env.name, split, vector_of(make_env).set_aside)
    record: dict[str, Any] = {"split": split, **summarize(played), **_repeats(played, config)}
    if memory and memory.is_there:
        record |= told_figures(played)
    if free:
        unrestricted = played
        if config.rollout.actions != "free":
            unrestricted = player.play(f"{split} unrestricted", free_tasks, replace(settings, actions="free"))
        record |= {f"free/{name}": value for name, value in action_rates(unrestricted).items()}
        record["free/success_rate"] = success_summary(unrestricted)["success_rate"]
        record["free/episodes"] = len(unrestricted)
    if probed:
        with opened(make_env()) as env:
            scripted = probe_episodes(env, env.tasks(split), probed, config.env.max_steps, config.eval.seed)
        record |= probe(model, ask(config, renderer, scripted), scripted, poll, reporter)
    record["seconds"] = {"total": time.perf_counter() - began, "env": player.stats.env}
    return record, played


def _repeats(played: Sequence[Trajectory], config: Config) -> dict[str, Any]:
    """Return the success rate of each repeat of the published protocol, if it has several and all were played."""
    draws, repeats = config.eval.draws, config.eval.repeats
    if config.eval.protocol == "whole" or repeats == 1 or len(played) != draws * repeats:
        return {}
    parts = [played[start : start + draws] for start in range(0, len(played), draws)]
    return {"success_by_repeat": [sum(t.success for t in part) / draws for part in parts]}


def evaluate_script(
    name: str,
    make_env: Callable[[], TextEnv],
    split: str,
    config: Config,
    *,
    episodes: int = 0,
    reporter: Reporter | None = None,
    kept: Kept | None = None,
) -> tuple[dict[str, Any], list[Trajectory]]:
    """Return the line and trajectories of a script (random, walkthrough, expert), without a model's metrics."""
    began = time.perf_counter()
    set_aside: dict[str, str] = {}
    kept = Kept() if kept is None else kept
    with opened(make_env()) as env:
        chosen = chosen_tasks(env, split, config, episodes)
        missing = kept.missing(SCRIPT, split, chosen)
        done = len(chosen) - len(missing)
        with (reporter or Reporter()).phase(f"evaluation of {split}", len(chosen), done, unit="episodes") as phase:
            for number, (task, member) in enumerate(missing, 1):
                script = partial(make_script, name, env, task, config.eval.seed + member)
                played = attempt_script(env, task, script, config.env.max_steps, set_aside)
                kept.add(SCRIPT, split, replace(played, member=member))
                phase.show(done + number)
    played = kept.find(SCRIPT, split, chosen)
    check_played(played, config.env.name, split, set_aside)
    seconds = {"total": time.perf_counter() - began}
    return {"split": split, **summarize(played), **_repeats(played, config), "seconds": seconds}, played
