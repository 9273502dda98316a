"""What a warm start learns from: labels of the expert, wins of its own, its own alternatives; and that it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asides import ASIDES
from boxes import Boxes, tiny
from envrl.build import env_maker, form_of, renderer_of, training_settings
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.config.schema import Config
from envrl.envs.branching import branching
from envrl.envs.protocol import TextEnv
from envrl.envs.registry import register_env
from envrl.errors import Interrupted
from envrl.files import create_run
from envrl.imitation.demonstrations import experience_pair, imitation_rows, written
from envrl.imitation.method import GuideMaker, Lesson, lesson_from_json, lesson_to_json
from envrl.imitation.methods.dagger import Dagger
from envrl.imitation.methods.early_experience import EarlyExperience
from envrl.imitation.methods.rejection import Rejection, shortest_wins
from envrl.imitation.methods.self_reflection import SelfReflection
from envrl.imitation.warm_start import Hooks, warm_start
from envrl.models.load import LanguageModel, build_model
from envrl.randomness import key_of
from envrl.rollout.scripts import play_script, random_script
from envrl.rollout.transcript import write_segments
from envrl.types import Action, Assignment, Example, Observation, StopReason, Task, Trajectory, Transition
from moments import essence
from playing import play_model

TASKS = Boxes().tasks("train")
KEY, COIN = TASKS[0], TASKS[1]  # in box 3 and box 1
ONE, TWO, THREE, FOUR = (f"open box {number}" for number in (1, 2, 3, 4))


def played(task: Task, *commands: str, member: int = 0) -> Trajectory:
    said = iter(commands)
    return replace(play_script(Boxes(), task, lambda _: next(said), len(commands)), member=member)


class Player:
    """Plays the boxes; where no guide does, it says the commands of `said`, a list for each episode of a task."""

    seed, world = 0, "boxes"
    asked: list[Example]

    def __init__(self, *said: Sequence[str], limit: int = 3) -> None:
        self.said, self.limit = said, limit

    def tasks(self, round: int, count: int) -> list[Task]:
        return list(TASKS[:count])

    def make_env(self) -> Boxes:
        return Boxes()

    def thoughts(self, examples: Sequence[Example]) -> list[str]:
        self.asked = list(examples)
        return [f"thought {number}" if number else "" for number in range(len(examples))]

    def together(self, thing: Any) -> list[Any]:
        return [thing]

    def play(
        self, round: int, assignments: Sequence[Assignment], guide_of: GuideMaker | None = None
    ) -> list[Trajectory]:
        return [
            self._one(each, member, guide_of(each.task, member) if guide_of else None)
            for each in assignments
            for member in range(each.episodes)
        ]

    def _one(self, assigned: Assignment, member: int, guide: Any) -> Trajectory:
        own, env, steps = iter([*assigned.start, *self.said[member]]), Boxes(), list[Transition]()
        observation = env.reset(assigned.task)
        while len(steps) < (assigned.max_steps or self.limit) and not (steps and steps[-1].done):
            command = (guide(steps, observation) if guide else "") or next(own)
            step = env.step(command)
            steps.append(
                Transition(observation, Action(command), step.reward, step.observation, step.done, step.success)
            )
            observation = step.observation
        return Trajectory(assigned.task, member, tuple(steps), (), StopReason.MAX_STEPS)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    texts = ["There are four boxes in room 1.", "It is empty.", "Nothing happens.", *(ONE, TWO, THREE, FOUR)]
    return build_model(tiny().model, texts * 20, 0)


# DAgger


def test_the_expert_labels_the_states_that_the_policy_comes_to() -> None:
    method = Dagger(2, rounds=2, episodes=2, passes=1)
    assert method.passes == (2, 1, 1)
    player = Player([FOUR, TWO, FOUR])
    assert method.gather(0, [], player).lessons == []
    gathered = method.gather(1, [], player)
    first, second = gathered.lessons
    # The key is in box 3 and the coin in box 1; the expert tries box after box, whatever was opened.
    assert [step.action.text for step in first.trajectory.transitions] == [FOUR, TWO, FOUR]
    assert first.labels == (ONE, TWO, THREE)
    assert first.imitated == (False, True, False)
    assert second.labels == (ONE, TWO, THREE)
    assert gathered.queries == 6
    assert gathered.figures == {"agreement": 2 / 6, "success_rate": 0.0}
    assert method.learns(1, [first], [second]) == [first, second]


def test_beta_is_the_chance_that_the_expert_plays_and_falls_by_its_power() -> None:
    alone = Dagger(1, episodes=1, beta=1.0).gather(3, [], Player([FOUR, FOUR, FOUR])).lessons[0]
    assert [step.action.text for step in alone.trajectory.transitions] == [ONE, TWO, THREE]
    assert alone.imitated == (True, True, True)
    shares = []
    for round in (1, 2):
        lessons = Dagger(1, episodes=48, beta=0.5).gather(round, [], Player([FOUR] * 3)).lessons
        shares.append(np.mean([flag for lesson in lessons for flag in lesson.imitated]))
    assert shares[0] == pytest.approx(0.5, abs=0.12)  # two standard errors of 144 draws and fewer
    assert shares[1] == pytest.approx(0.25, abs=0.12)


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_a_label_that_was_not_played_has_a_row_of_its_own(model: LanguageModel, layout: str) -> None:
    renderer = renderer_of(model, form_of(tiny(rollout={"layout": layout})))
    episode = played(KEY, FOUR, TWO, FOUR)
    lesson = written(Lesson(episode, (False, True, False), (ONE, TWO, THREE)), renderer)
    assert lesson is not None
    *trunk, first, third = imitation_rows(lesson)
    assert len(trunk) == 1  # of the layout `steps`, too: where the label was not played, that row has no loss
    for row, label in ((trunk[0], TWO), (first, ONE), (third, THREE)):
        (term,) = row.terms
        assert row.token_ids[term.positions_T].tolist() == list(renderer.respond(label))
    as_said = write_segments(renderer, played(KEY, FOUR, TWO, THREE).transitions)
    assert as_said is not None
    assert third.token_ids.tolist() == as_said[-1].token_ids.tolist()


def test_a_guide_plays_its_steps_and_is_asked_once_at_every_observation(model: LanguageModel) -> None:
    config = tiny()
    renderer = renderer_of(model, form_of(config))
    asked: list[tuple[int, str]] = []

    def guide(past: Sequence[Any], observation: Observation) -> str:
        asked.append((len(past), observation.text))
        return {0: FOUR, 2: TWO}.get(len(past), "")

    settings = training_settings(config)
    (episode,) = play_model(model, renderer, env_maker(config), [KEY], [0], settings, guides=[guide], seed=5)
    commands = [step.action.text for step in episode.transitions]
    assert asked == [(t, step.observation.text) for t, step in enumerate(episode.transitions)]
    assert commands[0] == FOUR
    assert [bool(step.action.token_ids) for step in episode.transitions] == [False, True, False][: len(commands)]
    segments = write_segments(renderer, episode.transitions)
    assert segments is not None
    assert [each.token_ids.tolist() for each in episode.segments] == [each.token_ids.tolist() for each in segments]


# Rejection sampling


def test_the_shortest_wins_of_a_task_are_kept_each_once() -> None:
    long, short = played(KEY, FOUR, ONE, THREE), played(KEY, FOUR, THREE, member=1)
    again, lost = played(KEY, FOUR, THREE, member=2), played(KEY, ONE, TWO, FOUR)
    assert shortest_wins([long, lost, short, again], 1) == [short]
    assert shortest_wins([long, lost, short, again], 5) == [short, long]
    assert shortest_wins([lost], 1) == []


def test_the_policys_wins_join_the_demonstrations() -> None:
    method = Rejection(3, rounds=1, tasks=2, episodes=2)
    gathered = method.gather(1, [], Player([FOUR, ONE, THREE], [THREE, ONE, TWO]))
    found = [[step.action.text for step in lesson.trajectory.transitions] for lesson in gathered.lessons]
    assert found == [[THREE], [FOUR, ONE]]  # the key, then the coin, which both episodes find in two steps
    assert gathered.lessons[1].imitated == (True, True)
    assert gathered.figures == {"success_rate": 1.0, "solved": 1.0, "kept": 2.0}


# Early experience


def test_alternatives_at_expert_states_are_tried_and_their_answers_predicted(model: LanguageModel) -> None:
    demonstration = Lesson(played(KEY, ONE, TWO, THREE), (True, False, True))  # the second step was noise
    method = EarlyExperience(2, states=9, alternatives=3, passes=1)
    assert method.passes == (1, 2)
    gathered = method.gather(0, [demonstration], Player([FOUR], [THREE], [FOUR]))
    found = [[step.action.text for step in lesson.trajectory.transitions] for lesson in gathered.lessons]
    assert found == [[FOUR], [THREE], [ONE, TWO, FOUR]]  # equal ones and the expert's own are left out
    assert gathered.figures == {"states": 2, "branches": 3, "drawn": 6}
    assert method.learns(0, [demonstration], gathered.lessons) == gathered.lessons
    assert method.learns(1, [demonstration], gathered.lessons) == [demonstration]
    config = tiny()
    renderer = renderer_of(model, form_of(config))
    pair = experience_pair(gathered.lessons[1], config, renderer)
    assert pair.target == (*model.codec.encode("You open box 3 and find the key."), renderer.end)
    assert model.codec.encode(THREE) == pair.prompt[-1 - len(model.codec.encode(THREE)) : -1]
    assert not any(row.terms for row in imitation_rows(gathered.lessons[1]))


WORLDS = [
    {"name": "household"},
    {"name": "household", "failing_actions": 0.3, "distractors": 2},
    {"name": "frozenlake"},
]


class Wanderer(Player):
    """Says what the worlds that it is given accept, drawn by task and member."""

    def __init__(self, make_env: Callable[[], TextEnv]) -> None:
        self.make_env = make_env  # type: ignore[method-assign]

    def _one(self, assigned: Assignment, member: int, guide: Any) -> Trajectory:
        env, start = self.make_env(), iter(assigned.start)
        own = random_script(key_of(assigned.task.id, member, len(assigned.start)))
        return play_script(env, assigned.task, lambda seen: next(start, None) or own(seen), assigned.max_steps)


@pytest.mark.parametrize("world", WORLDS, ids=["plain", "settings", "copied"])
def test_alternatives_are_answered_alike_where_a_state_is_loaded_and_where_it_is_played_again(
    world: dict[str, Any],
) -> None:
    """One world with `save` and `load` carries out every sequence of commands once."""
    make_env, asked = env_maker(tiny(env={**world, "max_steps": 12})), list[tuple[str, ...]]()
    tasks = make_env().tasks("train")[:3]
    scripted = [play_script(make_env(), task, random_script(number), 8) for number, task in enumerate(tasks)]
    demonstrations = [Lesson(each, (True,) * len(each.transitions)) for each in scripted]
    method = EarlyExperience(1, states=12, alternatives=4)
    again = method.gather(0, demonstrations, Wanderer(make_env))

    def counted() -> TextEnv:
        env = make_env()
        step = env.step
        env.step = lambda action: asked.append((action,)) or step(action)  # type: ignore[method-assign]
        return env

    with branching(counted) as worlds:
        loaded = method.gather(0, demonstrations, Wanderer(worlds))
    assert loaded == again
    assert len(loaded.lessons) > 12
    played = [*(each.trajectory for each in loaded.lessons), *scripted]
    prefixes = {
        (each.task.id, *(step.action.text for step in each.transitions[: t + 1]))
        for each in played
        for t in range(len(each.transitions))
    }
    assert len(asked) <= len(prefixes) < sum(len(each.transitions) for each in played)


def test_a_world_that_cannot_be_saved_is_made_for_every_episode() -> None:
    with branching(Boxes) as make_env:
        assert make_env is Boxes


# Self-reflection


def test_the_policy_is_asked_why_the_experts_command_is_better() -> None:
    demonstration = Lesson(played(KEY, ONE, TWO, THREE), (True, False, True))  # the second step was noise
    other = Lesson(played(COIN, ONE), (True,))
    method = SelfReflection(2, states=9, alternatives=3)
    assert method.passes == (2,)
    player = Player([FOUR], [THREE], [FOUR])
    gathered = method.gather(0, [demonstration, other], player)
    first, second, third = player.asked
    assert [(each.trajectory, each.step) for each in (first, second, third)] == [
        (demonstration.trajectory, 0),
        (demonstration.trajectory, 2),
        (other.trajectory, 0),
    ]
    tried, _, better = first.question.partition("This one is better:")
    assert f"Command: {FOUR}\nAnswer: It is empty." in tried
    assert f"Command: {THREE}\nAnswer: You open box 3 and find the key." in tried
    assert tried.count("Command:") == 2  # equal ones are left out
    assert better.startswith(f"\n\nCommand: {ONE}\nAnswer: It is empty.\n\nThink aloud")
    lesson, last = gathered.lessons  # the first thought was empty
    assert lesson.labels == ("", "", THREE)
    assert lesson.thoughts == ("", "", "thought 1")
    assert lesson.imitated == (True, False, True)
    assert last.thoughts == ("thought 2",)
    assert gathered.figures == {"states": 3, "drawn": 9, "asked": 3, "reflections": 2}
    plain = Lesson(played(COIN, TWO, ONE), (True, True))
    assert method.learns(0, [demonstration, plain, other], gathered.lessons) == [lesson, plain, last]


THINKING: dict[str, Any] = {
    "model": {"chat_template": "chatml", "vocabulary": 600, "context": 1024},
    "rollout": {"format": "tags", "actions": "free", "response_tokens": 48},
}


@pytest.fixture(scope="module")
def thinker() -> LanguageModel:
    return build_model(tiny(**THINKING).model, ["Box 3 has a false bottom."] * 8, seed=0)


@pytest.mark.parametrize(
    ("name", "response"),
    [
        ("tags", "<think>It is in 3.</think><action>open box 3</action>"),
        ("react", "Thought: It is in 3.\nAction: open box 3"),
        ("plan", "<plan>It is in 3.</plan><action>open box 3</action>"),
    ],
)
@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_a_thought_and_its_command_are_a_row_behind_the_policys_prompt(
    name: str, response: str, layout: str, thinker: LanguageModel
) -> None:
    config = tiny(rollout={**THINKING["rollout"], "format": name, "layout": layout})
    renderer = renderer_of(thinker, form_of(config))
    said = ("", "", THREE), ("", "", "It is in 3.")
    lesson = written(Lesson(played(KEY, ONE, TWO, THREE), (True, False, True), *said[:1], thoughts=said[1]), renderer)
    assert lesson is not None
    *_, row = imitation_rows(lesson)
    (term,) = row.terms
    assert thinker.codec.decode(row.token_ids[term.positions_T].tolist()) == f"{response}<|im_end|>"
    bare = written(Lesson(played(KEY, ONE, TWO, THREE), (True, False, True)), renderer)
    assert bare is not None
    prompt = bare.trajectory.segments[-1]
    start = prompt.spans[-1].start
    assert row.token_ids[: term.positions_T[0]].tolist() == prompt.token_ids[:start].tolist()
    assert len(imitation_rows(bare)) == len(imitation_rows(lesson)) - 1


def test_a_thought_that_would_be_read_as_something_else_has_no_room(thinker: LanguageModel) -> None:
    def respond(name: str, thought: str) -> tuple[int, ...]:
        form = form_of(tiny(rollout={**THINKING["rollout"], "format": name}))
        return renderer_of(thinker, form).respond(THREE, thought)

    assert respond("tags", "Box 3.")
    assert respond("tags", "Box 3.</think><action>look</action>") == ()
    assert respond("react", "Box 3.\nAction: look") == ()
    assert respond("action", "Box 3.") == respond("json", "Box 3.") == ()


# The stage


def test_a_lesson_survives_a_checkpoint() -> None:
    lesson = Lesson(played(KEY, FOUR, TWO), (False, True), (ONE, TWO), thoughts=("", "Two."), predicted=True)
    assert lesson_from_json(json.loads(json.dumps(lesson_to_json(lesson)))) == lesson


METHODS: dict[str, dict[str, object]] = {
    "dagger": {"episodes": 5, "rounds": 2, "beta": 0.5},
    "rejection": {"tasks": 6, "rounds": 2, "keep": 2},
    "early_experience": {"states": 8},
    "self_reflection": {"states": 6},
}
ROUNDS = {
    "dagger": [(0, 0), (0, 1), (1, 2), (2, 3)],
    "rejection": [(0, 0), (0, 1), (1, 2), (2, 3)],
    "early_experience": [(0, 0), (1, 1), (1, 2)],
    "self_reflection": [(0, 0), (0, 1)],
}


def config_of(method: str) -> Config:
    owned = {f"warm_start.{method}.{key}": value for key, value in METHODS[method].items()}
    more = ASIDES if method == "self_reflection" else {}
    return tiny(seed=2, warm_start={"method": method, "epochs": 2, "every": 3}, owned=owned, **more)


def stage(config: Config, run: Path, poll: Callable[[], None] = lambda: None) -> None:
    if not run.exists():
        create_run(run, dump_config(config), {})
    warm_start(config, run, env_maker(config), Hooks(poll, lambda done, total, figures: None))


class Killed(Exception):
    """Stands for SIGKILL: nothing is saved any more."""


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_that_was_stopped_at_any_moment_ends_as_one_that_was_not(tmp_path: Path, method: str) -> None:
    config, polls = config_of(method), 0

    def count() -> None:
        nonlocal polls
        polls += 1

    stage(config, tmp_path / "whole", count)
    expected = essence(tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "warm_start.jsonl").read_text().splitlines()]
    assert lines[0].get("gathered/reflections", 1) > 0
    assert sorted({(line.get("round", 0), line["epoch"]) for line in lines}) == ROUNDS[method]
    for number, moment in enumerate(np.linspace(polls // 3, polls - 1, 4).astype(int)):
        run, left = tmp_path / f"cut{number}", int(moment)

        def stop(kind: type[Exception] = (Interrupted, Killed)[number % 2]) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise kind

        with suppress(Interrupted, Killed):
            stage(config, run, stop)
        stage(config, run)
        assert essence(run) == expected


def test_a_method_of_a_users_file(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "extend.md").read_text()
    plugin, recipe = tmp_path / "own_wins.py", tmp_path / "recipe.toml"
    plugin.write_text(page.split("<!-- file: own_wins.py -->\n```python\n")[1].split("```")[0])
    recipe.write_text(dump_config(tiny(train={"updates": 0}, eval={"free_episodes": 0, "probe_episodes": 0})))
    chosen = ["--plugin", str(plugin), "--warm_start.method", "own_wins", "--warm_start.own_wins.tasks", "9"]
    assert main(["train", str(recipe), *chosen, "--run", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "warm_start.jsonl").read_text().splitlines()]
    learned = [line for line in lines if line["round"] == 1]
    wins = learned[0]["gathered/wins"]
    assert 0 < wins <= 9
    assert len(learned) == -(-wins // 4)  # a batch of four lessons a step, and no demonstration among them


# Bad input


class Mute:
    """The boxes without an expert."""

    def __init__(self) -> None:
        boxes = Boxes()
        self.tasks, self.reset, self.step, self.walkthrough = boxes.tasks, boxes.reset, boxes.step, boxes.walkthrough


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("--warm_start.method", "daggr"), "unknown warm-start method 'daggr'; did you mean 'dagger'?"),
        (
            ("--warm_start.method", "dagger", "--warm_start.dagger.betta", "1"),
            "has no setting 'betta'; did you mean 'beta'",
        ),
        (("--warm_start.dagger.beta", "0.5"), "dagger"),
        (("--warm_start.method", "dagger", "--warm_start.dagger.beta", "1.5"), "from 0 to 1"),
        (("--warm_start.method", "rejection", "--warm_start.demonstrations", "0"), "goes on from demonstrations"),
        (("--warm_start.method", "self_reflection"), "rollout.format = 'marks' has no room for them"),
        (
            ("--warm_start.method", "self_reflection", "--rollout.format", "action", "--model.chat_template", "chatml"),
            "rollout.format = 'action' has no room for them: set it to 'tags', 'react' or 'plan'",
        ),
        (
            ("--warm_start.method", "dagger", "--env.name", "mute", "--warm_start.demonstrator", "walkthrough"),
            "and the world 'mute' has none",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    changed: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_env("mute", Mute)  # type: ignore[arg-type]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_config(tiny()))
    assert main(["train", str(recipe), *changed, "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
