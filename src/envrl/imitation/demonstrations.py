"""Demonstrations: a script's episodes on training tasks, and the rows that imitate them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from envrl.batches.auxiliary import Predict, make_rows
from envrl.config.schema import Auxiliary, Config
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.protocol import TextEnv
from envrl.errors import UserError
from envrl.imitation.method import Lesson
from envrl.objective.auxiliary.state import state
from envrl.progress import Reporter
from envrl.randomness import key_of
from envrl.rendering.formats import task_text, trim
from envrl.rendering.prompts import find_format
from envrl.rendering.renderer import Renderer
from envrl.rollout.scripts import Script, attempt_script, has_script, make_script, random_script
from envrl.rollout.transcript import write_segments
from envrl.samples.rows import counted_term, places
from envrl.types import Action, LossTerm, Observation, Pair, Row, Task, TrajectoryGroup

RANDOM_EPISODES = 128


def choose_tasks(tasks: Sequence[Task], seed: int, count: int) -> list[Task]:
    """Return `count` tasks in an order that depends only on the seed; after all tasks it repeats."""
    order = np.random.Generator(np.random.PCG64(key_of(seed, "demonstrations"))).permutation(len(tasks))
    return [tasks[order[i % len(tasks)]] for i in range(count)]


def demonstrate(env: TextEnv, task: Task, config: Config, seed: int, set_aside: dict[str, str] | None = None) -> Lesson:
    """Play one task with the demonstrator; each command is replaced by a random one with chance `warm_start.noise`.

    `set_aside` gains the task if its world fails.
    """
    imitated: list[bool] = []

    def noisy() -> Script:
        imitated.clear()
        script = make_script(config.warm_start.demonstrator, env, task, seed)
        return _with_noise(script, config.warm_start.noise, key_of(seed, task.id, "noise"), imitated)

    return Lesson(attempt_script(env, task, noisy, config.env.max_steps, set_aside), tuple(imitated))


def _with_noise(script: Script, chance: float, seed: int, imitated: list[bool]) -> Script:
    """Return the script with some commands replaced by random ones; an expert continues from wherever they lead."""
    generator = random.Random(seed)
    anything = random_script(seed + 1)

    def act(observation: Observation) -> str:
        command = script(observation)  # called even if it is not followed, since a script remembers its observations
        imitated.append(generator.random() >= chance)
        return command if imitated[-1] else anything(observation)

    return act


def collect(
    config: Config, make_env: Callable[[], TextEnv], poll: Callable[[], None], reporter: Reporter | None = None
) -> tuple[list[Lesson], list[Lesson]]:
    """Return (demonstrations to imitate, held-out ones), on different training tasks; only won episodes are used.

    If none are to be imitated, the held-out ones still give texts to the tokenizer, if the world has the demonstrator.
    """
    with opened(make_env()) as env:
        return _collected(env, config, poll, reporter or Reporter())


def _collected(
    env: TextEnv, config: Config, poll: Callable[[], None], reporter: Reporter
) -> tuple[list[Lesson], list[Lesson]]:
    wanted, held = config.warm_start.demonstrations, config.warm_start.held_out
    tasks = listed_tasks(env, config.env.split, config.env.name)
    if not wanted:
        held = min(held, len(tasks)) if has_script(config.warm_start.demonstrator, env) else 0
    order = choose_tasks(tasks, config.seed, len(tasks))
    held_tasks, rest = order[:held], order[held:]
    tries = [rest[i % len(rest)] for i in range(2 * wanted)] if len(rest) < 2 * wanted else rest
    won: tuple[list[Lesson], list[Lesson]] = ([], [])
    set_aside: dict[str, str] = {}
    with reporter.phase("demonstrations", held + wanted, unit="episodes") as phase:
        for which, pool, target in ((1, held_tasks, held), (0, tries, wanted)):
            for number, task in enumerate(pool):
                if len(won[which]) == target:
                    break
                if task.id in set_aside:
                    continue
                poll()
                demonstration = demonstrate(env, task, config, config.seed + number // max(len(rest), 1), set_aside)
                if demonstration.trajectory.success:
                    won[which].append(demonstration)
                    phase.show(len(won[0]) + len(won[1]))
    if wanted and not won[0]:
        last = next(reversed(set_aside.values()), "")
        failed = f"; in {len(set_aside)} tasks the world failed, at last: {last}"
        raise UserError(
            f"the demonstrator '{config.warm_start.demonstrator}' won none of {len(tries)} episodes of the world "
            f"'{config.env.name}' in {config.env.max_steps} steps"
            f"{failed if set_aside else '; use another one, or raise env.max_steps'}"
        )
    return won


def written(lesson: Lesson, renderer: Renderer) -> Lesson | None:
    """Return the lesson with its tokens, as a rollout would have recorded them; those it has already are kept.

    None if it does not fit the model's context, before which a rollout would have ended too.
    """
    steps = lesson.trajectory.transitions
    segments = lesson.trajectory.segments or write_segments(renderer, steps)
    if segments is None:
        return None
    branches = []
    thoughts = lesson.thoughts or ("",) * len(lesson.labels)
    for t, (step, label, thought) in enumerate(zip(steps, lesson.labels, thoughts, strict=False)):
        if not label or (label == step.action.text and not thought):
            continue
        said = Action(label, renderer.respond(label, thought))
        if said.token_ids and (other := write_segments(renderer, [*steps[:t], replace(step, action=said)])):
            branches.append((t, other[-1]))
    return replace(lesson, trajectory=replace(lesson.trajectory, segments=segments), branches=tuple(branches))


def imitation_rows(lesson: Lesson, in_pass: Mapping[int, Sequence[LossTerm]] | None = None) -> list[Row]:
    """Return the rows of a `written` lesson: an `imitation` term on its commands, and the terms `in_pass`.

    A label that was not played, or that has a thought, has a row of its own, with the episode up to its step as the
    prompt.
    """
    rows: list[Row] = []
    for number, segment in enumerate(lesson.trajectory.segments):
        targets = places(span for span in segment.spans if lesson.imitated[span.step])
        terms = [counted_term("imitation", targets)] if targets else []
        terms += (in_pass or {}).get(number, ())
        if terms:
            rows.append(Row(segment.token_ids, tuple(terms), lesson.trajectory.task.id))
    for step, segment in lesson.branches:
        targets = places(span for span in segment.spans if span.step == step)
        rows.append(Row(segment.token_ids, (counted_term("imitation", targets),), lesson.trajectory.task.id))
    return rows


def experience_pair(lesson: Lesson, config: Config, renderer: Renderer) -> Pair:
    """Return the question what the world answered to an episode's last step, as `state` asks it, and the answer."""
    group = TrajectoryGroup(lesson.trajectory.task, (lesson.trajectory,))
    *_, example = state([group], **{**config.auxiliary("state"), "last": True})
    return renderer.pair("state", example)


def batch_rows(
    lessons: Sequence[Lesson],
    auxiliaries: Sequence[Auxiliary],
    renderer: Renderer,
    key: Sequence[int | str],
    predict: Predict | None = None,
) -> tuple[list[Row], dict[str, float]]:
    """Return the rows of an optimiser step on `written` lessons, and figures to log.

    `predict` is the policy, for objectives whose targets it writes.
    """
    groups = [TrajectoryGroup(each.trajectory.task, (each.trajectory,), source="demonstration") for each in lessons]
    auxiliary = make_rows(auxiliaries, groups, renderer, key, predict=predict)
    rows = [row for n, each in enumerate(lessons) for row in imitation_rows(each, auxiliary.in_pass.get(n))]
    return [*rows, *auxiliary.rows], auxiliary.figures


def world_texts(demonstrations: Sequence[Lesson], env: TextEnv, config: Config) -> list[str]:
    """Return the tokenizer's training texts: all observations and commands of the demonstrations and of random play.

    A chat format adds its prompts. Random play has texts that no demonstrator sees (the answer to `help`), which would
    otherwise be spelled in bytes.
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
        form = find_format(config.rollout.format, **config.settings("format"))
        for trajectory in played:
            for step in trajectory.transitions:
                past = [(step.observation, step.action.text)]
                first = task_text(trajectory.transitions[0].observation)
                texts += [message.content for message in form.messages(first, past, step.observation)]
    return texts
