"""Evaluations that break off: what is known is said and kept; nothing that has ended is played or paid for again."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import envrl.eval.play as play
from boxes import Boxes, tiny
from chat_server import chat_server, opens_boxes, status
from envrl.build import renderer_of
from envrl.cli.main import main
from envrl.errors import Interrupted, UserError
from envrl.eval.evaluate import evaluate
from envrl.eval.kept import NO_TEXTS, Kept, Texts, episode_record, trajectory_of
from envrl.eval.questions import ask
from envrl.eval.record import summarize
from envrl.models.load import load_model
from envrl.rendering.prompts import FORMATS
from envrl.rendering.renderer import Form
from envrl.rollout.runner import play_episodes
from envrl.rollout.scheduler import PlaySettings
from envrl.trainer import loop
from envrl.trainer.loop import train
from envrl.types import Trajectory
from moments import essence
from playing import play_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a warm start alone, with the commands in its prompts."""
    config = tiny(train={"updates": 0}, rollout={"show_admissible": True})
    return train(config, tmp_path_factory.mktemp("runs") / "run")


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def broken_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Press Ctrl-C when so many episodes have ended."""
    add, ended = Kept.add, Counter[str]()

    def adding(self: Kept, played: str, split: str, trajectory: Trajectory) -> None:
        add(self, played, split, trajectory)
        ended["all"] += 1
        if ended["all"] == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "add", adding)


def counted(monkeypatch: pytest.MonkeyPatch, fail: Callable[[int], None] = lambda _: None) -> list[list[str]]:
    """Return a list that the tasks of every batch that a model plays are added to."""
    played: list[list[str]] = []

    def playing(*arguments: Any, **rest: Any) -> list[Trajectory]:
        fail(len(played))
        played.append([task.id for task in arguments[2]])
        return play_episodes(*arguments, **rest)

    monkeypatch.setattr(play, "play_episodes", playing)
    return played


def test_an_episode_is_the_same_when_it_is_read_back(run: Path) -> None:
    """Its measurements, and what is asked about it with the world's commands in the prompt; written as JSON between."""
    model, tasks = load_model(run / "warm_start"), Boxes().tasks("valid_a")
    renderer = renderer_of(model, Form(show_admissible=True))
    texts = Texts(renderer.text_of, model.codec.texts)
    for actions in ("admissible", "free"):
        settings = PlaySettings(max_steps=3, temperature=1.0, actions=actions, response_tokens=12)
        played = play_model(model, renderer, Boxes, tasks, [0] * len(tasks), settings, seed=0)
        records = [episode_record(each, True, texts) | {"split": "valid_a"} for each in played]
        again = [trajectory_of(json.loads(json.dumps(record))) for record in records]
        assert summarize(again) == summarize(played)
        assert ask(tiny(), renderer, again) == ask(tiny(), renderer, played)
        assert [t.task for t in again] == list(tasks)
        for one, other in zip(again, played, strict=True):
            for step, before in zip(one.transitions, other.transitions, strict=True):
                assert (step.action.text, step.action.token_ids) == (before.action.text, before.action.token_ids)
                assert step.action.logprobs == before.action.logprobs
        if actions == "admissible":
            steps = [step for record in records for step in record["steps"]]
            assert ["".join(step["token_texts"]) for step in steps] == [step["action"] for step in steps]
        bare = [trajectory_of(episode_record(t, False, NO_TEXTS) | {"split": "valid_a"}) for t in played]
        assert summarize(bare) == summarize(played)


def test_ctrl_c_says_what_is_known_and_the_same_command_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluate(run)
    file, results = tmp_path / "episodes.jsonl", tmp_path / "results.json"
    command = ["eval", str(run), "--episodes-to", str(file), "--json", str(results)]
    with monkeypatch.context() as patch:
        broken_after(patch, 6)
        assert main(command) == 130
    said = capsys.readouterr()
    assert " of 6 episodes so far, 10 planned\n" in said.out
    assert said.out.endswith(f"broken off; kept in {file}: the same command goes on from there\n")
    assert said.err == "envrl: interrupted\n"
    assert not results.exists()
    ended = [line["task"] for line in lines(file)[1:]]
    assert len(ended) == 6
    with monkeypatch.context() as patch:
        played = counted(patch)
        assert main(command) == 0
    assert sorted([*ended, *played[0]]) == sorted(task.id for task in Boxes().tasks("valid_a"))
    assert timeless(json.loads(results.read_text())) == timeless(whole)
    with monkeypatch.context() as patch:
        played = counted(patch)
        assert timeless(evaluate(run, episodes_to=file)) == timeless(whole)
        assert played == []


def test_a_sample_grows_to_the_whole_split(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "episodes.jsonl"
    arguments: dict[str, Any] = {"split": "valid_a", "probe": 0, "free": 0, "episodes_to": file}
    evaluate(run, episodes=4, **arguments)
    played = counted(monkeypatch)
    (record,) = evaluate(run, **arguments)
    assert len(played[0]) == 6
    assert timeless([record]) == timeless(evaluate(run, split="valid_a", probe=0, free=0))


def test_scripts_go_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny()
    arguments: dict[str, Any] = {"env": "boxes", "split": "valid_a", "settings": [("env.max_steps", "3")]}
    file = tmp_path / "episodes.jsonl"
    with monkeypatch.context() as patch:
        broken_after(patch, 4)
        known: list[dict[str, Any]] = []
        with pytest.raises(KeyboardInterrupt):
            evaluate("expert", **arguments, episodes_to=file, so_far=known.extend)
    assert [(record["episodes"], record["planned"]) for record in known] == [(4, 10)]
    assert timeless(evaluate("expert", **arguments, episodes_to=file)) == timeless(evaluate("expert", **arguments))
    assert len(lines(file)) == 11


def test_a_file_of_something_else_is_refused_and_left_alone(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    evaluate(run, split="valid_b", episodes=2, free=0, probe=0, episodes_to=file)
    kept = file.read_bytes()
    for arguments, other in (({"temperature": 1.0}, "temperature"), ({"seed": 3}, "seed")):
        with pytest.raises(UserError, match=rf"holds episodes of another evaluation \(other values of {other}\)"):
            evaluate(run, split="valid_b", episodes_to=file, **arguments)
    with pytest.raises(UserError, match="holds episodes of another evaluation"):
        evaluate("expert", env="boxes", split="valid_b", episodes_to=file)
    assert file.read_bytes() == kept
    for text in ("# Notes\n", '{"update": 1}\n', "half a line"):
        file.write_text(text)
        with pytest.raises(UserError, match="is there and holds no episodes of an evaluation"):
            evaluate(run, split="valid_b", episodes_to=file)
        assert file.read_text() == text
    file.write_bytes(kept + b'{"task": "valid_b/1"}\n')
    with pytest.raises(UserError, match="has a line that is no episode"):
        evaluate(run, split="valid_b", episodes_to=file)
    file.write_bytes(kept + b'{"task": "valid_b/1", "ste')  # killed while it was written
    evaluate(run, split="valid_b", episodes=2, free=0, probe=0, episodes_to=file)
    assert file.read_bytes() == kept


def test_other_weights_are_another_evaluation(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    evaluate(run, split="valid_b", episodes=2, free=0, probe=0, episodes_to=file)
    other = train(tiny(seed=1, train={"updates": 0}, rollout={"show_admissible": True}), tmp_path / "other")
    with pytest.raises(UserError, match=r"other values of weights"):
        evaluate(other, split="valid_b", episodes_to=file)


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
def test_what_an_endpoint_has_answered_is_never_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is dead after twelve of the 22 answers."""
    tiny()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    file, results = tmp_path / "episodes.jsonl", tmp_path / "results.json"
    with chat_server(opens_boxes(FORMATS["tags"].write)) as server:
        good = server.otherwise
        shared = ["--env", "boxes", "--env.max_steps", "3", "--split", "valid_a", "--price", "2,10", "--retries", "0"]
        command = ["eval", "m", "--base-url", server.address, *shared, "--json", str(results)]
        assert main(command) == 0
        whole = json.loads(results.read_text())
        server.asked.clear()
        server.plan, server.otherwise = [good] * 12, status(503)
        assert main([*command, "--episodes-to", str(file)]) == 1
        ended = sum("task" in line for line in lines(file))
        assert 1 <= ended < 10, "which questions were the twelve depends on the endpoint's pace"
        assert f" of {ended} episodes so far, 10 planned" in capsys.readouterr().out
        answered = [line["answer"] for line in lines(file) if "answer" in line]
        assert len(answered) == len(set(answered)) == 12
        server.asked.clear()
        server.otherwise = good
        assert main([*command, "--episodes-to", str(file)]) == 0
        assert len(server.asked) == 10
        assert timeless(json.loads(results.read_text())) == timeless(whole)
        assert len([line for line in lines(file) if "task" in line]) == 10
        server.asked.clear()
        assert main([*command, "--episodes-to", str(file)]) == 0
        assert server.asked == []


def test_a_run_goes_on_inside_an_evaluation_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of four: of valid_a's ten two are done when it is interrupted in the third one, which is played again."""
    monkeypatch.setattr(play, "BATCH", 4)
    config = tiny(train={"updates": 0})
    whole = train(config, tmp_path / "whole")

    def interrupt(batch: int) -> None:
        if batch == 2:
            raise Interrupted("interrupted")

    with monkeypatch.context() as patch:
        counted(patch, interrupt)
        with pytest.raises(Interrupted, match="--resume"):
            train(config, tmp_path / "run")
    with monkeypatch.context() as patch:
        played = counted(patch)
        train(config, tmp_path / "run", resume=True)
    assert [len(batch) for batch in played] == [2, 4, 4, 3, 4]
    assert essence(tmp_path / "run") == essence(whole)


def test_what_was_learned_before_an_evaluation_survives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Update 3 of 3, at no checkpoint of its own, is saved when its evaluation dies, and is not played again."""
    config = tiny(train={"updates": 3}, checkpoint={"every": 10}, eval={"every": 0})
    whole = train(config, tmp_path / "whole")

    def die(batch: int) -> None:
        if batch == 4:  # before RL two a split were played, restricted and free
            raise ArithmeticError("no more")

    with monkeypatch.context() as patch:
        counted(patch, die)
        with pytest.raises(ArithmeticError, match="no more"):
            train(config, tmp_path / "run")
    latest = tmp_path / "run" / "checkpoints" / "latest"
    assert latest.resolve().name == "step-000003"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", lambda *_: pytest.fail("an update was played again"))
        train(config, tmp_path / "run", resume=True)
    assert essence(tmp_path / "run") == essence(whole)
