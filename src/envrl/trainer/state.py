"""The state of a run between two updates, in memory and in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from envrl.config.schema import Config
from envrl.engine.checkpoint import load_state, save_checkpoint, save_state
from envrl.engine.heads import give_heads
from envrl.engine.optimizer import Optimizer, policy_optimizer
from envrl.memories.file import read_memory, write_memory
from envrl.models.load import LanguageModel, load_policy, save_model


@dataclass(slots=True)
class RunState:
    """The model, its optimiser, and counters; everything random is a function of these and the seed.

    `evaluated` is False while an evaluation is due at this update; the offsets are bytes of the .jsonl files;
    `components` are the states of curriculum and replay at this update, and the episodes played ahead of it, as JSON.
    """

    model: LanguageModel
    optimizer: Optimizer
    update: int = 0
    evaluated: bool = False
    skips: int = 0
    env_steps: int = 0
    episodes: int = 0
    tokens: int = 0
    learned: int = 0
    """Tokens learned from, the warm start's included, if there is a budget of them."""
    metrics_offset: int = 0
    eval_offset: int = 0
    components: dict[str, Any] = field(default_factory=dict)


_SAVED = tuple(f.name for f in fields(RunState) if f.name not in ("model", "optimizer"))


def fresh_state(model: LanguageModel, config: Config) -> RunState:
    """Return the state at update 0; the model gets the heads that the recipe needs."""
    return RunState(model, policy_optimizer(give_heads(model, config), config.train))


def read_state(checkpoint: Path, config: Config) -> RunState:
    """Return the state in a (verified) checkpoint."""
    state = fresh_state(load_policy(checkpoint, config), config)
    tensors, meta = load_state(checkpoint / "state")
    state.optimizer.restore(tensors)
    for name in meta.keys() & _SAVED:
        setattr(state, name, meta[name])
    state.components["memory"] = read_memory(checkpoint)
    return state


def write_state(folder: Path, state: RunState, keep: int, moments: Mapping[str, Tensor] | None = None) -> Path:
    """Save the state as the checkpoint `step-<update>`, keep so many in all, and return its path.

    `moments` are those of the optimiser that an engine has made for itself.
    """

    def write(aside: Path) -> None:
        save_model(state.model, aside)
        meta = {name: getattr(state, name) for name in _SAVED}
        meta["components"] = {name: part for name, part in state.components.items() if name != "memory"}
        write_memory(aside, state.components.get("memory"))  # for people to read, and for evaluations
        save_state(aside / "state", state.optimizer.tensors() if moments is None else moments, meta)

    return save_checkpoint(folder, f"step-{state.update:06d}", write, keep)


def is_over(config: Config, update: int, learned: int) -> bool:
    """Return whether a run ends with an update: its last one, or the one that spends the token budget."""
    return update >= config.train.updates or 0 < config.train.token_budget <= learned


def is_finished(checkpoint: Path, config: Config) -> bool:
    """Return whether a checkpoint is the end of its run, with the evaluation done."""
    _, meta = load_state(checkpoint / "state")
    return is_over(config, meta["update"], meta.get("learned", 0)) and bool(meta["evaluated"])
