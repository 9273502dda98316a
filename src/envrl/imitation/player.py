"""Play training episodes with the policy between the rounds of a warm start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

from envrl import ranks
from envrl.build import policy_of, training_settings
from envrl.config.schema import Config
from envrl.curriculum import draw_tasks
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.branching import branching
from envrl.envs.protocol import TextEnv
from envrl.errors import UserError
from envrl.eval.kept import BATCH
from envrl.imitation.demonstrations import choose_tasks
from envrl.imitation.method import GuideMaker
from envrl.models.load import LanguageModel
from envrl.progress import Reporter
from envrl.randomness import key_of
from envrl.rendering.renderer import Renderer
from envrl.rollout.predict import predict_targets
from envrl.rollout.runner import play_episodes
from envrl.rollout.splitter import BatchSplitter
from envrl.types import Assignment, Example, StopReason, Task, Trajectory

T = TypeVar("T")


class ModelPlayer:
    """A `Player` with a model that has whole weights; the tasks that are held out are never played.

    Several processes share the episodes out, group by group; all of them call `play` at the same point.
    """

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

    def thoughts(self, examples: Sequence[Example]) -> list[str]:
        """Return what the policy writes to each question, as a thought before its step's command; see `Player`."""
        places = ranks.dealt(range(len(examples)))
        mine = [examples[place] for place in places]
        commands = {each.trajectory.transitions[each.step].action.text for each in examples}
        shortest = max((len(self._renderer.respond(command)) for command in commands), default=0)
        room = max(1, self._config.rollout.response_tokens - shortest)
        with self._reporter.phase("writing thoughts"):
            pairs = [self._renderer.pair("thought", each) for each in mine]
            texts = predict_targets(self._model, pairs, self._renderer.stops, room)
        held = [self._held(each, text.strip()) for each, text in zip(mine, texts, strict=True)]
        return ranks.in_order(places, held)

    def _held(self, example: Example, thought: str) -> str:
        """Return a thought, without the last words if a response is too long with them; empty if none can hold it."""
        command = example.trajectory.transitions[example.step].action.text
        while len(response := self._renderer.respond(command, thought)) > self._config.rollout.response_tokens:
            thought = thought.rpartition(" ")[0].rstrip()
            if not thought:
                break
        return thought if response else ""

    def together(self, thing: T) -> list[T]:
        """Return what each process gives."""
        return ranks.gather(thing)

    def play(
        self, round: int, assignments: Sequence[Assignment], guide_of: GuideMaker | None = None
    ) -> list[Trajectory]:
        """Return the episodes of these assignments, those of a world that failed left out."""
        policy = policy_of(self._model, self._config, self._renderer)
        policy.sampler.load(self._model.named_parameters(), 0)  # the weights of this moment, for a server, too
        if any(plan != assignments for plan in ranks.gather(list(assignments))):
            raise UserError(
                f"the warm-start method '{self._config.warm_start.method}' plays other episodes in each process; let "
                "what it draws depend on player.seed and the round alone"
            )
        episodes = [(each, member) for each in assignments for member in range(each.episodes)]
        mine = ranks.dealt([group for group, each in enumerate(assignments) for _ in range(each.episodes)])
        splitter = BatchSplitter(self._reporter.say)

        def play(part: range) -> list[Trajectory]:
            some = [episodes[mine[i]] for i in part]
            return play_episodes(
                policy,
                make_env,
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

        alike = branching(self.make_env) if any(each.start for each in assignments) else nullcontext(self.make_env)
        with alike as make_env, self._reporter.phase("playing", len(mine), unit="episodes") as phase:
            played = ranks.in_order(mine, splitter.play(len(mine), play, BATCH))
        return [each for each in played if each.stop_reason is not StopReason.SET_ASIDE]
