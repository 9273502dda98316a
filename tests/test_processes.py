"""`envrl train … --processes N`: whole runs in several processes beside the same runs in one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from envrl.cli.launch import OTHERS, cause
from envrl.cli.main import main
from envrl.models.checkpoints import verify_checkpoint
from warm import envrl, together

SETTINGS = {
    "model.hidden_size": 32,
    "model.layers": 2,
    "env.max_steps": 8,
    "env.subgoal_reward": 0.3,
    "train.threads": 1,
    "train.trajectories": 2,
    "train.updates": 4,
    "warm_start.demonstrations": 30,
    "warm_start.epochs": 1,
    "warm_start.held_out": 2,
    "auxiliary.echo.schedule": "constant",
    "auxiliary.inverse.schedule": "constant",
    "auxiliary.inverse.select": "novel",
    "auxiliary.inverse.fraction": 0.3,
    "auxiliary.inverse.reservoir": 60,
    "rollout.tasks": 3,
    "rollout.group_size": 4,
    "rollout.max_steps": 8,
    "eval.every": 2,
    "eval.split": "valid_seen",
    "eval.episodes": 2,
    "eval.final": 2,
    "eval.free_episodes": 0,
    "eval.probe_episodes": 0,
    "checkpoint.every": 2,
    "checkpoint.keep": 5,
}


def command(run: Path, *others: object, **settings: object) -> list[str]:
    arguments = [text for key, value in (SETTINGS | settings).items() for text in (f"--{key}", str(value))]
    return ["train", "household-demo", "--run", str(run), *map(str, others), *arguments]


def train(run: Path, *others: object, **settings: object) -> None:
    done = envrl(*command(run, *others, **settings))
    assert done.returncode == 0, done.stderr[-3000:]


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Return a file's lines without what two equal runs may differ in."""
    parsed = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "rate", "memory")} for line in parsed]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`two`: in two processes; `half` likewise, of two updates."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "two", "--processes", 2)
    train(folder / "half", "--processes", 2, **{"train.updates": 2})
    return folder


def test_two_processes_play_and_learn_what_one_does(runs: Path) -> None:
    """The same episodes, drawn from the same keys, and the same figures to rounding in fp32; the files are of one."""
    train(runs / "local")
    two, one = lines(runs / "two"), lines(runs / "local")
    assert len(two) == 4
    chosen = ("rows/inverse", "rows/inverse_new", "rows/inverse_earlier")
    for line, other in zip(two, one, strict=True):
        for key in ("tokens", "train/steps", "train/return", "rows/policy", "env_steps", *chosen):
            assert line[key] == other[key]
        assert line["loss/inverse"] == pytest.approx(other["loss/inverse"], rel=2e-4)  # after a warm start, rounded
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
        assert line["train/token_mismatches"] == 0
    for line, other in zip(lines(runs / "two", "eval.jsonl"), lines(runs / "local", "eval.jsonl"), strict=True):
        for key in ("update", "episodes", "success_rate", "score", "turns", "by_task"):
            assert line[key] == other[key]
    imitated, alone = lines(runs / "two", "warm_start.jsonl"), lines(runs / "local", "warm_start.jsonl")
    assert len(imitated) == len(alone) == 3
    for line, other in zip(imitated, alone, strict=True):
        assert line["tokens"] == other["tokens"]
        assert line["loss/imitation"] == pytest.approx(other["loss/imitation"], rel=1e-3)
    names = {path.relative_to(runs / "two").as_posix() for path in (runs / "two").rglob("*") if path.is_file()}
    assert names == {
        path.relative_to(runs / "local").as_posix() for path in (runs / "local").rglob("*") if path.is_file()
    }
    verify_checkpoint(runs / "two" / "checkpoints" / "latest")


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_goes_on_in_any_number_of_processes(count: int, runs: Path, tmp_path: Path) -> None:
    """In as many as before bit for bit; in one as by a single process from its beginning, to rounding."""
    shutil.copytree(runs / "half", tmp_path / "half", symlinks=True)
    train(tmp_path / "half", "--processes", count, "--resume")
    found, expected = lines(tmp_path / "half"), lines(runs / "two")
    if count == 2:
        assert found == expected
        assert lines(tmp_path / "half", "eval.jsonl")[-1] == lines(runs / "two", "eval.jsonl")[-1]
    else:
        assert [line["tokens"] for line in found] == [line["tokens"] for line in expected]
        assert found[-1]["grad_norm"] == pytest.approx(expected[-1]["grad_norm"], rel=1e-2)
    assert len(found) == 4


def test_a_run_of_another_engine_is_refused(runs: Path, tmp_path: Path) -> None:
    """In one process, and in several, whose configurations are compared with that of an engine of one process."""
    shutil.copytree(runs / "half", tmp_path / "half", symlinks=True)
    config = tmp_path / "half" / "config.toml"
    config.write_text(config.read_text().replace('engine = "sharded"', 'engine = "local"'))
    done = envrl(*command(tmp_path / "half", "--resume", "--processes", 2, **{"train.updates": 2}))
    assert done.returncode == 2
    assert "was started with another configuration (other values of train.engine" in done.stderr
    assert "were started together" not in done.stderr


BREAKS = """
import os

import envrl


@envrl.register("curriculum", "breaks")
class Breaks:
    def __init__(self, tasks, plan):
        self.tasks, self.plan = tasks, plan

    def next(self, update):
        if update == 2 and os.environ["RANK"] == "0":
            raise ValueError("no more")
        return [envrl.Assignment(task, self.plan.group_size) for task in self.tasks[: self.plan.tasks]]

    def state(self):
        return None

    def load(self, state): ...
"""


def test_where_one_process_fails_the_run_has_its_status_and_sentence(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text(BREAKS)
    plugin = ["--processes", 2, "--plugin", tmp_path / "breaks.py"]
    done = envrl(*command(tmp_path / "run", *plugin, **{"curriculum.name": "breaks"}))
    assert done.returncode == 2, done.stderr[-3000:]
    assert "the curriculum 'breaks' failed (breaks.py" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "torch/distributed" not in done.stderr


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ([(5, 1), (6, 2)], 2),
        ([(5, 1), (6, -9)], -9),
        ([(5, -15), (6, 1)], -15),
        ([(5, -15), (6, 2)], 2),
        ([(5, OTHERS), (6, 1)], 1),
        ([(5, OTHERS), (6, -9)], -9),
        ([(5, OTHERS), (6, OTHERS)], OTHERS),
    ],
)
def test_the_status_is_that_of_the_process_that_failed(ends: list[tuple[int, int]], status: int) -> None:
    assert cause(ends) == status


SHORT_OF_MEMORY = """
import torch

import envrl
from envrl import ranks
from envrl.engine import update

whole = update.micro_loss


def limited(model, rows, totals, denominator, settings, *rest):
    room = 400 if "policy" in denominator else 800
    if ranks.number() == 1 and settings.micro_batch_tokens > room:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return whole(model, rows, totals, denominator, settings, *rest)


update.micro_loss = limited


@envrl.register("estimator", "unused")
def unused(steps): ...
"""


def test_memory_that_runs_out_in_one_process_halves_the_budget_of_all(runs: Path, tmp_path: Path) -> None:
    """One process has less room, in the warm start and again in RL; the run goes on, and learns the same."""
    plugin = tmp_path / "short.py"
    plugin.write_text(SHORT_OF_MEMORY)
    asked = command(tmp_path / "run", "--processes", 2, "--plugin", plugin, **{"train.micro_batch_tokens": 1600})
    done = envrl(*asked)
    assert done.returncode == 0, done.stderr[-3000:]
    again = "envrl: memory ran out in one of the 2 processes; they go on from the last checkpoint"
    assert f"{again} with train.micro_batch_tokens = 800\n" in done.stderr
    assert f"{again} with train.micro_batch_tokens = 400\n" in done.stderr
    assert done.stderr.count(again) == 2
    assert "Traceback" not in done.stderr
    found, expected = lines(tmp_path / "run"), lines(runs / "two")
    assert [line["tokens"] for line in found] == [line["tokens"] for line in expected]
    assert found[-1]["loss/inverse"] == pytest.approx(expected[-1]["loss/inverse"], rel=1e-3)


DICE = """
import random

import envrl


@envrl.register("curriculum", "dice")
class Dice:
    def __init__(self, tasks, plan):
        self.tasks, self.plan = tasks, plan

    def next(self, update):
        return [envrl.Assignment(task, self.plan.group_size) for task in random.sample(self.tasks, self.plan.tasks)]
"""


def test_a_curriculum_that_plans_otherwise_in_each_process_is_refused(tmp_path: Path) -> None:
    plugin = tmp_path / "dice.py"
    plugin.write_text(DICE)
    done = envrl(*command(tmp_path / "run", "--processes", 2, "--plugin", plugin, "--curriculum.name", "dice"))
    assert done.returncode == 2, done.stderr[-3000:]
    assert "the curriculum 'dice' plans other episodes in each process" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_launcher_leaves_its_own_process_as_it_was(tmp_path: Path) -> None:
    """Where a program launches two runs one after the other, it is none of the first one's processes."""
    plugin = tmp_path / "dice.py"
    plugin.write_text(f'import os\n\nif "RANK" in os.environ:\n    raise ValueError\n{DICE}')
    before, handlers = dict(os.environ), [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    asked = command(tmp_path / "run", "--processes", 1, "--plugin", plugin, "--curriculum.name", "dice")
    assert main(asked) == 2
    assert dict(os.environ) == before
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not (tmp_path / "run").exists()


def test_processes_with_other_recipes_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "unlike.py"
    asked = command(tmp_path / "run", "--train.engine", "sharded")
    script.write_text(
        f"import os, sys\nfrom envrl.cli.main import main\nsys.exit(main([*{asked}, '--seed', os.environ['RANK']]))\n"
    )
    done = together(2, str(script))
    assert done.returncode != 0
    assert "process 1 has another recipe than process 0: other values of seed" in done.stderr
    assert not (tmp_path / "run").exists()


def children(of: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def begun(run: Path) -> subprocess.Popen[str]:
    """Start a long run in two processes, as a shell does, and wait for its first update."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    long = command(run, "--processes", 2, **{"train.updates": 500, "checkpoint.every": 1, "eval.every": 0})
    process = subprocess.Popen(
        [sys.executable, "-m", "envrl", *long],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    for _ in range(1200):
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= 1:
            return process
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("no update within two minutes")


@pytest.mark.parametrize("how", ["ctrl-c", "killed"])
def test_a_run_that_is_stopped_or_loses_a_process_has_a_good_checkpoint(how: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = begun(run)
    ranks = children(process.pid)
    assert len(ranks) == 2
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(ranks[1], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert "Traceback" not in said, said[-3000:]
    assert "torch/distributed" not in said
    assert process.returncode == (130 if how == "ctrl-c" else 1), said[-3000:]
    verify_checkpoint(run / "checkpoints" / "latest")
    state = json.loads((run / "checkpoints" / "latest" / "state.json").read_text())
    if how == "ctrl-c":
        assert "interrupted; saved" in said
        assert state["update"] == len(lines(run))
    else:
        assert "ended by signal 9" in said


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (["--processes", "0"], "--processes must be at least 1, not 0"),
        (["--processes", "2", "--train.engine", "local"], "train.engine = 'local' is an engine of one"),
        (["--processes", "two"], "must be a whole number"),
    ],
)
def test_mistakes_are_sentences(
    others: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "run", *others)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_processes_of_an_engine_for_one_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(command(tmp_path / "run")) == 2
    assert (
        "4 processes were started together, and train.engine = 'local' is an engine of one" in capsys.readouterr().err
    )
    assert main(command(tmp_path / "run", "--processes", 2)) == 2
    assert "leave it out under torchrun" in capsys.readouterr().err


def test_two_processes_play_ahead_what_one_does(tmp_path: Path) -> None:
    """What the threads that play tell each other is not taken for what the trainers do."""
    settings = {"rollout.ahead": 1, "train.updates": 3, "eval.every": 0, "objective.idle_rows": "count"}
    train(tmp_path / "two", "--processes", 2, **settings)
    train(tmp_path / "one", **settings)
    two, one = lines(tmp_path / "two"), lines(tmp_path / "one")
    assert [line.get("staleness", 0.0) for line in two] == [0.0, 1.0, 1.0]
    for line, other in zip(two, one, strict=True):
        for key in ("tokens", "train/steps", "train/return", "rows/idle"):
            assert line[key] == other[key]
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
