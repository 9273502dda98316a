"""The training loop: warm start, then updates, with evaluations and checkpoints between them.

Start reading at `train`; `_update` is one update. `Run` (`envrl.trainer.run`) holds what they work with.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from envrl import ranks
from envrl.build import env_maker
from envrl.config.check import check_processes
from envrl.config.schema import Config
from envrl.engine.checkpoint import Due
from envrl.errors import Interrupted, RunError
from envrl.eval.trajectories import write_shown
from envrl.imitation.warm_start import FOLDER
from envrl.models.out_of_memory import is_out_of_memory
from envrl.models.runtime import prepare_torch, reset_peak_memory
from envrl.progress import Reporter
from envrl.trainer.record import Laps, progress_figures
from envrl.trainer.run import Run
from envrl.trainer.signals import stop_on_signals
from envrl.trainer.start import check_alike, check_inputs, held_run, new_config, resumed_config
from envrl.trainer.state import RunState, is_over


def train(config: Config, run: Path | str, resume: bool = False, reporter: Reporter | None = None) -> Path:
    """Train a recipe into the directory `run`, or resume it bit for bit; return the directory.

    Raises `UserError` (bad configuration, data or directory), `RunError` (disk full, diverged), and `Interrupted` after
    the checkpoint is saved.
    """
    check_processes(config, ranks.expected())
    run, reporter = Path(run), reporter or Reporter(silent=not ranks.is_first())
    with ranks.joined(config.train.device, alone=config.train.engine == "sharded"), warnings.catch_warnings():
        if not ranks.is_first():
            warnings.simplefilter("ignore")  # the first says them
        return _train(config, run, resume, reporter)


def _train(config: Config, run: Path, resume: bool, reporter: Reporter) -> Path:
    make_env = env_maker(config)
    check_alike(config, make_env)
    config = ranks.gather(resumed_config(run, config) if resume else new_config(config))[0]
    prepare_torch(config.train.threads)
    with reporter.phase("checking the recipe"):
        check_inputs(config, make_env, warm_start=not (run / FOLDER).exists())
    with held_run(run, config, make_env, resume), stop_on_signals() as stop:
        try:
            return _finish(Run(config, run, make_env, reporter, stop))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"memory ran out, and not where less could be tried; the last checkpoint is kept: 'envrl doctor "
                f"{run / 'config.toml'}' says what the run needs and what to lower ({str(error).splitlines()[0]})"
            ) from error


def _finish(run: Run) -> Path:
    """Train up to the last update."""
    state = run.begin()
    if state is None:
        return run.folder
    try:
        try:
            _updates(run, state)
        except Interrupted:
            raise Interrupted(f"interrupted; saved {run.save(state)}: go on with --resume") from None
    except KeyboardInterrupt:  # a second Ctrl-C may come inside a step, so the state in memory is not valid
        raise Interrupted(f"interrupted; {run.folder} goes on from its last checkpoint with --resume") from None
    finally:
        run.close()
    return run.folder


def _updates(run: Run, state: RunState) -> None:
    due = Due(run.config.checkpoint.every, run.config.checkpoint.minutes)
    with run.reporter.phase("update", run.config.train.updates, state.update) as phase:
        while True:
            over = is_over(run.config, state.update, state.learned)
            if not state.evaluated:
                if state.update:  # an evaluation may take long, and be killed
                    run.save(state)
                run.evaluate(state, over)
                if state.update == 0:
                    run.save(state)
            if state.update and (due(state.update) or over):
                run.save(state)
            if over:
                return
            if ranks.count() > 1:
                ranks.agree(run.stop.poll)
            phase.show(state.update + 1, _update(run, state))


def _update(run: Run, state: RunState) -> dict[str, float]:
    """Run update `state.update + 1`: play, mix in replayed groups, make rows, learn, log."""
    number, laps = state.update + 1, Laps()
    reset_peak_memory(state.model.device)
    with laps.of("rollout"):
        played = run.player.play(number, laps)
    with laps.of("rows"):
        groups = run.replay.mix(played.admitted, number)
        batch = run.rows(groups, number)
    with laps.of("update"):  # before the step: what the policy that played them thought
        if ranks.is_first():
            write_shown(run.folder, number, played.groups, state.model, run.renderer, run.config, run.reporter)
    with laps.of("update"), run.reporter.phase("learning"):
        figures = run.learn(batch, number)
    record = run.log.write(state, number, played, batch, figures, laps)
    state.update, state.metrics_offset, state.skips = number, run.metrics.offset, run.engine.skips
    over = is_over(run.config, number, state.learned)
    state.evaluated, state.components = not run.evaluations.due(number, over), run.components()
    return progress_figures(record)
