"""What the page of a run is fed with: episodes found by byte offset, why they failed, and a server for this machine."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envrl.cli.main import main
from envrl.errors import UserError
from envrl.report.episode import LONGEST_TEXT, probability_of, readable, word_diff
from envrl.report.episode_index import EpisodeIndex
from envrl.report.failures import failure_of, repeats
from envrl.report.server import ViewServer
from envrl.report.store import RunStore, labels
from view_runs import FIGURES, LOST, WON, episode, kept, metric, steps, write_lines, write_run

pytestmark = pytest.mark.quick


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo")


# --- why episodes fail -----------------------------------------------------------------------------------------------


def lost(commands: list[str], stop: str = "max_steps", **last: Any) -> str:
    return failure_of({"success": False, "stop_reason": stop}, steps(commands, **last))


@pytest.mark.parametrize(("failure", "commands"), list(LOST.items()))
def test_a_lost_episode_has_the_class_that_its_commands_show(failure: str, commands: list[str]) -> None:
    assert lost(commands) == failure
    assert failure_of({"success": True}, steps(commands)) == ""


def test_the_first_rule_that_holds_decides() -> None:
    assert lost(LOST["loop"], "context") == "context"
    assert lost(LOST["loop"], "set aside") == "world"
    assert lost(LOST["time"], "done") == "ended"
    looping = steps(LOST["loop"])
    for step in looping[:2]:
        step["admissible"] = False
    assert failure_of({}, looping) == "invalid", "two of six commands are a third"
    looping[1]["admissible"] = True
    assert failure_of({}, looping) == "loop"
    assert lost(["look", "look", "look", "look"]) == "loop"
    assert lost(["look", "look"]) == "time", "two turns are no loop"
    assert failure_of({}, []) == "time"


def test_a_command_that_the_world_refuses_takes_nothing() -> None:
    taken = steps(["take cd 1 from shelf 1", "go to bed 1", "go to desk 1", "look"])
    taken[0] |= {"next_observation": "Nothing happens."}
    assert failure_of({}, taken) == "time"
    assert failure_of({}, steps(["take pen 1 from shelf 1", "go to bed 1", "go to desk 1", "look"])) == "object"
    put = steps(["take cd 1 from shelf 1", "put cd 1 in/on bed 1", "take cd 1 from bed 1", "put cd 1 in/on desk 1"])
    assert failure_of({}, put) == "time", "the last place was the right one"


def test_a_repeat_is_the_same_command_to_the_same_observation() -> None:
    assert repeats(steps(["look", "look", "look"])) == [False, False, True], "the first observation is the room"


# --- episodes --------------------------------------------------------------------------------------------------------


def test_every_episode_is_listed_once(run: Path) -> None:
    rows = RunStore(run).index.rows()
    listed = [(file.name, row.task, row.member, row.failure, row.turns, row.free) for file, row in rows]
    assert listed == [
        ("trajectories/update-000010.jsonl", "train/7", 0, "object", 4, False),
        ("trajectories/update-000010.jsonl", "train/7", 1, "place", 4, False),
        ("trajectories/update-000010.jsonl", "train/7", 2, "loop", 6, False),
        ("trajectories/update-000010.jsonl", "train/7", 3, "time", 4, False),
        ("eval/000000-valid_seen.jsonl", "task/1", 0, "loop", 6, False),
        ("eval/000000-valid_seen.jsonl", "task/2", 0, "object", 4, False),
        ("eval/000000-valid_seen.jsonl", "task/3", 0, "time", 4, False),
        ("eval/000020-valid_seen.jsonl", "task/2", 0, "place", 4, False),
        ("eval/000020-valid_seen.jsonl", "task/3", 0, "time", 4, True),
        ("trajectories/eval-000020-valid_seen.jsonl", "task/1", 0, "", 3, False),
    ]


def test_an_episode_is_read_from_its_offset(run: Path) -> None:
    store = RunStore(run)
    for file, row in store.index.rows():
        assert store.episode(file.name, row.offset)["task"] == row.task
    with pytest.raises(KeyError):
        store.episode("eval/000000-valid_seen.jsonl", 3)
    with pytest.raises(KeyError):
        store.episode("../config.toml", 0)


def test_what_is_recorded_is_shown_and_nothing_else(run: Path) -> None:
    store = RunStore(run)
    last = store.episode("trajectories/eval-000020-valid_seen.jsonl", 0)["steps"][-1]
    assert last["tokens"] == FIGURES["token_texts"]
    assert (last["logprob"], last["entropy"]) == (FIGURES["logprobs"], FIGURES["entropies"])
    assert last["advantages"] == {"advantage": 0.7, "advantage: episode": 0.9, "advantage: step": -0.2}
    assert last["guess"] == "move pen 1 to desk 1"
    assert last["predicted"] == [("=", "You did: move "), ("-", "cd"), ("+", "pen"), ("=", " 1 to desk 1.")]
    offset = next(row.offset for file, row in store.index.rows() if file.name.startswith("eval/") and not row.free)
    plain = store.episode("eval/000000-valid_seen.jsonl", offset)["steps"][0]
    assert plain["answer"] == "You did: go to shelf 1.", "the observation of the next step"
    assert plain["probability"] == pytest.approx(0.6065, abs=1e-4), "exp(-0.3 - 0.2)"
    assert probability_of({"logprob": -0.5}) == pytest.approx(0.6065, abs=1e-4), "as earlier versions wrote it"
    assert probability_of({"probability": 0.25, "logprobs": [-9.0]}) == 0.25
    assert probability_of({"logprobs": [0.5]}) is None
    assert not {"tokens", "predicted", "guess", "advantages", "surprise"} & set(plain)


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_word_diff_holds_both_texts(true: str, predicted: str) -> None:
    parts = word_diff(true, predicted)
    assert "".join(text for sign, text in parts if sign in "=-") == true
    assert "".join(text for sign, text in parts if sign in "=+") == predicted


def test_figures_that_are_none_are_left_out() -> None:
    strange = {
        "token_texts": ["a", "b"],
        "logprobs": [-1.0],
        "entropies": "x",
        "advantage": float("nan"),
        "reward": "much",
    }
    made = readable({"task": 7, "steps": [{"observation": 1, "action": None} | strange, "no step"], "member": None})
    (step,) = made["steps"]
    assert json.loads(json.dumps(made, allow_nan=False))["task"] == "7"
    assert step["tokens"] == ["a", "b"]
    assert not {"logprob", "entropy", "advantages"} & set(step)
    assert (step["observation"], step["reward"]) == ("1", None)
    long = readable({"steps": [{"observation": "x" * (LONGEST_TEXT + 5)}]})["steps"][0]["observation"]
    assert long.endswith("x… (5 more characters)")


def test_words_are_found_in_any_text_and_any_case(run: Path) -> None:
    store = RunStore(run)
    assert len(store.search("TAKE pen")) == 2 + 1, "two that took one, and one of which a model predicted it"
    assert store.search("nosuchword") == []
    assert store.search("train/7 drawer") == [f"trajectories/update-000010.jsonl@{store.index.rows()[3][1].offset}"]


# --- a run that is still going ---------------------------------------------------------------------------------------


def test_a_growing_file_is_read_on_from_its_last_whole_line(run: Path) -> None:
    path = run / "eval" / "000020-valid_seen.jsonl"
    index = EpisodeIndex(run, restricted=True)
    known = len(index.rows())
    line = json.dumps(kept("task/9", WON, won=True)) + "\n"
    with open(path, "a") as file:
        file.write(line[:50])
    assert len(index.rows()) == known
    assert RunStore(run).notes() == [
        "eval/000020-valid_seen.jsonl ends in half a line: it is shown up to its last whole line."
    ]
    with open(path, "a") as file:
        file.write(line[50:])
    assert [row.task for _, row in index.rows()].count("task/9") == 1
    assert RunStore(run).notes() == []
    write_lines(path, [kept("task/5", WON, won=True)])
    assert [row.task for file, row in index.rows() if file.path == path] == ["task/5"], "written anew, as by --resume"
    path.unlink()
    assert not [file for file, _ in index.rows() if file.path == path]


def test_the_stamp_tells_whether_a_run_has_grown(run: Path) -> None:
    store = RunStore(run)
    before = store.stamp()
    assert store.stamp() == before
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(metric(21)) + "\n")
    assert store.stamp() != before


# --- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(run: Path, tmp_path: Path) -> Iterator[ViewServer]:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.toml").write_text("seed = 1\n")
    with ViewServer([run, empty], 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def asked(server: ViewServer, path: str, method: str = "GET", host: str = "") -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    body = response.read().decode()
    json_ = response.headers["Content-Type"].startswith("application/json") and body
    return response.status, dict(response.headers), json.loads(body) if json_ else body


def test_the_page_and_its_data_are_served(server: ViewServer) -> None:
    assert asked(server, "/")[2].startswith("<!doctype html>")
    assert asked(server, "/app.js")[1]["Content-Type"] == "text/javascript; charset=utf-8"
    assert asked(server, "/api/runs")[2] == ["demo", "empty"]
    assert asked(server, "/api/overview?run=0")[2]["results"][0]["after"]["rate"] == 0.75
    listed = asked(server, "/api/episodes?run=0")[2]
    file, offset = listed["rows"][1][:2]
    assert asked(server, f"/api/episode?run=0&id={listed['files'][file][0]}@{offset}")[2]["failure"] == "place"
    assert len(asked(server, "/api/search?run=0&words=drawer")[2]) == 3
    empty = asked(server, "/api/overview?run=1")[2]
    assert (empty["status"], empty["results"]) == ("update 0 of 0", [])


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../config.toml",
            "/%2e%2e/config.toml",
            "/static/app.js",
            "/app.js/",
            "/api/",
            "/api/nosuch?run=0",
        ),
        *("/api/overview", "/api/overview?run=2", "/api/overview?run=-1", "/api/overview?run=x", "/api/episode?run=0"),
        *("/api/episode?run=0&id=../config.toml@0", "/api/episode?run=0&id=config.toml@0", "/api/episode?run=0&id=x"),
    ],
)
def test_there_is_nothing_but_the_page_and_the_runs(server: ViewServer, path: str) -> None:
    assert asked(server, path)[0] == 404


def test_an_episode_outside_the_run_is_not_listed(run: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "secret.jsonl", [episode("secret", WON)])
    (run / "trajectories" / "update-000099.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert "secret" not in [row.task for _, row in RunStore(run).index.rows()]


@pytest.mark.parametrize(
    "host", ["evil.test", "evil.test:80", "127.0.0.1.evil.test", "localhost.evil.test:8765", "[::1]:1"]
)
def test_another_machines_name_is_refused(server: ViewServer, host: str) -> None:
    """A foreign page may let its own name point to this machine; the browser then sends that name."""
    assert asked(server, "/api/runs", host=host)[0] == 403
    assert asked(server, "/", host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1:1234"])
def test_this_machines_names_are_taken(server: ViewServer, host: str) -> None:
    assert asked(server, "/api/runs", host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_it_can_only_be_read(server: ViewServer, method: str) -> None:
    assert asked(server, "/api/runs", method)[0] == 405


def test_every_answer_forbids_what_the_page_does_not_need(server: ViewServer) -> None:
    for path in ("/", "/api/runs", "/nosuch"):
        headers = asked(server, path)[1]
        assert headers["Content-Security-Policy"].startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
        )
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_only_this_machine_can_connect(server: ViewServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_damaged_file_is_named_on_the_page(server: ViewServer, run: Path) -> None:
    with open(run / "eval.jsonl", "a") as file:
        file.write("{oops\n")
    status, _, body = asked(server, "/api/overview?run=0")
    assert status == 500
    assert body["error"] == f"line 3 of {run / 'eval.jsonl'} is not JSON: remove the line, or restore the file"


def test_runs_of_one_name_are_told_apart() -> None:
    assert labels([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert labels([Path("/a/run"), Path("/b/run")]) == ["a/run", "b/run"]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["view", str(run), "--port", str(port)]) == 2
    assert (
        capsys.readouterr().err
        == f"envrl: port {port} is taken: name another by --port, or --port 0 for any that is free\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nosuch"], "nosuch is not a run: there is no such directory"),
        (["."], ". is not a run: it has no config.toml"),
        ([], "the following arguments are required: RUN"),
        ([".", "--port", "70000"], "--port 70000 is no port"),
        ([".", "--prot", "1"], "--prot"),
    ],
)
def test_what_is_no_run_is_refused(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["view", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_an_empty_run_is_followed_and_not_reported(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("seed = 1\n")
    assert RunStore(tmp_path, empty=True).episodes()["rows"] == []
    with pytest.raises(UserError, match="has nothing to report yet"):
        RunStore(tmp_path)
