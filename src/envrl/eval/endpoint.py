"""`evaluate_endpoint`: evaluate a chat model behind an OpenAI-compatible endpoint, like any other agent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from envrl.build import env_maker
from envrl.config.schema import Config
from envrl.envs.answers import opened
from envrl.envs.protocol import TextEnv
from envrl.errors import UserError
from envrl.eval.client import Client, Endpoint, check_endpoint, connected
from envrl.eval.endpoint_sampler import EndpointSampler, Usage
from envrl.eval.evaluate import (
    check_splits,
    drawn,
    said_before,
    with_settings,
    with_world_settings,
    world_options,
    world_settings,
)
from envrl.eval.kept import BATCH, Kept, kept_in
from envrl.eval.record import SoFar, each_split, summarize
from envrl.eval.split import chosen_tasks
from envrl.progress import Reporter
from envrl.rendering.messages import MessageWriter
from envrl.rendering.prompts import find_format, with_thought
from envrl.rendering.responses import Thought
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.scheduler import PlaySettings, RolloutStats
from envrl.types import StopReason, Task, Trajectory

_PLAYED = "free"
_VERSION = 2
"""Version of the questions' seeds, by which kept answers are found."""


def evaluate_endpoint(
    endpoint: Endpoint,
    *,
    format: str = "tags",
    show_admissible: bool = True,
    history: int = 2,
    system_message: str = "",
    price: tuple[float, float] | None = None,
    env: str | None = None,
    data: str | Path | None = None,
    split: str | Sequence[str] | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    protocol: str | None = None,
    settings: Sequence[tuple[str, str]] = (),
    episodes_to: str | Path | None = None,
    so_far: SoFar = lambda _: None,
    played: Callable[[str, Sequence[Trajectory]], None] = lambda *_: None,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Return one record per split, with the keys of `evaluate` and those of the requests (docs/evaluation.md).

    `price` is the cost of a million prompt and of a million completion tokens; all else is as for `evaluate`. The file
    `episodes_to` also keeps every answer, so no question is asked twice; `played` gets each split's episodes. Raises
    `UserError` for invalid arguments, and `RunError` if the endpoint fails.
    """
    config = with_settings(Config(), env, data, split, endpoint.temperature, "free", seed, protocol)
    config = with_world_settings(config, settings)
    form = with_thought(find_format(format), Thought())
    if history < 0:
        raise UserError(f"history must be at least 0, not {history}")
    check_endpoint(endpoint)
    make_env = env_maker(config)
    with opened(make_env()) as world:
        check_splits(world, config, episodes)
    writer = MessageWriter(form, history, show_admissible, system_message)
    about = {
        "agent": endpoint.model,
        "base_url": endpoint.base_url,
        "env": config.env.name,
        "max_steps": config.env.max_steps,
        **world_settings(config),
        "seed": config.eval.seed,
        "temperature": endpoint.temperature,
        "format": format,
        "show_admissible": show_admissible,
        "history": history,
        "max_tokens": endpoint.max_tokens,
        **said_before(system_message, endpoint.template_arguments),
    }
    evaluation = about | world_options(config) | {"version": _VERSION}
    with (
        kept_in(episodes_to, evaluation, lists=show_admissible) as kept,
        connected(endpoint, kept.add_answer) as client,
    ):
        counts = (episodes or 0, price, kept, played, reporter or Reporter())
        here = _Evaluation(client, writer, make_env, config, *counts)
        return each_split(config.eval.split, here.measure, here.ended, so_far, about | drawn(config))


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """The evaluation of an endpoint's model, split by split."""

    client: Client
    writer: MessageWriter
    make_env: Callable[[], TextEnv]
    config: Config
    episodes: int
    price: tuple[float, float] | None
    kept: Kept
    played: Callable[[str, Sequence[Trajectory]], None]
    reporter: Reporter

    def measure(self, split: str) -> dict[str, Any]:
        """Play a split and return its record; the endpoint is asked only for answers that are not kept."""
        began, stats = time.perf_counter(), RolloutStats()
        chosen, sampler = self._chosen(split), EndpointSampler(self.client, self.kept)
        with self.reporter.phase(f"evaluation of {split}", len(chosen), unit="episodes") as phase:
            played = self._play(
                sampler,
                chosen,
                stats=stats,
                watch=lambda done: phase.show(done, {"requests": sampler.usage.requests}),
                ended=partial(self.kept.add, _PLAYED, split),
            )
        if all(trajectory.stop_reason is StopReason.CONTEXT and not trajectory.transitions for trajectory in played):
            raise UserError(
                f"no episode of the split '{split}' can begin: every first prompt is longer than the endpoint's model "
                "takes; lower max_tokens, leave the commands out of the prompt (show_admissible), or ask another model"
            )
        self.played(split, played)
        seconds = {"total": time.perf_counter() - began, "env": stats.env}
        return {**self._record(split, played, sampler.usage), "seconds": seconds}

    def ended(self, split: str) -> tuple[int, dict[str, Any]]:
        """Return the number of a split's planned episodes, and the record of those that have ended."""
        chosen, sampler = self._chosen(split), EndpointSampler(None, self.kept)
        missing = self.kept.missing(_PLAYED, split, chosen)
        done = [who for who in chosen if who not in missing]
        played = self._play(sampler, done) if done else []
        return len(chosen), self._record(split, played, sampler.usage)

    def _play(self, sampler: EndpointSampler, chosen: Sequence[tuple[Task, int]], **options: Any) -> list[Trajectory]:
        tasks, members = zip(*chosen, strict=True)
        settings = PlaySettings(self.config.env.max_steps, 0.0, actions="free", slots=BATCH)
        policy = Policy(self.writer, sampler)
        return play_episodes(policy, self.make_env, tasks, members, settings, seed=self.config.eval.seed, **options)

    def _chosen(self, split: str) -> list[tuple[Task, int]]:
        with opened(self.make_env()) as world:
            return chosen_tasks(world, split, self.config, self.episodes)

    def _record(self, split: str, played: Sequence[Trajectory], usage: Usage) -> dict[str, Any]:
        faults = Counter(step.action.fault for each in played for step in each.transitions if step.action.fault)
        return {
            "split": split,
            **summarize(played),
            "requests": usage.requests,
            "retries": usage.retries,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            **({"cost": _cost(usage, self.price)} if self.price else {}),
            "faults": dict(sorted(faults.items())),
        }


def _cost(usage: Usage, price: tuple[float, float]) -> float | None:
    """Return the cost of the tokens, or None if the endpoint did not count them."""
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    return (usage.prompt_tokens * price[0] + usage.completion_tokens * price[1]) / 1e6
