"""Play training episodes with the policy between the rounds of a warm start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from envrl.build import policy_of, training_settings
from envrl.config.schema import Config
from envrl.curriculum import draw_tasks
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.protocol import TextEnv
from envrl.eval.kept import BATCH
from envrl.imitation.demonstrations import choose_tasks
from envrl.imitation.method import GuideMaker
from envrl.models.load import LanguageModel
from envrl.progress import Reporter
from envrl.randomness import key_of
from envrl.rendering.renderer import Renderer
from envrl.rollout.runner import play_episodes
from envrl.rollout.splitter import BatchSplitter
from envrl.types import Assignment, StopReason, Task, Trajectory


class ModelPlayer:
    """A `Player` with the model of the stage; the tasks that are held out are never played."""

    def __init__(
        self,
        model: LanguageModel,
        renderer: Renderer,
        config: Config,
        make_env: Callable[[], TextEnv],
        poll: Callable[[], None],
        reporter: Reporter,
    ) -> None:
        self.seed, self.world, self.make_env = config.seed, config.env.name, make_env
        self._config, self._poll, self._reporter = config, poll, reporter
        self._model, self._renderer = model, renderer

    def tasks(self, round: int, count: int) -> list[Task]:
        """Return the tasks of a round, counted from 1."""
        config = self._config
        with opened(self.make_env()) as env:
            tasks = listed_tasks(env, config.env.split, config.env.name)
        free = choose_tasks(tasks, config.seed, len(tasks))[config.warm_start.held_out :]
        return draw_tasks(free, key_of(self.seed, "warm start"), round, count)

    def play(
        self, round: int, assignments: Sequence[Assignment], guide_of: GuideMaker | None = None
    ) -> list[Trajectory]:
        """Return the episodes of these assignments, those of a world that failed left out."""
        policy = policy_of(self._model, self._config, self._renderer)
        policy.sampler.load(self._model.named_parameters(), 0)  # the weights of this moment, for a server, too
        episodes = [(each, member) for each in assignments for member in range(each.episodes)]
        splitter = BatchSplitter(self._reporter.say)

        def play(part: range) -> list[Trajectory]:
            some = [episodes[i] for i in part]
            return play_episodes(
                policy,
                self.make_env,
                [each.task for each, _ in some],
                [member for _, member in some],
                training_settings(self._config),
                assignments=[each for each, _ in some],
                guides=[guide_of(each.task, member) for each, member in some] if guide_of else None,
                seed=key_of(self.seed, "warm start"),
                update=round,
                poll=self._poll,
                watch=lambda done: phase.show(part.start + done),
            )

        with self._reporter.phase("playing", len(episodes), unit="episodes") as phase:
            played = splitter.play(len(episodes), play, BATCH)
        return [each for each in played if each.stop_reason is not StopReason.SET_ASIDE]
