"""A recipe judged: what it needs of this machine and lacks, memory by part, hours, and the same elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any

from envrl.cli.installed import EXTRA_OF_WORLD, GIB, Finding, cuda_devices, data_finding, extra_finding, memory, wrapped
from envrl.config.schema import Config
from envrl.costs.estimate import USABLE, Change, Estimate, Remedy, estimate, recipe_shape, remedy
from envrl.costs.shape import Shape
from envrl.costs.speed import LAYER_SECONDS, PREFILL, UTILISATION, Accelerator, accelerators, this_cpu
from envrl.costs.workload import TURNS, WRITTEN
from envrl.errors import UserError
from envrl.models.find import is_hub_id, model_folder, read_record
from envrl.models.hub import cached_folder, missing_parts
from envrl.registry import find


@dataclass(slots=True)
class Judged:
    """What was found about a recipe, the lines of its tables, and all of it as a record."""

    findings: list[Finding] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def judge(config: Config, table: Path | None = None, processes: int = 1) -> Judged:
    """Return what a recipe needs, in so many processes with a device each, and what this machine has of it."""
    from envrl.models.runtime import with_precision

    devices, noted = accelerators(table)
    judged = Judged(list(_needs(config)))
    try:
        shape = recipe_shape(config)
    except UserError as error:
        judged.findings.append(Finding("memory and time", "model", False, str(error)))
        return judged
    cuda = config.train.device.startswith("cuda")
    here, size = _this_machine(config, devices)
    if not cuda:  # the processes share it
        size /= processes
    judged.findings += _precision(config, here)
    config, elsewhere = with_precision(config), with_precision(config, "cuda")
    found = estimate(config, shape, here, cuda=cuda, processes=processes)
    judged.findings += _room(config, shape, found, here, size, cuda, processes)
    judged.lines += [
        "",
        *memory_table(found),
        "",
        *_hours(found, here),
        "",
        *_elsewhere(elsewhere, shape, devices, noted, processes),
    ]
    judged.record = {
        "parameters": shape.parameters,
        "memory": found.memory.phases,
        "process": found.process,
        "peak": found.bytes,
        "device": here.name,
        "device_memory": size,
        "hours": found.hours,
        "seconds": {"rollout": found.times.rollout, "update": found.times.update},
        "accelerators": [_record(elsewhere, shape, device, processes) for device in devices],
        **({"processes": processes} if processes > 1 else {}),
    }
    return judged


# --- what must be there ----------------------------------------------------------------------------------------------


def _needs(config: Config) -> Iterator[Finding]:
    section = "the recipe needs"
    yield _world(config, section)
    extra = EXTRA_OF_WORLD.get(config.env.name)
    if extra is None and config.settings("env").get("nouns") == "spacy":
        extra = "spacy"
    if config.model.lora_rank:
        found = extra_finding("lora")
        yield Finding(section, "extra lora", bool(found.good), found.detail)
    if extra is not None:
        found = extra_finding(extra)
        yield Finding(section, f"extra {extra}", bool(found.good), found.detail)
    if config.env.name in ("alfworld", "webshop", "alfworld-textworld"):
        data = data_finding(config.env.name.removesuffix("-textworld"), config.env.data)
        needed = config.env.name != "webshop" or bool(config.env.data)  # without, the catalogue is generated
        yield Finding(section, f"data {data.name}", data.good or (False if needed else None), data.detail)
    if config.model.path:
        yield _model(config.model.path, config.model.revision, section)
    if config.warm_start.path:
        there = (Path(config.warm_start.path) / "config.json").is_file()
        detail = config.warm_start.path if there else f"'{config.warm_start.path}' is no warm start of another run"
        yield Finding(section, "warm_start.path", there, detail)
    if find("sampler", config.rollout.sampler).traits.get("apart"):
        counted = "memory and hours below are counted as if the built-in sampler played in the trainer's process"
        yield Finding(section, f"sampler {config.rollout.sampler}", None, f"its devices are not judged: {counted}")
    yield _device(config, section)


def _world(config: Config, section: str) -> Finding:
    from envrl.build import env_maker
    from envrl.envs.answers import listed_tasks, opened

    try:
        names = dict.fromkeys((config.env.split, *config.eval.split))
        with opened(env_maker(config)()) as env:
            counts = {name: len(listed_tasks(env, name, config.env.name)) for name in names}
    except UserError as error:
        return Finding(section, f"world {config.env.name}", False, str(error))
    empty = [name for name, count in counts.items() if not count]
    if empty:
        return Finding(section, f"world {config.env.name}", False, f"no tasks in {', '.join(empty)}")
    tasks = ", ".join(f"{count:,} tasks in {name}" for name, count in counts.items())
    return Finding(section, f"world {config.env.name}", True, tasks)


def _model(path: str, revision: str, section: str) -> Finding:
    if is_hub_id(path):
        folder = cached_folder(path, revision)
        if folder is None or missing_parts(folder):
            detail = f"'{path}' is not in the hub's cache: 'envrl models get {path}', or the run itself, gets it"
            return Finding(section, "model", None, detail)
    else:
        try:
            folder = model_folder(path, revision)
        except UserError as error:
            return Finding(section, "model", False, str(error))
    missing = missing_parts(folder)
    if missing:
        return Finding(section, "model", False, f"'{path}' lacks {', '.join(missing)}")
    note = read_record(folder).get("note", "")
    return Finding(section, "model", True, f"{path}{f', {note}' if note else ''}")


def _device(config: Config, section: str) -> Finding:
    from envrl.models.load import find_device

    try:
        find_device(config.train.device)
    except UserError as error:
        return Finding(section, "train.device", False, str(error))
    return Finding(section, "train.device", True, config.train.device)


# --- whether it fits -------------------------------------------------------------------------------------------------


def _this_machine(config: Config, devices: Sequence[Accelerator]) -> tuple[Accelerator, float]:
    """Return the device that the recipe would run on, measured or from the table, and its memory in bytes.

    A CUDA device that is not here has no memory; the speed of one that is in no table is without bounds.
    """
    if not config.train.device.startswith("cuda"):
        return _measured_cpu(config), memory()[1]
    found = cuda_devices()
    number = int(config.train.device.partition(":")[2] or 0)
    if number >= len(found):
        return Accelerator(config.train.device, 0.0, inf, inf, inf), 0
    name, size = found[number]
    known = [device for device in devices if all(word in name for word in device.name.split())]
    return (known[0] if known else Accelerator(name, size / GIB, inf, inf, inf)), size


def _measured_cpu(config: Config) -> Accelerator:
    from envrl.models.runtime import prepare_torch, product_speeds

    prepare_torch(config.train.threads)
    return this_cpu(memory()[1] / GIB, product_speeds())


def _precision(config: Config, here: Accelerator) -> Iterator[Finding]:
    """Say which precision is the faster one on this processor, and which keys ask for the other."""
    if config.train.device.startswith("cuda"):
        return
    from envrl.models.runtime import faster_precision

    best = faster_precision(config.train.device)
    keys = {"train.precision": config.train.precision, "rollout.precision": config.rollout.precision}
    slower = [key for key, value in keys.items() if value not in (best, "auto")]
    speeds = f"products of this CPU: {1000 * here.fp32:.0f} GFLOP/s in fp32, {1000 * here.bf16:.0f} in bf16"
    change = f"; --{f' {best} --'.join(slower)} {best} is faster" if slower else ""
    yield Finding("memory and time", "precision", None if slower else True, speeds + change)


def _room(
    config: Config, shape: Shape, found: Estimate, here: Accelerator, size: float, cuda: bool, processes: int
) -> Iterator[Finding]:
    section = "memory and time"
    each = f" in each of {processes} processes" if processes > 1 else ""
    takes = f"{_gib(found.bytes)} GiB at the peak{each} ({found.memory.largest})"
    room = f"{_gib(size)} GiB on {here.name}" + (
        f", {USABLE:.0%} of it usable" if cuda else f" free{' for one' if each else ''}"
    )
    if cuda and not size:
        yield Finding(section, "memory", None, f"{takes}; there is no {here.name} to compare it with")
    else:
        yield Finding(section, "memory", found.fits(size), f"{takes}, of {room}")
    if size and not found.fits(size):
        cure = remedy(config, shape, here, size, cuda=cuda, processes=processes)
        for change in cure.changes:
            yield Finding(section, "  change", None, _advice(change))
        if not cure.enough:
            yield Finding(section, "  not enough", None, f"{_gib(cure.bytes)} GiB are left: take a smaller model")
    free = shutil.disk_usage(Path.cwd()).free
    disk = f"{_gib(found.disk)} GiB of checkpoints, of {_gib(free)} GiB free here"
    yield Finding(section, "disk", found.disk <= free, disk)


def _advice(change: Change) -> str:
    results = "" if change.harmless else "; another experiment"
    return f"--{change.key} {change.value} saves {_gib(change.saves)} GiB{results}"


def memory_table(found: Estimate) -> list[str]:
    """Return the predicted memory as a table: a line a part, a column a phase, in GiB or MiB."""
    phases = found.memory.phases
    unit, name = (GIB, "GiB") if found.bytes > 4 * GIB else (2**20, "MiB")

    def row(title: str, sizes: Iterable[int | None]) -> str:
        cells = ("-" if size is None else f"{size / unit:,.1f}" for size in sizes)
        return f"  {title:<18}" + "".join(f"{cell:>16}" for cell in cells)

    return [
        f"{name:<20}" + "".join(f"{phase:>16}" for phase in phases),
        *(
            row(part, (p.get(part) for p in phases.values()))
            for part in dict.fromkeys(n for p in phases.values() for n in p)
        ),
        row("the process", [found.process] * len(phases)),
        row("together", (found.memory.total(phase) + found.process for phase in phases)),
    ]


def _hours(found: Estimate, here: Accelerator) -> list[str]:
    work = found.work
    lines = [
        f"an update: {work.episodes} episodes of about {work.turns:.0f} turns, {_thousands(work.fed)} tokens played, "
        f"{_thousands(work.trained)} trained on"
    ]
    if not isfinite(here.bf16):
        return [*lines, f"hours on {here.name}: unknown, since it is in no table (--accelerators)"]
    stages = ", ".join(f"{name} {_time(hours)}" for name, hours in found.hours.items() if hours)
    told = (
        f"on {here.name}: {found.times.rollout:.3g} s of rollout and {found.times.update:.3g} s of optimisation an "
        f"update; {stages}: {_time(found.total_hours)} in all"
    )
    return [*map(wrapped, (*lines, told))]


def _elsewhere(config: Config, shape: Shape, devices: Sequence[Accelerator], noted: str, processes: int) -> list[str]:
    title = f"{processes} devices" if processes > 1 else "elsewhere"
    lines = [f"{title:<14}{'GiB':>7}{'needs':>8}{'fits':>6}{'time':>10}{'USD':>7}  to fit"]
    for device in devices:
        found = estimate(config, shape, device, cuda=True, processes=processes)
        size = device.memory * GIB
        fits = found.fits(size)
        fitting = "" if fits else _to_fit(remedy(config, shape, device, size, cuda=True, processes=processes))
        cost = found.total_hours * device.price * processes
        head = (
            f"  {device.name:<12}{device.memory:>7.1f}{found.bytes / GIB:>8.1f}{'yes' if fits else 'no':>6}"
            f"{_time(found.total_hours):>10}{cost:>7.{0 if cost >= 10 else 2}f}  "
        )
        lines.append(wrapped(fitting or "", head, " " * 54) or head.rstrip())
    assumed = (
        f"Assumed: {UTILISATION:.0%} of the dense products in the update and {PREFILL:.0%} over prompts, "
        f"{1000 * LAYER_SECONDS:.1f} ms to begin a layer, episodes of {TURNS:.0%} of their longest, free responses of "
        f"{WRITTEN:.0%} of theirs; worlds cost nothing. Prices are rough ones of {noted}: put in what you pay by "
        "--accelerators FILE."
    )
    return [*lines, wrapped(assumed, "  ")]


def _to_fit(cure: Remedy) -> str:
    if not cure.enough:
        return f"cannot: {_gib(cure.bytes)} GiB at the least"
    return ", ".join(f"{change.key} {change.value}" for change in cure.changes)


def _record(config: Config, shape: Shape, device: Accelerator, processes: int) -> dict[str, Any]:
    found = estimate(config, shape, device, cuda=True, processes=processes)
    return {
        "name": device.name,
        "memory": device.memory * GIB,
        "peak": found.bytes,
        "fits": found.fits(device.memory * GIB),
        "hours": found.total_hours,
        "cost": found.total_hours * device.price * processes,
    }


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size >= 0.995 * GIB else f"{size / GIB:.2f}"


def _thousands(tokens: float) -> str:
    return f"{tokens / 1e6:.1f} million" if tokens >= 1e6 else f"{tokens / 1e3:.0f} thousand"


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
