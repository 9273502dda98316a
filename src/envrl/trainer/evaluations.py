"""The evaluations of a run: each is saved as it goes, and writes one line of eval.jsonl per split."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envrl import ranks
from envrl.config.schema import Config
from envrl.envs.pool import Worlds
from envrl.eval.kept import Kept, kept_by_run
from envrl.eval.language import figures_of_english
from envrl.eval.split import evaluate_split, spread
from envrl.eval.trajectories import write_trajectories
from envrl.files import JsonLines
from envrl.imitation.shared_start import shared_evaluations
from envrl.memories.remembering import Remembering
from envrl.models.load import LanguageModel
from envrl.progress import Reporter
from envrl.rendering.renderer import Renderer
from envrl.rollout.policy import Policy
from envrl.rollout.splitter import BatchSplitter


@dataclass(frozen=True, slots=True)
class Evaluations:
    """Evaluates a run's model and writes the results into its folder."""

    config: Config
    folder: Path
    make_env: Worlds
    renderer: Renderer
    policy: Policy
    splitter: BatchSplitter
    poll: Callable[[], None]
    reporter: Reporter
    file: JsonLines
    memory: Remembering

    def due(self, update: int, over: bool) -> bool:
        """Return whether an evaluation is due at an update; `over`: the run ends with it."""
        every = self.config.eval.every
        return over or update == 0 or (every > 0 and update % every == 0)

    def run(self, model: LanguageModel, update: int, over: bool) -> None:
        """Evaluate every split at an update; reuse the results of the run that shares its warm start."""
        known = shared_evaluations(self.config) if update == 0 else {}
        english = dict[str, float]()
        if set(self.config.eval.split) - set(known):
            english = figures_of_english(model, self.config, self.reporter)
        for split in self.config.eval.split:
            if split in known:
                self.file.append(known[split], sync=True)
                self._say(known[split], ", measured by the run that made the warm start")
                continue
            figures = self._split(model, update, split, over or update == 0)
            record = {"stage": "rl", "update": update, **figures, **english}
            self.file.append(record, sync=True)
            self._say(record)

    def _split(self, model: LanguageModel, update: int, split: str, at_an_end: bool) -> dict[str, Any]:
        config = self.config
        name = f"{update:06d}-{split}"
        about = {"update": update, "split": split}
        lists = config.rollout.show_admissible
        file = self.folder / "eval" / f"{name}.jsonl"
        with kept_by_run(file, about, lists=lists) if ranks.is_first() else nullcontext(Kept(lists=lists)) as kept:
            record, played = evaluate_split(
                model,
                self.make_env,
                split,
                config,
                episodes=config.eval.final if at_an_end else config.eval.episodes,
                policy=self.policy,
                poll=self.poll,
                splitter=self.splitter,
                reporter=self.reporter,
                kept=kept,
                whole_batches=True,
                memory=self.memory,
            )
        if at_an_end and config.train.trajectories and ranks.is_first():
            shown = spread(played, 2 * config.train.trajectories, lambda trajectory: trajectory.task.kind)
            with self.reporter.phase("writing episodes down"):
                write_trajectories(self.folder, f"eval-{name}", update, shown, model, self.renderer, config)
        return record

    def _say(self, record: dict[str, Any], how: str = "") -> None:
        low, high = record["ci95"]
        self.reporter.say(
            f"update {record['update']}, {record['split']}: success {record['success_rate']:.1%} "
            f"(95 % interval {low:.1%} to {high:.1%}, {record['episodes']} episodes{how})"
        )
