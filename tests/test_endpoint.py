"""A chat model behind an endpoint: measured as any other agent, and every failure one sentence with nothing written."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boxes import Boxes, tiny
from chat_server import (
    Behaviour,
    ChatServer,
    Handler,
    break_off,
    chat_server,
    opens_boxes,
    rubbish,
    says,
    stall,
    status,
)
from envrl.cli.main import main
from envrl.errors import UserError
from envrl.eval.client import Endpoint
from envrl.eval.endpoint import evaluate_endpoint
from envrl.eval.split import evaluate_script
from envrl.rendering.messages import MessageWriter
from envrl.rendering.prompts import FORMATS
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.scheduler import PlaySettings
from envrl.types import Completion
from scripted import Scripted

KEY = "sk-a-key-of-nobody"
needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None,
    reason="openai is not installed: pip install 'envrl[endpoint]'",
)


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny()  # makes the world known
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server(opens_boxes(FORMATS["tags"].write)) as here:
        yield here


def measured(server: ChatServer, split: str = "valid_a", **arguments: Any) -> dict[str, Any]:
    """The record of `boxes` in three steps, as the server plays it."""
    asking = {name: arguments.pop(name) for name in ("concurrency", "timeout", "retries") if name in arguments}
    endpoint = Endpoint(model="m", base_url=server.address, **asking)
    settings = [("env.max_steps", "3")]
    (record,) = evaluate_endpoint(endpoint, env="boxes", split=split, settings=settings, **arguments)
    return record


@needs_openai
@pytest.mark.parametrize("name", FORMATS)
def test_a_model_that_plays_as_the_expert_is_measured_as_the_expert(name: str) -> None:
    """The expert needs 22 turns for the ten games (tests/test_evaluate.py); 100 and 7 tokens a request are said."""
    with chat_server(opens_boxes(FORMATS[name].write)) as server:
        record = measured(server, format=name, price=(2.0, 10.0))
    expert, _ = evaluate_script("expert", Boxes, "valid_a", tiny())
    expert.pop("seconds")
    assert {key: record[key] for key in expert} == expert
    assert (record["success_rate"], record["turns"]) == (0.8, 2.2)
    assert (record["requests"], record["retries"], record["faults"]) == (22, 0, {})
    assert (record["prompt_tokens"], record["completion_tokens"]) == (2200, 154)
    assert record["cost"] == pytest.approx(2200 * 2e-6 + 154 * 10e-6)
    assert (record["agent"], record["format"], record["temperature"]) == ("m", name, 0.4)
    assert record["valid_action_rate"] == record["admissible_action_rate"] == 1.0


@needs_openai
def test_results_and_requests_do_not_depend_on_how_many_are_asked_at_once(server: ChatServer) -> None:
    records, requests = [], []
    for concurrency in (1, 7):
        record = measured(server, concurrency=concurrency)
        records.append({key: value for key, value in record.items() if key != "seconds"})
        requests.append(sorted((asked.body["seed"], asked.prompt) for asked in server.asked))
        if concurrency == 1:
            assert server.most_at_once == 1
        server.asked.clear()
    assert records[0] == records[1]
    assert requests[0] == requests[1]
    assert len({seed for seed, _ in requests[0]}) == 22
    other = measured(server, seed=1)
    assert other["seed"] == 1
    assert {asked.body["seed"] for asked in server.asked}.isdisjoint(seed for seed, _ in requests[0])


@needs_openai
def test_several_are_asked_at_once(server: ChatServer) -> None:
    """The first four requests are answered only once all four are there."""
    meeting = threading.Barrier(4)

    def meet(handler: Handler) -> None:
        meeting.wait(30)
        server.otherwise(handler)

    server.plan = [meet] * 4
    assert measured(server, concurrency=4)["success_rate"] == 0.8
    assert server.most_at_once == 4


@needs_openai
def test_what_is_asked(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", f"{KEY}\n")
    server.otherwise = says("look around")
    endpoint = Endpoint(
        model="some/model", base_url=server.address, key_variable="OTHER_KEY", temperature=0.0, max_tokens=9
    )
    (record,) = evaluate_endpoint(
        endpoint, env="boxes", split="valid_a", episodes=1, show_admissible=False, history=1, format="action"
    )
    assert {asked.path for asked in server.asked} == {"/v1/chat/completions"}
    assert {asked.authorization for asked in server.asked} == {f"Bearer {KEY}"}
    first, second, third = server.asked[:3]
    sent = {key: first.body[key] for key in ("model", "temperature", "max_tokens")}
    assert sent == {"model": "some/model", "temperature": 0.0, "max_tokens": 9}
    assert "Your task: find the key" in first.prompt
    assert "open box" not in first.prompt + second.prompt
    assert (second.prompt.count("Command: look around"), third.prompt.count("Command: look around")) == (1, 1)
    assert record["turns"] == 30
    assert (record["valid_action_rate"], record["admissible_action_rate"]) == (1.0, 0.0)
    assert (record["prompt_tokens"], record["completion_tokens"]) == (None, None)
    assert KEY not in json.dumps(record)


@needs_openai
def test_bad_answers_are_invalid_actions_of_their_kind(server: ChatServer) -> None:
    bad: list[str | None] = [
        None,
        "",
        "<think>hm</think><action>open box 1",
        "<think>hm</think><action>open box 1</action> You open box 1 and find the key.",
        "\ud83d",
    ]
    server.plan = [says(response) for response in bad]
    record = measured(server, split="valid_b", episodes=5, concurrency=1)
    assert record["faults"] == {"empty": 2, "imagined observation": 1, "no action": 1, "unclosed": 1}
    assert record["valid_action_rate"] == pytest.approx(1 - 5 / record["requests"])
    assert record["imagined_observation_rate"] == pytest.approx(1 / record["requests"])
    again = [asked.prompt for asked in server.asked[5:10]]
    assert all("Command: (none" in prompt and "Nothing happens." in prompt for prompt in again)


@needs_openai
def test_a_failed_request_is_asked_again(server: ChatServer) -> None:
    server.plan = [status(500), server.otherwise, break_off]
    record = measured(server, concurrency=1)
    assert (record["success_rate"], record["requests"], record["retries"]) == (0.8, 22, 2)
    bodies = [asked.body for asked in server.asked]
    assert len(bodies) == 24
    assert bodies[0] == bodies[1]
    assert bodies[2] != bodies[1]


@needs_openai
def test_retry_after_is_kept_to(server: ChatServer) -> None:
    server.plan = [status(429, Retry_After="1.2")]
    record = measured(server, episodes=1, concurrency=1)
    first, second = server.asked[:2]
    assert second.time - first.time > 1.15  # of its own the package waits half a second
    assert record["retries"] == 1


@needs_openai
def test_a_slow_answer_is_asked_for_again(server: ChatServer) -> None:
    server.plan = [stall]
    record = measured(server, episodes=1, concurrency=1, timeout=1.0)
    assert record["retries"] >= 1
    assert record["success_rate"] == 1.0


@needs_openai
@pytest.mark.parametrize("said", [{"code": "context_length_exceeded"}, {"message": "maximum context length is 4096"}])
def test_a_prompt_beyond_the_context_ends_its_episode_alone(server: ChatServer, said: dict[str, str]) -> None:
    server.plan = [status(400, **said)]
    record = measured(server, concurrency=1)
    assert record["success_rate"] == pytest.approx(0.7)
    assert record["requests"] == 20  # the key in box 3 took three turns of the 22


@needs_openai
def test_an_endpoint_whose_context_no_first_prompt_fits_is_refused(server: ChatServer) -> None:
    server.otherwise = status(400, code="context_length_exceeded")
    with pytest.raises(UserError, match=r"no episode of the split 'valid_a' can begin: .* takes; lower max_tokens"):
        measured(server)


@needs_openai
def test_half_of_a_surrogate_pair_reaches_an_endpoint_as_a_sign_for_what_is_none(server: ChatServer) -> None:
    server.otherwise = says(FORMATS["tags"].write("", "open box 1"))
    endpoint = Endpoint(model="m", base_url=server.address)
    (record,) = evaluate_endpoint(endpoint, env="halves", split="valid_a", episodes=2)
    assert record["episodes"] == 2
    assert "\ufffdThere are four boxes" in server.asked[0].prompt


_HTML = b"<html><body>Welcome!</body></html>"


@needs_openai
@pytest.mark.parametrize(
    ("behaviour", "options", "end", "said"),
    [
        (
            status(401, f"Incorrect key: {KEY}"),
            [],
            2,
            r"refuses the key in OPENAI_API_KEY \(status 401\): Incorrect key: …",
        ),
        (status(404, "no such model"), [], 2, "does not know the model 'm', .* no such model"),
        (status(400, "seed is not supported"), [], 2, r"refuses the request \(status 400\): seed is not supported"),
        (status(429, "too many"), [], 1, r"limits the rate \(status 429, tried once\): too many; lower --concurrency"),
        (status(429, "tomorrow", Retry_After="86400"), ["--retries", "3"], 1, "limits the rate .* tomorrow"),
        (status(503, "overloaded"), ["--retries", "1"], 1, r"failed \(status 503, tried 2 times\): overloaded"),
        (stall, ["--timeout", "0.3"], 1, "did not answer within 0.3 s, tried once; raise --timeout"),
        (break_off, [], 1, r"cannot be reached, tried once \(.+\); is it running"),
        (rubbish(_HTML, "text/html"), [], 1, "is not JSON: <html><body>Welcome!.* is the address right"),
        (rubbish(b'{"choices": [{'), [], 1, "is not JSON"),
        (rubbish(b"\xff\x00"), [], 1, "is not JSON"),
        (rubbish(b"[" * 200_000), [], 1, "is not JSON"),
        (rubbish(b"{}"), [], 1, "JSON that is no chat completion: {}"),
        (rubbish(b'{"choices": []}'), [], 1, "no chat completion"),
        (rubbish(b'{"choices": [{"message": {"content": [1]}}]}'), [], 1, "no chat completion"),
        (rubbish(b'[1, "two"]'), [], 1, "no chat completion"),
        (rubbish(b'{"error": "busy"}'), [], 1, "no chat completion"),
    ],
)
def test_failures_are_sentences_and_nothing_is_written(
    server: ChatServer,
    behaviour: Behaviour,
    options: list[str],
    end: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every episode's first turn is answered well; then the endpoint fails: three have ended, and that is said."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.plan, server.otherwise = [server.otherwise] * 10, behaviour
    arguments = ["m", "--base-url", server.address, "--env", "boxes", "--split", "valid_a", "--concurrency", "1"]
    options = options if "--retries" in options else [*options, "--retries", "0"]
    assert main(["eval", *arguments, "--json", str(tmp_path / "record.json"), *options]) == end
    printed = capsys.readouterr()
    assert printed.out.startswith("valid_a: 100.0 % (43.9 to 100.0) of 3 episodes so far, 10 planned\n")
    assert printed.out.endswith("broken off; not kept: name a file by --episodes-to\n")
    assert KEY not in printed.out
    assert printed.err.count("\n") == 1
    assert re.search(f"^envrl: the endpoint {server.address} .*{said}", printed.err), printed.err
    assert KEY not in printed.err
    assert list(tmp_path.iterdir()) == []


@needs_openai
def test_what_was_sent_when_another_question_failed_is_still_answered_and_kept(
    server: ChatServer, tmp_path: Path
) -> None:
    """Four are under way; one is refused at once, and the others answer when nothing else is asked any more."""
    refused, file = threading.Event(), tmp_path / "kept.jsonl"

    def refuse(handler: Handler) -> None:
        status(400, "no")(handler)
        refused.set()

    def late(handler: Handler) -> None:
        assert refused.wait(30)
        server.otherwise(handler)

    server.plan = [refuse, late, late, late]
    with pytest.raises(UserError, match="refuses the request"):
        measured(server, concurrency=4, episodes_to=file)
    assert len(server.asked) == 4
    assert sum("answer" in json.loads(line) for line in file.read_text().splitlines()) == 3


@needs_openai
def test_an_endpoint_that_is_down_and_one_that_wants_a_key(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    kept = tmp_path / "record.json"
    kept.write_text("of an earlier evaluation")
    shared = ["--env", "boxes", "--split", "valid_a", "--retries", "0", "--json", str(kept)]
    assert main(["eval", "m", "--base-url", nobody, *shared]) == 1
    assert f"the endpoint {nobody} cannot be reached, tried once" in capsys.readouterr().err
    server.otherwise = status(401, "no key")
    assert main(["eval", "m", "--base-url", server.address, *shared]) == 2
    assert "wants a key, and OPENAI_API_KEY is not set (status 401): no key" in capsys.readouterr().err
    assert kept.read_text() == "of an earlier evaluation"
    assert list(tmp_path.iterdir()) == [kept]


@needs_openai
def test_the_command_line_writes_what_the_function_returns(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.json"
    asked = ["m", "--base-url", server.address, "--env", "boxes", "--env.max_steps", "3", "--split", "valid_a,valid_b"]
    options = [
        "--price",
        "2,10",
        "--show-admissible",
        "yes",
        "--history",
        "2",
        "--max-tokens",
        "50",
        "--format",
        "tags",
    ]
    server.plan = [says("box?", {"prompt_tokens": 100, "completion_tokens": 7})]
    assert main(["eval", *asked, *options, "--concurrency", "1", "--json", str(file)]) == 0
    records = json.loads(file.read_text())
    assert [record["split"] for record in records] == ["valid_a", "valid_b"]
    assert (records[0]["faults"], records[0]["max_tokens"]) == ({"no action": 1}, 50)
    said = capsys.readouterr().out
    assert f"{records[0]['requests']} requests, 0 asked again; " in said
    assert f"{100 * records[0]['requests']:,} + {7 * records[0]['requests']} tokens, cost " in said
    assert "faults: 1 no action" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["expert", "--format", "tags"], "format is for a model's folder or an endpoint; 'expert' has its own"),
        (["expert", "--show-admissible", "no"], "--show-admissible is for a chat model; name its --format too"),
        (["expert", "--retries", "3"], "--retries is for a model behind an endpoint; name it by --base-url"),
        (["m", "--base-url", "localhost:8000"], "must be an address such as http"),
        (["m", "--base-url", "http://"], "must be an address such as http"),
        (["m", "--base-url", "http://[::1"], "must be an address such as http"),
        (["m", "--base-url", "http://a host/v1"], "must be an address such as http"),
        (["m", "--base-url", "http://host\n/v1"], "must be an address such as http"),
        (["m", "--base-url", "http://host/v1#here"], "must be an address such as http"),
        (["m", "--base-url", "http://a:99999999/v1"], "must be an address such as http"),
        (["m", "--base-url", f"http://user:{KEY}@host/v1"], "must not hold a key; put the key into the variable"),
        (["m", "--base-url", f"http://user:{KEY}@"], "must not hold a key"),
        (["m", "--base-url", f"http://host/v1?key={KEY}"], "must not hold a key"),
        (["m", "--base-url", "http://host/v1", "--actions", "free"], "--actions means nothing to an endpoint"),
        (["m", "--base-url", "http://host/v1", "--probe", "0"], "--probe is measured of a model whose weights"),
        (
            ["m", "--base-url", "http://host/v1", "--format", "tagz"],
            "unknown prompt format 'tagz'; did you mean 'tags'",
        ),
        (["m", "--base-url", "http://host/v1", "--concurrency", "0"], "concurrency must be at least 1"),
        (["m", "--base-url", "http://host/v1", "--max-tokens", "0"], "max_tokens must be at least 1"),
        (["m", "--base-url", "http://host/v1", "--timeout", "0"], "timeout must be a number of seconds above 0"),
        (["m", "--base-url", "http://host/v1", "--price", "3"], "must be two numbers with a comma"),
        (["m", "--base-url", "http://host/v1", "--price", "3,x"], "must be a number of at least 0, not 'x'"),
        (["m", "--base-url", "http://host/v1", "--show-admissible", "maybe"], "must be yes or no"),
        (["m", "--base-url", "http://host/v1", "--temperature", "0.001"], "temperature must be 0"),
        pytest.param(
            ["m", "--base-url", "http://host/v1", "--split", "valid_z"], "no split 'valid_z'", marks=needs_openai
        ),
        (["m", "--base-url", "http://host/v1", "--key-variable", "BAD_KEY"], "the variable BAD_KEY holds no key"),
        ([" ", "--base-url", "http://host/v1"], "the model needs a name"),
    ],
)
def test_mistakes_are_sentences(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAD_KEY", "sk\u2026cut")
    split = [] if "--split" in arguments else ["--split", "valid_a"]
    assert main(["eval", *arguments, "--env", "boxes", *split]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert KEY not in printed


def test_without_the_package_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main(["eval", "m", "--base-url", "http://127.0.0.1:1/v1", "--env", "boxes", "--split", "valid_a"]) == 2
    assert capsys.readouterr().err == "envrl: an endpoint needs the package 'openai': pip install 'envrl[endpoint]'\n"


@needs_openai
def test_a_proxy_that_is_none_is_a_sentence(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nothing://at-all")
    with pytest.raises(UserError, match=rf"nothing can be asked of {server.address}: .*[Pp]roxy"):
        measured(server)


@needs_openai
def test_a_running_event_loop_is_a_sentence(server: ChatServer) -> None:
    async def notebook() -> None:
        measured(server)

    with pytest.raises(UserError, match="an event loop is running here"):
        asyncio.run(notebook())


def test_episodes_by_hand() -> None:
    """One wins at once, one is set right after a fault, one is too long for its model, one runs out of turns."""
    tasks = [replace(task, kind="coin") for task in Boxes().tasks("valid_a")[:4]]
    write = FORMATS["action"].write
    script = {0: ["open box 1"], 1: ["", "open box 1"], 2: ["open box 2", None], 3: ["open box 2", "dance"]}

    def answer(prompt: str) -> Completion | None:
        text = script[next(i for i in script if f"room {i}." in prompt)].pop(0)
        return None if text is None else Completion(text=write("", text))

    sampler, form = Scripted(answer), MessageWriter(FORMATS["action"])
    settings = PlaySettings(max_steps=2, temperature=1.0, actions="free")
    played = play_episodes(Policy(form, sampler), Boxes, tasks, [0] * 4, settings, seed=0)
    assert [trajectory.stop_reason for trajectory in played] == ["done", "done", "context", "max_steps"]
    assert [[step.action.text for step in trajectory.transitions] for trajectory in played] == [
        ["open box 1"],
        ["", "open box 1"],
        ["open box 2"],
        ["open box 2", "dance"],
    ]
    assert [trajectory.success for trajectory in played] == [True, True, False, False]
    assert [step.action.fault for trajectory in played for step in trajectory.transitions if step.action.fault] == [
        "empty"
    ]
    assert [len(trajectory.segments) for trajectory in played] == [0] * 4, "nothing is known of its tokens"
    assert sampler.asked == [4, 3]
    assert sampler.released == {0, 1, 2, 3}
