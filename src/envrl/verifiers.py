"""Every world as an environment of the library verifiers (its `MultiTurnEnv`, which versions before 0.4 have).

    import verifiers as vf

    env = vf.load_environment("envrl.verifiers", world="household", eval_split="valid_seen")

Turns are written and responses read by one of our prompt formats, as a model behind an endpoint is played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from envrl.envs.answers import answer, close, first_observation, listed_tasks
from envrl.envs.lookup import find_task
from envrl.envs.registry import make
from envrl.errors import UserError
from envrl.rendering.formats import task_text
from envrl.rendering.prompts import Message, PromptFormat, find_format
from envrl.types import Observation

try:
    import verifiers as vf  # pyright: ignore[reportMissingImports]

    if not hasattr(vf, "MultiTurnEnv"):
        raise UserError("this version of verifiers has no MultiTurnEnv: pip install 'envrl[verifiers]'")
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    raise UserError("envrl.verifiers needs the package 'verifiers': pip install 'envrl[verifiers]'") from error


class WorldEnv(vf.MultiTurnEnv):
    """A world played by chat: each rollout has a world of its own; see `load_environment` for the arguments."""

    def __init__(self, make_world: Callable[[], Any], form: PromptFormat, show_admissible: bool, **own: Any) -> None:
        rubric = vf.Rubric(funcs=[world_reward, success, admissible_commands], weights=[1.0, 0.0, 0.0])
        super().__init__(rubric=rubric, **own)
        self._make_world, self._form, self._show = make_world, form, show_admissible

    async def setup_state(self, state: Any) -> Any:
        """Start the row's task and write the first message; the row itself has none."""
        task, split = state["info"]["task_id"], state["info"]["split"]
        world = self._make_world()
        state["world"] = world
        chosen = find_task(listed_tasks(world, split, type(world).__name__), task, split)
        observation = first_observation(world, chosen, chosen.seed)
        state["observation"] = observation
        state["world_reward"], state["success"], state["admissible"] = 0.0, False, []
        state["prompt"] = _messages(self._form.messages(task_text(observation), (), observation, self._show))
        return state

    async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
        """Carry out the command of the last response; what is in no form that was asked for is an empty command."""
        said = messages[-1]
        content = said.get("content") if isinstance(said, dict) else said.content
        command = self._form.parse(content if isinstance(content, str) else "").command
        seen: Observation = state["observation"]
        state["admissible"].append(seen.accepts(command))
        step = answer(state["world"], command)
        state["observation"] = step.observation
        state["world_reward"] += step.reward
        state["success"] = step.success
        told = _messages(self._form.follow_up(step.observation, self._show and not step.done))
        if step.done:
            state["final_env_response"] = told
        return told

    @vf.cleanup
    async def close_world(self, state: Any) -> None:
        """Close the rollout's world."""
        if state.get("world") is not None:
            close(state["world"])
            state["world"] = None


async def world_reward(state: Any) -> float:
    """Return the sum of the world's rewards: what a rollout is rewarded with."""
    return float(state.get("world_reward", 0.0))


async def success(state: Any) -> float:
    """Return 1 where the task was done."""
    return float(state.get("success", False))


async def admissible_commands(state: Any) -> float:
    """Return the share of commands that the world accepted, of those that were given."""
    tried = state.get("admissible") or [False]
    return sum(tried) / len(tried)


def load_environment(
    world: str = "household",
    *,
    split: str = "train",
    eval_split: str = "",
    tasks: int = -1,
    form: str = "tags",
    show_admissible: bool = True,
    max_turns: int = 50,
    **settings: Any,
) -> WorldEnv:
    """Return a world as a `verifiers.MultiTurnEnv` over the tasks of a split.

    `tasks`: only the first ones of each split (-1: all). `form` is a prompt format (docs/prompts.md). `max_turns` is
    the limit of a rollout (-1: none). `settings` are the world's own, `data` among them. The reward of a rollout is the
    sum of the world's; the metrics `success` and `admissible_commands` weigh nothing. Raises `UserError` for what the
    world has not.
    """
    made = make(world, **settings)
    rows = {name: _rows(made, name, world, tasks) for name in (split, eval_split) if name}
    close(made)
    return WorldEnv(
        lambda: make(world, **settings),
        find_format(form),
        show_admissible,
        dataset=Dataset.from_list(rows[split]),
        eval_dataset=Dataset.from_list(rows[eval_split]) if eval_split else None,
        max_turns=max_turns,
    )


def _rows(world: Any, split: str, name: str, count: int) -> list[dict[str, Any]]:
    """Return a row a task; its prompt only names the task, and is written when a rollout starts it."""
    listed = listed_tasks(world, split, name)
    chosen = listed if count < 0 else listed[:count]
    if not len(chosen):
        raise UserError(f"the split '{split}' of the world '{name}' has no tasks")
    return [
        {
            "prompt": [{"role": "user", "content": task.id}],
            "answer": "",
            "info": {"split": split, "task_id": task.id, "kind": task.kind},
        }
        for task in chosen
    ]


def _messages(written: Sequence[Message]) -> list[Any]:
    kinds = {"user": vf.UserMessage, "system": vf.SystemMessage, "assistant": vf.AssistantMessage}
    return [kinds[message.role](content=message.content) for message in written]
