"""Curricula and replays: what they decide is played and learned from, and survives a checkpoint."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boxes import Boxes, tiny
from boxes import register as register_worlds
from envrl.batches.batch import build_batch
from envrl.build import form_of, play_settings, renderer_of
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.config.schema import CurriculumConfig
from envrl.curricula.shuffle import Shuffle
from envrl.curriculum import Plan
from envrl.engine.update import LossSettings, Totals, micro_loss
from envrl.errors import UserError
from envrl.models.load import build_model
from envrl.registry import register
from envrl.samples.store import from_json, to_json
from envrl.trainer.rollouts import as_groups
from envrl.trainer.tasks import Tasks
from envrl.types import Assignment, Task, TrajectoryGroup, episodes_of
from moments import essence
from playing import play_model

TASKS = Boxes().tasks("train")
TEXTS = ["Open box 1. You see 1, 2, 3, 4, nothing. It is empty. You open box 2 and find the key."]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def plugin(folder: Path, text: str) -> Path:
    file = folder / "mine.py"
    file.write_text("import envrl\n" + textwrap.dedent(text))
    return file


def recipe(folder: Path, **settings: Any) -> str:
    register_worlds()
    file = folder / "recipe.toml"
    file.write_text(dump_config(tiny(**settings)))
    return str(file)


# What is built in


def test_shuffle_plays_every_task_once_a_pass() -> None:
    plan = Plan(seed=3, tasks=5, group_size=4, max_steps=3, updates=20)
    updates = [Shuffle(TASKS, plan).next(update) for update in range(1, 21)]
    assert {assignment.episodes for update in updates for assignment in update} == {4}
    drawn = [assignment.task.id for update in updates for assignment in update]
    one, other = drawn[:48], drawn[48:96]
    assert sorted(one) == sorted(other) == sorted(task.id for task in TASKS)
    assert one != other


def test_a_task_that_is_drawn_again_has_further_members() -> None:
    @register("curriculum", "twice")
    class Twice:
        def __init__(self, tasks: list[Task], plan: Plan) -> None:
            self.task = tasks[0]

        def next(self, update: int) -> list[Assignment]:
            return [Assignment(self.task, 2), Assignment(self.task, 3)]

    tasks = Tasks(TASKS, tiny(curriculum={"name": "twice"}))
    met = Counter[str]()
    assert [(each.group, each.member) for each in tasks.next(1, met)] == [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)]
    assert [each.member for each in tasks.next(1, met)] == [5, 6, 7, 8, 9]


# A curriculum of the user's

STAGES = """
    @envrl.register("curriculum", "stages")
    class Stages:
        def __init__(self, tasks, plan, *, count: int = 2):
            self.tasks, self.count, self.seen = tasks, count, []

        def next(self, update):
            return [
                envrl.Assignment(self.tasks[len(self.seen) % 7], 2, max_steps=2),
                envrl.Assignment(self.tasks[1], 3, start=("open box 4", "look")),
            ][: self.count]

        def observe(self, groups):
            self.seen += [trajectory.success for group in groups for trajectory in group.trajectories]

        def state(self):
            return {"seen": self.seen}

        def load(self, state):
            self.seen = state["seen"]
"""


def test_a_curriculum_decides_what_is_played_how_long_and_from_where(tmp_path: Path) -> None:
    file, run = plugin(tmp_path, STAGES), tmp_path / "run"
    shown = ["--train.trajectories", "2", "--train.trajectories_every", "1", "--train.updates", "2"]
    arguments = ["--plugin", str(file), "--curriculum.name", "stages", *shown]
    assert main(["train", recipe(tmp_path), "--run", str(run), *arguments]) == 0
    assert [line["episodes"] for line in lines(run / "metrics.jsonl")] == [5, 10]
    assert all(line["train/token_mismatches"] == 0 for line in lines(run / "metrics.jsonl"))
    episodes = lines(run / "trajectories" / "update-000001.jsonl")
    short, started = episodes[:2], episodes[2:]
    assert all(len(episode["steps"]) <= 2 for episode in short)
    for episode in started:
        assert [step["action"] for step in episode["steps"][:2]] == ["open box 4", "look"]
        assert [step["next_observation"] for step in episode["steps"][:2]] == ["It is empty.", "Nothing happens."]
        assert len(episode["steps"]) == 3  # env.max_steps, which counts the commands of the start
    second = lines(run / "trajectories" / "update-000002.jsonl")
    assert second[0]["task"] == TASKS[5].id  # five episodes had been observed


def test_its_state_survives_an_interruption(tmp_path: Path) -> None:
    file = plugin(tmp_path, STAGES)
    chosen = ["--plugin", str(file), "--curriculum.name", "stages", "--auxiliary.state.schedule_updates", "9"]
    path = recipe(tmp_path, checkpoint={"every": 1})
    for name, updates in (("whole", "4"), ("cut", "2")):
        assert main(["train", path, "--run", str(tmp_path / name), *chosen, "--train.updates", updates]) == 0
    again = [str(tmp_path / "cut"), *chosen, "--train.updates", "4", "--resume"]
    assert main(["train", path, "--run", *again]) == 0
    assert essence(tmp_path / "cut")["metrics.jsonl"] == essence(tmp_path / "whole")["metrics.jsonl"]


def test_what_a_start_played_is_fed_and_not_learned() -> None:
    """The rows hold the commands of the start as text that was seen; the first token that counts stands behind them."""
    config = tiny()
    model = build_model(config.model, TEXTS, seed=0)
    renderer, settings = renderer_of(model, form_of(config)), play_settings(config, 1.0)
    task, start = TASKS[0], ("open box 1", "open box 2")
    (plain,) = play_model(model, renderer, Boxes, [task], [0], settings, seed=0, update=1)
    (played,) = play_model(
        model, renderer, Boxes, [task], [0], settings, assignments=[Assignment(task, 1, start=start)], seed=0, update=1
    )
    assert plain.transitions[0].action.token_ids
    assert [step.action.text for step in played.transitions[:2]] == list(start)
    assert [step.action.token_ids for step in played.transitions[:2]] == [(), ()]
    (segment,) = played.segments
    assert [span.step for span in segment.spans] == [0, 1, 2]
    written = model.codec.decode(segment.token_ids[segment.spans[1].start : segment.spans[1].stop].tolist())
    assert written.startswith("open box 2")
    lost = TrajectoryGroup(task, (played,), 1)
    paid = build_batch([lost], config, renderer, 1).rows
    advantaged = [t for row in paid for t in row.terms if t.component == "policy"]
    assert all(term.positions_T.min() >= segment.spans[2].start for term in advantaged)


def test_groups_that_are_refused_are_played_for_again_and_no_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
        @envrl.register("curriculum", "never")
        class Never:
            def __init__(self, tasks, plan):
                self.tasks, self.plan = tasks, plan
            def next(self, update):
                return [envrl.Assignment(self.tasks[0], 2)]
            def admit(self, group):
                return False
    """
    file, run = plugin(tmp_path, text), tmp_path / "run"
    chosen = ["--plugin", str(file), "--curriculum.name", "never", "--train.updates", "1"]
    assert main(["train", recipe(tmp_path), "--run", str(run), *chosen]) == 0
    (line,) = lines(run / "metrics.jsonl")
    assert (line["episodes"], line["rows/policy"]) == (10, 0)
    said = capsys.readouterr().err
    assert "update 1: the curriculum refused all 5 groups of 5 rounds" in said
    assert "the curriculum 'never' admitted none of the groups" in said


def test_a_curriculum_says_how_many_rounds_an_update_plays_at_most() -> None:
    class Picky:
        def __init__(self, tasks: Any, plan: Plan, *, rounds: Any = 7) -> None:
            self.rounds = rounds

        def next(self, update: int) -> list[Assignment]:
            return [Assignment(TASKS[0], 2)]

        def admit(self, group: TrajectoryGroup) -> bool:
            return False

    register("curriculum", "picky")(Picky)
    config = tiny(curriculum={"name": "picky"})
    assert Tasks(TASKS, config).rounds == 7
    assert Tasks(TASKS, tiny()).rounds == 1  # what refuses nothing is asked once
    picky = Tasks(TASKS, config)
    picky.made.rounds = 0
    with pytest.raises(UserError, match="'picky' has rounds = 0: it is a whole number from 1 on"):
        assert picky.rounds


def test_refused_groups_are_replaced_by_others() -> None:
    """Of two groups a round one is refused; the second round fills the place."""
    played: list[int] = []

    @register("curriculum", "half")
    class Half:
        def __init__(self, tasks: list[Task], plan: Plan) -> None:
            self.tasks = tasks

        def next(self, update: int) -> list[Assignment]:
            return [Assignment(task, 1) for task in self.tasks[:2]]

        def admit(self, group: TrajectoryGroup) -> bool:
            return group.task == self.tasks[0]

        def observe(self, groups: list[TrajectoryGroup]) -> None:
            played.append(len(groups))

    tasks = Tasks(TASKS, tiny(curriculum={"name": "half"}))
    assert tasks.refuses
    groups = [TrajectoryGroup(task, ()) for task in TASKS[:2]]
    assert tasks.admitted(groups) == groups[:1]
    tasks.observe(groups)
    assert played == [2]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return []", "the curriculum 'wrong' gave no task for update 1"),
        ("return [self.tasks[0]]", "which is no envrl.Assignment"),
        (
            "return [envrl.Assignment(self.other, 1)]",
            "gave the task 'elsewhere', which is none of the training split's",
        ),
        ("return [envrl.Assignment('a', 2)]", "gave 'a' as the task of an assignment: it is one of the tasks given"),
        ("return [envrl.Assignment(self.tasks[0], '2')]", "gave episodes = '2' for 'train/0': it is a whole number"),
        ("return [envrl.Assignment(self.tasks[0], 2, start=None)]", "gave a start of 'train/0' that is no tuple of"),
        ("return [envrl.Assignment(self.tasks[0], 0)]", "gave 0 episodes of 'train/0': at least 1 is played"),
        (
            "return [envrl.Assignment(self.tasks[0], 1, max_steps=9)]",
            "it is from 0 (the recipe's) to env.max_steps = 3",
        ),
        (
            "return [envrl.Assignment(self.tasks[0], 1, start=(3,))]",
            "a start of 'train/0' that is no tuple of commands",
        ),
        (
            "return [envrl.Assignment(self.tasks[0], 1, start=('look',) * 3)]",
            "a start of 3 commands for 'train/0', whose episodes end after 3 steps: the policy would have none",
        ),
        ("return 1 / 0", "the curriculum 'wrong' failed (mine.py, line 9: ZeroDivisionError"),
    ],
)
def test_what_a_curriculum_cannot_give(
    body: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"""
        from dataclasses import replace
        @envrl.register("curriculum", "wrong")
        class Wrong:
            def __init__(self, tasks, plan):
                self.tasks, self.other = tasks, replace(tasks[0], id="elsewhere")
            def next(self, update):
                {body}
    """
    chosen = ["--plugin", str(plugin(tmp_path, text)), "--curriculum.name", "wrong", "--warm_start.demonstrations", "0"]
    assert main(["train", recipe(tmp_path), "--run", str(tmp_path / "run"), *chosen]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_state_that_nobody_takes_up_again_is_refused() -> None:
    @register("curriculum", "forgetful")
    class Forgetful:
        def __init__(self, tasks: list[Task], plan: Plan) -> None: ...
        def next(self, update: int) -> list[Assignment]:
            return []

        def state(self) -> int:
            return 1

    with pytest.raises(UserError, match=r"has state\(\) and no load\(state\): a resumed run needs both"):
        Tasks(TASKS, tiny(curriculum={"name": "forgetful"}))


# Replay

LAST_WINS = """
    @envrl.register("replay", "last")
    class Last:
        def __init__(self, plan, *, copies: int = 1):
            self.kept, self.copies = [], copies

        def mix(self, groups, update):
            old, self.kept = self.kept, list(groups)
            return [*groups, *old * self.copies]

        def state(self):
            return {"kept": self.kept}

        def load(self, state):
            self.kept = state["kept"]
"""


def test_a_replay_survives_a_checkpoint_exactly(tmp_path: Path) -> None:
    file = plugin(tmp_path, LAST_WINS)
    chosen = ["--plugin", str(file), "--replay.name", "last", "--objective.idle_rows", "count"]
    path = recipe(tmp_path, checkpoint={"every": 1}, train={"epochs": 2, "learning_rate": 1e-2})
    for name, updates in (("whole", "4"), ("cut", "2")):
        assert main(["train", path, "--run", str(tmp_path / name), *chosen, "--train.updates", updates]) == 0
    again = [str(tmp_path / "cut"), *chosen, "--train.updates", "4", "--resume"]
    assert main(["train", path, "--run", *again]) == 0
    whole = lines(tmp_path / "whole" / "metrics.jsonl")
    assert [line["rows/policy"] + line["rows/idle"] for line in whole] == [12, 24, 24, 24]
    assert essence(tmp_path / "cut")["metrics.jsonl"] == essence(tmp_path / "whole")["metrics.jsonl"]


@pytest.fixture(scope="module")
def played() -> tuple[Any, Any, list[TrajectoryGroup], Any]:
    config = tiny()
    model = build_model(config.model, TEXTS, seed=0)
    renderer = renderer_of(model, form_of(config))
    tasks = [task for task in TASKS[:3] for _ in range(4)]
    settings = play_settings(config, 1.0)
    episodes = play_model(model, renderer, Boxes, tasks, [0, 1, 2, 3] * 3, settings, seed=0, update=1)
    return model, renderer, as_groups(episodes, [i // 4 for i in range(12)]), config


def test_groups_are_written_as_json_exactly(played: Any) -> None:
    groups = played[2]
    (again,) = from_json(json.loads(json.dumps(to_json([{"deep": groups}]))))
    for one, other in zip(episodes_of(groups), episodes_of(again["deep"]), strict=True):
        assert one.transitions == other.transitions
        assert (one.task, one.member, one.stop_reason, one.policy_version) == (
            *(other.task, other.member, other.stop_reason, other.policy_version),
        )
        for ours, theirs in zip(one.segments, other.segments, strict=True):
            assert ours.token_ids.tolist() == theirs.token_ids.tolist()
            assert theirs.token_ids.dtype == np.int32
            assert (ours.spans, ours.answers) == (theirs.spans, theirs.answers)


def test_the_ratio_of_a_stale_row_is_to_the_policy_that_played_it(played: Any) -> None:
    """After the weights moved, rows of update 1 in update 2 have ratios to what was recorded; fresh ones ratio 1."""

    _, renderer, groups, config = played
    stale = build_batch(groups, config, renderer, 2).rows
    fresh = build_batch(groups, config, renderer, 1).rows
    assert [row.origin for row in stale] == [row.origin for row in fresh]
    moved = build_model(config.model, TEXTS, seed=1)
    losses = {}
    for name, rows in (("stale", stale), ("fresh", fresh)):
        totals = Totals()
        denominator = {"policy": float(len(rows))}
        with torch.no_grad():
            micro_loss(moved, rows, totals, denominator, LossSettings({"policy": 1.0}))
        losses[name] = totals.figures()
    assert losses["fresh"]["clip_fraction"] == 0.0
    assert losses["stale"]["clip_fraction"] > 0.1
    assert losses["stale"]["loss/policy"] != pytest.approx(losses["fresh"]["loss/policy"])


def test_rows_of_two_updates_are_told_apart(played: Any) -> None:
    _, renderer, groups, config = played
    older = [
        replace(group, trajectories=tuple(replace(t, policy_version=0) for t in group.trajectories)) for group in groups
    ]
    rows = build_batch([*groups, *older], config, renderer, 1).rows
    origins = [row.origin for row in rows]
    assert len(set(origins)) == len(origins)
    assert any(origin.startswith("v0/") for origin in origins)
    assert any(origin.startswith("v1/") for origin in origins)


def test_what_a_replay_cannot_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
        @envrl.register("replay", "wrong")
        class Wrong:
            def __init__(self, plan): ...
            def mix(self, groups, update):
                return [group.trajectories for group in groups]
    """
    chosen = ["--plugin", str(plugin(tmp_path, text)), "--replay.name", "wrong"]
    assert main(["train", recipe(tmp_path), "--run", str(tmp_path / "run"), *chosen]) == 2
    assert "the replay 'wrong' gave (" in capsys.readouterr().err


def test_a_state_that_is_no_json_is_refused_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
        @envrl.register("replay", "odd")
        class Odd:
            def __init__(self, plan): ...
            def mix(self, groups, update): return groups
            def state(self): return {"a": object()}
            def load(self, state): ...
    """
    chosen = ["--plugin", str(plugin(tmp_path, text)), "--replay.name", "odd"]
    assert main(["train", recipe(tmp_path), "--run", str(tmp_path / "run"), *chosen]) == 2
    assert "the replay 'odd' cannot be saved: a state that is saved holds JSON and groups of episodes, not object" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_the_tables_of_what_is_chosen_are_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = plugin(tmp_path, STAGES)
    path = tmp_path / "recipe.toml"
    path.write_text('extends = "household-demo"\n[curriculum]\nname = "stages"\n[curriculum.stages]\ncount = 1\n')
    assert main(["recipes", str(path), "--plugin", str(file)]) == 0
    assert '[curriculum]\nname = "stages"\n\n[curriculum.stages]\ncount = 1\n' in capsys.readouterr().out
    assert CurriculumConfig().name == "shuffle"


# Rows without advantage


def test_idle_rows_count_in_the_denominator_and_have_no_gradient_of_their_own(played: Any) -> None:
    model, renderer, groups, config = played
    counting = replace(config, objective=replace(config.objective, idle_rows="count"))
    skipped, counted = (build_batch(groups, each, renderer, 1) for each in (config, counting))
    assert "rows/idle" not in skipped.figures
    assert counted.figures["rows/policy"] == skipped.figures["rows/policy"]
    assert counted.figures["rows/policy"] + counted.figures["rows/idle"] == 12
    gradients = []
    for batch in (skipped, counted):
        model.network.zero_grad()
        denominator = {"policy": sum(term.token_count for row in batch.rows for term in row.terms)}
        micro_loss(model, batch.rows, Totals(), denominator, LossSettings({"policy": 1.0})).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.network.parameters() if p.grad is not None]))
    model.network.zero_grad()
    ratio = len(skipped.rows) / 12
    torch.testing.assert_close(gradients[1], gradients[0] * ratio, rtol=1e-4, atol=1e-7)


# Figures of a user's curriculum and replay


def test_figures_of_a_curriculum_and_a_replay_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With play ahead too: a curriculum's figures are those of the update that was played, not of a later one."""
    text = """
        @envrl.register("curriculum", "counting")
        class Counting:
            def __init__(self, tasks, plan):
                self.tasks, self.updates = tasks, 0
            def next(self, update):
                self.updates = update
                return [envrl.Assignment(self.tasks[update], 2)]
            def figures(self):
                return {"update": self.updates}

        @envrl.register("replay", "twice")
        class Twice:
            def __init__(self, plan, *, figure: str = "3"):
                self.figure = figure
            def mix(self, groups, update):
                return groups
            def figures(self):
                return {"figure": int(self.figure) if self.figure.isdigit() else self.figure}
    """
    file = plugin(tmp_path, text)
    chosen = ["--plugin", str(file), "--curriculum.name", "counting", "--replay.name", "twice", "--train.updates", "3"]
    for ahead in ("0", "1"):
        run = tmp_path / f"ahead-{ahead}"
        assert main(["train", recipe(tmp_path), "--run", str(run), *chosen, "--rollout.ahead", ahead]) == 0
        found = lines(run / "metrics.jsonl")
        assert [line["curriculum/update"] for line in found] == [1, 2, 3]
        assert [line["replay/figure"] for line in found] == [3, 3, 3]
    wrong = ["--replay.twice.figure", "many"]
    assert main(["train", recipe(tmp_path), "--run", str(tmp_path / "wrong"), *chosen, *wrong]) == 2
    assert "the replay 'twice' has the figure 'figure' = 'many', which is no number" in capsys.readouterr().err


def test_a_replay_s_own_advantages_are_learned_from_beside_the_policy_s(tmp_path: Path) -> None:
    """Its groups are in the component `replay`; the estimator and the auxiliary losses see the others alone."""
    text = """
        from dataclasses import replace
        @envrl.register("replay", "own")
        class Own:
            def __init__(self, plan, *, given: bool = True):
                self.given = given
            def mix(self, groups, update):
                own = [replace(group, advantages_G=(1.0,) * len(group.trajectories), weight=0.5) for group in groups]
                return [*groups, *own] if self.given else groups
    """
    chosen = ["--plugin", str(plugin(tmp_path, text)), "--replay.name", "own", "--train.updates", "1"]
    chosen += ["--objective.idle_rows", "count", "--auxiliary.state.weight", "0.1"]
    runs = {name: [*chosen, "--replay.own.given", name] for name in ("true", "false")}
    for name, arguments in runs.items():
        assert main(["train", recipe(tmp_path), "--run", str(tmp_path / name), *arguments]) == 0
    (given,), (plain,) = (lines(tmp_path / name / "metrics.jsonl") for name in runs)
    assert (
        given["rows/replay"] == given["rows/policy"] + given["rows/idle"] == plain["rows/policy"] + plain["rows/idle"]
    )
    assert given["rows/state"] == plain["rows/state"]
    assert given["loss/policy"] == pytest.approx(plain["loss/policy"], rel=1e-5)
    assert given["loss/replay"] == pytest.approx(-1.0, abs=1e-5)  # an advantage of 1 at a ratio of 1
    assert given["entropy"] == pytest.approx(plain["entropy"], rel=1e-5)
