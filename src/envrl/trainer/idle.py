"""Warnings about updates in which the policy learns nothing from the returns, or an auxiliary objective nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from envrl.config.schema import Config
from envrl.types import TrajectoryGroup, episodes_of

LARGEST_SHARE = 0.25
"""Warn if more than this share of a placebo's targets equal the true ones."""
PATIENCE = 3
"""After this many consecutive updates without a policy row, say why and what to do."""


class IdleUpdates:
    """Reports each update in which no row learns from the returns; after every three in a row also what to do."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say
        self._in_a_row = 0
        self._said: set[str] = set()

    def observe(self, update: int, groups: Sequence[TrajectoryGroup], figures: Mapping[str, float]) -> None:
        """Check an update: its groups of episodes, and the figures of `build_batch`."""
        active = [key.removeprefix("weight/") for key, value in figures.items() if key.startswith("weight/") and value]
        active = [name for name in active if f"rows/{name}" in figures]  # a regularizer has none of its own
        for name in active:
            if not figures[f"rows/{name}"]:
                self._say_without_rows(update, name, figures.get(f"rows/{name}_too_long", 0.0))
            elif figures.get(f"placebo/{name}_coincidences", 0.0) > LARGEST_SHARE * figures.get(
                f"placebo/{name}_targets", 0.0
            ):
                self._say_same_targets(update, name, figures)
        if figures["rows/policy"] or figures.get("rows/replay"):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        why, remedies = _why(groups, self._config)
        others = " (the auxiliary losses learn)" if any(figures[f"rows/{name}"] for name in active) else ""
        self._say(f"update {update}: no row learns from the returns{others}: {why}")
        if self._in_a_row % PATIENCE == 0:
            self._say(f"the policy has learned nothing in {self._in_a_row} updates in a row, since {why}: {remedies}")

    def _say_without_rows(self, update: int, name: str, too_long: float) -> None:
        if name in self._said:
            return
        self._said.add(name)
        why = (
            f"all that it yields, {too_long:.0f} examples, is longer than the model's context"
            if too_long
            else f"it yields nothing, or auxiliary.{name}.fraction is too small for so few episodes"
        )
        self._say(f"update {update}: auxiliary.{name}.weight has no effect, since no {name} row is left: {why}")

    def _say_same_targets(self, update: int, name: str, figures: Mapping[str, float]) -> None:
        if name not in self._said:
            self._said.add(name)
            same, targets = figures[f"placebo/{name}_coincidences"], figures[f"placebo/{name}_targets"]
            self._say(
                f"update {update}: the placebo of {name} is hardly one, since {same:.0f} of {targets:.0f} targets are "
                "equal to the true ones: most of its targets are the same text"
            )


def _why(groups: Sequence[TrajectoryGroup], config: Config) -> tuple[str, str]:
    """Return why no row of these episodes learns from their returns, and the remedies."""
    if not groups:
        return (
            f"the curriculum '{config.curriculum.name}' admitted none of the groups that were played",
            "lower what it asks of a group, or take easier or harder tasks",
        )
    trajectories, size = episodes_of(groups), config.rollout.group_size
    count = len(trajectories)
    won = sum(trajectory.success for trajectory in trajectories)
    if all(not trajectory.transitions for trajectory in trajectories):
        return (
            f"the context was full before the first step of all {count} episodes",
            "take a model with a longer context, or shorten the prompts",
        )
    if any(group.differs for group in groups):
        return (
            "the returns differ, and the estimator makes no difference of that, or sampling left no choice",
            "look at the episodes in trajectories/, and at objective.estimator",
        )
    hotter = f"raise rollout.temperature above {config.rollout.temperature:g}"
    more = f"play more episodes of a task (rollout.group_size = {size})"
    if won == count:
        return (
            f"all {count} episodes were won, with equal returns in each group",
            "there is nothing left to learn from these tasks: end the run, or take harder ones (env.split, "
            f"env.max_steps, env.step_cost), or {hotter}",
        )
    if won:
        return (
            f"the {size} episodes of each task had equal returns ({won} of {count} were won)",
            f"{more}, or {hotter}",
        )
    warm = config.warm_start
    start = "a longer warm start" if warm.path or warm.demonstrations else "a warm start (warm_start.demonstrations)"
    shaped = (
        "rollout.reward = 'world'" if config.rollout.reward == "success" else "a shaped reward (env.subgoal_reward)"
    )
    return (
        f"all {count} episodes were lost, with equal returns in each group",
        f"begin with {start}, have {shaped}, {more}, {hotter}, or give them more steps (env.max_steps)",
    )
