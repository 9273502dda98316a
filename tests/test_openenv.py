"""OpenEnv both ways: its own client at our server, our world at a server of its own classes, over real sockets."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import envrl
from docs_blocks import runnable
from envrl.cli.main import main
from envrl.envs.adapters import openenv_world
from envrl.envs.check import check_env
from envrl.errors import RunError, UserError
from envrl.types import Task

with_openenv = pytest.mark.skipif(
    importlib.util.find_spec("openenv") is None, reason="openenv is not installed: pip install 'envrl[openenv]'"
)


@contextmanager
def served(made: Any) -> Iterator[str]:
    """The address of an application that is served from a thread."""
    import uvicorn  # pyright: ignore[reportMissingImports]

    server = uvicorn.Server(uvicorn.Config(made, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        for cached in (openenv_world._listed, openenv_world._action):
            cached.cache_clear()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from envrl.openenv import app

    with served(app("household", split="valid_seen", sessions=3)) as at:
        yield at


@pytest.fixture
def connected(address: str) -> Callable[[], Any]:
    from envrl.openenv import WorldClient

    return lambda: WorldClient(base_url=address).sync()


@with_openenv
def test_its_client_plays_what_the_world_plays(connected: Callable[[], Any]) -> None:
    from envrl.openenv import WorldAction, WorldObservation

    world = envrl.make("household")
    task = world.tasks("valid_seen")[7]
    first = world.reset(task)
    with connected() as env:
        result = env.reset(index=7)
        assert isinstance(result.observation, WorldObservation)
        assert (result.observation.text, result.done) == (first.text, False)
        assert first.text.endswith(result.observation.task)
        for command in ("look", "no such thing", *world.walkthrough(task)):  # type: ignore[attr-defined]
            step, result = world.step(command), env.step(WorldAction(command=command))
            assert result.observation.text == step.observation.text
            assert tuple(result.observation.admissible_commands) == step.observation.admissible
            assert (result.reward, result.done) == (step.reward, step.done)
            assert result.observation.success == step.success
        state = env.state()
        assert (state.task_id, state.split, state.kind) == (task.id, "valid_seen", task.kind)
        assert state.step_count == 2 + len(world.walkthrough(task))  # type: ignore[attr-defined]
    assert result.observation.success


@with_openenv
def test_tasks_by_seed_index_and_id(connected: Callable[[], Any]) -> None:
    with connected() as env:
        ids = []
        for values in ({"seed": 1}, {"seed": 1}, {"seed": 2}, {"split": "train", "index": 3}, {"episode_id": "mine"}):
            env.reset(**values)
            ids.append(env.state().task_id)
        assert env.state().episode_id == "mine"
        assert ids[0] == ids[1] != ids[2]
        assert ids[3] == envrl.make("household").tasks("train")[3].id
        env.reset(task=ids[0])
        assert env.state().task_id == ids[0]
        for values, said in (
            ({"split": "dev"}, "no split 'dev'"),
            ({"index": 500}, "the split 'valid_seen' has tasks 0 to 499, not 500"),
            ({"index": 1, "task": ids[0]}, "an index or a task, not both"),
            ({"tsk": 1}, "reset takes seed, episode_id, split, index and task, not tsk"),
        ):
            with pytest.raises(RuntimeError, match=said):
                env.reset(**values)


@with_openenv
def test_the_task_api_is_openenvs(address: str) -> None:
    def got(path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    tasks = envrl.make("household").tasks("train")
    names = [split["name"] for split in got("/household/splits")]
    assert names == ["train", "valid_seen", "valid_unseen", "valid_train"]
    assert got("/household/num_tasks", {"split": "train"}) == {"num_tasks": len(tasks)}
    assert got("/household/task", {"split": "train", "index": 5})["task"]["id"] == tasks[5].id
    ranged = got("/household/task_range", {"split": "train", "start": -2})["tasks"]
    assert [task["id"] for task in ranged] == [tasks[-2].id, tasks[-1].id]
    for data in ({"split": "train", "index": -1}, {"split": "dev", "index": 0}):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            got("/household/task", data)
    assert got("/metadata")["name"] == "household"


@with_openenv
def test_each_client_has_a_world_of_its_own_and_there_are_only_so_many(connected: Callable[[], Any]) -> None:
    from envrl.openenv import WorldAction

    with connected() as one, connected() as other, connected() as third:
        for env, index in ((one, 0), (other, 1), (third, 2)):
            env.reset(index=index)
        one.step(WorldAction(command="look"))
        assert (one.state().step_count, other.state().step_count) == (1, 0)
        assert len({env.state().task_id for env in (one, other, third)}) == 3
        with pytest.raises(Exception, match=r"CAPACITY_REACHED|capacity"), connected() as fourth:
            fourth.reset()


@with_openenv
def test_a_server_is_a_world_that_keeps_the_contract(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["check-env", "openenv", "--env.openenv.address", address, "--split", "valid_seen", "--episodes", "2"])
        == 0
    )
    assert "openenv keeps the contract" in capsys.readouterr().out


@with_openenv
def test_the_world_behind_the_server_is_the_world(address: str) -> None:
    """The same tasks by id, kind and order; a whole walkthrough of each of three, and one after the end."""
    near, far = envrl.make("household"), envrl.make("openenv", address=f"{address}/")
    ours, theirs = near.tasks("valid_unseen"), far.tasks("valid_unseen")
    assert [(task.id, task.kind) for task in ours] == [(task.id, task.kind) for task in theirs]
    for number in (0, 17, 333):
        assert far.reset(theirs[number]) == near.reset(ours[number])
        for command in near.walkthrough(ours[number]):  # type: ignore[attr-defined]
            step, expected = far.step(command), near.step(command)
            assert step == expected
        assert step.success
        again = far.step("look")
        assert (again.observation, again.reward, again.done) == (step.observation, 0.0, True)
    far.close()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="lists no tasks of a split 'valid'; did you mean 'valid_"):
        far.tasks("valid")
    with pytest.raises(UserError, match="has no task 'x' in its split 'train'"):
        far.reset(Task("x", "train"))
    with pytest.raises(UserError, match=r"have no field 'comand' .*did you mean 'command'"):
        envrl.make("openenv", address=address, command="comand").reset(theirs[0])


@with_openenv
def test_free_words_cross_the_wire() -> None:
    from envrl.openenv import app

    near = envrl.make("webshop", products=700)
    with served(app("webshop", split="valid", products=700)) as at:
        far = envrl.make("openenv", address=at)
        first, ours = far.reset(far.tasks("valid")[3]), near.reset(near.tasks("valid")[3])
        assert first.text == ours.text
        assert [str(template) for template in first.templates] == ["search[<words>]"]
        assert first.accepts("search[blue shirt]")
        assert not first.accepts("search[]")
        assert far.step("search[blue shirt]").observation.text == near.step("search[blue shirt]").observation.text
        far.close()  # type: ignore[attr-defined]


def guessing() -> Any:
    """An environment of OpenEnv's own classes, without tasks: guess the number, in whole numbers."""
    from openenv.core.env_server import create_app  # pyright: ignore[reportMissingImports]
    from openenv.core.env_server.interfaces import Environment  # pyright: ignore[reportMissingImports]
    from openenv.core.env_server.types import Action, Observation, State  # pyright: ignore[reportMissingImports]

    class Guess(Action):
        number: int
        note: str = ""

    class Hint(Observation):
        hint: str = ""
        tries: int = 0
        legal_actions: tuple[int, ...] = ()

    class Guessing(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: int | None = None, episode_id: str | None = None, **further: Any) -> Hint:
            self.wanted, self.tries = (seed or 0) % 7, 0
            return Hint(hint="Which?", legal_actions=tuple(range(7)))

        def step(self, action: Guess, timeout_s: float | None = None, **further: Any) -> Hint:
            if action.number > 99:
                raise ValueError("that is far too much")
            self.tries += 1
            right, over = action.number == self.wanted, self.tries > 7
            hint = "Yes." if right else "Higher." if action.number < self.wanted else "Lower."
            return Hint(
                hint=hint, tries=self.tries, legal_actions=tuple(range(7)), reward=float(right), done=right or over
            )

        @property
        def state(self) -> State:
            return State(step_count=self.tries)

    return create_app(Guessing, Guess, Hint, env_name="guessing", max_concurrent_envs=8)


@with_openenv
def test_an_environment_of_others_is_a_world() -> None:
    """Without a Task API tasks are seeds; a command becomes a number, legal actions are commands, reward is success."""
    with served(guessing()) as at:
        settings = {"address": at, "text": "hint", "commands": "legal_actions", "tasks": 30}
        report = check_env("openenv", settings=settings, split="valid", episodes=2)
        assert report.passed, str(report)
        world = envrl.make("openenv", **settings)
        assert [len(world.tasks(split)) for split in ("train", "valid", "test")] == [30, 30, 30]
        task = world.tasks("train")[12]
        assert world.reset(task).text == "Which?"
        assert world.step("two").observation.text == "A command is a whole number here."
        step = world.step("2")
        assert (step.observation.text, step.reward, step.done) == ("Higher.", 0.0, False)
        assert step.observation.admissible == tuple("0123456")
        step = world.step(" 5 ")
        assert (step.observation.text, step.reward, step.success) == ("Yes.", 1.0, True)
        world.reset(task)
        assert [world.step("0").success for _ in range(8)][-1] is False
        world.reset(task)
        with pytest.raises(RunError, match="answers '100' with an error: that is far too much"):
            world.step("100")
        world.close()  # type: ignore[attr-defined]
        whole = envrl.make("openenv", address=at)
        assert whole.reset(task).text == "hint: Which?\ntries: 0\nlegal_actions: [0, 1, 2, 3, 4, 5, 6]"
        assert whole.reset(task).admissible is None
        whole.close()  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=re.escape("no field 'hints' (env.openenv.text); did you mean 'hint'?")):
            envrl.make("openenv", address=at, text=("hints",)).reset(task)
    with pytest.raises(UserError, match="no OpenEnv server answers at"):
        world.reset(task)


@with_openenv
def test_a_full_server_says_what_to_do() -> None:
    from envrl.openenv import app

    with served(app("frozenlake", split="valid", sessions=1, size=4)) as at:
        one, other = (envrl.make("openenv", address=at) for _ in range(2))
        one.reset(one.tasks("valid")[0])
        with pytest.raises(RunError, match=r"has no free session .*play fewer episodes at a time"):
            other.reset(other.tasks("valid")[0])
        one.close()  # type: ignore[attr-defined]


@with_openenv
def test_a_server_that_goes_away_is_said() -> None:
    from envrl.openenv import app

    with served(app("frozenlake", split="valid", size=4)) as at:
        world = envrl.make("openenv", address=at)
        task = world.tasks("valid")[0]
        world.reset(task)
    with pytest.raises(RunError, match=f"the OpenEnv server at {at} is gone"):
        world.step("go up")


@with_openenv
def test_the_documented_example_runs(address: str) -> None:
    for code in runnable("other-libraries.md", "openenv"):
        exec(code.replace("http://127.0.0.1:8000", address), {})


@with_openenv
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["household", "--port", "70000"], "nothing can listen at 127.0.0.1:70000"),
        (["household", "--sessions", "0"], "sessions is a whole number above 0, not 0"),
        (["household", "--split", "dev"], "no split 'dev'"),
        (["frozenlake", "--env.frozenlake.size", "3"], "env.frozenlake.size must be"),
        (["frozenlake", "--env.max_steps", "3"], "--env.max_steps is no setting of the world"),
    ],
)
def test_what_cannot_be_served_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("given", ["", "127.0.0.1:8000", "ftp://there", "http://"])
def test_an_address_is_needed(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--env.openenv.address", given] if given else []
    assert main(["check-env", "openenv", *options]) == 2
    assert "env.openenv.address is that of an OpenEnv server, such as http://" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("websockets") is None, reason="websockets is not installed")
def test_where_nobody_answers_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "openenv", "--env.openenv.address", "http://127.0.0.1:9"]) == 2
    assert "no OpenEnv server answers at http://127.0.0.1:9 " in capsys.readouterr().err
