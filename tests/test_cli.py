"""The command line: bad input is one sentence, status 2 and nothing written; and what each command passes on."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from envrl.cli import main as cli
from envrl.cli.arguments import split_overrides
from envrl.cli.main import COMMANDS, main
from envrl.cli.words import evaluation_lines
from envrl.config.keys import KEYS
from envrl.config.load import dump_config, load_recipe
from envrl.errors import Interrupted, RunError, UserError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts in an empty folder, so that anything written by mistake shows."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


Replace = Callable[[str, str, Callable[..., Any]], None]


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Put a function in place of the one that a command would import: only the command line is tested here."""

    def replace(module: str, name: str, function: Callable[..., Any]) -> None:
        stand_in = ModuleType(module)
        setattr(stand_in, name, function)
        monkeypatch.setitem(sys.modules, module, stand_in)

    return replace


def recorder(calls: list[Any], answer: Any = None) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return answer

    return record


WRONG = [
    ([], "no command given"),
    (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    (["physician"], "unknown command 'physician'; choose from bench, check-env"),
    (["--verbose"], "unknown option '--verbose'"),
    (["train"], "the following arguments are required: RECIPE"),
    (["train", "household-dmeo"], "unknown recipe 'household-dmeo'; did you mean 'household-demo'?"),
    (["train", "gone.toml"], "there is no recipe file 'gone.toml'"),
    (["train", "household-demo", "again"], "unexpected argument 'again'"),
    (["train", "household-demo", "--plugins", "x.py"], "unknown option '--plugins'; did you mean '--plugin'?"),
    (["train", "household-demo", "--rnu", "x"], "unknown option '--rnu'; did you mean '--run'?"),
    (["train", "household-demo", "--updates", "3"], "did you mean '--train.updates'?"),
    (["train", "household-demo", "--train.updates"], "--train.updates needs a value"),
    (["train", "household-demo", "--train.updates", "--resume"], "--train.updates needs a value"),
    (["train", "household-demo", "--train.updats", "3"], "did you mean 'train.updates'?"),
    (
        ["train", "household-demo", "--train.updates", "-3"],
        "train.updates must be a whole number of at least 0, not -3",
    ),
    (
        ["train", "household-demo", "--auxiliary.state.weight=11"],
        "auxiliary.state.weight must be a number from 0 to 10",
    ),
    (["train", "household-demo", "--seed", "one"], "seed must be a whole number of at least 0, not 'one'"),
    (["train", "household-demo", "--run="], "--run needs the name of a directory"),
    (["eval"], "the following arguments are required: TARGET"),
    (["eval", "random", "--episodes", "0"], "must be 'all' or a whole number of at least 1, not '0'"),
    (["eval", "random", "--episodes", "some"], "not 'some'"),
    (["eval", "random", "--temperature", "-1"], "--temperature: must be a number of at least 0, not '-1'"),
    (["eval", "random", "--temperature", "nan"], "--temperature: must be a number of at least 0, not 'nan'"),
    (["eval", "random", "--split", "a,,b"], "--split: must be names separated by commas"),
    (["eval", "random", "--actions", "any"], "'any'"),
    (["eval", "random", "--json", "gone/x.json"], "make gone first"),
    (["eval", "random", "--json", "."], "--json . is a folder"),
    (["report"], "the following arguments are required: RUN"),
    (["report", "gone"], "gone is not a run"),
    (["play"], "the following arguments are required: ENV"),
    (["play", "household", "--index", "-1"], "--index: must be a whole number of at least 0, not '-1'"),
    (["bench", "envs", "household"], "unknown benchmark 'envs'; did you mean 'env'?"),
    (["bench", "env"], "the following arguments are required: NAME"),
    (["check-env"], "the following arguments are required: ENV"),
    (["recipes", "alfworld-gpro"], "unknown recipe 'alfworld-gpro'; did you mean 'alfworld-grpo'?"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[" ".join(arguments) or "nothing" for arguments, _ in WRONG])
def test_wrong_input_is_one_sentence_and_status_2_and_nothing_written(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("envrl: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(empty_folder.iterdir()) == []


def test_help_lists_the_commands_and_each_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in text
        assert main([command, "--help"]) == 0
        assert f"usage: envrl {command} " in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "envrl 0.1.0\n"


def test_recipes_lists_them_and_prints_one_that_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    recipes, _, methods = capsys.readouterr().out.partition("the key for it:")
    assert any(line.startswith("household-demo ") and "make demo" in line for line in recipes.splitlines())
    kinds = dict(re.findall(r"^(\S+) {2,}(.+)$", methods, re.M))
    assert {"gae", "gigpo"} <= set(kinds["objective.estimator"].split(", "))
    assert kinds["[regularizer.NAME]"] == "epo"
    assert main(["recipes", "alfworld-placebo"]) == 0
    Path("one.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe("one.toml") == load_recipe("alfworld-placebo")


# What the commands pass on


def test_train_passes_configuration_directory_and_resume(replaced: Replace) -> None:
    calls: list[Any] = []
    replaced("envrl.trainer.loop", "train", recorder(calls))
    Path("mine.toml").write_text('extends = "household-demo"\n', encoding="utf-8")
    Path("a/b").mkdir(parents=True)
    Path("a/b/config.toml").touch()
    assert main(["train", "--train.updates", "3", "mine.toml", "--seed=4", "--eval.split", "valid_seen"]) == 0
    assert main(["train", "household-demo", "--run", "a/b", "--resume"]) == 0
    (config, run, resume), _ = calls[0]
    assert (config.train.updates, config.seed, config.eval.split) == (3, 4, ("valid_seen",))
    assert (run, resume) == (Path("runs/mine"), False)
    assert calls[1][0] == (load_recipe("household-demo"), Path("a/b"), True)


def test_overrides_are_told_from_options_wherever_they_stand() -> None:
    given = ["--a.b", "1", "recipe", "--run", "x.y/z", "--c.d=e=f", "--run=./r", "--seed", "-1", "-v"]
    overrides, rest = split_overrides(given, KEYS)
    assert overrides == [("a.b", "1"), ("c.d", "e=f"), ("seed", "-1")]
    assert rest == ["recipe", "--run", "x.y/z", "--run=./r", "-v"]


RECORD = {
    "split": "valid_seen",
    "episodes": 140,
    "success_rate": 0.7214,
    "ci95": [0.642, 0.789],
    "turns": 11.26,
    "by_task": {"pick_two": {"episodes": 24, "success_rate": 0.5, "ci95": [0.314, 0.686]}},
    "valid_action_rate": 0.998,
    "admissible_action_rate": 1.0,
    "free/episodes": 64,
    "free/success_rate": 0.5,
    "free/valid_action_rate": 0.75,
    "state_nll": 0.1234,
    "inverse_accuracy": 0.975,
}


def test_eval_passes_its_options_prints_rates_and_writes_json(
    replaced: Replace, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    calls: list[Any] = []
    replaced("envrl.eval.evaluate", "evaluate", recorder(calls, [RECORD]))
    options = "--env alfworld --data d --split a,b --episodes 7 --temperature 0 --actions free --seed 3 "
    options += "--protocol published --json out.json"
    assert main(["eval", "runs/x", *options.split()]) == 0
    assert main(["eval", "random", "--episodes", "all"]) == 0
    passed = {"env": "alfworld", "data": "d", "split": ("a", "b"), "episodes": 7, "temperature": 0.0}
    passed |= {"protocol": "published", "episodes_to": None, "memory": True}
    assert all(callable(given.pop("so_far")) for _, given in calls)
    assert calls[0] == (("runs/x",), {**passed, "actions": "free", "seed": 3, "settings": []})
    assert calls[1] == (("random",), {**dict.fromkeys([*passed, "actions", "seed"]), "memory": True, "settings": []})
    assert json.loads(Path("out.json").read_text(encoding="utf-8")) == [RECORD]
    assert [path.name for path in empty_folder.iterdir()] == ["out.json"]
    assert "valid_seen: 72.1 % (64.2 to 78.9) of 140 episodes" in capsys.readouterr().out


def test_a_failed_eval_leaves_an_older_json_as_it_was(replaced: Replace, empty_folder: Path) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise UserError("no such split")

    replaced("envrl.eval.evaluate", "evaluate", fails)
    Path("out.json").write_text("old", encoding="utf-8")
    assert main(["eval", "random", "--json", "out.json"]) == 2
    assert Path("out.json").read_text(encoding="utf-8") == "old"
    assert len(list(empty_folder.iterdir())) == 1


def test_an_evaluation_in_words() -> None:
    assert evaluation_lines(RECORD) == [
        "valid_seen: 72.1 % (64.2 to 78.9) of 140 episodes",
        "  pick_two  50.0 % (31.4 to 68.6) of 24",
        "  11.3 turns an episode; valid actions 99.8 %; admissible 100.0 %",
        "  unrestricted, 64 episodes: success 50.0 %; valid actions 75.0 %",
        "  state prediction 0.123 nats a token; acts recognised 97.5 %",
    ]


def test_report_prints_what_was_learned_and_where_the_file_is(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/config.toml").write_text(dump_config(load_recipe("household-demo")), encoding="utf-8")
    lines = [
        json.dumps({**RECORD, "stage": "rl", "update": update, "success_rate": update / 100}) for update in (0, 60)
    ]
    Path("run/eval.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main(["report", "run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "valid_seen" in said[0]
    assert "60 updates" in said[0]
    assert said[-1] == f"report: {Path('run/report.html')}"
    assert Path("run/report.html").stat().st_size > 0


def test_bench_prints_json(replaced: Replace, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    replaced("envrl.envs.bench", "bench_env", recorder(calls, {"steps_per_second": 123456.7}))
    assert main(["bench", "env", "household", "--seconds", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out) == {"steps_per_second": 123456.7}
    assert calls == [(("household",), {"data": None, "seconds": 0.5})]


# On the household world itself


def test_a_walkthrough_wins_every_generated_game(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "eval walkthrough --env household --split valid_seen,valid_unseen --episodes 3 --json walk.json"
    assert main(asked.split()) == 0
    records = json.loads(Path("walk.json").read_text(encoding="utf-8"))
    assert [(r["split"], r["episodes"], r["success_rate"]) for r in records] == [
        ("valid_seen", 3, 1.0),
        ("valid_unseen", 3, 1.0),
    ]
    # Wilson's interval of 3 out of 3 at 95 %: the lower end is 3 / (3 + 1.96 ** 2).
    assert "valid_seen: 100.0 % (43.9 to 100.0) of 3 episodes" in capsys.readouterr().out


def test_the_household_keeps_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "household"]) == 0
    assert capsys.readouterr().out.endswith("household keeps the contract\n")


def test_a_person_plays(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("inventory\nquit\n"))
    assert main(["play", "household", "--split", "valid_seen", "--index", "2"]) == 0
    assert "You are not carrying anything." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("eval random --env househol", "unknown world 'househol'; did you mean 'household'?"),
        ("eval random --env household --split valid_sen", "valid_sen"),
        ("eval random --env alfworld --data gone", "gone"),
        ("eval gone", "gone"),
        ("play househol", "did you mean 'household'?"),
        ("play household --index 99999999", "99999999"),
        ("check-env alfworld --data gone", "gone"),
        ("bench env alfworld --data gone", "gone"),
        ("bench env household --seconds 0", "more than 0 seconds"),
        ("train household-demo --env.name househol", "unknown world 'househol'; did you mean 'household'?"),
        ("train household-demo --env.split trian", "trian"),
        ("train household-demo --objective.estimator grppo", "'grppo'; did you mean 'grpo'?"),
        ("train household-demo --objective.loss pop", "'pop'"),
        ("train household-demo --train.device cuda:99", "cuda:99"),
        ("train household-demo --model.path gone", "gone"),
        ("train household-demo --warm_start.path gone", "gone"),
        ("train household-demo --run gone --resume", "gone"),
        ("train alfworld-grpo --env.data gone", "gone"),
    ],
)
def test_what_only_the_world_or_the_trainer_knows_to_be_wrong(
    asked: str, said: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert main(asked.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("envrl: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(empty_folder.iterdir()) == []


def test_a_run_directory_that_exists_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/household-demo").mkdir(parents=True)
    assert main(["train", "household-demo"]) == 2
    assert "exists and is not a run" in capsys.readouterr().err
    assert list(Path("runs/household-demo").iterdir()) == []
    Path("runs/household-demo/config.toml").write_text("seed = 3\n", encoding="utf-8")
    assert main(["train", "household-demo"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert Path("runs/household-demo/config.toml").read_text(encoding="utf-8") == "seed = 3\n"


# How a command ends


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("two\n  lines"), 2, "envrl: two lines\n"),
        (RunError("disk full"), 1, "envrl: disk full\n"),
        (Interrupted("saved; go on with --resume"), 130, "envrl: saved; go on with --resume\n"),
        (KeyboardInterrupt(), 130, "envrl: interrupted\n"),
    ],
)
def test_exit_status(
    error: BaseException, status: int, said: str, replaced: Replace, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise error

    replaced("envrl.trainer.loop", "train", fails)
    assert main(["train", "household-demo"]) == status
    assert capsys.readouterr().err == said


def test_a_defect_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([])


# In a process of its own


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options)

    return run


@pytest.mark.parametrize("command", ["", "from envrl.cli.main import main; main(['--help']); main(['recipes'])"])
def test_neither_import_nor_help_pulls_in_torch(command: str, python: Callable[..., Any]) -> None:
    check = "import envrl, sys; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'pulled in'"
    done = python("-c", f"{command or 'pass'}; {check}")
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_envrl_is_the_command_line(python: Callable[..., Any]) -> None:
    done = python("-m", "envrl", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "envrl: unknown command 'trian'; did you mean 'train'?\n"


def test_a_reader_that_has_gone_makes_no_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "envrl", "recipes"], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_that_is_not_utf_8_is_no_error(python: Callable[..., Any]) -> None:
    done = python("-m", "envrl", "--help", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: envrl COMMAND ?" in done.stdout


@pytest.mark.parametrize("command", ["recipes", "doctor", "train", "eval", "report", "compare", "export"])
@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a" * 5000])
def test_a_name_that_no_file_can_have_is_the_users_mistake(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, name, *(["x"] if command == "export" else [])]) == 2
    said = capsys.readouterr().err
    assert re.match(r"envrl: .*(is no text that a file's name could have|File name too long)", said)
    assert len(said) < 6000
