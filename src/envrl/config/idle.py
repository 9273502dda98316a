"""Warnings about settings of a recipe that have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from envrl.config.schema import AuxiliaryConfig, Config
from envrl.registry import find


def idle_settings(config: Config) -> Iterator[str]:
    """Yield a warning for each objective, reward, regularizer, teacher and KL setting that has no effect."""
    yield from _unlearned(config)
    yield from _unweighed(config)
    yield from _frozen(config)
    warm = config.warm_start
    for stage, key in (("", "auxiliary"), ("warm_start", "warm_start.auxiliary")):
        active = {each.name: each.common for each in config.auxiliaries(stage)}
        tables = {name.removeprefix(f"{key}.").partition(".")[0] for name in config.owned if name.startswith(f"{key}.")}
        for name in sorted(tables - active.keys()):
            yield f"[{key}.{name}] has no effect, since {key}.{name}.weight = 0: give it a weight, or leave it out"
        for name, common in active.items():
            given = f"{key}.{name}.weight = {common.weight:g} has no effect, since"
            if stage and (warm.path or not warm.demonstrations):
                if not warm.path:
                    yield f"{given} warm_start.demonstrations = 0"
            elif not common.fraction:
                yield f"{given} {key}.{name}.fraction = 0 leaves no rows: raise one, or set the other to 0"
            elif not stage:
                yield from _ended(config, name, common)


def _unlearned(config: Config) -> Iterator[str]:
    """Yield a warning for a reward that asks what nothing teaches the policy to answer."""
    learned = {each.asks for stage in ("", "warm_start") for each in config.auxiliaries(stage)}
    for reward in config.rewards():
        asks = find("reward", reward.name).traits.get("asks")
        if asks and asks not in learned and not config.warm_start.path:
            yield (
                f"reward.{reward.name}.weight = {reward.common.weight:g} pays for what the policy can answer, and "
                f"nothing teaches it that: give auxiliary.{asks}.weight or warm_start.auxiliary.{asks}.weight a value"
            )


def _unweighed(config: Config) -> Iterator[str]:
    """Yield a warning for tables of rewards, regularizers and teachers without a weight, and for a KL without one."""
    weighed = {"reward": config.rewards(), "regularizer": config.regularizers(), "teacher": config.teachers()}
    for kind, active in weighed.items():
        tables = {name.split(".")[1] for name in config.owned if name.startswith(f"{kind}.")}
        for name in sorted(tables - {each.name for each in active}):
            yield f"[{kind}.{name}] has no effect, since {kind}.{name}.weight = 0: give it a weight, or leave it out"
    objective = config.objective
    if not objective.kl_weight and (objective.kl_estimator, objective.kl_in) != ("k3", "loss"):
        yield (
            f"objective.kl_estimator = '{objective.kl_estimator}' and objective.kl_in = '{objective.kl_in}' have no "
            "effect, since objective.kl_weight = 0: give it a weight, or leave them out"
        )


def _frozen(config: Config) -> Iterator[str]:
    """Yield a warning for losses and rewards of a run whose engine takes no steps."""
    if config.learns:
        return
    kinds = {"auxiliary": config.auxiliaries(), "regularizer": config.regularizers(), "teacher": config.teachers()}
    kinds |= {"reward": config.rewards()}
    given = [f"{kind}.{each.name}.weight" for kind, weighed in kinds.items() for each in weighed]
    given += [f"objective.{key}" for key in ("kl_weight", "entropy_weight") if getattr(config.objective, key)]
    if given:
        yield f"train.engine = '{config.train.engine}' takes no optimiser step, so {', '.join(given)} has no effect"


def _ended(config: Config, name: str, common: AuxiliaryConfig) -> Iterator[str]:
    """Yield a warning if an objective never takes part, or its schedule ends long before the run."""
    updates = config.train.updates
    length = common.schedule_updates or updates
    if updates and common.every > updates:
        yield (
            f"auxiliary.{name}.weight = {common.weight:g} has no effect, since auxiliary.{name}.every = {common.every} "
            f"is above train.updates = {updates}"
        )
    elif common.schedule != "constant" and length < updates / 2 and not common.floor:
        yield (
            f"auxiliary.{name}.weight = {common.weight:g} is 0 from update {length + 1} of {updates} on, since "
            f"auxiliary.{name}.schedule_updates = {length}"
        )
