"""Playing episodes: a batch of them with a language model, or one with a script; either way a `Trajectory` results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from envrl.envs.answers import answer, first_observation, what_happened
from envrl.envs.pool import vector_of
from envrl.envs.protocol import TextEnv
from envrl.envs.vector import ATTEMPTS_HERE, put_aside
from envrl.errors import UserError
from envrl.models.load import LanguageModel
from envrl.rollout.randomness import key_of
from envrl.rollout.seats import Clock, Episode, PlaySettings, Seats
from envrl.rollout.wording import Wording
from envrl.types import SET_ASIDE, Action, Observation, Task, Trajectory, Transition


def play_model(
    model: LanguageModel,
    wording: Wording,
    make_env: Callable[[], TextEnv],
    tasks: Sequence[Task],
    members: Sequence[int],
    settings: PlaySettings,
    *,
    seed: int,
    update: int = 0,
    clock: Clock | None = None,
    poll: Callable[[], None] = lambda: None,
    watch: Callable[[float], None] = lambda _: None,
) -> list[Trajectory]:
    """Play one episode for each (task, member), `settings.slots` at a time, and return trajectories in that order.

    What is drawn depends on (seed, update, task, member, turn, token) alone. `poll` is called every turn and may raise;
    `watch` is told how many episodes are played, those under way by the share of their steps.
    """
    clock = clock or Clock()
    worlds = vector_of(make_env)
    replaced = worlds.replaced
    episodes = [
        Episode(task, member, Observation(""), key_of(seed, update, task.id, member))
        for task, member in zip(tasks, members, strict=True)
    ]
    try:
        seats = Seats(model, wording, worlds, episodes, settings, clock)
        while seats.ask():
            poll()
            seats.answer()
            watch(sum(1.0 if e.stop_reason else len(e.transitions) / settings.max_steps for e in episodes))
    finally:
        worlds.finish()
    clock.replaced += worlds.replaced - replaced
    return [_finish(episode, update) for episode in episodes]


def _finish(episode: Episode, update: int = 0) -> Trajectory:
    episode.transcript.close()
    return Trajectory(
        episode.task,
        episode.member,
        tuple(episode.transitions),
        tuple(episode.transcript.segments),
        episode.stop_reason or "max_steps",
        policy_version=update,
    )


Script = Callable[[Observation], str]


def play_script(env: TextEnv, task: Task, script: Script, max_steps: int) -> Trajectory:
    """Play one episode with a script (observation → command); its actions carry no tokens.

    Raises what the world does, and `BadAnswer`.
    """
    observation = first_observation(env, task, task.seed)
    episode = Episode(task, 0, observation)
    return _finish(_run_script(env, episode, script, max_steps))


def attempt_script(
    env: TextEnv, task: Task, make: Callable[[], Script], max_steps: int, set_aside: dict[str, str] | None = None
) -> Trajectory:
    """Play one episode with a script, once more where the world fails; set aside, without a step, where it fails again.

    `make` returns the script anew; `set_aside` takes the task's id and what happened. Raises `UserError` where the
    world does.
    """
    reason = ""
    for _ in range(ATTEMPTS_HERE):
        try:
            return play_script(env, task, make(), max_steps)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a world may raise anything, or end the process
            reason = what_happened(error)
    put_aside({} if set_aside is None else set_aside, task, ATTEMPTS_HERE, reason)
    return Trajectory(task, 0, (), (), SET_ASIDE)


def _run_script(env: TextEnv, episode: Episode, script: Script, max_steps: int) -> Episode:
    for _ in range(max_steps):
        command = script(episode.observation)
        step = answer(env, command)
        episode.transitions.append(
            Transition(episode.observation, Action(command), step.reward, step.observation, step.done, step.success)
        )
        episode.observation = step.observation
        if step.done:
            episode.stop_reason = "done"
            break
    return episode


def batches(count: int, size: int) -> Iterator[range]:
    """Return consecutive ranges of at most `size` that cover `range(count)`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
