"""Play batches of episodes with a policy; for scripts see `envrl.rollout.scripts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from envrl.envs.pool import vector_of
from envrl.envs.protocol import TextEnv
from envrl.envs.vector import VectorEnv
from envrl.randomness import key_of
from envrl.rollout.policy import Policy
from envrl.rollout.scheduler import (
    Episode,
    EpisodeScheduler,
    Guide,
    PlaySettings,
    RolloutStats,
    Tell,
    play_first,
    say_nothing,
)
from envrl.types import Assignment, Observation, StopReason, Task, Trajectory


def play_episodes(
    policy: Policy,
    make_env: Callable[[], TextEnv],
    tasks: Sequence[Task],
    members: Sequence[int],
    settings: PlaySettings,
    *,
    assignments: Sequence[Assignment] | None = None,
    guides: Sequence[Guide] | None = None,
    tell: Tell = say_nothing,
    seed: int,
    update: int = 0,
    version: int | None = None,
    stats: RolloutStats | None = None,
    poll: Callable[[], None] = lambda: None,
    watch: Callable[[float], None] = lambda _: None,
    ended: Callable[[Trajectory], None] = lambda _: None,
) -> list[Trajectory]:
    """Play one episode for each (task, member), `settings.slots` at a time; return the trajectories in that order.

    Samples depend on (seed, update, task, member, turn, token) alone. `assignments`, one per episode, give the episodes
    their own lengths and starts; `guides`, one per episode, play some of the steps in place of the starts. `tell` says
    what an episode without a help of its own is told. `version` is the policy version to record, by default the update.
    `poll` is called every turn and may raise; `watch` gets the number of episodes played, an unfinished one counted by
    its share of steps; `ended` gets each trajectory when it ends.
    """
    stats = stats or RolloutStats()
    version = update if version is None else version
    worlds = vector_of(make_env)
    replaced = worlds.replaced
    given = assignments or [Assignment(task, 1) for task in tasks]
    episodes = [
        Episode(
            task,
            member,
            Observation(""),
            key_of(seed, update, task.id, member),
            max_steps=assigned.max_steps or settings.max_steps,
            guide=guides[number] if guides else play_first(assigned.start),
            help=assigned.help,
            tell=tell,
            number=number,
        )
        for number, (task, member, assigned) in enumerate(zip(tasks, members, given, strict=True))
    ]
    try:
        _play(policy, worlds, episodes, settings, stats, poll, watch, lambda episode: ended(_finish(episode, version)))
    finally:
        worlds.finish()
    stats.replaced += worlds.replaced - replaced
    return [_finish(episode, version) for episode in episodes]


def _play(
    policy: Policy,
    worlds: VectorEnv,
    episodes: Sequence[Episode],
    settings: PlaySettings,
    stats: RolloutStats,
    poll: Callable[[], None],
    watch: Callable[[float], None],
    ended: Callable[[Episode], None],
) -> None:
    """Play these episodes until all have ended."""
    unfinished, scheduler = episodes, EpisodeScheduler(policy, worlds, episodes, settings, stats)
    try:
        while scheduler.ask():
            poll()
            scheduler.answer()
            watch(sum(1.0 if e.stop_reason else len(e.transitions) / e.max_steps for e in episodes))
            for episode in (episode for episode in unfinished if episode.stop_reason):
                ended(episode)
            unfinished = [episode for episode in unfinished if not episode.stop_reason]
    finally:
        scheduler.close()
    for episode in unfinished:  # these ended with a full context
        ended(episode)


def _finish(episode: Episode, version: int) -> Trajectory:
    episode.transcript.close()
    return Trajectory(
        episode.task,
        episode.member,
        tuple(episode.transitions),
        tuple(episode.transcript.segments),
        episode.stop_reason or StopReason.MAX_STEPS,
        policy_version=version,
    )
