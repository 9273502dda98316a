"""Sweeps: what arms and seeds become, and a queue that never runs a finished run twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from envrl.cli.main import main
from envrl.cli.sweep import _shares
from envrl.config.load import config_differences, load_recipe
from envrl.locks import held
from envrl.sweep.plan import load_sweep

PYTHON = sys.executable
SWEEP = """
recipe = "household-demo"
seeds = [3, 5]
share_warm_start = true
[shared.train]
updates = 2
[shared.auxiliary]
state.weight = 0.0
echo.weight = 0.0
inverse.weight = 0.0
[arms.grpo]
[arms.state.auxiliary.state]
weight = 0.25
"""
FAKE = """
import json, os, pathlib, signal, sys, time, tomllib
recipe, run = pathlib.Path(sys.argv[4]), pathlib.Path(sys.argv[6])
with open("calls", "a") as calls:
    print(run.name, *sys.argv[7:], os.environ["OMP_NUM_THREADS"], file=calls)
if run.name in os.environ.get("FAILING", "").split():
    print("envrl: the disk is full")
    sys.exit(1)
text = recipe.read_text()
config = tomllib.loads(text)
(run / "warm_start").mkdir(parents=True, exist_ok=True)
(run / "config.toml").write_text(text)
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
if run.name in os.environ.get("SLOW", "").split() and "--resume" not in sys.argv:
    pathlib.Path("slow").touch()
    time.sleep(60)
updates = config["train"]["updates"]
seconds = {"total": 2.0}
lines = [{"update": number + 1, "seconds": seconds} for number in range(updates)]
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
evals = [
    {"stage": "rl", "update": u, "split": split, "episodes": 10, "success_rate": rate, "seconds": seconds}
    for u, rate in {0: 0.5, updates: 0.5 + 0.1 * (config["seed"] == 5) * (updates > 0)}.items()
    for split in config["eval"]["split"]
]
(run / "eval.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in evals))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a sweep in it, whose runs are a script's that trains nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text(SWEEP)
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "fake").write_text(f'#!/bin/sh\nexec {PYTHON} fake.py "$@"\n')
    (tmp_path / "fake").chmod(0o755)
    monkeypatch.setattr("envrl.sweep.queue.sys.executable", str(tmp_path / "fake"))
    return tmp_path


def calls(folder: Path) -> list[str]:
    """What was run, in order, each without its number of threads."""
    file = folder / "calls"
    return [line.rpartition(" ")[0] for line in file.read_text().splitlines()] if file.exists() else []


RUNS = [f"{arm}-{seed}" for seed in (3, 5) for arm in ("grpo", "state", "state-placebo")]


def test_an_arm_with_an_auxiliary_loss_brings_its_placebo(here: Path) -> None:
    sweep = load_sweep("s.toml")
    runs = {run.name: run.config for run in sweep.runs(Path("runs/s"))}
    assert list(runs) == RUNS
    assert config_differences(runs["state-3"], runs["state-placebo-3"]) == ["auxiliary.state.placebo"]
    assert config_differences(runs["grpo-5"], runs["state-5"]) == ["auxiliary.state.weight"]
    assert config_differences(runs["grpo-3"], runs["grpo-5"]) == ["seed"]
    assert runs["grpo-3"].warm_start.path == str(here / "runs/s/warm_start/warm_start")
    start = sweep.warm_start()
    assert start is not None
    assert (start.config.train.updates, start.config.seed, start.config.warm_start.path) == (0, 3, "")


@pytest.mark.parametrize(
    ("where", "arms"),
    [
        ("placebo = false\n", ["grpo", "state"]),
        ("", ["grpo", "state"]),
        ("", ["grpo", "state", "state-placebo"]),
    ],
    ids=["top", "arm", "its own"],
)
def test_a_placebo_is_left_out_where_the_file_says_so(here: Path, where: str, arms: list[str]) -> None:
    own = "[arms.state-placebo.auxiliary.state]\nweight = 0.5\nplacebo = true\n" * (len(arms) == 3)
    text = SWEEP.replace("[arms.state.aux", "[arms.state]\nplacebo = false\n[arms.state.aux") if not where else SWEEP
    (here / "s.toml").write_text(where + text + own)
    found = load_sweep("s.toml").arms
    assert list(found) == arms
    if own:
        assert found["state-placebo"].auxiliaries()[0].common.weight == 0.5


def test_an_arm_is_above_what_all_share_and_the_command_line_above_both(here: Path) -> None:
    base = 'extends = "household-demo"\n[objective]\nestimator = "gigpo"\n[objective.gigpo]\ngamma = 0.5\n'
    (here / "base.toml").write_text(base)
    arms = '[arms.gigpo]\nextends = "base.toml"\n[arms.gigpo.train]\nupdates = 7\n'
    (here / "s.toml").write_text(SWEEP.replace("[arms.grpo]\n", f"[arms.grpo]\n{arms}"))
    found = load_sweep("s.toml").arms
    assert (found["grpo"].train.updates, found["gigpo"].train.updates) == (2, 7)
    assert found["gigpo"].owned["objective.gigpo.gamma"] == 0.5
    assert "gigpo-placebo" not in found
    assert {config.train.updates for config in load_sweep("s.toml", [("train.updates", "9")]).arms.values()} == {9}


WRONG = [
    ("recipe = ", "recpie = ", "unknown key 'recpie' in the sweep 's.toml'; did you mean 'recipe'?"),
    ('"household-demo"', '"household-dmeo"', "unknown recipe 'household-dmeo'; did you mean 'household-demo'?"),
    ('recipe = "household-demo"\n', "", "does not name its recipe"),
    ("[3, 5]", "[3, 3]", "seeds must be whole numbers of at least 0, each once, not [3, 3]"),
    ("[3, 5]", "3", "seeds must be a list, not 3"),
    ("weight = 0.25", "wieght = 0.25", "has no setting 'wieght'; did you mean 'weight'?"),
    (
        "weight = 0.25",
        "weight = 11",
        "auxiliary.state.weight must be a number from 0 to 10, not 11 (in [arms.state]",
    ),
    ("weight = 0.25", "weight = 0.0", "the arms 'grpo' and 'state' of 's.toml' are the same"),
    ("[arms.grpo]", "[arms.warm_start]", "an arm cannot be named 'warm_start'"),
    ("[arms.grpo]", '[arms."a/b"]', "an arm cannot be named 'a/b'"),
    ("[arms.grpo]", "[arms.grpo]\nseed = 1", "'seed' stands in [arms.grpo] of 's.toml'"),
    ("[arms.grpo]", "[arms.grpo.warm_start]\nepochs = 1", "has other values of warm_start.epochs than the recipe"),
    ("[shared.train]", "[shared.warm_start]\ndemonstrations = 0\n[shared.train]", "share_warm_start = true"),
    ("[shared.train]", "[shared.env]\nname = 'housold'\n[shared.train]", "did you mean 'household'?"),
    ("[arms.grpo]", "[arms.grpo", "the sweep 's.toml' is not valid TOML"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=[new or "nothing" for _, new, _ in WRONG])
def test_a_wrong_sweep_is_refused_before_anything_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    (here / "s.toml").write_text(SWEEP.replace(old, new))
    before = sorted(here.iterdir())
    assert main(["sweep", "s.toml"]) == 2
    assert message in capsys.readouterr().err
    assert sorted(here.iterdir()) == before


def test_what_is_done_is_never_run_twice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where only the record is left of a run, or only its folder; the comparison has a line an arm."""
    assert main(["sweep", "s.toml", "--jobs", "1"]) == 0
    out, err = capsys.readouterr()
    assert calls(here) == ["warm_start", *RUNS]
    assert "**Differences in success_rate of valid_seen" in out
    assert all(f"| {arm} \N{MINUS SIGN} grpo | 2 | " in out for arm in ("state", "state-placebo"))
    assert "[6/6] state-placebo-5: valid_seen 50.0 -> 60.0 %, valid_unseen 50.0 -> 60.0 %, 12 s" in err
    assert sorted(path.stem for path in (here / "results/s").iterdir()) == sorted(RUNS)
    shutil.rmtree(here / "runs/s/grpo-3")
    (here / "results/s/state-5.json").unlink()
    assert main(["sweep", "s.toml"]) == 0
    assert len(calls(here)) == 7
    assert (here / "results/s/state-5.json").exists()
    shutil.rmtree(here / "runs")
    assert main(["sweep", "s.toml"]) == 0
    assert len(calls(here)) == 7


def test_a_failed_run_does_not_stop_the_others(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILING", "state-3 grpo-5")
    assert main(["sweep", "s.toml"]) == 1
    err = capsys.readouterr().err
    assert "state-3: failed with status 1: envrl: the disk is full (runs/s/logs/state-3.log)" in err
    assert "envrl: failed, and run again by the same command: state-3, grpo-5" in err
    assert len(list((here / "results/s").iterdir())) == 4
    monkeypatch.delenv("FAILING")
    assert main(["sweep", "s.toml"]) == 0
    assert calls(here)[7:] == ["state-3", "grpo-5"]


def test_without_its_warm_start_no_run_begins(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILING", "warm_start")
    assert main(["sweep", "s.toml"]) == 1
    assert "was not made: runs/s/logs/warm_start.log says why" in capsys.readouterr().err
    assert calls(here) == ["warm_start"]


def test_a_sweep_that_has_changed_names_what_it_would_run_anew(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the records of runs and from their folders; another number of threads is no change, a new arm neither."""
    assert main(["sweep", "s.toml", "--only", "state,warm_start"]) == 0
    capsys.readouterr()
    (here / "s.toml").write_text(SWEEP.replace("0.25", "0.5"))
    for gone in ("runs/s/state-3", "results/s/state-5.json"):
        path = here / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["sweep", "s.toml"]) == 2
    err = capsys.readouterr().err
    assert "changed since state-3 was run (auxiliary.state.weight was 0.25 and is 0.5); so are 1 more: state-5" in err
    assert len(calls(here)) == 3
    (here / "s.toml").write_text(SWEEP + "[arms.slow.train]\nlearning_rate = 1e-5\n")
    for path in (here / "runs/s").glob("*-5/config.toml"):
        path.write_text(path.read_text().replace("threads = ", "threads = 1"))
    assert main(["sweep", "s.toml", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 of 9 done, 6 to do, ")


def test_an_interrupted_sweep_has_its_runs_saved_and_goes_on(here: Path) -> None:
    """Ctrl-C reaches the run, which ends by itself; the next time it goes on with --resume."""
    script = "import sys; import envrl.sweep.queue as q; from envrl.cli.main import main; "
    script += "sys.executable = sys.argv[1]; sys.exit(main(sys.argv[2:]))"
    typed = [PYTHON, "-c", script, str(here / "fake"), "sweep", "s.toml", "--jobs", "2"]
    environment = os.environ | {"SLOW": "state-3 grpo-5", "PYTHONPATH": ":".join(sys.path)}
    sweep = subprocess.Popen(typed, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(600):
        if "grpo-5" in calls(here) and (here / "slow").exists():
            break
        time.sleep(0.05)
    os.kill(sweep.pid, signal.SIGINT)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, err
    assert err.splitlines()[-1] == (
        "envrl: interrupted, and all runs are saved: the same command goes on (2 of 6 done)"
    )
    assert err.count("interrupted, saved") == 2
    assert main(["sweep", "s.toml"]) == 0
    assert sorted(calls(here)[5:]) == ["grpo-5 --resume", "state-3 --resume", "state-5", "state-placebo-5"]


def test_a_run_that_another_sweep_holds_is_left_to_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "s.toml", "--only", "grpo-3"]) == 0
    (here / "runs/s/logs/state-3.log").touch()
    with held(here / "runs/s/logs/state-3.log", "no"):
        assert main(["sweep", "s.toml", "--only", "state-3,state-5"]) == 0
    assert "left to other sweeps that run them: state-3" in capsys.readouterr().err
    assert calls(here) == ["warm_start", "grpo-3", "state-5"]


@pytest.mark.parametrize(
    ("cores", "jobs", "threads", "expected"),
    [(8, None, 0, (6, 1)), (8, 2, 0, (2, 4)), (8, None, 4, (2, 4)), (3, 2, 0, (2, 1)), (1, None, 0, (1, 1))],
)
def test_cores_are_shared_out(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    jobs: int | None,
    threads: int,
    expected: tuple[int, int],
) -> None:
    """Six runs: so many at a time, with the threads of each."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    sweep = load_sweep("s.toml", [("train.threads", str(threads))])
    assert _shares(sweep, jobs, 6) == expected


SCHEDULER = """#!/bin/sh
# Says its arguments, and runs what it is given: an array's every task at once.
echo "$(basename $0) $*" >> submitted
for each in "$@"; do case "$each" in --wrap=*) sh -c "${each#--wrap=}" ;; esac; done
case "$*" in *--array=0-5*)
    cat > job
    for SLURM_ARRAY_TASK_ID in 0 1 2 3 4 5; do SLURM_ARRAY_TASK_ID=$SLURM_ARRAY_TASK_ID bash job; done ;;
esac
case "$1" in job) while [ "$1" != -- ]; do shift; done; shift; "$@" ;; esac
[ "$1" != --parsable ] || echo 17
"""


@pytest.mark.parametrize("scheduler", ["slurm", "ray"])
def test_a_scheduler_has_a_task_a_run(here: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    """A stand-in for `sbatch` and `ray` runs what the script hands to it, and `envrl` in it notes what it is asked."""
    for name, text in {"sbatch": SCHEDULER, "ray": SCHEDULER, "envrl": '#!/bin/sh\necho "$@" >> asked\n'}.items():
        (here / "bin").mkdir(exist_ok=True)
        (here / "bin" / name).write_text(text)
        (here / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    assert main(["sweep", "s.toml", "--quick", "--jobs", "3", "--submit", scheduler]) == 0
    asked = [line.replace(" --jobs 1", "") for line in (here / "asked").read_text().splitlines()]
    assert asked == [f"sweep s.toml --quick --only {name}" for name in ("warm_start", *RUNS)]
    submitted = (here / "submitted").read_text()
    if scheduler == "slurm":
        assert "--array=0-5 --dependency=afterok:17" in submitted
    else:
        assert submitted.count("--no-wait") == 6


def test_a_script_is_printed_where_there_is_no_scheduler(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(here))
    assert main(["sweep", "s.toml", "--submit", "slurm"]) == 2
    assert "there is no 'sbatch' here: --print slurm" in capsys.readouterr().err
    assert main(["sweep", "s.toml", "--only", "grpo", "--print", "slurm"]) == 0
    assert "runs=(grpo-3 grpo-5)" in capsys.readouterr().out
    assert not (here / "runs").exists()


def test_the_study_differs_in_the_losses_alone() -> None:
    """Eleven arms: the auxiliary losses and the estimator differ, and the warm start has no state loss."""
    sweep = load_sweep("alfworld-study")
    assert sweep.seeds == dict.fromkeys(sweep.arms, (0, 1, 2, 3, 4))
    assert len(sweep.arms) == 11
    assert sum(name.endswith("-placebo") for name in sweep.arms) == 5
    recipe = load_recipe("alfworld-grpo")
    allowed = ("auxiliary.", "objective.estimator", "train.updates")
    for config in sweep.arms.values():
        assert all(key.startswith(allowed) for key in config_differences(recipe, config))
    start = sweep.warm_start()
    assert start is not None
    assert config_differences(replace(start.config, train=recipe.train), recipe) == []
    assert [each.name for each in start.config.auxiliaries("warm_start")] == ["inverse"]
    fade = ["auxiliary.state.schedule_updates", "auxiliary.inverse.schedule_updates"]
    assert config_differences(sweep.arms["envrl"], load_recipe("alfworld-envrl")) == ["train.updates", *fade]
    tokens = config_differences(sweep.arms["envrl"], sweep.arms["all-tokens"])
    assert tokens == ["auxiliary.state.tokens", "auxiliary.inverse.tokens"]


def test_an_arm_may_have_seeds_of_its_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its placebo has them, too; runs still come seed by seed."""
    text = (
        (here / "s.toml")
        .read_text()
        .replace("[arms.state.auxiliary.state]", "[arms.state]\nseeds = [7, 3]\n\n[arms.state.auxiliary.state]")
    )
    (here / "s.toml").write_text(text)
    sweep = load_sweep("s.toml")
    names = [run.name for run in sweep.runs(here)]
    own = [name for name in names if name.startswith("state")]
    assert own == ["state-3", "state-placebo-3", "state-7", "state-placebo-7"]
    assert [name for name in names if name.startswith("grpo")] == ["grpo-3", "grpo-5"]
    (here / "s.toml").write_text(text.replace("[7, 3]", "[-1]"))
    assert main(["sweep", "s.toml", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "seeds must be whole numbers of at least 0, each once, not [-1] ([arms.state] of 's.toml')" in said


def test_a_warm_start_that_is_named_takes_the_place_of_the_shared_one(here: Path) -> None:
    (here / "start").mkdir()
    sweep = load_sweep("s.toml", [("warm_start.path", str(here / "start"))])
    assert sweep.warm_start() is None
    assert {run.config.warm_start.path for run in sweep.runs(here)} == {str(here / "start")}


def test_the_table_of_methods_shares_the_studys_start_and_budget() -> None:
    """No arm is one of the study's, and what differs is how is learned, not from how much or from where."""
    sweep, study = load_sweep("alfworld-methods"), load_sweep("alfworld-study")
    assert sweep.warm_start() is not None
    assert sweep.warm_start().config == study.warm_start().config  # type: ignore[union-attr]
    assert sum(seeds == (0, 1, 2) for seeds in sweep.seeds.values()) == 7
    ground = study.arms["grpo"]
    for name, config in sweep.arms.items():
        assert all(config_differences(config, other) for other in study.arms.values()), name
        held = ("env.", "model.", "warm_start.", "rollout.", "eval.")
        assert not [key for key in config_differences(ground, config) if key.startswith(held)], name
        assert config.train.updates == ground.train.updates


def test_the_sieve_of_dynamics_differs_in_what_is_learned_and_paid_alone() -> None:
    """Eight ways to learn the dynamics with a placebo each, GRPO and a reward without, from the study's warm start."""
    sweep, study = load_sweep("alfworld-dynamics"), load_sweep("alfworld-study")
    assert (len(sweep.arms), sum(name.endswith("-placebo") for name in sweep.arms)) == (18, 8)
    assert sweep.warm_start() is not None
    assert sweep.warm_start().config == study.warm_start().config  # type: ignore[union-attr]
    for config in sweep.arms.values():
        assert all(key.startswith(("auxiliary.", "reward.")) for key in config_differences(sweep.arms["grpo"], config))
        assert len(config.auxiliaries()) + len(config.rewards()) == (config != sweep.arms["grpo"])


def test_the_arms_of_the_split_take_one_budget_of_tokens() -> None:
    """1,379 tokens a demonstration and 44,600 an update, by the log of the recipe: 8.87 million in all, within 1 %."""
    sweep = load_sweep("alfworld-split")
    assert sweep.warm_start() is None  # each arm makes its own
    assert len(sweep.arms) == 5
    for config in sweep.arms.values():
        tokens = 1_379 * config.warm_start.demonstrations + 44_600 * config.train.updates
        assert tokens == pytest.approx(8.87e6, rel=0.01)
        changed = config_differences(sweep.arms["warm-50"], config)
        assert set(changed) <= {"warm_start.demonstrations", "train.updates"}


def test_a_real_sweep_plays_what_is_the_same_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has the evaluation before RL from the run that made the warm start, whose games it does not play."""
    monkeypatch.chdir(tmp_path)
    shape = "hidden_size = 32\nlayers = 2\nheads = 2\nvocabulary = 320\n"
    text = SWEEP.replace("[3, 5]", "[3]").replace("[shared.train]", f"[shared.model]\n{shape}[shared.train]")
    (tmp_path / "s.toml").write_text(text)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    assert main(["sweep", "s.toml", "--quick", "--only", "state-3", "--eval.split", "valid_seen"]) == 0
    record = json.loads((tmp_path / "results/s-quick/state-3.json").read_text())
    assert record["finished"]
    before, after = record["evals"]["valid_seen"]
    assert (before["update"], after["update"]) == (0, 2)
    assert before["seconds"]["total"] == 0.0
    assert before["seconds"]["shared"] > 0
