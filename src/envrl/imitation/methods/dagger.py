"""DAgger: the expert labels the states that the policy comes to (Ross et al. 2011, arXiv 1011.0686, algorithm 3.1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack

from envrl.envs.answers import answer, first_observation, opened, what_happened
from envrl.envs.protocol import TextEnv
from envrl.errors import RunError, UserError
from envrl.imitation.method import Gathered, Guide, Lesson, Player, bare
from envrl.randomness import key_of
from envrl.ranges import Fraction, Positive
from envrl.registry import register
from envrl.rollout.scripts import HasExpert, make_script
from envrl.types import Assignment, Observation, Task, Trajectory, Transition


def check_expert(env: TextEnv, world: str) -> None:
    """Raise `UserError` for a world without an expert that can be asked anywhere."""
    if not isinstance(env, HasExpert):
        raise UserError(
            f"warm_start.method = 'dagger' asks an expert what to do where the policy is, and the world '{world}' has "
            "none (a walkthrough that is led astray does not find back): use 'rejection', or another world"
        )


@register("warm_start", "dagger", check=check_expert)
class Dagger:
    """Round 0 imitates the demonstrations; before each further round, the policy's own episodes are labelled and added.

    In round i a step is played by the expert with probability βᵢ = betaⁱ, else by the policy; the expert is asked at
    every step, whoever plays it, and its command is imitated there: D ← D ∪ {(s, π*(s))}.
    """

    def __init__(
        self,
        epochs: int,
        *,
        rounds: Positive = 3,  # rounds of play and labels, after the one on the demonstrations
        episodes: Positive = 64,  # that are played and labelled before each
        beta: Fraction = 0.0,  # chance that the expert plays a step of round 1; in round i its i-th power
        passes: Positive = 1,  # epochs of each round, over all lessons so far
    ) -> None:
        self.passes = (epochs, *(passes for _ in range(rounds)))
        self._episodes, self._beta = episodes, beta

    def gather(self, round: int, demonstrations: Sequence[Lesson], player: Player) -> Gathered:
        if not round:
            return Gathered()
        teachers: dict[str, Teacher] = {}
        with ExitStack() as worlds:

            def guide_of(task: Task, member: int) -> Guide:
                key = key_of(player.seed, "dagger", round, task.id)
                env = worlds.enter_context(opened(player.make_env()))
                teachers[task.id] = Teacher(env, task, key, self._beta**round, player.world)
                return teachers[task.id]

            tasks = {task.id: task for task in player.tasks(round, self._episodes)}
            played = player.play(round, [Assignment(task, 1) for task in tasks.values()], guide_of)
        said = player.together({task: teacher.labels for task, teacher in teachers.items()})
        labels = {task: of_one for part in said for task, of_one in part.items()}
        lessons = [labelled(bare(each), labels[each.task.id]) for each in played if each.transitions]
        steps = sum(len(each.imitated) for each in lessons)
        return Gathered(
            lessons,
            {
                "agreement": sum(sum(each.imitated) for each in lessons) / max(1, steps),
                "success_rate": sum(each.success for each in played) / max(1, len(played)),
            },
            sum(map(len, labels.values())),
        )

    def learns(self, round: int, demonstrations: Sequence[Lesson], gathered: Sequence[Lesson]) -> list[Lesson]:
        return [*demonstrations, *gathered]


class Teacher:
    """An episode's expert: it says what to do at every observation, and plays a step with the given chance.

    It watches a world of its own, in which it repeats what was played, since some experts look at more than the text.
    """

    def __init__(self, env: TextEnv, task: Task, key: int, chance: float, world: str) -> None:
        self.labels: list[str] = []
        self._env, self._task, self._key, self._chance, self._world = env, task, key, chance, world
        self._generator = random.Random(key)

    def __call__(self, past: Sequence[Transition], observation: Observation) -> str:
        try:
            if past:
                answer(self._env, past[-1].action.text)
            else:
                first_observation(self._env, self._task, self._task.seed)
                self._script = make_script("expert", self._env, self._task, self._key)
            self.labels.append(self._script(observation))
        except UserError:
            raise
        except Exception as error:  # a world may raise anything
            raise RunError(
                f"the expert of the world '{self._world}' failed in '{self._task.id}': {what_happened(error)}"
            ) from error
        return self.labels[-1] if self._generator.random() < self._chance else ""


def labelled(trajectory: Trajectory, labels: Sequence[str]) -> Lesson:
    """Return what is to be learned from an episode, given what its expert said at every observation."""
    labels = tuple(labels[: len(trajectory.transitions)])
    said = zip(trajectory.transitions, labels, strict=True)
    return Lesson(trajectory, tuple(step.action.text == label for step, label in said), labels)
