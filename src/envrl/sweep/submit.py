"""A sweep for a scheduler: a script whose every task is one run, by the same `envrl sweep … --only RUN`."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from envrl.errors import RunError, UserError
from envrl.files import write_text
from envrl.sweep.plan import WARM_START, PlannedRun
from envrl.sweep.state import Places


def slurm_script(
    name: str, runs: Sequence[PlannedRun], again: Sequence[str], threads: int, places: Places, cuda: bool
) -> str:
    """Return a shell script that submits an array job with a task a run, after a job for the shared warm start.

    Clusters differ: what else they ask for (a partition, an account, hours) goes into $SBATCH_PARTITION and the like,
    or into the options in the script.
    """
    command = _command(again)
    asked = [f"--cpus-per-task={threads}", *(["--gpus=1"] if cuda else [])]
    logs = places.runs / "logs"
    lines = ["#!/bin/bash", "set -euo pipefail", f"mkdir -p {shlex.quote(str(logs))}"]
    after = ""
    if any(not run.arm for run in runs):
        wrapped = shlex.quote(f"{command} --only {WARM_START}")
        lines.append(f"start=$(sbatch --parsable --job-name={name}-warm-start {' '.join(asked)} --wrap={wrapped})")
        after = " --dependency=afterok:$start"
    arms = [run.name for run in runs if run.arm]
    if arms:
        lines += [
            f"sbatch --job-name={name} --array=0-{len(arms) - 1}{after} {' '.join(asked)} <<'END'",
            "#!/bin/bash",
            f"runs=({' '.join(arms)})",
            f"{command} --only ${{runs[$SLURM_ARRAY_TASK_ID]}} --jobs 1",
            "END",
        ]
    return "\n".join(lines)


def ray_script(
    name: str, runs: Sequence[PlannedRun], again: Sequence[str], threads: int, places: Places, cuda: bool
) -> str:
    """Return a shell script that submits a job a run to a Ray cluster (`ray job submit`), the warm start first.

    The nodes share the folder; $RAY_ADDRESS says where the cluster is.
    """
    command = _command(again)
    asked = f"--entrypoint-num-cpus {threads}{' --entrypoint-num-gpus 1' if cuda else ''}"
    lines = ["#!/bin/bash", "set -euo pipefail", 'cd "$(pwd -P)"']
    if any(not run.arm for run in runs):
        lines.append(f"ray job submit {asked} -- sh -c {_at_home(f'{command} --only {WARM_START}')}")
    if arms := [run.name for run in runs if run.arm]:
        lines += [
            f"for run in {' '.join(arms)}; do",
            f"  ray job submit --no-wait {asked} -- sh -c {_at_home(f'{command} --only $run --jobs 1')}",
            "done",
        ]
    return "\n".join(lines)


def submit(scheduler: str, script: str, places: Places) -> str:
    """Run a script that submits a sweep; return what the scheduler said.

    Raises `UserError` where the scheduler is not here, `RunError` where it refuses.
    """
    program = {"slurm": "sbatch", "ray": "ray"}[scheduler]
    if shutil.which(program) is None:
        raise UserError(f"there is no '{program}' here: --print {scheduler} prints the script to take to one")
    places.runs.mkdir(parents=True, exist_ok=True)
    file = places.runs / f"submit-{scheduler}.sh"
    write_text(file, script + "\n")
    done = subprocess.run(["bash", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RunError(f"'{program}' did not take {file}: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout.rstrip()


def _command(again: Sequence[str]) -> str:
    return shlex.join(["envrl", "sweep", *again])


def _at_home(command: str) -> str:
    """Return a command for a shell on a node, in the folder that this one is in; `$` is this shell's."""
    text = f"cd {Path.cwd()} && {command}"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`") + '"'


SCRIPTS: dict[str, Callable[..., str]] = {"slurm": slurm_script, "ray": ray_script}
