"""A run that is killed, interrupted or damaged and then resumed ends like one that never was."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from boxes import files, tiny
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.trainer.loop import train
from moments import Launcher, essence, phases

EVERYTHING = tiny(
    seed=3,
    warm_start={"demonstrations": 10, "epochs": 3, "every": 2},
    warm_auxiliary={"echo": {"weight": 0.1}, "inverse": {"weight": 0.1, "fraction": 0.25}},
    auxiliary={"state": {"weight": 0.2}, "inverse": {"weight": 0.1}},
    objective={"kl_weight": 0.05, "entropy_weight": 0.01},
    train={"updates": 5, "epochs": 2, "minibatches": 2, "micro_batch_tokens": 512, "learning_rate": 1e-3},
    eval={"every": 3, "episodes": 3, "free_episodes": 2, "probe_episodes": 2},
)
"""A run with every kind of state: warm start, a reference model, several steps an update, both auxiliary losses."""


def write_recipe(path: Path, config: Config) -> Path:
    path.write_text(dump_config(config))
    return path


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Path:
    """A run that was never stopped; beside it RUN.phases and its recipe, recipe.toml."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_recipe(folder / "recipe.toml", EVERYTHING)
    assert launcher.train(recipe, folder / "run", resume=False) == 0
    return folder / "run"


def continued(launcher: Launcher, recipe: Path, run: Path, kills: list[int]) -> None:
    """Resume a killed run until it is done, killed again at these moments of the following processes."""
    for moment in [*kills, 0]:
        status = launcher.train(recipe, run, resume=run.exists(), moment=moment)
        assert status in (0, -signal.SIGKILL)
    assert status == 0


# --- SIGKILL ---------------------------------------------------------------------------------------------------------

STAGES = [
    "demonstrations",
    "imitation",
    "warm start saved",
    "evaluation",
    "rollout",
    "optimiser step",
    "trajectories",
    "checkpoint",
    "between",
]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_any_stage_a_resumed_run_ends_the_same(
    launcher: Launcher, whole: Path, tmp_path: Path, stage: str
) -> None:
    """Killed at a random moment of a stage, then at a random moment of whatever follows, then left alone."""
    generator = random.Random(stage)
    moments = [number for number, phase in enumerate(phases(whole), 1) if phase == stage]
    first = generator.choice(moments)
    recipe, run = whole.parent / "recipe.toml", tmp_path / "run"
    assert launcher.train(recipe, run, resume=False, moment=first) == -signal.SIGKILL
    assert phases(run)[-1] == stage
    continued(launcher, recipe, run, [generator.randrange(1, 150)])
    assert essence(run) == essence(whole)


def test_killed_again_and_again(launcher: Launcher, whole: Path, tmp_path: Path) -> None:
    """Twelve kills, so early that most processes save little; every one of them makes some way."""
    generator = random.Random(7)
    recipe, run = whole.parent / "recipe.toml", tmp_path / "run"
    continued(launcher, recipe, run, [generator.randrange(20, 90) for _ in range(12)])
    assert essence(run) == essence(whole)


def test_killed_inside_one_checkpoint_write_after_another(launcher: Launcher, whole: Path, tmp_path: Path) -> None:
    """Each process dies at a random file of the first checkpoint that it writes."""
    generator = random.Random(11)
    recipe, run = whole.parent / "recipe.toml", tmp_path / "run"
    for _ in range(2):
        shutil.copytree(run, tmp_path / "rehearsal", symlinks=True) if run.exists() else None
        assert launcher.train(recipe, tmp_path / "rehearsal", resume=run.exists()) == 0
        told = phases(tmp_path / "rehearsal")
        shutil.rmtree(tmp_path / "rehearsal")
        begin = told.index("checkpoint")
        end = next((n for n in range(begin, len(told)) if told[n] != "checkpoint"), len(told))
        moment = generator.randrange(begin, end) + 1
        assert launcher.train(recipe, run, resume=run.exists(), moment=moment) == -signal.SIGKILL
    continued(launcher, recipe, run, [])
    assert essence(run) == essence(whole)


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["imitation", "evaluation", "rollout", "optimiser step"])
def test_interrupted_and_resumed(launcher: Launcher, whole: Path, tmp_path: Path, stage: str) -> None:
    """A first SIGINT: status 130, a checkpoint of the last complete update, and the same end."""
    generator = random.Random(stage)
    moments = [number for number, phase in enumerate(phases(whole), 1) if phase == stage]
    recipe, run = whole.parent / "recipe.toml", tmp_path / "run"
    where = generator.choice(moments[: len(moments) // 2])  # the last ones have nothing after them to be interrupted
    assert launcher.train(recipe, run, resume=False, moment=where, how=signal.SIGINT) == 130
    saved = run / ("warm_start.partial" if stage == "imitation" else "checkpoints") / "latest" / "state.json"
    assert saved.is_file()
    continued(launcher, recipe, run, [])
    ours, theirs = essence(run), essence(whole)
    last = "checkpoints/step-000005"
    assert {k: v for k, v in ours.items() if not k.startswith("checkpoints") or last in k} == {
        k: v for k, v in theirs.items() if not k.startswith("checkpoints") or last in k
    }


def test_the_command_line_ends_with_130_and_goes_on(whole: Path, tmp_path: Path) -> None:
    recipe, run = whole.parent / "recipe.toml", tmp_path / "run"
    driver = [sys.executable, str(Path(__file__).with_name("boxes.py")), "train", str(recipe), "--run", str(run)]
    process = subprocess.Popen(driver, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_for(lambda: (run / "eval.jsonl").exists() and (run / "eval.jsonl").stat().st_size > 0, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said.splitlines()[-1]
    assert (run / "checkpoints" / "latest" / "manifest.json").is_file()
    assert main(["train", str(recipe), "--run", str(run), "--resume"]) == 0
    for name in ("model.safetensors", "state.safetensors"):
        last = Path("checkpoints", "step-000005", name)
        assert (run / last).read_bytes() == (whole / last).read_bytes()
    assert essence(run)["metrics.jsonl"] == essence(whole)["metrics.jsonl"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


# --- repeatable ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_runs_are_equal_bit_for_bit(launcher: Launcher, tmp_path: Path, threads: int) -> None:
    """With two threads as with one; wide enough that torch does share the work of a product."""
    config = tiny(
        model={"hidden_size": 128},
        train={"threads": threads, "updates": 2},
        rollout={"tasks": 6, "group_size": 8},
        eval={"every": 0, "split": ("valid_b",)},
    )
    recipe = write_recipe(tmp_path / "recipe.toml", config)
    for name in ("a", "b"):
        assert launcher.train(recipe, tmp_path / name, resume=False) == 0
    assert essence(tmp_path / "a") == essence(tmp_path / "b")
    figures = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    assert figures["grad_norm"] > 0.0


def test_the_seed_changes_the_run(whole: Path, tmp_path: Path) -> None:
    other = train(replace(EVERYTHING, seed=4, train=replace(EVERYTHING.train, updates=0)), tmp_path / "other")
    name = "warm_start/model.safetensors"
    assert (other / name).read_bytes() != (whole / name).read_bytes()


# --- what resume does and refuses ------------------------------------------------------------------------------------


def command(run: Path, recipe: Path, *more: str, resume: bool = True) -> int:
    return main(["train", str(recipe), "--run", str(run), *(["--resume"] if resume else []), *more])


def test_a_finished_run_is_left_as_it_is(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(whole)
    times = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert command(whole, whole.parent / "recipe.toml") == 0
    assert files(whole) == before
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == times
    assert "is finished: 5 updates" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], run: Path, recipe: Path, *more: str, resume: bool = True) -> str:
    """Return the one sentence with which a command is refused; nothing of the run has changed."""
    before = files(run)
    capsys.readouterr()
    assert command(run, recipe, *more, resume=resume) == 2
    assert files(run) == before
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    return said


def test_what_is_refused_changes_nothing(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = whole.parent / "recipe.toml"
    assert "there is no run in" in refused(capsys, tmp_path / "absent", recipe)
    assert not (tmp_path / "absent").exists()
    assert "exists: add --resume" in refused(capsys, whole, recipe, resume=False)
    said = refused(capsys, whole, recipe, "--train.learning_rate", "0.1", "--seed", "9")
    assert "another configuration (other values of seed, train.learning_rate)" in said
    assert f"go on with 'envrl train {whole / 'config.toml'} --run {whole} --resume'" in said
    assert "can get more updates, not fewer" in refused(capsys, whole, recipe, "--train.updates", "4")
    assert "only with auxiliary.state.schedule_updates set" in refused(capsys, whole, recipe, "--train.updates", "6")
    assert "this machine has" in refused(capsys, tmp_path / "new", recipe, "--train.device", "cuda:77", resume=False)
    assert "is neither a folder here" in refused(
        capsys, tmp_path / "new", recipe, "--model.path", "/absent", resume=False
    )
    said = refused(capsys, tmp_path / "new", recipe, "--warm_start.path", str(tmp_path), resume=False)
    assert "manifest.json is missing" in said
    said = refused(capsys, tmp_path / "new", recipe, "--warm_start.held_out", "48", resume=False)
    assert "leaves nothing of the 48 tasks" in said
    said = refused(capsys, tmp_path / "new", recipe, "--eval.split", "valid_c", resume=False)
    assert "has no split 'valid_c'" in said
    assert not (tmp_path / "new").exists()


def test_updates_can_be_added_where_the_schedule_does_not_depend_on_them(tmp_path: Path) -> None:
    """A run of 2 updates that gets 2 more has the weights of one of 4, since T_max is 8 for both."""
    tables = {"state": {"weight": 0.2, "schedule_updates": 8}}
    short, long = (tiny(auxiliary=tables, train={"updates": n}, eval={"every": 0, "free_episodes": 0}) for n in (2, 4))
    train(short, tmp_path / "run")
    train(long, tmp_path / "run", resume=True)
    train(long, tmp_path / "other")
    ours, theirs = essence(tmp_path / "run"), essence(tmp_path / "other")
    assert ours["metrics.jsonl"] == theirs["metrics.jsonl"]
    assert ours["config.toml"] == theirs["config.toml"]
    last = "checkpoints/step-000004/model.safetensors"
    assert ours[last] == theirs[last]
    lines = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [0, 0, 2, 2, 4, 4]
    with pytest.raises(UserError, match="not fewer"):
        train(short, tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = whole.parent / "recipe.toml", tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    weights = run / "checkpoints" / "step-000005" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = refused(capsys, run, recipe)
    assert "step-000005 is damaged: the content of model.safetensors was altered" in said
    assert said.endswith("run again with --resume to go on from step-000004")
    shutil.rmtree(weights.parent)
    assert command(run, recipe) == 0
    assert essence(run) == essence(whole)


def test_what_a_kill_left_of_the_last_write_is_tidied_up(whole: Path, tmp_path: Path) -> None:
    """Killed after the last checkpoint had its name: `latest` is the one before, which were to go are still there."""
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    saved = run / "checkpoints"
    (saved / "latest").unlink()
    (saved / "latest").symlink_to("step-000004")
    shutil.copytree(saved / "step-000004", saved / "step-000002")
    shutil.copytree(saved / "step-000004", saved / ".tmp-removed-step-000001")
    assert command(run, whole.parent / "recipe.toml") == 0
    assert essence(run) == essence(whole)
    (saved / "step-000005").rename(saved / ".old-step-000005")  # killed while it was being replaced
    assert command(run, whole.parent / "recipe.toml") == 0
    assert essence(run) == essence(whole)
    shutil.rmtree(saved / "step-000005")
    (saved / "step-000004").rename(saved / ".old-step-000004")
    assert command(run, whole.parent / "recipe.toml") == 0
    assert essence(run) == essence(whole)


def test_a_run_without_a_checkpoint_starts_over(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "warm_start")
    assert command(run, whole.parent / "recipe.toml") == 0
    assert essence(run) == essence(whole)


def test_a_run_in_progress_is_not_taken_up_twice(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    with open(whole / "config.toml") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is training in" in refused(capsys, whole, whole.parent / "recipe.toml")


def test_a_warm_start_shared_by_path_is_the_same_start(whole: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(whole / "warm_start", source)
    config = replace(EVERYTHING, warm_start=replace(EVERYTHING.warm_start, path=str(source)))
    run = train(config, tmp_path / "run")
    ours, theirs = essence(run), essence(whole)
    same = [name for name in theirs if name.startswith(("warm_start/", "checkpoints/", "metrics", "eval"))]
    assert len(same) >= 19
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert not (run / "warm_start.jsonl").exists()
    shutil.rmtree(source)
    assert train(config, run, resume=True) == run, "the run has a copy of its own"
