"""Things by name: settings by signature, files of the user's, and what is refused of both."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import envrl
from boxes import Boxes, tiny
from boxes import register as register_worlds
from envrl import registry
from envrl.build import renderer_of
from envrl.cli.main import main
from envrl.config import plugins
from envrl.config.load import dump_config, load_recipe, load_run, load_table
from envrl.config.schema import AuxiliaryConfig
from envrl.curriculum import Plan
from envrl.errors import UserError
from envrl.models.load import load_model
from envrl.objective.advantage import ESTIMATORS
from envrl.objective.policy import LOSSES, TOKEN_LOSSES
from envrl.registry import Entry, find, load_plugin, names, register
from envrl.rendering.renderer import Form
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.scheduler import PlaySettings
from envrl.types import Action, Observation, StopReason, Task, Trajectory, TrajectoryGroup, Transition
from view_runs import data_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extend.md"
EXAMPLES = dict(re.findall(r"<!-- file: (\w+\.py) -->\n```python\n(.*?)^```", PAGE.read_text(), re.M | re.S))


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def refused(folder: Path, capsys: pytest.CaptureFixture[str], settings: list[str]) -> str:
    """Return what is said of settings with which a small run is refused: status 2, and nothing is written."""
    recipe = write(folder, "small.toml", dump_config(tiny()))
    assert main(["train", str(recipe), "--run", str(folder / "no"), *settings]) == 2
    assert not (folder / "no").exists()
    return capsys.readouterr().err


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    register_worlds()
    return str(write(tmp_path, "small.toml", dump_config(tiny(train={"updates": 1}))))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# The examples of docs/extend.md


def test_the_examples_are_short_and_complete() -> None:
    kinds = {"bonus": "estimator", "plain": "loss", "first_words": "auxiliary", "news": "auxiliary", "doors": "env"}
    kinds |= {"brief": "reward", "entropy_floor": "regularizer", "stages": "curriculum", "wins": "replay"}
    kinds |= {"quoted": "format", "coin": "sampler", "own_wins": "warm_start"}
    kinds |= {"hard_tasks": "teacher", "last_words": "retry", "last_win": "memory"}
    assert sorted(EXAMPLES) == sorted(f"{name}.py" for name in kinds)
    assert set(kinds.values()) == set(registry.KINDS) - {"engine"}
    assert all(len(text.splitlines()) <= 40 for text in EXAMPLES.values())


def test_an_estimator_of_a_file_with_a_knob_of_its_own(tmp_path: Path, recipe: str) -> None:
    file, run = write(tmp_path, "bonus.py", EXAMPLES["bonus.py"]), tmp_path / "run"
    chosen = ["--plugin", str(file), "--objective.estimator", "bonus", "--objective.bonus.amount", "0.25"]
    assert main(["train", recipe, "--run", str(run), *chosen]) == 0
    written = (run / "config.toml").read_text()
    assert "[objective.bonus]\namount = 0.25\n" in written
    assert f'"bonus.py#sha256={load_plugin(file)}"' in written
    assert str(tmp_path) not in written
    # Two episodes of one group with returns 1 and 0, the second one shorter: 1 and 0.25 around their mean.
    found = ESTIMATORS["bonus"]([[0.0, 1.0], [0.0]], [["a", "b"], ["a"]], amount=0.25)
    assert [each.tolist() for each in found] == [[0.375, 0.375], [-0.375]]


def test_a_memory_of_a_file_tells_how_a_sentence_was_solved_and_resumes(tmp_path: Path, recipe: str) -> None:
    file, run, parts = write(tmp_path, "last_win.py", EXAMPLES["last_win.py"]), tmp_path / "run", tmp_path / "parts"
    chosen = ["--plugin", str(file), "--memory.name", "last_win", "--memory.last_win.commands", "2"]
    chosen += ["--train.trajectories", "9", "--train.trajectories_every", "1"]
    assert main(["train", recipe, "--run", str(run), *chosen, "--train.updates", "4"]) == 0
    assert main(["train", recipe, "--run", str(parts), *chosen, "--train.updates", "2"]) == 0
    assert main(["train", recipe, "--run", str(parts), *chosen, "--train.updates", "4", "--resume"]) == 0
    wins: dict[str, list[str]] = {}
    for update in range(1, 5):
        episodes = lines(run / "trajectories" / f"update-{update:06d}.jsonl")
        assert episodes == lines(parts / "trajectories" / f"update-{update:06d}.jsonl")
        for each in episodes:
            won = wins.get(f"find the {each['kind']}")
            told = "\n".join(["Once this worked:", *won[:2]]) if won else ""
            assert each["steps"][0].get("told", "") == told
        wins |= {f"find the {e['kind']}": [step["action"] for step in e["steps"]] for e in episodes if e["success"]}
    about, *kept = lines(run / "checkpoints" / "latest" / "memory.jsonl")
    assert about == {"format": 1, "memory": "last_win", "env": "boxes"}
    assert dict(kept) == wins
    assert wins


def test_a_policy_loss_of_a_file_without_clips(tmp_path: Path, recipe: str) -> None:
    file, run = write(tmp_path, "plain.py", EXAMPLES["plain.py"]), tmp_path / "run"
    arguments = ["--plugin", str(file), "--objective.loss", "plain", "--objective.plain.scale", "2"]
    assert main(["train", recipe, "--run", str(run), *arguments, "--train.epochs", "2"]) == 0
    (update,) = lines(run / "metrics.jsonl")
    assert update["clip_fraction"] == 0.0
    logprobs, advantages = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, -1.0])
    loss, clipped = TOKEN_LOSSES["plain"](logprobs, logprobs, advantages, torch.tensor([0, 0]), scale=2.0)
    assert loss.tolist() == [2.0, -4.0]
    assert not clipped.any()
    assert float(LOSSES["plain"](logprobs[None], logprobs[None], advantages[None], torch.ones(1, 2))) == -0.5


def test_an_auxiliary_objective_of_a_file_with_rows_of_its_own(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the warm start as well, with a weight and a fraction for each stage; `recipes` prints its table."""
    file, run = write(tmp_path, "first_words.py", EXAMPLES["first_words.py"]), tmp_path / "run"
    chosen = ["--plugin", str(file), "--auxiliary.first_words.weight", "0.5", "--auxiliary.first_words.words", "2"]
    warm = ["--warm_start.auxiliary.first_words.weight", "0.25", "--warm_start.auxiliary.first_words.fraction", "0.5"]
    assert main(["train", recipe, "--run", str(run), *chosen, *warm]) == 0
    (update,) = lines(run / "metrics.jsonl")
    assert update["rows/first_words"] > 0
    assert update["loss/first_words"] > 0
    assert update["weight/first_words"] == 0.5
    assert all(step["loss/first_words"] > 0 for step in lines(run / "warm_start.jsonl") if "tokens" in step)
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    titles = [chart["title"] for chart in data_of((run / "report.html").read_text())["overview"]["updates"]]
    assert "Loss of first_words" in titles
    text = f'extends = "{recipe}"\nplugins = ["first_words.py"]\n[auxiliary.first_words]\nweight = 0.5\n'
    assert main(["recipes", str(write(tmp_path, "mine.toml", text))]) == 0
    (table,) = re.findall(r"^\[auxiliary.first_words\]\n(.*?)\n\n", capsys.readouterr().out + "\n\n", re.M | re.S)
    assert {line.partition(" = ")[0] for line in table.splitlines()} == {
        *(setting.name for setting in fields(AuxiliaryConfig)),
        "words",
    }
    assert "words = 3" in table
    step = Transition(Observation("A box."), Action("open it"), 0.0, Observation("It is empty."), True, False)
    episode = Trajectory(Task("a", "train"), 0, (step,), (), StopReason.DONE)
    (example,) = find("auxiliary", "first_words").target([TrajectoryGroup(episode.task, (episode,))], words=2)
    assert (example.target, example.command, example.step) == ("It is", "open it", 0)


def test_an_auxiliary_objective_of_a_file_in_the_policy_s_pass(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It adds no row where the policy has one, and takes a placebo; what its trait says is refused."""
    file, run = write(tmp_path, "news.py", EXAMPLES["news.py"]), tmp_path / "run"
    chosen = ["--plugin", str(file), "--auxiliary.news.weight", "0.1"]
    placebo = ["--auxiliary.news.placebo", "true", "--auxiliary.news.aggregation", "sequence_mean"]
    assert main(["train", recipe, "--run", str(run), *chosen, *placebo]) == 0
    (update,) = lines(run / "metrics.jsonl")
    assert 0 < update["rows/news"] <= update["episodes"] == 12
    assert update["loss/news"] > 0
    assert update["placebo/news_coincidences"] >= 0
    refused = [["--rollout.layout", "steps"], ["--auxiliary.news.tokens", "all"], ["--auxiliary.news.floor", "0.2"]]
    for more, words in zip(refused, ("needs rollout.layout = 'concat'", "is for rows of", "is above"), strict=True):
        assert main(["train", recipe, "--run", str(tmp_path / "none"), *chosen, *more]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_world_of_a_file_with_a_setting_of_its_own(tmp_path: Path, recipe: str, workers: str) -> None:
    """Of three doors a note names the right one; another process finds the class by its file."""
    file, run = write(tmp_path, "doors.py", EXAMPLES["doors.py"]), tmp_path / "run"
    chosen = ["--plugin", str(file), "--env.name", "doors", "--env.doors.doors", "3", "--env.workers", workers]
    shown = ["--warm_start.demonstrator", "walkthrough", "--train.trajectories", "1", "--eval.final", "6"]
    assert main(["train", recipe, "--run", str(run), *chosen, *shown]) == 0
    assert "[env.doors]\ndoors = 3\n" in (run / "config.toml").read_text()
    assert {line["episodes"] for line in lines(run / "eval.jsonl")} == {6}
    assert main(["eval", str(run), "--plugin", str(file), "--episodes", "6", "--env.doors.doors", "1"]) == 0
    assert envrl.make("doors", doors=3).reset(Task("a", "valid", seed=4)).text.endswith("open door 2.")
    assert main(["check-env", "doors", "--plugin", str(file), "--split", "valid"]) == 0
    with pytest.raises(UserError, match="the world 'doors' has no setting 'door'; did you mean 'doors'"):
        load_recipe(recipe, [("env.name", "doors"), ("env.doors.door", "3")])


def test_a_curriculum_of_a_file_opens_its_next_stage(tmp_path: Path, recipe: str) -> None:
    """The first update is cut off after one step; a win in twenty makes the next one twice as long, up to three."""
    file, run = write(tmp_path, "stages.py", EXAMPLES["stages.py"]), tmp_path / "run"
    chosen = ["--plugin", str(file), "--curriculum.name", "stages", "--curriculum.stages.first", "1"]
    chosen += ["--curriculum.stages.wins", "0.05", "--train.updates", "4", "--train.trajectories_every", "1"]
    assert main(["train", recipe, "--run", str(run), *chosen, "--train.trajectories", "3"]) == 0
    assert "[curriculum.stages]\nfirst = 1\nwins = 0.05\n" in (run / "config.toml").read_text()
    found, expected = [], [1]
    for update, line in enumerate(lines(run / "metrics.jsonl"), 1):
        episodes = lines(run / "trajectories" / f"update-{update:06d}.jsonl")
        found.append(max(len(episode["steps"]) for episode in episodes))
        expected.append(min(3, 2 * expected[-1]) if line["train/success_rate"] >= 0.05 else expected[-1])
    assert found == expected[:-1]
    assert set(found) > {1}


def test_a_replay_of_a_file_adds_an_old_win_to_a_lost_task(tmp_path: Path, recipe: str) -> None:
    load_plugin(write(tmp_path, "wins.py", EXAMPLES["wins.py"]))
    replay = find("replay", "wins").target(Plan(0, 1, 2, 3, 9), age=2)
    task = Task("a", "train")
    step = Transition(Observation("x"), Action("go"), 1.0, Observation("y"), True, True)
    won = Trajectory(task, 0, (step,), (), StopReason.DONE, 1)
    lost = Trajectory(task, 1, (replace(step, reward=0.0, success=False),), (), StopReason.DONE, 1)
    mixed, beaten = TrajectoryGroup(task, (won, lost), 1), TrajectoryGroup(task, (lost, lost), 2)
    assert replay.mix([mixed], 1) == [mixed]
    assert replay.mix([beaten], 2) == [beaten, mixed]
    assert replay.mix([beaten], 3) == [beaten, mixed]
    assert replay.mix([beaten], 4) == [beaten], "it is forgotten after two updates"
    chosen = ["--plugin", str(tmp_path / "wins.py"), "--replay.name", "wins", "--train.updates", "2"]
    assert main(["train", recipe, "--run", str(tmp_path / "run"), *chosen]) == 0


def test_a_prompt_format_of_a_file(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = write(tmp_path, "quoted.py", EXAMPLES["quoted.py"]), tmp_path / "run"
    chosen = ["--plugin", str(file), "--rollout.format", "quoted", "--rollout.quoted.mark", "*"]
    chosen += ["--model.chat_template", "chatml", "--model.context", "1024"]
    assert main(["train", recipe, "--run", str(run), *chosen]) == 2
    assert "rollout.format = 'quoted' is a chat in which the model writes more than its command" in (
        capsys.readouterr().err
    )
    free = [*chosen, "--rollout.actions", "free", "--warm_start.epochs", "8", "--train.trajectories_every", "1"]
    assert main(["train", recipe, "--run", str(run), *free]) == 0
    assert '[rollout.quoted]\nmark = "*"\n' in (run / "config.toml").read_text()
    episodes = lines(run / "trajectories" / "update-000001.jsonl")
    said = [step for episode in episodes for step in episode["steps"]]
    assert {step["response"][:1] == "*" for step in said if "fault" not in step} <= {True}
    assert {step["fault"] for step in said if "fault" in step} <= {"no quotes", "unclosed"}
    assert main(["eval", str(run), "--plugin", str(file), "--episodes", "2"]) == 0


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (
            "'z', 'a', lambda r: envrl.Parsed(command=r), lambda t, c: None",
            "writes a response as None, which is no text",
        ),
        ("'z', 3, lambda r: envrl.Parsed(command=r), lambda t, c: c", "asks by 3, which is no text"),
        ("'z', 'a', lambda r: 1 / 0, lambda t, c: c", "failed (mine.py, line 4: ZeroDivisionError: division by zero)"),
        ("'z', 'a', lambda r: None, lambda t, c: c", "reads a response as NoneType, and not as Parsed"),
        (
            "'z', 'a', lambda r: envrl.Parsed(fault='no'), lambda t, c: c",
            "'look' as 'look' and does not read it as that",
        ),
    ],
)
def test_a_prompt_format_that_fails_is_named_before_the_run(
    form: str, words: str, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"import envrl\n@envrl.register('format', 'z')\ndef z():\n    return envrl.PromptFormat({form})\n"
    chosen = ["--plugin", str(write(tmp_path, "mine.py", text)), "--rollout.format", "z", "--rollout.actions", "free"]
    assert main(["train", recipe, "--run", str(tmp_path / "run"), *chosen, "--model.chat_template", "chatml"]) == 2
    said = capsys.readouterr().err
    assert "the prompt format 'z' " in said
    assert words in said
    assert not (tmp_path / "run").exists()


def test_lists_are_set_on_the_command_line(tmp_path: Path, recipe: str) -> None:
    text = "import envrl\n@envrl.register('replay', 'lists')\nclass Lists:\n"
    text += "    def __init__(self, plan, *, words: list[str] = [], shares: tuple[float, ...] = ()): ...\n"
    load_plugin(write(tmp_path, "mine.py", text))
    given = [("replay.name", "lists"), ("replay.lists.words", "a, b"), ("replay.lists.shares", "1,0.5")]
    assert load_recipe(recipe, given).settings("replay") == {"words": ["a", "b"], "shares": (1.0, 0.5)}


# A run and the file that it was made with


def test_a_sampler_of_a_file(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its draws are what the run records: every token as likely as the others that the commands allow."""
    file, run = write(tmp_path, "coin.py", EXAMPLES["coin.py"]), tmp_path / "run"
    chosen = ["--plugin", str(file), "--rollout.sampler", "coin", "--rollout.coin.salt", "3"]
    assert main(["train", recipe, "--run", str(run), *chosen]) == 0
    assert "[rollout.coin]\nsalt = 3\n" in (run / "config.toml").read_text()
    (line,) = lines(run / "metrics.jsonl")
    assert line["sampler_mismatch"] > 0.1, "it does not ask the model"
    assert (line["train/admissible_action_rate"], line["train/token_mismatches"]) == (1.0, 0)
    model = load_model(run / "warm_start")
    coin = registry.find("sampler", "coin").target(model, "fp32")
    policy, tasks = Policy(renderer_of(model, Form()), coin, model.codec), Boxes().tasks("train")[:4]
    played = play_episodes(policy, Boxes, tasks, [0] * 4, PlaySettings(max_steps=3, temperature=1.0), seed=0)
    actions = [step.action for trajectory in played for step in trajectory.transitions]
    found = [pair for action in actions for pair in zip(action.logprobs, action.allowed, strict=True)]
    assert all(logprob == -math.log(len(allowed or ())) for logprob, allowed in found)
    assert len({len(allowed or ()) for _, allowed in found}) > 1
    capsys.readouterr()
    assert main(["train", recipe, "--run", str(tmp_path / "no"), "--rollout.sampler", "endpoint"]) == 2
    assert "the sampler 'endpoint' gives no log-probs" in capsys.readouterr().err


@pytest.fixture
def made(tmp_path: Path, recipe: str) -> tuple[Path, Path]:
    file, run = write(tmp_path, "bonus.py", EXAMPLES["bonus.py"]), tmp_path / "run"
    assert main(["train", recipe, "--run", str(run), "--plugin", str(file), "--objective.estimator", "bonus"]) == 0
    return file, run


def forget() -> None:
    """Be as a process that has loaded no file."""
    registry._ENTRIES.pop(("estimator", "bonus"))
    registry._LOADED.clear()
    plugins._LOADED.clear()


def test_a_run_never_loads_its_plug_in(
    made: tuple[Path, Path], recipe: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, run = made
    forget()
    for command in (["eval", str(run)], ["train", str(run / "config.toml"), "--run", str(run), "--resume"]):
        assert main(command) == 2
        assert "the run was made with the plug-in 'bonus.py', which a run never loads" in capsys.readouterr().err
    assert ("estimator", "bonus") not in registry._ENTRIES
    assert main(["report", str(run)]) == 0
    assert main(["eval", str(run), "--plugin", str(file), "--episodes", "2"]) == 0
    again = ["train", str(run / "config.toml"), "--run", str(run), "--resume", "--train.updates", "2"]
    assert main([*again, "--objective.bonus.amount", "0.5", "--plugin", str(file)]) == 0
    assert len(lines(run / "metrics.jsonl")) == 2


@pytest.mark.parametrize("place", ["the configuration", "a recipe that it extends"])
def test_a_stranger_s_run_cannot_have_a_file_loaded(
    place: str, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No run that envrl made names a file without its hash, or extends another recipe."""
    run, mark = tmp_path / "run", tmp_path / "mark"
    text = "import envrl\nfrom pathlib import Path\n@envrl.register('estimator', 'evil')\ndef evil(steps): ...\n"
    assert main(["train", recipe, "--run", str(run), "--train.updates", "0"]) == 0
    write(run, "evil.py", f"{text}Path({str(mark)!r}).touch()\n")
    written, named = (run / "config.toml").read_text(), 'plugins = ["evil.py"]\n'
    if place == "the configuration":
        write(run, "config.toml", written.replace("plugins = []\n", named))
    else:
        write(run, "evil.toml", named)
        write(run, "config.toml", 'extends = "evil.toml"\n' + written.replace("plugins = []\n", ""))
    config = str(run / "config.toml")
    looking = [
        ["eval", str(run)],
        ["eval", str(run / "checkpoints" / "latest")],
        ["export", str(run), str(tmp_path / "x")],
    ]
    looking += [["recipes", config], ["doctor", config], ["train", config, "--run", str(run), "--resume"]]
    looking += [["train", recipe, "--run", str(run), "--resume"], ["train", config, "--run", str(tmp_path / "new")]]
    for command in looking:
        capsys.readouterr()
        assert main(command) == 2, command
        assert "'evil.py' is named without the SHA-256 that a run records" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0
    assert not mark.exists()
    with pytest.raises(UserError, match="is named without the SHA-256"):
        load_table({"plugins": ["evil.py"]}, "a record")


def test_a_changed_plug_in_is_refused(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file, run = made
    forget()
    file.write_text(EXAMPLES["bonus.py"] + "\n# changed\n")
    assert main(["train", str(run / "config.toml"), "--run", str(run), "--resume", "--plugin", str(file)]) == 2
    assert "the plug-in 'bonus.py' is another file than the run was made with" in capsys.readouterr().err


def test_a_recipe_names_its_plug_ins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a path that starts from the recipe, in a recipe that it extends as well; `recipes` prints the tables."""
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", "bonus.py", EXAMPLES["bonus.py"])
    write(tmp_path, "plain.py", EXAMPLES["plain.py"])
    write(tmp_path / "below", "base.toml", 'plugins = ["bonus.py"]\n[objective]\nestimator = "bonus"\n')
    extends = 'extends = "below/base.toml"\nplugins = ["plain.py"]\n[objective]\nloss = "plain"\n'
    file = write(tmp_path, "mine.toml", extends + "[objective.bonus]\namount = 2\n")
    assert main(["recipes", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "[objective.bonus]\namount = 2.0\n\n[objective.plain]\nscale = 1.0\n" in printed
    config = load_recipe(str(file))
    assert [pinned.partition("#")[0] for pinned in config.plugins] == ["bonus.py", "plain.py"]
    assert load_recipe(str(write(tmp_path, "again.toml", dump_config(config)))) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def half(", "is not Python (line 1: '(' was never closed)"),
        ("1 / 0", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("raise SystemExit(0)", "cannot be imported (SystemExit: 0)"),
        ("x = 1", "registers nothing"),
        ("x = '\0'", "source code string cannot contain null bytes)"),
        ("import envrl\n@envrl.register('estimator', 'grpo')\ndef mine(steps): ...", "there is already an advantage"),
        ("import envrl\n@envrl.register('estimator', 'ppo')\ndef mine(steps): ...", "there is already a policy loss"),
        ("import envrl\n@envrl.register('auxiliary', 'echo')\ndef mine(groups): ...", "already an auxiliary objective"),
        (
            "import envrl\n@envrl.register('auxiliary', 'policy')\ndef mine(groups): ...",
            "every run has a loss of that name",
        ),
        ("import envrl\n@envrl.register('estimater', 'mine')\ndef mine(steps): ...", "did you mean 'estimator'?"),
        ("import envrl\n@envrl.register('estimator', 'my own')\ndef mine(steps): ...", "is a word, not 'my own'"),
    ],
)
def test_a_file_that_is_no_plug_in(
    text: str, words: str, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(registry._ENTRIES)
    file = write(tmp_path, "mine.py", text)
    assert main(["train", recipe, "--run", str(tmp_path / "run"), "--plugin", str(file)]) == 2
    assert words in capsys.readouterr().err
    assert registry._ENTRIES.keys() <= {*before, *((k, n) for k in registry.KINDS for n in registry.KINDS[k].built_in)}
    assert not (tmp_path / "run").exists()


def test_a_plug_in_that_is_not_there(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--plugin", str(tmp_path / "none.py")]) == 2
    assert "none.py' cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return steps.rewards_N[:-1]", "must return one number a step, 3 in all, not an array of shape (2,)"),
        ("return steps.rewards_N / 0 * 0", "returned nan for step 0"),
        ("return 'none'", "must return an array of numbers, not 'none'"),
        ("return steps.rewards", "failed (mine.py, line 4: AttributeError"),
    ],
)
def test_an_estimator_that_fails_is_named_before_anything_is_played(
    body: str, words: str, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"import envrl\n@envrl.register('estimator', 'mine')\ndef mine(steps):\n    {body}\n"
    file, run = write(tmp_path, "mine.py", text), tmp_path / "run"
    with np.errstate(all="ignore"):
        assert main(["train", recipe, "--run", str(run), "--plugin", str(file), "--objective.estimator", "mine"]) == 2
    said = capsys.readouterr().err
    assert "the advantage estimator 'mine'" in said
    assert words in said
    assert not run.exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("yield 'a text'", "must yield envrl.Example or envrl.InPass, not str ('a text')"),
        ("yield envrl.Example(episode, 3)", "yielded an Example of step 3: the episode has "),
        ("yield envrl.InPass(replace(episode), 0)", "yielded an InPass of an episode that is none of the update's"),
        ("yield envrl.Example(episode, 0, target=1)", "yielded an Example whose target is 1, no text"),
        (
            "yield from iter(lambda: envrl.Example(episode, 0), None)",
            "1,000 examples a step and goes on: it has no end",
        ),
        ("yield episode.nothing", "failed (mine.py, line 5: AttributeError"),
        ("yield envrl.InPass(episode, -1)", "yielded an InPass of step -1: the episode has "),
        ("yield envrl.InPass(episode, 0, 'answer')", "yielded an InPass of the part 'answer'"),
        ("yield envrl.Example(episode, 0, weight=-1.0)", "yielded an Example of weight -1.0: it is a number from 0 on"),
        ("yield envrl.Example(episode, 0, choices='ab')", "yielded an Example whose choices are one text"),
        ("return 3", "failed (TypeError: 'int' object is not iterable)"),
    ],
)
def test_an_auxiliary_objective_that_fails_is_named(
    body: str, words: str, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import envrl\nfrom dataclasses import replace\n@envrl.register('auxiliary', 'mine')\n"
    text += f"def mine(groups):\n    for episode in groups[0].trajectories: {body}\n"
    chosen = ["--plugin", str(write(tmp_path, "mine.py", text)), "--auxiliary.mine.weight", "0.1"]
    assert main(["train", recipe, "--run", str(tmp_path / "run"), "--warm_start.demonstrations", "0", *chosen]) == 2
    said = capsys.readouterr().err
    assert "the auxiliary objective 'mine'" in said
    assert words in said


def test_numbers_of_numpy_are_numbers_and_tokens_in_pass_have_no_question(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import envrl\nimport numpy as np\n@envrl.register('auxiliary', 'mine')\n"
    text += "def mine(groups, *, own: bool = True):\n    for episode in groups[0].trajectories:\n"
    text += "        step, weight = np.int64(0), np.float32(0.5)\n"
    text += "        if own: yield envrl.Example(episode, step, 'How?', 'So.', weight=weight)\n"
    text += "        else: yield envrl.InPass(episode, step, weight=weight)\n"
    chosen = ["--plugin", str(write(tmp_path, "mine.py", text)), "--auxiliary.mine.weight", "0.1"]
    chosen += ["--warm_start.demonstrations", "0", "--auxiliary.mine.tokens", "all"]
    assert main(["train", recipe, "--run", str(tmp_path / "run"), *chosen]) == 0
    (record,) = lines(tmp_path / "run" / "metrics.jsonl")
    assert record["rows/mine"] == 1, "equal questions make one row"
    capsys.readouterr()
    assert main(["train", recipe, "--run", str(tmp_path / "other"), *chosen, "--auxiliary.mine.own", "false"]) == 2
    assert "the auxiliary objective 'mine' has tokens of the policy's own rows, and tokens = 'all' is for" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def mine(groups, *, fraction: float = 1.0): ...", "has a setting 'fraction' of its own, which every one has"),
        ("def mine(groups, *, words: int = 1): ...", "has no setting 'word'; did you mean 'words'?"),
    ],
)
def test_settings_of_an_auxiliary_objective_that_are_refused(
    text: str, words: str, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "mine.py", f"import envrl\n@envrl.register('auxiliary', 'mine')\n{text}\n")
    wrong = ["--auxiliary.mine.word", "1"] if "words" in text else []
    chosen = ["--plugin", str(file), "--auxiliary.mine.weight", "0.1", *wrong]
    assert main(["train", recipe, "--run", str(tmp_path / "run"), *chosen]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_older_version_is_looked_at_and_not_resumed(
    made: tuple[Path, Path], recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its keys are those of before the tables: what gigpo had no use for is left out."""
    run = tmp_path / "older"
    assert main(["train", recipe, "--run", str(run), "--objective.estimator", "gigpo"]) == 0
    new = (run / "config.toml").read_text()
    tables = new.index("[objective.gigpo]"), new.index("[train]")
    keys = 'gamma = 0.9\nstep_weight = 1.0\nstep_norm = "mean"\nbaseline = "steps"\nstd = true\n'
    keys += "clip_low = 0.1\nclip_high = 0.2\ndual_clip = 3.0\n\n"
    (run / "config.toml").write_text((new[: tables[0]] + keys + new[tables[1] :]).replace("plugins = []\n", ""))
    config = load_run(run)
    assert config.settings("estimator") == {
        "gamma": 0.9,
        "step_weight": 1.0,
        "step_norm": "mean",
        "similarity": 1.0,
        "baseline": "steps",
        "std": True,
    }
    assert config.settings("loss") == {"clip_low": 0.1, "clip_high": 0.2, "dual_clip": 3.0}
    assert main(["eval", str(run), "--episodes", "2"]) == 0
    assert main(["report", str(run)]) == 0
    assert main(["report", str(run), "--results", str(tmp_path / "older.json")]) == 0
    assert main(["export", str(run), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "older.json"), str(run)]) == 2
    assert "are of one configuration and one seed" in capsys.readouterr().err
    for named in (recipe, str(run / "config.toml")):  # the second holds keys that are gone
        assert main(["train", named, "--run", str(run), "--objective.estimator", "gigpo", "--resume"]) == 2
        assert "made by an older version of envrl and cannot be resumed" in capsys.readouterr().err


def test_auxiliary_losses_of_an_older_version(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were keys of two sections; of one without a weight nothing is said, and the warm start had no schedule."""
    run = tmp_path / "older"
    assert main(["train", recipe, "--run", str(run), "--warm_start.epochs", "1"]) == 0
    text = (run / "config.toml").read_text()
    keys = 'state_weight = 0.1\nstate_rows = "in_pass"\nstate_fraction = 0.2\ninverse_weight = 0.0\nplacebo = false\n'
    warm = "state_weight = 0.0\ninverse_weight = 0.3\nfraction = 0.15\n"
    text = text.replace("[objective]\n", f"[objective]\n{keys}").replace("[warm_start]\n", f"[warm_start]\n{warm}")
    (run / "config.toml").write_text(text)
    config = load_run(run)
    (echo,), (inverse,) = config.auxiliaries(), config.auxiliaries("warm_start")
    assert (echo.name, echo.common) == ("echo", AuxiliaryConfig(weight=0.1, fraction=0.2))
    assert (inverse.name, inverse.common.weight, inverse.common.fraction) == ("inverse", 0.3, 0.15)
    assert (inverse.common.schedule, inverse.common.deduplicate) == ("constant", False)
    assert main(["eval", str(run), "--episodes", "2"]) == 0
    assert main(["report", str(run)]) == 0
    capsys.readouterr()
    assert main(["train", recipe, "--run", str(run), "--resume"]) == 2
    assert "made by an older version of envrl and cannot be resumed" in capsys.readouterr().err
    assert main(["train", str(run / "config.toml"), "--run", str(tmp_path / "new")]) == 2
    assert "warm_start.auxiliary.state.weight, or warm_start.auxiliary.echo.weight in the" in capsys.readouterr().err


# What may be set


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("objective.gigpo.gamma", "0.9"), "and objective.estimator = 'grpo' is chosen"),
        (("objective.grpo.baselin", "steps"), "the advantage estimator 'grpo' has no setting 'baselin'; did you mean"),
        (("objective.grpo.baseline", "step"), "objective.grpo.baseline must be one of 'trajectories', 'steps', not"),
        (("objective.gamma", "0.9"), "it is a setting of what is chosen, written objective.gigpo.gamma"),
        (("objective.clip_low", "0.1"), "written objective.ppo.clip_low or objective.gspo.clip_low or objective.cispo"),
        (("objective.ppo.clip_high", "-1"), "objective.ppo.clip_high must be a number of at least 0, not -1"),
        (("objective.estimator", "gripo"), "unknown advantage estimator 'gripo'; did you mean 'grpo'?"),
        (("objective.gripo.std", "true"), "unknown key 'objective.gripo.std'"),
    ],
)
def test_a_setting_that_its_owner_does_not_have(arguments: tuple[str, str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        load_recipe("household-demo", [arguments])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("amount: int = None", "must be a whole number, and its default is None"),
        ("amount: float = float('inf')", "must be a number, and its default is inf"),
        ("amount: Positive = 0", "must be a whole number of at least 1, and its default is 0"),
        ("amount: 'int | None' = None", "has a type that no recipe can hold: docs/extend.md says which can"),
        ("amount: set = set()", "has a type that no recipe can hold"),
    ],
)
def test_a_setting_that_no_recipe_can_hold(
    setting: str, words: str, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its run could never be read again."""
    text = "import envrl\nfrom envrl.ranges import Positive\n@envrl.register('estimator', 'mine')\n"
    file = write(tmp_path, "mine.py", f"{text}def mine(steps, *, {setting}): return steps.rewards_N\n")
    chosen = ["--plugin", str(file), "--objective.estimator", "mine"]
    assert main(["train", recipe, "--run", str(tmp_path / "run"), *chosen]) == 2
    assert f"the setting 'amount' of the advantage estimator 'mine' {words}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ("gt=0, lt=1", "above 0 and below 1"),
        ("le=1", "of at most 1"),
        ("lt=1", "below 1"),
        ("ge=0, lt=1", "of at least 0 and below 1"),
    ],
)
def test_a_range_of_ones_own_is_said_whole(meta: str, words: str, tmp_path: Path) -> None:
    text = (
        "import envrl\nfrom typing import Annotated\nfrom msgspec import Meta\n@envrl.register('estimator', 'mine')\n"
    )
    text += f"def mine(steps, *, amount: Annotated[float, Meta({meta})] = 0.5): return steps.rewards_N\n"
    load_plugin(write(tmp_path, "mine.py", text))
    with pytest.raises(UserError, match=f"objective.mine.amount must be a number {words}, not 9"):
        load_recipe("household-demo", [("objective.estimator", "mine"), ("objective.mine.amount", "9")])


def test_the_help_of_a_recipe_has_the_settings_of_what_it_chooses(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "bonus.py", EXAMPLES["bonus.py"])
    chosen = ["--plugin", str(file), "--objective.estimator", "bonus", "--objective.bonus.amount", "0.25"]
    assert main(["train", recipe, *chosen, "--help"]) == 0
    printed = capsys.readouterr().out
    meaning = "added to the return of an episode that took fewer steps than its group does on average"
    assert f"  --objective.bonus.amount 0.25\n      a number of at least 0: {meaning}\n" in printed
    assert "--objective.ppo.clip_low 0.2\n      a number from 0 to 1: the ratio" in printed
    assert "--objective.grpo" not in printed
    assert main(["train", "--help"]) == 0
    assert "--objective" not in capsys.readouterr().out
    assert main(["train", "--run", "x", "--help"]) == 0
    assert main(["train", recipe, "--help", "--objective.estimator", "bonos"]) == 2
    assert "did you mean 'bonus'?" in capsys.readouterr().err


def test_a_value_that_the_loss_itself_refuses(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--run", str(tmp_path / "run"), "--objective.ppo.dual_clip", "0.5"]) == 2
    assert "dual_clip must be above 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_choice_drops_the_table_of_the_one_before(tmp_path: Path) -> None:
    base = write(tmp_path, "base.toml", "[objective.grpo]\nstd = false\n")
    over = write(tmp_path, "over.toml", 'extends = "base.toml"\n[objective]\nestimator = "gigpo"\n')
    assert load_recipe(str(base)).settings("estimator") == {"baseline": "trajectories", "std": False}
    assert load_recipe(str(over)).settings("estimator")["std"] is True
    assert load_recipe(str(base), [("objective.estimator", "rloo")]).settings("estimator") == {
        "baseline": "trajectories"
    }
    both = write(tmp_path, "both.toml", '[objective]\nestimator = "rloo"\n[objective.grpo]\nstd = false\n')
    with pytest.raises(UserError, match=r"objective.grpo.std \(in '.*both.toml'\) sets the advantage estimator 'grpo'"):
        load_recipe(str(both))
    unknown = write(tmp_path, "unknown.toml", "[objective.grop]\nstd = false\n")
    with pytest.raises(UserError, match=r"unknown table \[objective.grop\] in .*; did you mean 'objective.grpo'\?"):
        load_recipe(str(unknown))


def test_an_estimator_that_compares_nothing_takes_groups_of_one(tmp_path: Path, recipe: str) -> None:
    text = "import envrl\n@envrl.register('estimator', 'mine')\ndef mine(steps):\n    return steps.rewards_N - 0.5\n"
    file = write(tmp_path, "mine.py", text)
    chosen = ["--objective.estimator", "mine", "--rollout.group_size", "1"]
    assert main(["train", recipe, "--run", str(tmp_path / "run"), "--plugin", str(file), *chosen]) == 0
    (update,) = lines(tmp_path / "run" / "metrics.jsonl")
    assert update["rows/policy"] == 3
    with pytest.raises(UserError, match=r"rollout\.group_size must be at least 2, not 1: 'rloo' compares"):
        load_recipe(recipe, [("objective.estimator", "rloo"), ("rollout.group_size", "1")])


# Where things come from


def test_entry_points_are_found_and_their_names_stand_in_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(
        tmp_path, "of_a_package.py", "def halved(steps, *, share: float = 0.5):\n    return share * steps.rewards_N\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("halved", "of_a_package:halved", "envrl.estimators")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] * (group == "envrl.estimators"))
    registry._points.cache_clear()
    assert names("estimator") == [
        "gae",
        "gigpo",
        "graphgpo",
        "grpo",
        "halved",
        "hgpo",
        "hiper",
        "maxrl",
        "poad",
        "reinforce++",
        "reinforce++-baseline",
        "rloo",
        "spa",
        "stratified",
    ]
    assert "of_a_package" not in sys.modules
    assert [each.tolist() for each in ESTIMATORS["halved"]([[1.0, 2.0]], [["a", "b"]])] == [[0.5, 1.0]]
    assert load_recipe("household-demo", [("objective.estimator", "halved")]).settings("estimator") == {"share": 0.5}
    with pytest.raises(UserError, match="did you mean 'halved'"):
        find("estimator", "halve")
    monkeypatch.undo()
    registry._points.cache_clear()


def test_registering_loads_no_torch() -> None:
    code = (
        "import envrl, sys\n@envrl.register('loss', 'mine')\ndef mine(a, b, c, d, *, scale: float = 1.0): ...\n"
        "from envrl.config.load import load_recipe\n"
        "print(load_recipe('household-demo', [('objective.loss', 'mine')]).settings('loss'), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "{'scale': 1.0} False\n"


def test_settings_are_the_keyword_only_parameters() -> None:
    class Curious:
        def __init__(self, first: int, *, second: int = 2, third: str = "c") -> None:  # of no setting
            """Settings by keyword."""

    entry: Entry = Entry("estimator", "curious", Curious)
    assert {name: (s.annotation, s.default) for name, s in entry.settings.items()} == {
        "second": (int, 2),
        "third": (str, "c"),
    }
    gamma = find("estimator", "gigpo").settings["gamma"]
    assert (gamma.default, gamma.meaning) == (0.95, "discount of step returns")


def test_a_name_is_taken_once() -> None:
    register("estimator", "mine")(lambda steps: steps.rewards_N)
    with pytest.raises(UserError, match="there is already a"):
        register("estimator", "mine")(print)
