"""Evaluation: intervals, records, what a model knows of its world, and any agent by one command."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import envrl
from boxes import Boxes, files, tiny
from envrl.build import renderer_of
from envrl.cli.main import main
from envrl.config.load import load_recipe
from envrl.errors import UserError
from envrl.eval.evaluate import evaluate
from envrl.eval.probe import names_action, probe, probe_episodes, score_targets
from envrl.eval.questions import Questions, ask
from envrl.eval.record import action_rates, summarize
from envrl.eval.split import in_proportion, spread
from envrl.eval.target import find_target
from envrl.models import rows
from envrl.models.load import LanguageModel, load_model
from envrl.models.runtime import prepare_torch
from envrl.rendering.renderer import Form
from envrl.statistics import deviation, mean_interval, pooled, wilson
from envrl.trainer.loop import train
from envrl.types import Action, Observation, Pair, StopReason, Task, Trajectory, Transition

# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("won", "played", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(won: int, played: int, low: float, high: float) -> None:
    assert wilson(won, played) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 2000), st.integers(1, 2000))
def test_wilson_contains_the_rate_and_mirrors(won: int, played: int) -> None:
    won = min(won, played)
    low, high = wilson(won, played)
    assert 0.0 <= low <= won / played <= high <= 1.0
    assert low < high
    assert wilson(played - won, played) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider_low, wider_high = wilson(won, played, z=2.5758)
    assert wider_low <= low
    assert high <= wider_high
    more_low, more_high = wilson(4 * won, 4 * played)
    assert more_high - more_low < high - low


_SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=20)


@given(st.lists(_SCORES, min_size=1, max_size=4).filter(lambda samples: sum(map(len, samples)) > 1))
def test_pooled_samples_are_those_of_all_values_together(samples: list[list[float]]) -> None:
    values = [value for sample in samples for value in sample]
    mean, spread, count = pooled([(fmean(sample), deviation(sample), len(sample)) for sample in samples])
    assert (mean, spread, count) == pytest.approx((fmean(values), stdev(values), len(values)), abs=1e-7)


def test_the_interval_of_a_mean_by_hand() -> None:
    """Of 0, 0, 1, 1 the deviation is sqrt(1 / 3), and that of the mean half as much: 0.288675; times 1.96 is 0.5658."""
    assert deviation([0.0, 0.0, 1.0, 1.0]) == pytest.approx(0.577350, abs=1e-6)
    assert mean_interval(0.5, 0.577350, 4) == pytest.approx((-0.0658, 1.0658), abs=1e-4)
    assert deviation([3.0]) == deviation([]) == 0.0


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


# --- records ---------------------------------------------------------------------------------------------------------


def step(command: str, answer: str, *, well_formed: bool = True, imagined: bool = False, reward: float = 0.0):
    before = Observation("…", ("look", "open box 1"))
    action = Action(command, fault="" if well_formed else "empty", imagined=imagined)
    return Transition(before, action, reward, Observation(answer, ("look",)), reward > 0, reward > 0)


def episode(kind: str, *steps: Transition) -> Trajectory:
    return Trajectory(Task(f"{kind}-{len(steps)}", "valid", 0, kind), 0, tuple(steps), (), StopReason.DONE)


def test_a_record_by_hand() -> None:
    """Two won of three; five actions: one not well formed, two not admissible, one that imagines an observation."""
    played = [
        episode("a", step("look", "."), step("open box 1", ".", reward=2.0)),
        episode("b", step("open box 1", ".", reward=1.0)),
        episode("a", step("dance", ".", imagined=True), step("", ".", well_formed=False)),
    ]
    record = summarize(played)
    assert record["episodes"] == 3
    assert record["success_rate"] == pytest.approx(2 / 3)
    assert record["score"] == pytest.approx(1.0)
    assert record["turns"] == pytest.approx(5 / 3)
    assert record["ci95"] == list(wilson(2, 3))
    assert list(record["by_task"]) == ["a", "b"]
    assert record["by_task"]["a"] == {"episodes": 2, "success_rate": 0.5, "ci95": list(wilson(1, 2))}
    assert record["valid_action_rate"] == pytest.approx(4 / 5)
    assert record["admissible_action_rate"] == pytest.approx(3 / 5)
    assert record["imagined_observation_rate"] == pytest.approx(1 / 5)
    assert action_rates([])["valid_action_rate"] == 0.0


# --- what a model knows of its world ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "answer", "named"),
    [
        ("move cd 1 to desk 1", "You move the cd 1 to the desk 1.", True),
        ("take cd 1 from desk 2", "You pick up the cd 1 from the desk 2.", True),
        ("take cd 2 from desk 1", "You pick up the cd 1 from the desk 2.", False),
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a cd 1.", True),
        ("go to desk 1", "You arrive at desk 12. On the desk 12, you see nothing.", False),
        ("use desklamp 1", "You turn on the desklamp 1.", True),
        ("open box 1", "It is empty.", False),
        ("examine desk 1", "On the desk 1, you see nothing.", False),
        ("examine cd 1", "There's nothing special about cd 1.", False),
        ("heat egg 1 with microwave 1", "You heat the egg 1 using the microwave 1.", True),
        ("look", "You are in the middle of a room. Looking quickly around you, you see nothing.", False),
        ("inventory", "You are not carrying anything.", False),
        ("dance", "Nothing happens.", False),
        ("", "Nothing happens.", False),
    ],
)
def test_which_answers_name_the_act(command: str, answer: str, named: bool) -> None:
    assert names_action(step(command, answer)) is named


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose world holds a model that has learned something: 60 steps of imitation and of both losses."""
    config = tiny(
        warm_start={"demonstrations": 32, "epochs": 8, "patience": 0, "every": 50},
        warm_auxiliary={name: {"weight": 1.0, "schedule": "constant"} for name in ("state", "inverse")},
        train={"updates": 2},
    )
    return train(config, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def model(run: Path) -> LanguageModel:
    prepare_torch(1)
    return load_model(run / "warm_start")


def scripted(count: int = 6) -> list[Trajectory]:
    return probe_episodes(Boxes(), Boxes().tasks("valid_a"), count, 3, seed=0)


def test_the_probe_plays_expert_and_random_in_turn_whatever_the_order_of_the_tasks() -> None:
    tasks = list(Boxes().tasks("train"))
    played = probe_episodes(Boxes(), tasks, 20, 4, seed=5)
    assert len({trajectory.task.id for trajectory in played}) == 20
    order = [f"open box {n}" for n in (1, 2, 3, 4)]
    for trajectory in played[::2]:
        assert [t.action.text for t in trajectory.transitions] == order[: len(trajectory.transitions)]
        assert trajectory.success
    assert any([t.action.text for t in p.transitions] != order[: len(p.transitions)] for p in played[1::2])
    shuffled = random.Random(1).sample(tasks, len(tasks))
    assert probe_episodes(Boxes(), shuffled, 20, 4, seed=5) == played
    assert [t.task for t in probe_episodes(Boxes(), tasks, 20, 4, seed=6)] != [t.task for t in played]


@pytest.mark.parametrize(("layout", "tree"), [("concat", True), ("concat", False), ("steps", True)])
def test_scores_are_those_of_the_models_own_pass(
    model: LanguageModel, layout: str, tree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-prob and length of each target, against transformers' forward pass row by row; exact against generate."""
    monkeypatch.setitem(rows._TRIED, model.network, tree)
    renderer = renderer_of(model, Form(layout))
    asked = ask(tiny(), renderer, scripted())
    pairs = asked.state + asked.inverse
    scores = score_targets(model, pairs)
    exact = 0
    for pair, score in zip(pairs, scores, strict=True):
        ids = torch.tensor([[*pair.prompt, *pair.target]])
        with torch.no_grad():
            logprobs = model.network(ids).logits[0].log_softmax(-1)
            produced = model.network.generate(
                torch.tensor([pair.prompt]), max_new_tokens=len(pair.target), do_sample=False, eos_token_id=None
            )
        start = len(pair.prompt)
        expected = sum(float(logprobs[start + i - 1, token]) for i, token in enumerate(pair.target))
        assert score.logprob == pytest.approx(expected, abs=1e-4)
        assert score.tokens == len(pair.target)
        assert score.exact == (produced[0, start:].tolist() == list(pair.target))
        exact += score.exact
    assert 0 < exact < len(pairs), "the model knows some of its world and not all of it"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=12), st.integers(0, 2**31))
def test_scores_do_not_depend_on_their_company(model: LanguageModel, shape: list[tuple[int, int]], seed: int) -> None:
    generator = np.random.default_rng(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(int(token) for token in generator.integers(0, len(model.codec), count))

    pairs = [Pair(draw(prompt), draw(target)) for prompt, target in shape]
    together = score_targets(model, pairs)
    for pair, score in zip(pairs, together, strict=True):
        (alone,) = score_targets(model, [pair])
        assert score.logprob == pytest.approx(alone.logprob, abs=1e-3)
        assert score.tokens == alone.tokens == len(pair.target)
        assert score.logprob <= 0.0


def test_the_probe_by_hand(model: LanguageModel) -> None:
    played = scripted()
    steps = [t for trajectory in played for t in trajectory.transitions]
    asked = ask(tiny(), renderer_of(model, Form()), played)
    states, inverse = score_targets(model, asked.state), score_targets(model, asked.inverse)
    found = probe(model, asked, played)
    assert found["state_nll"] == pytest.approx(-sum(s.logprob for s in states) / sum(s.tokens for s in states))
    assert found["state_exact"] == sum(s.exact for s in states) / len(steps)
    assert found["inverse_accuracy"] == sum(s.exact for s in inverse) / len(steps)
    unnamed = [s.exact for t, s in zip(steps, inverse, strict=True) if t.next_observation.text == "It is empty."]
    assert 0 < len(unnamed) < len(steps)
    assert found["inverse_accuracy_unnamed"] == sum(unnamed) / len(unnamed)
    assert probe(model, Questions([], []), []) == {}


def test_the_probe_tells_who_knows_the_world(model: LanguageModel, tmp_path: Path) -> None:
    """What was trained on the answers predicts them better than what was not; an answer that names the act tells it."""
    other = load_model(train(tiny(train={"updates": 0}), tmp_path / "run") / "warm_start")
    played = scripted(10)
    knows, does_not = (probe(each, ask(tiny(), renderer_of(each, Form()), played), played) for each in (model, other))
    assert knows["state_nll"] < 0.5 * does_not["state_nll"]
    assert knows["state_nll"] < math.log(4)
    assert knows["inverse_accuracy"] >= knows["inverse_accuracy_unnamed"]
    assert knows["inverse_accuracy"] > does_not["inverse_accuracy"]


# --- which episodes are played ---------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(1, 70))
def test_a_sample_has_its_share_of_every_kind(kinds: list[str], count: int) -> None:
    items = list(enumerate(kinds))
    sample = spread(items, count, lambda item: item[1])
    assert sample == sorted(set(sample))
    assert len(sample) == min(count, len(items))
    for kind in set(kinds):
        share = len(sample) * kinds.count(kind) / len(items)
        assert abs(sum(item[1] == kind for item in sample) - share) < 1


def test_a_sample_by_hand() -> None:
    """Ten, sorted by kind: a a a a b b b b b b; the middles of three thirds are places 1, 5 and 8 of these."""
    assert spread("aaaabbbbbb", 3, lambda kind: kind) == ["a", "b", "b"]
    items = [("b", 0), ("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5), ("b", 6), ("a", 7), ("b", 8), ("b", 9)]
    assert spread(items, 3, lambda item: item[0]) == [("b", 2), ("a", 3), ("b", 8)]
    assert spread(items, 0, lambda item: item[0]) == spread(items, 11, lambda item: item[0]) == items


def test_a_part_of_a_split_has_its_part_of_the_other_episodes() -> None:
    assert [in_proportion(64, part, 140) for part in (0, 1, 4, 70, 139, 140, 999)] == [64, 1, 2, 32, 64, 64, 64]
    assert in_proportion(0, 4, 140) == 0


def test_fewer_episodes_are_all_that_is_played(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of valid_a's ten, five: so two of the four unrestricted and two of the four scripted ones; or what is asked."""
    asked: list[int] = []
    monkeypatch.setattr("envrl.eval.probe.probe_episodes", lambda *a: asked.append(a[2]) or probe_episodes(*a))
    (record,) = evaluate(run, split="valid_a", episodes=5)
    assert (record["episodes"], record["free/episodes"], asked) == (5, 2, [2])
    (record,) = evaluate(run, split="valid_a", episodes=5, free=3, probe=1)
    assert (record["episodes"], record["free/episodes"], asked) == (5, 3, [2, 1])
    (record,) = evaluate(run, split="valid_a", episodes=5, free=0, probe=0)
    assert asked == [2, 1]
    assert not any(key.startswith(("free/", "state_", "inverse_")) for key in record)


def test_a_run_may_sample_its_first_and_last_evaluation_too(tmp_path: Path) -> None:
    settings = {"every": 1, "episodes": 2, "final": 5, "free_episodes": 0, "probe_episodes": 0}
    config = tiny(train={"updates": 2, "trajectories": 2}, eval=settings)
    run = train(config, tmp_path / "run")
    records = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [(r["update"], r["episodes"]) for r in records] == [(0, 5), (0, 5), (1, 2), (1, 2), (2, 5), (2, 5)]
    written = (run / "trajectories" / "eval-000002-valid_a.jsonl").read_text().splitlines()
    assert {json.loads(line)["kind"] for line in written} == {"key", "coin", "ring", "pen"}


# --- any agent, by one function --------------------------------------------------------------------------------------


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("seconds", "stage", "update", *_ABOUT)}


_ABOUT = ("agent", "env", "max_steps", "seed", "temperature", "actions")


def logged(run: Path, update: int) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    return [timeless(record) for record in records if record["update"] == update]


def test_a_run_is_measured_as_it_measured_itself(run: Path) -> None:
    """The same to the last digit: the latest checkpoint as at the last update, the warm start as at update 0."""
    before = files(run)
    latest = evaluate(run)
    assert [timeless(record) for record in latest] == logged(run, 2)
    assert [timeless(record) for record in evaluate(run / "warm_start")] == logged(run, 0)
    assert [timeless(r) for r in evaluate(run / "checkpoints" / "step-000002", split="valid_b")] == logged(run, 2)[1:]
    assert [timeless(r) for r in evaluate(str(run / "checkpoints" / "latest"))] == logged(run, 2)
    assert files(run) == before
    about = {key: latest[0][key] for key in _ABOUT}
    assert about == {
        "agent": str(run / "checkpoints" / "step-000002"),
        "env": "boxes",
        "max_steps": 3,
        "seed": 0,
        "temperature": 0.4,
        "actions": "admissible",
    }


def test_what_is_asked_for_is_done(run: Path) -> None:
    (record,) = evaluate(run, split=["valid_a"], episodes=3, temperature=0.0, actions="free", seed=9)
    assert record["episodes"] == record["free/episodes"] == 3
    assert (record["temperature"], record["actions"], record["seed"]) == (0.0, "free", 9)
    assert record["success_rate"] == record["free/success_rate"]
    (again,) = evaluate(run, split=["valid_a"], episodes=3, temperature=0.0, actions="free", seed=10)
    greedy = ("success_rate", "turns", "valid_action_rate", "by_task")
    assert {key: again[key] for key in greedy} == {key: record[key] for key in greedy}, "greedy play has no dice"
    (first,) = evaluate(run, split=["train"], temperature=2.0, seed=1)
    (second,) = evaluate(run, split=["train"], temperature=2.0, seed=2)
    assert first["turns"] != second["turns"]


def test_a_folder_that_belongs_to_no_run_has_the_recipes_defaults(run: Path, tmp_path: Path) -> None:
    """At the default temperature and seed, which the run had as well; only the limit on steps is another one: 30."""
    folder = tmp_path / "model"
    shutil.copytree(run / "warm_start", folder)
    (folder / "manifest.json").unlink()
    assert find_target(folder).config == load_recipe("household-demo", ()).__class__()
    (record,) = evaluate(folder, env="boxes", split="valid_b")
    assert record["max_steps"] == 30
    assert record["episodes"] == 7
    assert record["success_rate"] >= logged(run, 0)[1]["success_rate"]


def test_what_a_run_wrote_is_nothing_without_its_manifest(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    checkpoint = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    for folder in (checkpoint, tmp_path / "run" / "warm_start"):
        (folder / "manifest.json").unlink()
        with pytest.raises(UserError, match=r"manifest\.json is missing"):
            evaluate(folder, split="valid_b")


def test_the_scripts_on_boxes(run: Path) -> None:
    """Of valid_a's ten: three keys (box 3), three coins (1), two rings (4), two pens (2); the expert opens in order.

    Within three steps it finds all but the rings: 3·3 + 3·1 + 2·3 + 2·2 = 22 turns.
    """
    tiny()  # makes the world known
    with pytest.raises(UserError, match=r"no split 'valid_seen'"):
        evaluate("expert", env="boxes")
    (walk,) = evaluate("walkthrough", env="boxes", split="valid_a")
    assert (walk["success_rate"], walk["turns"], walk["episodes"]) == (1.0, 1.0, 10)
    assert (walk["valid_action_rate"], walk["admissible_action_rate"]) == (1.0, 1.0)
    assert set(walk["by_task"]) == {"key", "coin", "ring", "pen"}
    assert "state_nll" not in walk
    (floor,) = evaluate("random", env="boxes", split="train", seed=3)
    assert floor["success_rate"] == 1.0, "thirty steps are enough for chance"
    assert 2.0 < floor["turns"] < 7.0  # 4 on average; 48 games
    config = load_recipe(str(run / "config.toml"))
    from envrl.eval.split import evaluate_script

    record, played = evaluate_script("expert", Boxes, "valid_a", config)
    assert record["success_rate"] == 0.8
    assert record["turns"] == 2.2
    assert record["by_task"]["ring"]["success_rate"] == 0.0
    assert [trajectory.task.id for trajectory in played] == [f"valid_a/{i}" for i in range(10)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "expret"}, r"'expret' is neither a run .* did you mean 'expert'"),
        ({"target": "nowhere/at/all"}, r"neither a run \(config.toml\), nor a folder that transformers loads"),
        ({"target": "expert", "temperature": 0.5}, "mean nothing to the script 'expert'"),
        ({"target": "random", "actions": "free"}, "mean nothing to the script 'random'"),
        ({"target": "expert", "episodes": 0}, "episodes must be at least 1, not 0"),
        ({"target": "expert", "env": "boxes", "probe": 3}, "probe is measured of a model, not of the script 'expert'"),
        ({"target": "expert", "env": "boxes", "free": 0}, "free is measured of a model, not of the script 'expert'"),
        ({"target": "expert", "env": "boxxes"}, "unknown world 'boxxes'"),
        ({"target": "expert", "env": "boxes", "split": ()}, "split must name at least one split"),
        ({"target": "expert", "env": "boxes", "data": "/absent"}, r"does not take options \(data\)"),
    ],
)
def test_mistakes_are_sentences(arguments: dict[str, Any], message: str) -> None:
    tiny()
    with pytest.raises(UserError, match=message):
        evaluate(**arguments)


def test_values_out_of_range_are_refused(run: Path) -> None:
    for arguments, message in (
        ({"temperature": -0.1}, "at least 0"),
        ({"actions": "any"}, "'admissible' or 'free'"),
        ({"probe": -1}, "probe must be at least 0, not -1"),
        ({"actions": "free", "free": 3}, "free means episodes without restriction, and all of these are"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(run, **arguments)


def test_a_damaged_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    (copy / "checkpoints" / "step-000002" / "tokenizer.json").unlink()
    for target in (copy, copy / "checkpoints" / "latest"):
        with pytest.raises(UserError, match=r"is damaged: tokenizer\.json is missing"):
            evaluate(target)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        evaluate(copy)


def test_another_world_does_not_inherit_the_runs_data(run: Path) -> None:
    with pytest.raises(UserError, match="valid_a"):
        evaluate(run, env="household")


def test_the_command_line_writes_what_the_function_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "expert.json"
    arguments = ["expert", "--env", "household", "--split", "valid_seen,valid_unseen", "--episodes", "20"]
    assert main(["eval", *arguments, "--json", str(file)]) == 0
    records = json.loads(file.read_text())
    expected = envrl.evaluate("expert", env="household", split=("valid_seen", "valid_unseen"), episodes=20)
    assert [timeless(record) for record in records] == [timeless(record) for record in expected]
    assert [record["split"] for record in records] == ["valid_seen", "valid_unseen"]
    assert all(record["success_rate"] >= 0.85 for record in records)
    said = capsys.readouterr().out
    assert "of 20 episodes" in said
    assert main(["eval", "expert", "--env", "household", "--temperature", "1"]) == 2
    assert "mean nothing to the script" in capsys.readouterr().err
