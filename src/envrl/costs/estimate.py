"""What a recipe asks of a device: memory by part, hours, cost, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from envrl.config.load import override
from envrl.config.schema import Config
from envrl.costs.memory import FULL, PROCESS, Footprint, Load, footprint, trainable
from envrl.costs.operations import Passes, forward_flops
from envrl.costs.shape import Shape, preset_shape, published_shape, read_shape
from envrl.costs.speed import UTILISATION, Accelerator, Times, update_times
from envrl.costs.workload import Workload, memory_load, workload
from envrl.errors import UserError
from envrl.models.find import config_folder, is_hub_id
from envrl.models.hub import cached_folder

USABLE = 0.92
"""The share of a GPU's memory that tensors can fill before the allocator's gaps are in the way; assumed."""
GAMES = {"household": 500, "alfworld": 140, "webshop": 500}
"""Games of a whole split; of other worlds 200 are assumed."""
AT_ONCE = 128
"""Episodes that an evaluation plays at once, as in `envrl.eval.split`."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run asks of one device; `hours` by stage."""

    shape: Shape
    work: Workload
    load: Load
    memory: Footprint
    process: int
    times: Times
    hours: dict[str, float]
    kept: int

    @property
    def total_hours(self) -> float:
        return sum(self.hours.values())

    @property
    def bytes(self) -> int:
        """The most that is taken at once, the process's own included."""
        return self.memory.peak + self.process

    @property
    def disk(self) -> int:
        """What the checkpoints take: weights and moments of each that is kept, of one being written, the warm start."""
        return FULL * (3 * (self.kept + 1) + 1) * trainable(self.shape, self.load.lora_rank)

    def fits(self, memory: float) -> bool:
        """Return whether it fits a device of so many bytes."""
        return self.excess(memory) == 0

    def excess(self, memory: float) -> float:
        """Return by how much the phases pass what a device of so many bytes can hold, all added up."""
        usable = (USABLE * memory if self.load.cuda else memory) - self.process
        return sum(max(0.0, self.memory.total(phase) - usable) for phase in self.memory.phases)

    def saved(self, other: Estimate) -> int:
        """Return the bytes by which the phase that changes most is smaller in another estimate."""
        return max((self.memory.total(phase) - other.memory.total(phase) for phase in self.memory.phases), key=abs)


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that makes a run smaller: its key and value, the bytes that it saves, and whether results stay."""

    key: str
    value: str
    saves: int
    harmless: bool


def recipe_shape(config: Config) -> Shape:
    """Return the shape of a recipe's model, also of a published one that is not there yet; raises `UserError`."""
    if not config.model.path:
        return preset_shape(config.model)
    known = published_shape(config.model.path)
    if known is not None and is_hub_id(config.model.path) and cached_folder(config.model.path) is None:
        return known
    try:
        return read_shape(config_folder(config.model.path, config.model.revision))
    except UserError as error:
        if known is None:
            raise UserError(f"{error}; and its name is none whose shape is known") from error
    return known


def estimate(config: Config, shape: Shape, device: Accelerator, *, cuda: bool, processes: int = 1) -> Estimate:
    """Return what a recipe asks of a device, or of each of several that share it (`train.engine = "sharded"`).

    What the processes tell each other is not counted in the hours.
    """
    work = workload(config)
    load = memory_load(config, work, shape, cuda)
    if config.train.engine == "sharded":
        load = replace(_share(load, processes), processes=processes)
    passes = _passes(config, work)
    scored = work.trained * load.scored / load.micro_batch
    times = update_times(shape, work, load, passes, scored, device)
    if not config.learns:
        times = replace(times, update=0.0)
    hours = {
        "warm start": _warm_start_seconds(config, shape, work, load, device) / processes / 3600,
        "updates": config.train.updates * times.total / processes / 3600,
        "evaluations": _evaluated(config) / work.episodes * times.rollout * _stretch(config) / processes / 3600,
    }
    return Estimate(
        shape,
        work,
        load,
        footprint(shape, load, _share(_evaluation_load(config, shape, load), processes)),
        PROCESS["cuda" if cuda else "cpu"],
        times,
        hours,
        config.checkpoint.keep,
    )


def _share(load: Load, processes: int) -> Load:
    """Return what one of several processes plays."""
    slots = max(1, ceil(load.slots / processes))
    return replace(load, slots=slots, fed=ceil(load.fed / processes), later=ceil(load.later / processes))


def _evaluation_load(config: Config, shape: Shape, load: Load) -> Load:
    """Return what an evaluation asks of memory: up to 128 episodes at once, as long as `env.max_steps` allows."""
    rollout = replace(config.rollout, max_steps=0)
    if config.eval.free_episodes:
        rollout = replace(rollout, actions="free")
    longest, prompt = workload(replace(config, rollout=rollout)).longest(shape.context)
    slots = min(AT_ONCE, GAMES.get(config.env.name, AT_ONCE), config.rollout.slots or AT_ONCE)
    fed, later = slots * prompt, slots * max(1, load.later // load.slots)
    return replace(load, slots=slots, positions=longest, chunk=prompt, fed=fed, later=later)


def _passes(config: Config, work: Workload) -> Passes:
    train = config.train
    each = ceil(work.rows / train.minibatch_rows) if train.minibatch_rows else train.minibatches
    steps = train.epochs * each
    forward = int(steps > 1) + int(config.objective.kl_weight > 0)
    return Passes(forward, train.epochs, again=train.checkpointing, steps=steps)


def _warm_start_seconds(config: Config, shape: Shape, work: Workload, load: Load, device: Accelerator) -> float:
    warm = config.warm_start
    if warm.path or not warm.demonstrations:
        return 0.0
    turns = work.turns if work.steps else 1.0
    tokens = warm.demonstrations * warm.epochs * turns * work.sequence
    return 3 * forward_flops(shape, tokens, work.sequence) / (UTILISATION * device.flops(load.bf16))


def _evaluated(config: Config) -> float:
    """Return how many episodes all evaluations play, the unrestricted ones included."""
    splits, every = len(config.eval.split), config.eval.every
    whole = GAMES.get(config.env.name, 200)
    final, part = (min(count or whole, whole) for count in (config.eval.final, config.eval.episodes))
    between = (config.train.updates - 1) // every if every else 0
    free = config.eval.free_episodes if config.rollout.actions != "free" else 0
    return splits * (2 * final + between * part) * (1 + free / whole)


def _stretch(config: Config) -> float:
    """Return how much longer an evaluation's episodes may be than training's."""
    return config.env.max_steps / (config.rollout.max_steps or config.env.max_steps)


# --- what to change --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remedy:
    """Settings to change, and the bytes that are taken then; `enough` says whether they fit."""

    changes: tuple[Change, ...]
    bytes: int
    enough: bool


def remedy(
    config: Config, shape: Shape, device: Accelerator, memory: float, *, cuda: bool, processes: int = 1
) -> Remedy:
    """Return what to change until the run fits or nothing is left to try: first what leaves results as they are."""
    chosen: dict[str, Change] = {}
    now = estimate(config, shape, device, cuda=cuda, processes=processes)
    while not now.fits(memory):
        for key, value, harmless in _candidates(config, now, cuda):
            smaller = override(config, [(key, value)])
            then = estimate(smaller, shape, device, cuda=cuda, processes=processes)
            if then.excess(memory) < 0.95 * now.excess(memory):
                saved = now.saved(then) + (chosen[key].saves if key in chosen else 0)
                chosen[key] = Change(key, value, saved, harmless)
                config, now = smaller, then
                break
        else:
            break
    while SLOTS in chosen and now.fits(memory):  # what came later may have made room for more of them again
        more_slots = 2 * now.load.slots
        larger = override(config, [(SLOTS, str(more_slots))])
        more = estimate(larger, shape, device, cuda=cuda, processes=processes)
        if not more.fits(memory) or more_slots >= now.work.episodes or more.load.slots <= now.load.slots:
            break  # of several processes each plays its share of the episodes, and has no more slots than that
        saved = chosen[SLOTS].saves + now.saved(more)
        chosen[SLOTS] = Change(SLOTS, str(more_slots), saved, True)
        config, now = larger, more
    return Remedy(tuple(chosen.values()), now.bytes, now.fits(memory))


SLOTS = "rollout.slots"
"""Episodes that are played at a time; a run halves their number by itself where memory runs out."""


def _candidates(config: Config, now: Estimate, cuda: bool) -> Iterator[tuple[str, str, bool]]:
    """Yield what could be tried next: key, value, and whether results stay the same."""
    if now.load.slots > 1:
        yield SLOTS, str(now.load.slots // 2), True
    if cuda and config.rollout.precision == "fp32":
        yield "rollout.precision", "bf16", True
    if cuda and config.train.precision == "fp32":
        yield "train.precision", "bf16", True
    tokens = config.train.micro_batch_tokens // 2
    if tokens >= now.work.longest(now.shape.context)[0]:
        yield "train.micro_batch_tokens", str(tokens), True
    if not config.train.checkpointing:
        yield "train.checkpointing", "true", True
    if config.objective.kl_weight:
        yield "objective.kl_weight", "0", False
    if config.model.path and not config.model.lora_rank:
        yield "model.lora_rank", "16", False
