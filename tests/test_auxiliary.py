"""Auxiliary objectives: what each setting of their tables does, by hand, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boxes import COMMANDS, tiny
from envrl.batches.auxiliary import weights_of
from envrl.batches.batch import UpdateBatch, build_batch
from envrl.batches.in_pass import unmasked
from envrl.build import form_of, renderer_of
from envrl.cli.main import main
from envrl.config.load import dump_config, load_recipe, load_run
from envrl.config.schema import Config
from envrl.engine.update import LossSettings, Totals, micro_loss
from envrl.errors import UserError
from envrl.eval.questions import ask
from envrl.models.load import LanguageModel, build_model
from envrl.models.runtime import prepare_torch
from envrl.registry import find
from envrl.rendering.renderer import Renderer
from envrl.rollout.transcript import write_segments
from envrl.samples.packing import denominators
from envrl.types import (
    Action,
    Example,
    LossTerm,
    Observation,
    Row,
    StopReason,
    Task,
    Trajectory,
    TrajectoryGroup,
    Transition,
)

FIRST = "A dark room.\n\nYour task is to: find the key"
ANSWERS = (
    ("It is dark.", "A lamp lights up, and you see a door.", "Rain.", "You hear steps behind the door."),
    ("Nothing.", "Box 3 has a false bottom of thin wood.", "You find a coin there.", "The key!"),
)
"""What the world says in two episodes: eight unlike texts."""
SAID = ("open box 1", "open box 4", "shake box 4", "open box 1")
"""The commands of both; the world lists all but the third."""


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    prepare_torch(1)
    texts = [FIRST, *chain(*ANSWERS), *COMMANDS, *SAID]
    return build_model(tiny().model, texts * 8, seed=3)


def episode(answers: Sequence[str], member: int = 0, renderer: Renderer | None = None) -> Trajectory:
    """Return an episode of four steps, with its tokens where there is a renderer."""
    seen = [Observation(text, COMMANDS) for text in (FIRST, *answers)]
    steps = tuple(
        Transition(seen[n], Action(command), 0.0, seen[n + 1], False, False) for n, command in enumerate(SAID)
    )
    segments = () if renderer is None else write_segments(renderer, steps)
    assert segments is not None
    return Trajectory(Task("room", "train"), member, steps, segments, StopReason.MAX_STEPS)


def batch_of(model: LanguageModel, config: Config, update: int = 1, context: int = 0) -> UpdateBatch:
    renderer = renderer_of(model, form_of(config), context)
    played = tuple(episode(answers, member, renderer) for member, answers in enumerate(ANSWERS))
    return build_batch([TrajectoryGroup(played[0].task, played)], config, renderer, update)


def terms_of(rows: Sequence[Row], name: str) -> list[tuple[Row, LossTerm]]:
    return [(row, term) for row in rows for term in row.terms if term.component == name]


# --- which tokens, and what they weigh -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["state", "inverse"])
def test_all_tokens_have_a_loss_but_the_first(name: str, model: LanguageModel) -> None:
    """Rows are the same; without it the loss is on what stands behind the last mark alone."""
    table = {"weight": 0.5, "deduplicate": False}
    whole = terms_of(batch_of(model, tiny(auxiliary={name: {**table, "tokens": "all"}})).rows, name)
    target = terms_of(batch_of(model, tiny(auxiliary={name: table})).rows, name)
    assert len(whole) == len(target) == 8
    mark = model.codec.marks["next" if name == "state" else "action"]
    for (row, term), (same, part) in zip(whole, target, strict=True):
        ids = row.token_ids.tolist()
        assert ids == same.token_ids.tolist()
        assert term.positions_T.tolist() == list(range(1, len(ids)))
        assert (term.weights_T.tolist(), term.token_count) == ([1.0] * (len(ids) - 1), len(ids) - 1)
        begins = len(ids) - ids[::-1].index(mark)
        assert part.positions_T.tolist() == list(range(begins, len(ids)))
        assert part.token_count == len(ids) - begins


@pytest.mark.parametrize("name", ["state", "echo"])
def test_every_row_weighs_the_same(name: str, model: LanguageModel) -> None:
    """sequence_mean: 1 / n a token, and 1 of the denominator a row, of whatever length n."""
    table = {"weight": 0.5, "aggregation": "sequence_mean"}
    found = [term for _, term in terms_of(batch_of(model, tiny(auxiliary={name: table})).rows, name)]
    lengths = [len(term.positions_T) for term in found]
    assert len(found) == (8 if name == "state" else 2), "in pass all answers of an episode are one row's"
    assert len(set(lengths)) > 1
    for term, n in zip(found, lengths, strict=True):
        assert term.weights_T.tolist() == pytest.approx([1 / n] * n)
        assert term.token_count == 1.0


def test_equal_examples_make_one_row(model: LanguageModel) -> None:
    renderer = renderer_of(model, form_of(tiny()))
    twice = tuple(episode(ANSWERS[0], member, renderer) for member in (0, 1))
    for deduplicate, rows in ((True, 4), (False, 8)):
        config = tiny(auxiliary={"state": {"weight": 0.5, "deduplicate": deduplicate}})
        figures = build_batch([TrajectoryGroup(twice[0].task, twice)], config, renderer, 1).figures
        assert figures["rows/state"] == rows


def test_what_is_longer_than_the_context_is_left_out_and_counted(model: LanguageModel) -> None:
    config = tiny(auxiliary={"state": {"weight": 0.5}, "inverse": {"weight": 0.5}})
    whole = batch_of(model, config)
    assert not any("too_long" in key for key in whole.figures)
    lengths = {name: [len(row.token_ids) for row, _ in terms_of(whole.rows, name)] for name in ("state", "inverse")}
    context = max(lengths["state"]) - 1
    renderer = renderer_of(model, form_of(config), context)
    played = tuple(episode(answers, n, renderer_of(model, form_of(config))) for n, answers in enumerate(ANSWERS))
    found = build_batch([TrajectoryGroup(played[0].task, played)], config, renderer, 1)
    for name, each in lengths.items():
        long = sum(length > context for length in each)
        assert found.figures.get(f"rows/{name}_too_long", 0) == long
        assert found.figures[f"rows/{name}"] == len(terms_of(found.rows, name)) == len(each) - long
    assert found.figures["rows/state_too_long"] < 8


# --- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "floor", "expected"),
    [
        ("cosine", 0.0, [0.25 * (1 + cos(pi * t / 4)) for t in range(4)] + [0.0, 0.0]),
        ("cosine", 0.1, [0.1 + 0.2 * (1 + cos(pi * t / 4)) for t in range(4)] + [0.1, 0.1]),
        ("linear", 0.1, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]),
        ("constant", 0.0, [0.5] * 6),
    ],
)
def test_a_weight_falls_to_its_floor(schedule: str, floor: float, expected: list[float]) -> None:
    """Over its own updates where they are set, and over the run's where they are not."""
    table = {"weight": 0.5, "schedule": schedule, "floor": floor}
    for own, updates in ((4, 9), (0, 4)):
        auxiliaries = tiny(auxiliary={"state": {**table, "schedule_updates": own}}).auxiliaries()
        found = [weights_of(auxiliaries, update, updates)["state"] for update in range(1, 7)]
        assert found == pytest.approx(expected, abs=1e-15)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_it_takes_part_in_one_update_of_so_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 6 updates the third and the sixth, with the linear weights 0.6 · (1 − 2/6) and 0.6 · (1 − 5/6)."""
    recipe, run = tmp_path / "small.toml", tmp_path / "run"
    quick = {"every": 0, "split": ("valid_b",), "episodes": 2, "final": 2, "free_episodes": 0, "probe_episodes": 1}
    recipe.write_text(dump_config(tiny(train={"updates": 6, "trajectories": 0}, eval=quick)))
    chosen = ["--auxiliary.inverse.weight", "0.6", "--auxiliary.inverse.schedule", "linear"]
    chosen += ["--auxiliary.inverse.every", "3", "--auxiliary.inverse.choices", "true"]
    warm = ["--warm_start.auxiliary.state.weight", "0.5", "--warm_start.auxiliary.state.every", "2"]
    assert main(["train", str(recipe), "--run", str(run), *chosen, *warm]) == 0
    records = lines(run / "metrics.jsonl")
    assert [record["weight/inverse"] for record in records] == pytest.approx([0, 0, 0.4, 0, 0, 0.1])
    for key in ("rows/inverse", "loss/inverse"):
        assert [record["update"] for record in records if record.get(key)] == [3, 6]
    steps = lines(run / "warm_start.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    for key in ("rows/state", "loss/state"):
        assert [step["step"] for step in steps if step.get(key)] == [2, 4]


# --- the placebo in pass ---------------------------------------------------------------------------------------------

IN_PASS = {"weight": 0.5, "schedule": "constant"}


def test_in_pass_the_placebo_exchanges_labels_and_leaves_the_rows(model: LanguageModel) -> None:
    """Each answer's place has the beginning of another answer: six of eight stand in a row, no two of them alike."""
    true = batch_of(model, tiny(auxiliary={"echo": IN_PASS}))
    placebo = batch_of(model, tiny(auxiliary={"echo": {**IN_PASS, "placebo": True}}))
    assert placebo.figures["rows/echo"] == true.figures["rows/echo"] == 2
    assert placebo.figures["placebo/echo_coincidences"] == 0
    assert not any(key.startswith("placebo/") for key in true.figures)
    places: list[tuple[int, list[int]]] = []  # of each answer: its row, and where its tokens stand
    for number, (_, term) in enumerate(terms_of(true.rows, "echo")):
        assert "targets" not in term.streams, "the row's own tokens are predicted"
        apart = np.split(term.positions_T, np.flatnonzero(np.diff(term.positions_T) > 1) + 1)
        places += [(number, part.tolist()) for part in apart]
        assert len(apart) == 3
    answers = [true.rows[number].token_ids[place].tolist() for number, place in places]
    assert len(set(map(tuple, answers))) == 6
    exchanged = terms_of(placebo.rows, "echo")
    for (row, _), (same, _) in zip(exchanged, terms_of(true.rows, "echo"), strict=True):
        assert row.token_ids.tolist() == same.token_ids.tolist()
    used = []
    for (number, place), own in zip(places, answers, strict=True):
        term = exchanged[number][1]
        labels = dict(zip(term.positions_T.tolist(), term.streams["targets"].tolist(), strict=True))
        predicted = [position for position in place if position in labels]
        assert predicted == place[: len(predicted)], "from the first token on, without a gap"
        here = [labels[position] for position in predicted]
        (source,) = [other for other in answers if other[: len(place)] == here and other != own]
        assert len(here) == min(len(place), len(source)), "as much of another answer as there is room for"
        used.append(source)
    assert sorted(used) == sorted(answers), "each is taken once"
    assert placebo.figures["placebo/echo_other_length"] == sum(
        len(place) != len(source) for (_, place), source in zip(places, used, strict=True)
    )


@pytest.mark.parametrize("placebo", [False, True])
def test_the_loss_in_pass_is_the_cross_entropy_of_the_labels(placebo: bool, model: LanguageModel) -> None:
    rows = batch_of(model, tiny(auxiliary={"echo": {**IN_PASS, "placebo": placebo}})).rows
    total, count = 0.0, 0
    for row, term in terms_of(rows, "echo"):
        with torch.no_grad():
            logprobs = model.network(torch.tensor(row.token_ids[None].astype(np.int64))).logits[0].log_softmax(-1)
        labels = term.streams["targets"] if placebo else row.token_ids[term.positions_T]
        total -= sum(float(logprobs[p - 1, label]) for p, label in zip(term.positions_T, labels, strict=True))
        count += len(term.positions_T)
    totals = Totals()
    loss = micro_loss(model, rows, totals, denominators(rows), LossSettings({"echo": 0.5}))
    assert float(loss.detach()) == pytest.approx(0.5 * total / count, rel=1e-5)
    assert totals.mean("loss/echo") == pytest.approx(total / count, rel=1e-5)


# --- ECHO: what is masked, and what a row is divided by ---------------------------------------------------------------


def answers_of(row: Row, term: LossTerm) -> list[list[int]]:
    """Return the runs of positions that a term predicts."""
    places = term.positions_T
    return [part.tolist() for part in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)]


@pytest.mark.parametrize("whole", [True, False])
def test_echo_divides_by_the_answers_of_a_row_and_leaves_masked_texts_out(whole: bool, model: LanguageModel) -> None:
    """The second answer of the first episode says "you see a door", the first of the second one is "Nothing."."""
    masked = ("you see a door", "Nothing.")
    plain = terms_of(
        batch_of(model, tiny(auxiliary={"echo": {**IN_PASS, "aggregation": "sequence_mean"}})).rows, "echo"
    )
    table = {**IN_PASS, "aggregation": "sequence_mean", "masked": masked, "whole": whole}
    rows = batch_of(model, tiny(auxiliary={"echo": table})).rows
    total = 0.0
    for (row, term), (same, all_) in zip(terms_of(rows, "echo"), plain, strict=True):
        assert row.token_ids.tolist() == same.token_ids.tolist()
        kept = []
        for run in answers_of(same, all_):
            ids = same.token_ids[run].tolist()
            texts = model.codec.texts(ids)
            for number, place in enumerate(run):
                before, here = len("".join(texts[:number])), texts[number]
                said = "".join(texts)
                inside = any(
                    said.find(text) < before + len(here) and before < said.find(text) + len(text)
                    for text in masked
                    if text in said
                )
                kept += [] if inside else [place]
        assert term.positions_T.tolist() == kept != all_.positions_T.tolist()
        divisor = len(all_.positions_T) if whole else len(kept)
        assert term.token_count == 1.0
        assert term.weights_T.tolist() == pytest.approx([1 / divisor] * len(kept))
        with torch.no_grad():
            logprobs = model.network(torch.tensor(row.token_ids[None].astype(np.int64))).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[p - 1, row.token_ids[p]]) for p in kept) / divisor
    totals = Totals()
    loss = micro_loss(model, rows, totals, denominators(rows), LossSettings({"echo": 0.5}))
    assert float(loss.detach()) == pytest.approx(0.5 * total / 2, rel=1e-5), "the mean over two rows"


def test_the_answer_to_a_response_without_a_command_may_be_left_out(model: LanguageModel) -> None:
    """It counts in its row's mean all the same; under the placebo no other answer's place gets its text."""
    renderer = renderer_of(model, form_of(tiny()))
    played = [episode(answers, member, renderer) for member, answers in enumerate(ANSWERS)]
    steps = played[0].transitions
    faulty = replace(steps[1], action=replace(steps[1].action, fault="unclosed"))
    played[0] = replace(played[0], transitions=(steps[0], faulty, *steps[2:]))
    found: dict[tuple[bool, bool], list[tuple[Row, LossTerm]]] = {}
    for faults in (True, False):
        for placebo in (True, False):
            table = {**IN_PASS, "aggregation": "sequence_mean", "faults": faults, "placebo": placebo}
            batch = build_batch(
                [TrajectoryGroup(played[0].task, tuple(played))], tiny(auxiliary={"echo": table}), renderer, 1
            )
            found[faults, placebo] = terms_of(batch.rows, "echo")
            if placebo:
                assert batch.figures["placebo/echo_targets"] == 6 - (not faults)
    (row, all_), (_, other) = found[True, False]
    (_, kept), (_, same) = found[False, False]
    span = next(span for span in played[0].segments[0].answers if span.step == 1)
    assert kept.positions_T.tolist() == [p for p in all_.positions_T.tolist() if not span.start <= p < span.stop]
    assert kept.weights_T.tolist() == pytest.approx([1 / len(all_.positions_T)] * len(kept.positions_T))
    assert same.positions_T.tolist() == other.positions_T.tolist()
    (_, exchanged), _ = found[False, True]
    hidden = row.token_ids[span.start : span.stop].tolist()
    labels = [t.streams["targets"].tolist() for _, t in found[False, True]]
    assert not any(each[i : i + len(hidden)] == hidden for each in labels for i in range(len(each)))
    assert not set(exchanged.positions_T.tolist()) & set(range(span.start, span.stop))


@pytest.mark.parametrize(
    ("texts", "masked", "runs"),
    [
        (["ab", "cd", "ef"], ["c"], [(0, 1), (2, 3)]),
        (["ab", "cd", "ef"], ["bc"], [(2, 3)]),
        (["ab", "", "ab"], ["ab"], [(1, 2)]),
        (["ab", "cd"], ["abcd"], []),
        (["ab", "cd"], ["x", ""], [(0, 2)]),
    ],
)
def test_a_token_of_which_a_character_is_masked_is_not_predicted(
    texts: list[str], masked: list[str], runs: list[tuple[int, int]]
) -> None:
    assert unmasked(texts, masked) == runs


# --- inverse dynamics with choices -----------------------------------------------------------------------------------


def choices_of(trajectory: Trajectory) -> list[tuple[str, ...]]:
    found = find("auxiliary", "inverse").target([TrajectoryGroup(trajectory.task, (trajectory,))], choices=True)
    examples: list[Example] = list(found)
    assert [example.target for example in examples] == list(SAID)
    return [example.choices for example in examples]


def test_the_true_command_is_listed_once_whether_or_not_the_world_admits_it() -> None:
    for choices, command in zip(choices_of(episode(ANSWERS[0])), SAID, strict=True):
        assert sorted(choices) == sorted({*COMMANDS, command})
        assert choices.count(command) == 1
    steps = episode(ANSWERS[0]).transitions
    unlisted = tuple(replace(step, observation=replace(step.observation, admissible=None)) for step in steps)
    assert choices_of(replace(episode(ANSWERS[0]), transitions=unlisted)) == [(command,) for command in SAID]


def test_their_order_is_a_function_of_task_member_and_step() -> None:
    first = choices_of(episode(ANSWERS[0]))
    assert choices_of(episode(ANSWERS[1])) == choices_of(replace(episode(ANSWERS[0]), policy_version=7)) == first
    assert len({tuple(choices_of(episode(ANSWERS[0], member))) for member in range(8)}) > 4
    others = [replace(episode(ANSWERS[0]), task=Task(f"room {n}", "train")) for n in range(8)]
    assert len({tuple(choices_of(each)) for each in others}) > 4
    orders = [choices_of(episode(ANSWERS[0], member)) for member in range(8)]
    assert any(each[0] != each[3] for each in orders), "the same choices at two steps of an episode"


def test_the_probe_asks_with_the_choices_that_rl_trains(model: LanguageModel) -> None:
    """RL's settings count before the warm start's, and those where RL has none."""
    marks, played = model.codec.marks, episode(ANSWERS[0])
    config = tiny(auxiliary={"inverse": {"weight": 0.1, "choices": True}}, warm_auxiliary={"state": {"weight": 0.1}})
    for pair, choices in zip(
        ask(config, renderer_of(model, form_of(config)), [played]).inverse, choices_of(played), strict=True
    ):
        begins = pair.prompt.index(marks["commands"]) + 1
        assert model.codec.decode(list(pair.prompt[begins:-1])) == "\n".join(choices)
    plain = ask(tiny(), renderer_of(model, form_of(config)), [played]).inverse
    assert not any(marks["commands"] in pair.prompt for pair in plain)
    asked = {"inverse": {"question": "In RL?"}}, {"inverse": {"question": "Before?"}}
    assert tiny(auxiliary=asked[0], warm_auxiliary=asked[1]).auxiliary("inverse")["question"] == "In RL?"
    assert tiny(warm_auxiliary=asked[1]).auxiliary("inverse")["question"] == "Before?"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["auxiliary.echo.tokens", "all"], "auxiliary.echo.tokens = 'all' is for rows of their own: 'echo' has tokens"),
        (["rollout.layout", "steps"], "auxiliary.echo.weight needs rollout.layout = 'concat'"),
        (["auxiliary.echo.floor", "0.2"], "auxiliary.echo.floor = 0.2 is above auxiliary.echo.weight = 0.1"),
        (
            ["auxiliary.echo.floor", "0.05", "auxiliary.echo.schedule", "constant"],
            "auxiliary.echo.floor = 0.05 needs a schedule that falls",
        ),
        (["auxiliary.echo.every", "0"], "auxiliary.echo.every must be a whole number of at least 1, not 0"),
        (["auxiliary.echo.question", "What?"], "the auxiliary objective 'echo' has no setting 'question'"),
        (["auxiliary.ehco.weight", "1"], "there is no auxiliary objective 'ehco'; did you mean 'echo'?"),
    ],
)
def test_settings_that_are_refused(
    settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(dump_config(tiny(auxiliary={"echo": {"weight": 0.1}})))
    options = [part for key, value in zip(settings[::2], settings[1::2], strict=True) for part in (f"--{key}", value)]
    assert main(["train", str(recipe), "--run", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("objective.state_weight", "0.1", "auxiliary.state.weight, or auxiliary.echo.weight in the policy's own rows,"),
        ("objective.state_rows", "'in_pass'", "the choice between auxiliary.state and auxiliary.echo"),
        ("objective.inverse_fraction", "0.5", "auxiliary.inverse.fraction"),
        ("objective.inverse_question", "'Why?'", "auxiliary.inverse.question"),
        ("objective.schedule", "'linear'", "auxiliary.NAME.schedule"),
        ("objective.placebo", "true", "auxiliary.NAME.placebo"),
        ("warm_start.inverse_weight", "0.1", "warm_start.auxiliary.inverse.weight"),
        ("warm_start.fraction", "0.1", "warm_start.auxiliary.NAME.fraction"),
    ],
)
def test_a_retired_key_is_refused_with_what_took_its_place(
    key: str, value: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "household-demo", "--run", run, f"--{key}", value.strip("'")]) == 2
    assert capsys.readouterr().err.strip().endswith(f"unknown key '{key}' on the command line: {place} took its place")
    file = tmp_path / "old.toml"
    section, _, last = key.partition(".")
    file.write_text(f'extends = "household-demo"\n[{section}]\n{last} = {value}\n')
    assert main(["train", str(file), "--run", run]) == 2
    assert capsys.readouterr().err.strip().endswith(f"unknown key '{key}' in '{file}': {place} took its place")
    assert not (tmp_path / "run").exists()


# --- runs of older versions ------------------------------------------------------------------------------------------

SAME = 'deduplicate = false\nschedule = "linear"\nschedule_updates = 7\nplacebo = true\nstate_question = "What now?"\n'
SHARED = {"deduplicate": False, "schedule": "linear", "schedule_updates": 7, "placebo": True}
WARM = {"schedule": "constant", "deduplicate": False}


@pytest.mark.parametrize(
    ("objective", "warm", "auxiliary", "warm_auxiliary"),
    [
        (
            'state_weight = 0.2\nstate_rows = "separate"\nstate_fraction = 0.5\ninverse_weight = 0.1\n'
            f"inverse_fraction = 0.25\n{SAME}",
            'state_weight = 0.3\nstate_rows = "in_pass"\ninverse_weight = 0.4\nfraction = 0.15\n',
            {
                "state": {"weight": 0.2, "fraction": 0.5, "question": "What now?", **SHARED},
                "inverse": {"weight": 0.1, "fraction": 0.25, **SHARED},
            },
            {"echo": {"weight": 0.3, **WARM}, "inverse": {"weight": 0.4, "fraction": 0.15, **WARM}},
        ),
        (
            f'state_weight = 0.2\nstate_rows = "in_pass"\nstate_fraction = 0.5\ninverse_weight = 0.0\n{SAME}',
            'state_weight = 0.3\nstate_rows = "separate"\nfraction = 0.15\n',
            {"echo": {"weight": 0.2, "fraction": 0.5, **SHARED}},
            {"state": {"weight": 0.3, "fraction": 0.15, "question": "What now?", **WARM}},
        ),
        (
            "state_weight = 0.2\n",
            "inverse_weight = 0.3\n",
            {"state": {"weight": 0.2}},
            {"inverse": {"weight": 0.3, "fraction": 0.25, **WARM}},
        ),
        (SAME, 'state_weight = 0.0\nstate_rows = "separate"\n', {}, {}),
    ],
    ids=["all", "the other way round", "defaults of then", "none"],
)
def test_an_older_run_opens_with_equal_tables(
    objective: str, warm: str, auxiliary: Any, warm_auxiliary: Any, tmp_path: Path
) -> None:
    text = dump_config(tiny())
    assert "auxiliary" not in text
    text = text.replace("[objective]\n", f"[objective]\n{objective}").replace("[warm_start]\n", f"[warm_start]\n{warm}")
    (tmp_path / "config.toml").write_text(text)
    assert load_run(tmp_path) == tiny(auxiliary=auxiliary, warm_auxiliary=warm_auxiliary)
    with pytest.raises(UserError, match="took its place"):
        load_recipe(str(tmp_path / "config.toml"))


def test_a_run_of_today_opens_as_it_is(tmp_path: Path) -> None:
    table = {"weight": 0.5, "floor": 0.1, "every": 3, "fraction": 0.5, "tokens": "all", "aggregation": "sequence_mean"}
    config = tiny(
        auxiliary={"state": table, "inverse": {"weight": 0.1, "choices": True, "question": "Which?"}},
        warm_auxiliary={"echo": {"weight": 0.2, "placebo": True}},
    )
    (tmp_path / "config.toml").write_text(dump_config(config))
    assert load_run(tmp_path) == config == load_recipe(str(tmp_path / "config.toml"))
    assert [each.name for each in config.auxiliaries()] == ["state", "inverse"]
    assert [each.name for each in config.auxiliaries("warm_start")] == ["echo"]
