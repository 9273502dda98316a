"""Demonstrations: episodes of a script on training games, and the rows that imitate them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from envrl.config.schema import Config
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.protocol import TextEnv
from envrl.errors import UserError
from envrl.progress import Reporter
from envrl.rollout.auxiliary import inverse_pairs, separate_state_pairs
from envrl.rollout.formats import task_text, trim
from envrl.rollout.prompts import find_format
from envrl.rollout.randomness import key_of
from envrl.rollout.scripts import Script, attempt_script, has_script, make_script, random_script
from envrl.rollout.transcript import write_segments
from envrl.rollout.wording import Wording
from envrl.samples.rows import pair_rows
from envrl.types import Observation, Row, Span, Task, Term, Trajectory

T = TypeVar("T")

RANDOM_EPISODES = 128


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An episode to imitate; `imitated[t]` is False where the command of step t was thrown in at random."""

    trajectory: Trajectory
    imitated: tuple[bool, ...]


def choose_tasks(tasks: Sequence[Task], seed: int, count: int) -> list[Task]:
    """Return `count` tasks in an order that is a function of the seed; each once, then again in the same order."""
    order = np.random.Generator(np.random.PCG64(key_of(seed, "demonstrations"))).permutation(len(tasks))
    return [tasks[order[i % len(tasks)]] for i in range(count)]


def demonstrate(
    env: TextEnv, task: Task, config: Config, seed: int, set_aside: dict[str, str] | None = None
) -> Demonstration:
    """Play one task with the demonstrator, a random command thrown in before a step with chance `warm_start.noise`.

    `set_aside` takes the task where its world fails.
    """
    imitated: list[bool] = []

    def noisy() -> Script:
        imitated.clear()
        script = make_script(config.warm_start.demonstrator, env, task, seed)
        return _with_noise(script, config.warm_start.noise, key_of(seed, task.id, "noise"), imitated)

    return Demonstration(attempt_script(env, task, noisy, config.env.max_steps, set_aside), tuple(imitated))


def _with_noise(script: Script, chance: float, seed: int, imitated: list[bool]) -> Script:
    """Return the script with random commands in place of some of its own; an expert goes on from where they lead."""
    generator = random.Random(seed)
    anything = random_script(seed + 1)

    def act(observation: Observation) -> str:
        command = script(observation)  # also where it is not followed: a script remembers what it is shown
        imitated.append(generator.random() >= chance)
        return command if imitated[-1] else anything(observation)

    return act


def collect(
    config: Config, make_env: Callable[[], TextEnv], poll: Callable[[], None], reporter: Reporter | None = None
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Return (those to imitate, those held out), of different training games; only episodes that were won count.

    Where none are to be imitated the held-out ones still serve the tokenizer, in a world that has such a demonstrator.
    """
    with opened(make_env()) as env:
        return _collected(env, config, poll, reporter or Reporter())


def _collected(
    env: TextEnv, config: Config, poll: Callable[[], None], reporter: Reporter
) -> tuple[list[Demonstration], list[Demonstration]]:
    wanted, held = config.warm_start.demonstrations, config.warm_start.held_out
    tasks = listed_tasks(env, config.env.split, config.env.name)
    if not wanted:
        held = min(held, len(tasks)) if has_script(config.warm_start.demonstrator, env) else 0
    order = choose_tasks(tasks, config.seed, len(tasks))
    held_tasks, rest = order[:held], order[held:]
    tries = [rest[i % len(rest)] for i in range(2 * wanted)] if len(rest) < 2 * wanted else rest
    found: tuple[list[Demonstration], list[Demonstration]] = ([], [])
    set_aside: dict[str, str] = {}
    with reporter.phase("demonstrations", held + wanted, unit="episodes") as phase:
        for which, pool, target in ((1, held_tasks, held), (0, tries, wanted)):
            for number, task in enumerate(pool):
                if len(found[which]) == target:
                    break
                if task.id in set_aside:
                    continue
                poll()
                demonstration = demonstrate(env, task, config, config.seed + number // max(len(rest), 1), set_aside)
                if demonstration.trajectory.success:
                    found[which].append(demonstration)
                    phase.show(len(found[0]) + len(found[1]))
    if wanted and not found[0]:
        last = next(reversed(set_aside.values()), "")
        failed = f"; in {len(set_aside)} tasks the world failed, at last: {last}"
        raise UserError(
            f"the demonstrator '{config.warm_start.demonstrator}' won none of {len(tries)} episodes of the world "
            f"'{config.env.name}' in {config.env.max_steps} steps"
            f"{failed if set_aside else '; use another one, or raise env.max_steps'}"
        )
    return found


def imitation_rows(demonstration: Demonstration, wording: Wording, config: Config) -> list[Row] | None:
    """Return the rows of one demonstration: its commands as `imitation`, the world's answers as `state` if weighed.

    None where it does not fit the model's context: play ends before it overflows, too.
    """
    segments = write_segments(wording, demonstration.trajectory.transitions)
    if segments is None:
        return None
    in_pass = config.warm_start.state_weight > 0 and config.warm_start.state_rows == "in_pass"
    rows: list[Row] = []
    for segment in segments:
        targets = _places(span for span in segment.spans if demonstration.imitated[span.step])
        answers = _places(segment.answers if in_pass else ())
        terms = [_counted(name, where) for name, where in (("imitation", targets), ("state", answers)) if where]
        if terms:
            rows.append(Row(segment.token_ids, tuple(terms), demonstration.trajectory.task.id))
    return rows


def _places(spans: Iterable[Span]) -> list[int]:
    return [place for span in spans for place in range(span.start, span.stop)]


def _counted(component: str, positions: Sequence[int]) -> Term:
    count = len(positions)
    return Term(component, np.array(positions, dtype=np.int32), np.ones(count, dtype=np.float32), float(count))


def auxiliary_rows(demonstrations: Sequence[Demonstration], wording: Wording, config: Config, seed: int) -> list[Row]:
    """Return the separate state and inverse rows of a share of the transitions (`warm_start.fraction`)."""
    warm = config.warm_start
    trajectories = [d.trajectory for d in demonstrations]
    rows: list[Row] = []
    if warm.state_weight > 0 and warm.state_rows == "separate":
        rows += pair_rows(sample_share(separate_state_pairs(trajectories, wording), warm.fraction, seed), "state")
    if warm.inverse_weight > 0:
        rows += pair_rows(sample_share(inverse_pairs(trajectories, wording), warm.fraction, seed + 1), "inverse")
    return rows


def sample_share(items: Sequence[T], share: float, seed: int) -> list[T]:
    """Return about `share` of the items, in their order, chosen by the seed."""
    if share >= 1.0:
        return list(items)
    keep = np.random.Generator(np.random.PCG64(seed)).random(len(items)) < share
    return [item for item, kept in zip(items, keep, strict=True) if kept]


def world_texts(demonstrations: Sequence[Demonstration], env: TextEnv, config: Config) -> list[str]:
    """Return every observation and command of the demonstrations and of as many random steps: the tokenizer's texts.

    For a chat format its questions are among them. Random play says what no demonstrator would see (the answer to
    `help`), which else would be spelled in bytes.
    """
    tasks = [d.trajectory.task for d in demonstrations][:RANDOM_EPISODES]
    tasks = tasks or choose_tasks(env.tasks(config.env.split), config.seed, RANDOM_EPISODES)
    scripts = {task.id: partial(random_script, key_of(config.seed, task.id, "texts")) for task in tasks}
    played = [attempt_script(env, task, scripts[task.id], config.env.max_steps) for task in tasks]
    texts: list[str] = []
    for trajectory in [*(d.trajectory for d in demonstrations), *played]:
        for step in trajectory.transitions:
            texts += [trim(step.observation.text), step.action.text, *(step.observation.admissible or ())]
        texts += [trim(step.next_observation.text) for step in trajectory.transitions[-1:]]
    if config.rollout.is_chat:
        form = find_format(config.rollout.format)
        for trajectory in played:
            for step in trajectory.transitions:
                past = [(step.observation, step.action.text)]
                first = task_text(trajectory.transitions[0].observation)
                texts += [message.content for message in form.messages(first, past, step.observation)]
    return texts
