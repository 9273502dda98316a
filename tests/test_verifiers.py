"""verifiers both ways: a world in its own rollout loop with a scripted OpenAI client, its environments as our world."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import envrl
from docs_blocks import runnable
from envrl.cli.main import main
from envrl.envs.adapters import verifiers_world
from envrl.envs.check import check_env
from envrl.errors import RunError, UserError
from envrl.types import Task

with_verifiers = pytest.mark.skipif(
    importlib.util.find_spec("verifiers") is None, reason="verifiers is not installed: pip install 'envrl[verifiers]'"
)
GUESSING = '''
"""Guess a number: an environment that knows nothing of envrl."""
import verifiers as vf
from datasets import Dataset


class Guessing(vf.MultiTurnEnv):
    async def env_response(self, messages, state, **_):
        said = (messages[-1].content or "").strip()
        state["guesses"] = state.get("guesses", 0) + 1
        if said == "crash":
            raise ValueError("a bug of the environment's")
        if said == state["answer"]:
            state["final_env_response"] = [vf.UserMessage(content="Yes.")]
            return state["final_env_response"]
        number = int(said) if said.isdecimal() else None
        hint = "A number." if number is None else "Higher." if number < int(state["answer"]) else "Lower."
        return [vf.UserMessage(content=hint), vf.UserMessage(content=f"Guess {state['guesses'] + 1}:")]


async def right(completion, answer) -> float:
    said = [each.content for each in completion if each.role == "assistant"]
    return float(bool(said) and said[-1].strip() == answer)


async def quick(state) -> float:
    return 0.5 if state.get("guesses", 9) < 3 else 0.0


def load_environment(count: int = 5, max_turns: int = 8):
    rows = [{"question": f"Which number from 0 to 9 (game {n})?", "answer": str(n * 3 % 10)} for n in range(count)]
    rubric = vf.Rubric(funcs=[right, quick], weights=[1.0, 1.0])
    return Guessing(dataset=Dataset.from_list(rows), system_prompt="Play.", rubric=rubric, max_turns=max_turns)
'''


@pytest.fixture
def guessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "guessing_game.py").write_text(GUESSING)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "guessing-game"
    sys.modules.pop("guessing_game", None)
    for cached in (verifiers_world._loaded, verifiers_world._listed):
        cached.cache_clear()


def scripted(reply: Callable[[list[dict[str, Any]]], str]) -> Any:
    """A client of verifiers over an OpenAI client, whose server is a function of the chat."""
    import httpx
    from openai import AsyncOpenAI
    from verifiers.clients import OpenAIChatCompletionsClient  # pyright: ignore[reportMissingImports]

    def answer(request: httpx.Request) -> httpx.Response:
        message = {"role": "assistant", "content": reply(json.loads(request.content)["messages"])}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        head = {"id": "1", "created": 0, "model": "fake", "object": "chat.completion"}
        return httpx.Response(200, json={**head, "choices": [choice], "usage": usage})

    transport = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return OpenAIChatCompletionsClient(AsyncOpenAI(api_key="none", base_url="http://fake/v1", http_client=transport))


def rollout(env: Any, number: int, reply: Callable[[list[dict[str, Any]]], str]) -> Any:
    return asyncio.run(env.run_rollout(dict(env.get_dataset()[number]), scripted(reply), "fake", {}))


@with_verifiers
def test_a_walkthrough_is_rewarded_and_told_as_the_world_tells_it() -> None:
    import verifiers as vf  # pyright: ignore[reportMissingImports]

    env = vf.load_environment("envrl.verifiers", world="household", split="valid_seen", tasks=9)
    assert isinstance(env, vf.MultiTurnEnv)
    world = envrl.make("household")
    task = world.tasks("valid_seen")[7]
    solution = list(world.walkthrough(task))  # type: ignore[attr-defined]
    chats: list[list[dict[str, Any]]] = []

    def reply(messages: list[dict[str, Any]]) -> str:
        chats.append(messages)
        turn = sum(message["role"] == "assistant" for message in messages)
        return f"<think>so</think><action>{['no such thing', *solution][turn]}</action>"

    output = rollout(env, 7, reply)
    assert len(env.get_dataset()) == 9
    assert output["info"] == {"split": "valid_seen", "task_id": task.id, "kind": task.kind}
    assert (output["reward"], output["stop_condition"], output["error"]) == (1.0, "has_final_env_response", None)
    assert output["metrics"]["success"] == 1.0
    assert output["metrics"]["admissible_commands"] == pytest.approx(len(solution) / (len(solution) + 1))
    assert len(chats) == output["metrics"]["num_turns"] == 1 + len(solution)
    first = world.reset(task)
    opening = chats[0][0]["content"]
    assert first.text.partition("You are in")[2] in opening
    assert all(command in opening for command in first.admissible or ())
    assert "between <action> and </action>" in opening
    texts = [message["content"] for message in chats[-1] if message["role"] == "user"]
    for command, seen in zip(["no such thing", *solution], texts[1:], strict=False):
        assert world.step(command).observation.text in seen
    assert world.step(solution[-1]).observation.text in output["completion"][-1]["content"]


@with_verifiers
def test_a_rollout_that_never_finds_the_form_ends_at_its_limit() -> None:
    import verifiers as vf  # pyright: ignore[reportMissingImports]

    env = vf.load_environment("envrl.verifiers", world="frozenlake", size=4, split="valid", tasks=2, max_turns=3)
    output = rollout(env, 1, lambda messages: "I would rather go right.")
    assert (output["reward"], output["stop_condition"]) == (0.0, "max_turns_reached")
    assert output["metrics"]["success"] == output["metrics"]["admissible_commands"] == 0.0


@with_verifiers
def test_many_rollouts_at_a_time_have_worlds_of_their_own() -> None:
    import verifiers as vf  # pyright: ignore[reportMissingImports]

    env = vf.load_environment(
        "envrl.verifiers",
        world="household",
        split="train",
        eval_split="valid_unseen",
        tasks=3,
        form="action",
        max_turns=9,
    )
    world = envrl.make("household")
    tasks = world.tasks("valid_unseen")[:3]
    plans = {world.reset(task).text.partition("Your task is to: ")[0][-80:]: task for task in tasks}

    def reply(messages: list[dict[str, Any]]) -> str:
        (task,) = [task for ending, task in plans.items() if ending.strip() in messages[0]["content"]]
        turn = sum(message["role"] == "assistant" for message in messages)
        return world.walkthrough(task)[turn]  # type: ignore[attr-defined]

    results = env.evaluate_sync(scripted(reply), "fake", num_examples=3, rollouts_per_example=2)
    solved = {task.id: float(len(world.walkthrough(task)) <= 9) for task in tasks}  # type: ignore[attr-defined]
    assert len(results["outputs"]) == 6
    for output in results["outputs"]:
        assert output["reward"] == solved[output["info"]["task_id"]]


@with_verifiers
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"world": "houshold"}, "unknown world 'houshold'; did you mean 'household'?"),
        ({"split": "dev"}, "has no split 'dev'"),
        ({"form": "tag"}, "unknown prompt format 'tag'"),
        ({"world": "frozenlake", "size": 3}, "'size'"),
        ({"eval_split": "none"}, "has no split 'none'"),
        ({"tasks": 0}, "the split 'train' of the world 'household' has no tasks"),
    ],
)
def test_what_the_world_has_not_is_said(arguments: dict[str, Any], said: str) -> None:
    from envrl.verifiers import load_environment

    with pytest.raises(UserError, match=re.escape(said)):
        load_environment(**arguments)


@with_verifiers
def test_an_environment_of_theirs_keeps_the_contract(guessing: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--env.verifiers.environment", guessing, "--env.verifiers.arguments", '{"max_turns": -1}']
    assert main(["check-env", "verifiers", *options, "--episodes", "2"]) == 0
    assert "verifiers keeps the contract" in capsys.readouterr().out


@with_verifiers
def test_scripted_episodes_are_rewarded_by_its_rubric(guessing: str) -> None:
    world = envrl.make("verifiers", environment=guessing, arguments='{"count": 4}')
    assert [len(world.tasks(split)) for split in ("train", "eval")] == [4, 4]
    task = world.tasks("train")[2]
    assert task == Task("train/000002", "train", 2)
    assert world.reset(task).text == "Play.\n\nWhich number from 0 to 9 (game 2)?"
    step = world.step("4")
    assert (step.observation.text, step.reward, step.done) == ("Higher.\n\nGuess 2:", 0.0, False)
    step = world.step("6")
    assert (step.observation.text, step.reward, step.done, step.success) == ("Yes.", 1.5, True, True)
    assert step.info["metrics"]["right"] == 1.0
    again = world.step("6")
    assert (again.observation, again.reward, again.done) == (step.observation, 0.0, True)
    world.reset(task)
    lost = [world.step("9") for _ in range(8)][-1]
    assert (lost.observation.text, lost.reward, lost.done, lost.success) == ("The episode is over.", 0.0, True, False)
    strict = envrl.make("verifiers", environment=guessing, success=2.0)
    strict.reset(task)
    assert (strict.step("6").reward, strict._last.success) == (1.5, False)  # type: ignore[attr-defined]
    world.reset(task)
    with pytest.raises(RunError, match=r"failed .*a bug of the environment's"):
        world.step("crash")
    world.close()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="has no task 'train/000004' in 'train'"):
        world.reset(Task("train/000004", "train"))
    with pytest.raises(UserError, match="has no split 'valid'; choose from train, eval"):
        world.tasks("valid")


@with_verifiers
def test_a_world_there_and_back_is_the_world() -> None:
    arguments = {"world": "household", "split": "valid_seen", "tasks": 4, "form": "action", "max_turns": -1}
    options = {"environment": "envrl.verifiers", "arguments": json.dumps(arguments | {"show_admissible": False})}
    report = check_env("verifiers", settings=options, episodes=1)
    assert report.passed, str(report)
    world, ours = envrl.make("verifiers", **options), envrl.make("household")
    task = ours.tasks("valid_seen")[3]
    assert ours.reset(task).text.partition("You are in")[2] in world.reset(world.tasks("train")[3]).text
    for command in ours.walkthrough(task):  # type: ignore[attr-defined]
        step, expected = world.step(command), ours.step(command)
        assert step.observation.text == f"What you see now:\n{expected.observation.text}"
        assert (step.reward, step.done, step.success) == (expected.reward, expected.done, expected.success)


@with_verifiers
def test_the_documented_example_runs() -> None:
    for code in runnable("other-libraries.md", "verifiers"):
        exec(code, {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "env.verifiers.environment is the name of an environment"),
        (
            ["--env.verifiers.environment", "x", "--env.verifiers.arguments", "{"],
            "arguments is an object in JSON, not '{'",
        ),
        (["--env.verifiers.environment", "x", "--env.verifiers.arguments", "[]"], "is an object in JSON, not '[]'"),
    ],
)
def test_what_is_missing_is_said(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "verifiers", *options]) == 2
    assert said in capsys.readouterr().err


@with_verifiers
def test_an_environment_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "verifiers", "--env.verifiers.environment", "no-such-thing"]) == 2
    assert "verifiers cannot load the environment 'no-such-thing' (Could not import" in capsys.readouterr().err
