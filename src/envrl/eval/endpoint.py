"""`evaluate_endpoint`: a chat model behind an OpenAI-compatible endpoint on whole splits, measured as any agent is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from envrl.config.schema import Config
from envrl.envs.answers import opened
from envrl.envs.protocol import TextEnv
from envrl.errors import UserError
from envrl.eval.client import Endpoint, check_endpoint, connected
from envrl.eval.evaluate import check_splits, drawn, said_before, with_settings, with_world_settings, world_settings
from envrl.eval.record import summarize
from envrl.eval.split import BATCH, chosen_tasks, env_maker
from envrl.progress import Reporter
from envrl.rollout.prompts import find_format, with_thought
from envrl.rollout.questions import Ask, ChatSettings, Tally, batches, play_chat
from envrl.rollout.responses import Thought
from envrl.types import Trajectory


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
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Return one record a split, with the keys of `evaluate` and those of the requests (docs/evaluation.md).

    `price` is the cost of a million prompt and of a million completion tokens; all else is as for `evaluate`. Raises
    `UserError` for what was asked, and `RunError` where the endpoint cannot go on.
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
    chat = ChatSettings(form, config.env.max_steps, history, show_admissible, config.eval.seed, system_message)
    played = {
        "agent": endpoint.model,
        "base_url": endpoint.base_url,
        "env": config.env.name,
        "max_steps": config.env.max_steps,
        **world_settings(config),
        "seed": config.eval.seed,
        **drawn(config),
        "temperature": endpoint.temperature,
        "format": format,
        "show_admissible": show_admissible,
        "history": history,
        "max_tokens": endpoint.max_tokens,
        **said_before(system_message, endpoint.template_arguments),
    }
    reporter = reporter or Reporter()
    with connected(endpoint) as ask:
        return [
            {**played, **_play_split(ask, make_env, name, config, chat, episodes or 0, price, reporter)}
            for name in config.eval.split
        ]


def _play_split(
    ask: Ask,
    make_env: Callable[[], TextEnv],
    split: str,
    config: Config,
    settings: ChatSettings,
    episodes: int,
    price: tuple[float, float] | None,
    reporter: Reporter,
) -> dict[str, Any]:
    began, tally = time.perf_counter(), Tally()
    with opened(make_env()) as world:
        chosen = chosen_tasks(world, split, config, episodes)
    played: list[Trajectory] = []
    with reporter.phase(f"evaluation of {split}", len(chosen), unit="episodes") as phase:
        for part in batches(len(chosen), BATCH):
            some = [chosen[i] for i in part]

            def watch(done: float, before: int = part.start) -> None:
                phase.show(before + done, {"requests": tally.requests})

            played += play_chat(ask, make_env, some, settings, tally, watch)
    if all(trajectory.stop_reason == "context" and not trajectory.transitions for trajectory in played):
        raise UserError(
            f"no episode of the split '{split}' can begin: every first prompt is longer than the endpoint's model "
            "takes; lower max_tokens, leave the commands out of the prompt (show_admissible), or ask another model"
        )
    return {
        "split": split,
        **summarize(played),
        "requests": tally.requests,
        "retries": tally.retries,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        **({"cost": _cost(tally, price)} if price else {}),
        "faults": dict(sorted(tally.faults.items())),
        "seconds": {"total": time.perf_counter() - began, "env": tally.env},
    }


def _cost(tally: Tally, price: tuple[float, float]) -> float | None:
    """Return the tokens' cost, None where the endpoint did not count them."""
    if tally.prompt_tokens is None or tally.completion_tokens is None:
        return None
    return (tally.prompt_tokens * price[0] + tally.completion_tokens * price[1]) / 1e6
