"""Play the episodes that an evaluation still lacks, in batches, and keep them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from envrl import ranks
from envrl.envs.protocol import TextEnv
from envrl.eval.kept import BATCH, Kept
from envrl.progress import Phase, Reporter
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.scheduler import PlaySettings, RolloutStats, Tell, say_nothing
from envrl.rollout.splitter import BatchSplitter
from envrl.types import Task, Trajectory

Chosen = Sequence[tuple[Task, int]]
"""(task, member) of each episode."""


@dataclass(frozen=True, slots=True)
class Player:
    """Plays a split's episodes with a model and keeps them.

    Each episode is kept when it ends, and only missing ones are played. But the log-probs of an episode depend by
    rounding on the rest of its batch; to avoid that (`whole_batches`), a batch is kept only when all of it has ended,
    and else played again as a whole. Of several processes each plays its share, and the first one keeps the episodes.
    """

    policy: Policy
    make_env: Callable[[], TextEnv]
    split: str
    seed: int
    kept: Kept
    splitter: BatchSplitter
    reporter: Reporter
    poll: Callable[[], None]
    whole_batches: bool = False
    tell: Tell = say_nothing
    stats: RolloutStats = field(default_factory=RolloutStats)

    def play(self, name: str, chosen: Chosen, settings: PlaySettings) -> list[Trajectory]:
        """Return the episodes of these tasks; those that are kept already are not played again."""
        actions, left = settings.actions, ranks.gather(self._left(chosen, settings.actions))[0]
        done = len(chosen) - sum(map(len, left))
        with self.reporter.phase(name, len(chosen), done, unit="episodes") as phase:
            for batch in left:
                mine = batch[ranks.number() :: ranks.count()]
                parts = ranks.gather(self.splitter.play(len(mine), partial(self._play, phase, done, mine, settings)))
                for place in range(len(batch)):
                    self.kept.add(actions, self.split, parts[place % len(parts)][place // len(parts)])
                self.kept.sync()
                done += len(batch)
        return ranks.gather(self.kept.find(actions, self.split, chosen))[0]

    def _left(self, chosen: Chosen, actions: str) -> list[Chosen]:
        """Return the episodes that are still to be played, in batches."""
        some = chosen if self.whole_batches else self.kept.missing(actions, self.split, chosen)
        parts = [some[start : start + BATCH] for start in range(0, len(some), BATCH)]
        return [part for part in parts if self.kept.missing(actions, self.split, part)]

    def _play(self, phase: Phase, done: int, batch: Chosen, settings: PlaySettings, part: range) -> list[Trajectory]:
        tasks, members = zip(*(batch[i] for i in part), strict=True)
        ended = (lambda _: None) if self.whole_batches else partial(self.kept.add, settings.actions, self.split)
        return play_episodes(
            self.policy,
            self.make_env,
            tasks,
            members,
            settings,
            tell=self.tell,
            seed=self.seed,
            stats=self.stats,
            poll=self.poll,
            watch=lambda more: phase.show(done + part.start + more),
            ended=ended,
        )
