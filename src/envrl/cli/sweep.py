"""`envrl sweep SWEEP [--only ARM,RUN-0 …] [--jobs N] [--dry-run] [--print slurm|ray] [--submit slurm|ray] …`"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser, add_plugin, names, split_overrides, whole_number
from envrl.config.keys import KEYS
from envrl.errors import UserError
from envrl.sweep.plan import PlannedRun, Sweep, load_sweep, select
from envrl.sweep.state import Places, Status, check_unchanged, seconds_of, status_of

_SCHEDULERS = ("slurm", "ray")


def run(arguments: Sequence[str]) -> int:
    """Run what is not done yet of a sweep, and compare its arms; status 1 where a run failed."""
    parser = Parser(
        "sweep",
        "Run arms and seeds as a queue on this machine; what is done is never run twice, what was begun goes on.",
        usage="SWEEP [--only ARM|RUN,...] [--jobs N] [--runs DIR] [--results DIR] [--dry-run] [--quick] "
        "[--print slurm|ray] [--submit slurm|ray] [--plugin FILE.py] [--section.key value ...]",
        epilog="--section.key value sets a key in all arms; docs/sweep.md says what a sweep's file holds",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="a TOML file, or the name of a sweep that ships: alfworld-study")
    parser.add_argument("--only", metavar="ARM|RUN,...", type=names, default=(), help="these arms, or runs ARM-SEED")
    parser.add_argument("--jobs", metavar="N", type=whole_number, help="runs at a time (default: a core each)")
    parser.add_argument("--runs", metavar="DIR", type=Path, help="where the runs are (default: runs/SWEEP)")
    parser.add_argument("--results", metavar="DIR", type=Path, help="a record of each (default: results/SWEEP)")
    parser.add_argument("--dry-run", action="store_true", help="say what is done and what is to do, and do nothing")
    parser.add_argument("--quick", action="store_true", help="each run is made small, to see that everything works")
    parser.add_argument("--print", choices=_SCHEDULERS, dest="printed", help="print a script that has these run it")
    parser.add_argument("--submit", choices=_SCHEDULERS, help="hand that script to them")
    add_plugin(parser)
    overrides, rest = split_overrides(arguments)
    options = parser.parse(rest, also=[f"--{key}" for key in KEYS if "." in key])
    if options.jobs == 0:
        raise UserError("--jobs must be at least 1, not 0")
    sweep = load_sweep(options.sweep, overrides, options.plugin, quick=options.quick)
    places = Places(options.runs or Path("runs", sweep.name), options.results or Path("results", sweep.name))
    start = sweep.warm_start()
    planned = [*([start] if start is not None else []), *sweep.runs(places.runs)]
    chosen = select(planned, options.only)
    check_unchanged(planned, places)
    jobs, threads = _shares(sweep, options.jobs, len(chosen))
    if options.dry_run:
        print("\n".join(_listing(chosen, places, jobs, threads)))
        return 0
    _check_arms(sweep)
    if options.printed or options.submit:
        from envrl.sweep.submit import SCRIPTS, submit

        again = _again(arguments)
        scheduler = options.submit or options.printed
        script = SCRIPTS[scheduler](sweep.name, _left(chosen, places), again, threads, places, _cuda(sweep))
        print(submit(scheduler, script, places) if options.submit else script)
        return 0
    return _work(sweep, chosen, places, jobs, threads)


def _work(sweep: Sweep, chosen: Sequence[PlannedRun], places: Places, jobs: int, threads: int) -> int:
    """Run the queue, say what it left, and compare what is done."""
    from envrl.sweep.queue import run_queue

    arms = [run for run in chosen if run.arm]
    left = _left(chosen, places)
    each = f"{jobs} at a time, {threads} thread{'s' * (threads > 1)} each"
    print(f"{sweep.name}: {len(arms)} runs, {len(left)} to do, {each}; logs in {places.runs / 'logs'}", file=sys.stderr)
    outcome = run_queue(sweep, arms, places, jobs, threads, lambda line: print(line, file=sys.stderr, flush=True))
    if outcome.others:
        print(f"left to other sweeps that run them: {', '.join(outcome.others)}", file=sys.stderr)
    if outcome.done:
        _compare([places.record(name) for name in outcome.done])
    if outcome.failed:
        print(f"envrl: failed, and run again by the same command: {', '.join(outcome.failed)}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _compare(records: Sequence[Path]) -> None:
    from envrl.report.compare import comparison_table, load_arms

    print(comparison_table(load_arms(records)))


def _left(chosen: Sequence[PlannedRun], places: Places) -> list[PlannedRun]:
    done = (Status.RECORDED, Status.FINISHED)
    return [run for run in chosen if status_of(run, places) not in done]


def _shares(sweep: Sweep, jobs: int | None, most: int) -> tuple[int, int]:
    """Return how many runs go on at a time, and the threads of each: together the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fixed = max(config.train.threads for config in sweep.arms.values())
    jobs = jobs or sweep.jobs or (1 if _cuda(sweep) else max(1, cores // (fixed or 1)))
    jobs = min(jobs, max(1, most))
    return jobs, fixed or max(1, cores // jobs)


def _cuda(sweep: Sweep) -> bool:
    return any(config.train.device.startswith("cuda") for config in sweep.arms.values())


def _check_arms(sweep: Sweep) -> None:
    """Refuse what a run would refuse as it begins, before any has begun: worlds, data, estimators."""
    from envrl.build import env_maker
    from envrl.trainer.inputs import check_names

    for config in sweep.arms.values():
        check_names(config, env_maker(config))


def _listing(chosen: Sequence[PlannedRun], places: Places, jobs: int, threads: int) -> list[str]:
    """Return what is done and what is to do, and the hours that are left by what finished runs took."""
    width = max(len(run.name) for run in chosen)
    states = [status_of(run, places) for run in chosen]
    lines = [f"{run.name:<{width}}  {state.value}" for run, state in zip(chosen, states, strict=True)]
    left = len(_left(chosen, places))
    known = [seconds for run in chosen if run.arm and (seconds := seconds_of(run, places))]
    hours = sum(known) / len(known) * left / jobs / 3600 if known else 0.0
    how = f"{jobs} at a time, {threads} thread{'s' * (threads > 1)} each"
    rest = f", about {hours:.1f} h by what the finished ones took" if known and left else ""
    if left and not known:
        rest = "; 'envrl doctor' says the hours of one"
    return [*lines, f"{len(chosen) - left} of {len(chosen)} done, {left} to do, {how}{rest}"]


def _again(arguments: Sequence[str]) -> list[str]:
    """Return the command line that each task of a scheduler has, without what says which runs and how many."""
    mine = ("--only", "--jobs", "--print", "--submit")
    left: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument in mine:
            next(remaining, None)
        elif argument.partition("=")[0] not in mine:
            left.append(argument)
    return left
