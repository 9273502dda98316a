"""Whole runs on a toy world: the files that they leave, every setting that changes training, and that they learn."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import validate
from transformers import AutoModelForCausalLM, AutoTokenizer

import envrl.trainer.run as running
from boxes import COMMANDS, HALF, SIZES, Boxes, grouped, tiny, with_tables
from envrl.batches.batch import build_batch, step_advantages
from envrl.build import form_of, play_settings, renderer_of
from envrl.cli.main import main
from envrl.config.load import dump_config, load_recipe
from envrl.config.schema import Config
from envrl.curriculum import draw_tasks
from envrl.engine.checkpoint import load_state
from envrl.envs.registry import register_env
from envrl.errors import RunError, UserError
from envrl.eval.trajectories import advantage_parts
from envrl.imitation import warm_start
from envrl.imitation.demonstrations import batch_rows, demonstrate, imitation_rows, written
from envrl.imitation.shared_start import shared_evaluations
from envrl.models.checkpoints import verify_checkpoint
from envrl.models.load import build_model, load_model
from envrl.rendering.renderer import Form
from envrl.report.exports import schema
from envrl.trainer.loop import train
from envrl.trainer.tasks import Tasks
from envrl.types import Action, Observation, Step, StopReason, Task, Trajectory, TrajectoryGroup, Transition
from playing import play_model

QUICK: dict[str, Any] = {"every": 0, "split": ("valid_b",), "free_episodes": 2, "probe_episodes": 2}
"""Evaluation settings for tests that look at training alone."""


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def metrics(run: Path) -> list[dict[str, Any]]:
    return lines(run / "metrics.jsonl")


# --- the run directory -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five updates with both auxiliary losses."""
    config = tiny(auxiliary={"state": {"weight": 0.2}, "inverse": {"weight": 0.1}}, train={"updates": 5})
    return train(config, tmp_path_factory.mktemp("runs") / "run")


def test_a_run_leaves_these_files_and_no_others(run: Path) -> None:
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    model = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    saved = [*model, "manifest.json", "state.json", "state.safetensors"]
    expected = ["config.toml", "eval.jsonl", "metrics.jsonl", "warm_start.jsonl", "checkpoints/latest"]
    expected += ["checkpoints", "trajectories", "warm_start", *(f"warm_start/{n}" for n in [*model, "manifest.json"])]
    for step in ("step-000004", "step-000005"):
        expected += [f"checkpoints/{step}", *(f"checkpoints/{step}/{name}" for name in saved)]
    for name in ("update-000002", "update-000004"):
        expected.append(f"trajectories/{name}.jsonl")
    for update in (0, 5):
        expected += [f"trajectories/eval-{update:06d}-{split}.jsonl" for split in ("valid_a", "valid_b")]
    expected += ["eval", *(f"eval/{n:06d}-{split}.jsonl" for n in (0, 2, 4, 5) for split in ("valid_a", "valid_b"))]
    assert names == sorted(expected)
    assert (run / "checkpoints" / "latest").readlink() == Path("step-000005")


def test_the_configuration_is_whole_and_its_threads_are_fixed(run: Path, tmp_path: Path) -> None:
    stored = load_recipe(str(run / "config.toml"))
    assert stored == tiny(auxiliary={"state": {"weight": 0.2}, "inverse": {"weight": 0.1}}, train={"updates": 5})
    config = tiny(warm_start={"demonstrations": 0}, train={"threads": 0, "updates": 0}, eval=QUICK)
    other = train(config, tmp_path / "other")
    assert load_recipe(str(other / "config.toml")).train.threads in (1, 2)
    torch.set_num_threads(1)


def test_metrics_have_a_line_an_update(run: Path) -> None:
    records = metrics(run)
    assert [record["update"] for record in records] == [1, 2, 3, 4, 5]
    steps = 0
    for record in records:
        steps += record["train/steps"]
        assert record["env_steps"] == steps
        assert record["episodes"] == 12 * record["update"]
        assert 12 <= record["train/steps"] <= 36
        assert record["train/turns"] == record["train/steps"] / 12
        assert record["train/success_rate"] == record["train/return"]
        assert 0.0 <= record["train/groups_used"] <= 1.0
        assert record["train/admissible_action_rate"] == record["train/valid_action_rate"] == 1.0
        assert record["rows/state"] > 0
        assert record["loss/state"] > 0
        assert record["skipped"] == 0.0
        assert record["sampler_mismatch"] < 1e-4
        assert record["seconds"]["total"] >= record["seconds"]["update"] + record["seconds"]["rollout"]
        nested = {key for key, value in record.items() if isinstance(value, dict)}
        assert nested == {"seconds", "rate", "memory"}
    assert records[-1]["total_tokens"] == sum(record["tokens"] for record in records)


def test_weights_follow_the_cosine(run: Path) -> None:
    """λ(t) = λ ½ (1 + cos(π t / T)) with t = 0 … 4 and T = 5."""
    shares = [0.5 * (1 + math.cos(math.pi * t / 5)) for t in range(5)]
    assert [r["weight/state"] for r in metrics(run)] == pytest.approx([0.2 * share for share in shares])
    assert [r["weight/inverse"] for r in metrics(run)] == pytest.approx([0.1 * share for share in shares])


def test_every_split_is_evaluated_whole_before_and_after(run: Path) -> None:
    records = lines(run / "eval.jsonl")
    seen = [(r["stage"], r["update"], r["split"], r["episodes"]) for r in records]
    assert seen == [
        ("rl", 0, "valid_a", 10),
        ("rl", 0, "valid_b", 7),
        ("rl", 2, "valid_a", 4),
        ("rl", 2, "valid_b", 4),
        ("rl", 4, "valid_a", 4),
        ("rl", 4, "valid_b", 4),
        ("rl", 5, "valid_a", 10),
        ("rl", 5, "valid_b", 7),
    ]
    for record in records:
        assert sum(part["episodes"] for part in record["by_task"].values()) == record["episodes"]
        won = sum(part["success_rate"] * part["episodes"] for part in record["by_task"].values())
        assert won / record["episodes"] == pytest.approx(record["success_rate"])
        low, high = record["ci95"]
        assert low < high
        assert low <= record["success_rate"] <= high
        assert record["score"] == record["success_rate"]
        part = {"valid_a": 2, "valid_b": 3}[record["split"]]  # of the four, four tenths and four sevenths
        assert record["free/episodes"] == (4 if record["update"] in (0, 5) else part)
        assert {k for k, v in record.items() if isinstance(v, dict)} == {"by_task", "seconds"}


def test_checkpoints_load_with_transformers_alone(run: Path) -> None:
    folder = run / "checkpoints" / "latest"
    verify_checkpoint(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode("open box 3", add_special_tokens=False)) == "open box 3"
    assert network.get_input_embeddings().weight.dtype == torch.float32
    tensors, meta = load_state(folder / "state")
    assert meta["update"] == 5
    assert meta["evaluated"] is True
    assert meta["metrics_offset"] == (run / "metrics.jsonl").stat().st_size
    assert meta["eval_offset"] == (run / "eval.jsonl").stat().st_size
    weights = network.get_input_embeddings().weight
    assert any(tensor.shape == weights.shape for tensor in tensors.values())


def test_trajectories_are_whole_episodes(run: Path) -> None:
    played = lines(run / "trajectories" / "update-000002.jsonl")
    assert len(played) == 4, "one group of four"
    assert len({episode["task"] for episode in played}) == 1
    assert [episode["member"] for episode in played] == [0, 1, 2, 3]
    for episode in played:
        validate(episode, schema())
        steps = episode["steps"]
        assert episode["success"] == (steps[-1]["reward"] == 1.0)
        assert episode["stop_reason"] == ("done" if episode["success"] else "max_steps")
        assert len(steps) == 3 or episode["success"]
        for step, following in pairwise(steps):
            assert step["next_observation"] == following["observation"]
        for step in steps:
            assert step["action"] in COMMANDS
            assert 0.0 < step["probability"] <= 1.0
            assert step["state_nll"] > 0.0
            assert step["admissible"]
            assert "".join(step["token_texts"]) == step["action"]
            assert math.exp(sum(step["logprobs"])) == pytest.approx(step["probability"], abs=1e-3)
            for logprob, entropy in zip(step["logprobs"], step["entropies"], strict=True):
                assert 0.0 <= entropy <= math.log(len(COMMANDS)) + 1e-4, "of the commands that are left"
                assert (logprob == 0.0) <= (entropy < 1e-3), "a token that the restriction fixes has neither"
            assert step["predicted_action"] is not None
        returns = [episode["return"] for episode in played]
        spread = stdev(returns) + 1e-6
        assert steps[0]["advantage"] == pytest.approx((episode["return"] - fmean(returns)) / spread, abs=1e-3)
    before = lines(run / "trajectories" / "eval-000000-valid_a.jsonl")
    after = lines(run / "trajectories" / "eval-000005-valid_a.jsonl")
    assert [e["task"] for e in before] == [e["task"] for e in after] == ["valid_a/7", "valid_a/9"]


def test_an_advantage_is_told_with_its_parts() -> None:
    """Two episodes of two steps from the same start: the winner's first step also earns by its discounted return."""

    def played(*rewards: float) -> Trajectory:
        places = [Observation(text) for text in ("start", f"then {rewards}", "end")]
        steps = [
            Transition(places[i], Action("go"), reward, places[i + 1], i == 1, reward == 1.0)
            for i, reward in enumerate(rewards)
        ]
        return Trajectory(Task("t", "a"), 0, tuple(steps), (), StopReason.DONE)

    groups = [TrajectoryGroup(Task("t", "a"), (played(0.0, 1.0), played(0.0, 0.0)))]
    plain = tiny()
    config = replace(plain, objective=replace(plain.objective, estimator="gigpo"))
    won, lost = advantage_parts(groups, config)
    half = 0.5 / math.sqrt(0.5)  # (1 - 0.5) / the sample deviation of 1 and 0
    assert won[0]["advantage_parts"] == {
        "episode": pytest.approx(half, abs=1e-3),
        "step": pytest.approx(half, abs=1e-3),
    }
    assert won[0]["advantage"] == pytest.approx(2 * half, abs=1e-3)
    assert won[1]["advantage_parts"]["step"] == 0.0, "alone with its observation"
    assert lost[0]["advantage"] == pytest.approx(-2 * half, abs=1e-3)
    assert advantage_parts(groups, plain)[0][0] == {"advantage": pytest.approx(half, abs=1e-3)}


def test_training_episodes_can_be_shorter_than_those_of_evaluations(tmp_path: Path) -> None:
    run = train(
        tiny(rollout={"max_steps": 2}, train={"updates": 2}, warm_start={"demonstrations": 0}), tmp_path / "run"
    )
    for episode in lines(run / "trajectories" / "update-000002.jsonl"):
        assert len(episode["steps"]) == 2 or episode["success"]
        assert len(episode["steps"]) <= 2
    lost = [e for e in lines(run / "trajectories" / "eval-000000-valid_a.jsonl") if not e["success"]]
    assert lost
    assert {len(e["steps"]) for e in lost} == {3}


def test_demonstrations_that_the_context_cannot_hold_are_left_out(tmp_path: Path) -> None:
    for layout, also in (("concat", r", or set rollout\.layout = 'steps'"), ("steps", "")):
        says = rf"all 8 demonstrations are longer than the model's context of 12 tokens: raise model\.context{also}$"
        with pytest.raises(UserError, match=says):
            train(
                tiny(model={"context": 12}, rollout={"response_tokens": 4, "layout": layout}, eval=QUICK),
                tmp_path / "run",
            )
    assert not (tmp_path / "run").exists(), "nothing was learned, so nothing is left"


def test_a_shared_warm_start_says_what_has_no_effect(tmp_path: Path) -> None:
    first = train(tiny(train={"updates": 0}, eval=QUICK), tmp_path / "first")
    here = str(first / "warm_start")
    config = tiny(train={"updates": 0}, eval=QUICK, warm_start={"path": here, "demonstrations": 5})
    with pytest.warns(UserWarning, match=r"was made with other values of warm_start.demonstrations: this run's"):
        train(config, tmp_path / "second")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tiny(train={"updates": 0}, eval=QUICK, warm_start={"path": here}), tmp_path / "third")


def test_a_shared_start_is_evaluated_once(run: Path, tmp_path: Path) -> None:
    def begun(name: str, **settings: Any) -> list[dict[str, Any]]:
        config = tiny(**{"auxiliary": {"state": {"weight": 0.3}}, "train": {"updates": 0}, **settings})
        config = replace(config, seed=3, warm_start=replace(config.warm_start, path=str(run / "warm_start")))
        return lines(train(config, tmp_path / name) / "eval.jsonl")

    measured = [record for record in lines(run / "eval.jsonl") if record["update"] == 0]
    seconds = [{"total": 0.0, "shared": record["seconds"]["total"]} for record in measured]
    expected = [record | {"seconds": each} for record, each in zip(measured, seconds, strict=True)]
    assert begun("the same", rollout={"group_size": 3}) == expected
    others = {"eval": {"temperature": 0.7}, "rollout": {"show_admissible": True}}
    others["auxiliary"] = {"echo": {"weight": 0.3}}  # whose predictions are probed where they stand in the episode
    for name, other in others.items():
        assert all("shared" not in record["seconds"] for record in begun(name, **{name: other}))


def test_a_start_is_shared_by_a_model_of_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of `envrl models` and the folder that it stands for are one model, and another folder is another."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for name in ("little", "other"):
        (tmp_path / "envrl" / "models" / name).mkdir(parents=True)
        (tmp_path / "envrl" / "models" / name / "config.json").write_text("{}")
    by_folder = tiny(model={"path": str(tmp_path / "envrl" / "models" / "little")})
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "config.toml").write_text(dump_config(by_folder))
    record = {"stage": "rl", "update": 0, "split": "valid", "seconds": {"total": 7.0}}
    (tmp_path / "start" / "eval.jsonl").write_text(json.dumps(record) + "\n")
    for name, shared in (("little", {"valid": record | {"seconds": {"total": 0.0, "shared": 7.0}}}), ("other", {})):
        config = tiny(model={"path": name}, warm_start={"path": str(tmp_path / "start" / "warm_start")})
        assert shared_evaluations(config) == shared


@pytest.mark.parametrize(("probe", "shared"), [(0, True), (4, False)])
def test_a_start_is_shared_whatever_a_run_asks_if_nothing_is_probed(tmp_path: Path, probe: int, shared: bool) -> None:
    (tmp_path / "config.toml").write_text(dump_config(tiny(eval={"probe_episodes": probe})))
    record = {"stage": "rl", "update": 0, "split": "valid", "seconds": {"total": 7.0}}
    (tmp_path / "eval.jsonl").write_text(json.dumps(record) + "\n")
    config = tiny(
        eval={"probe_episodes": probe},
        auxiliary={"inverse": {"weight": 0.1, "choices": True}},
        warm_start={"path": str(tmp_path / "warm_start")},
    )
    assert bool(shared_evaluations(config)) == shared


ROLLOUTS = [
    {"repeat_task": repeated, "show_admissible": shown} for repeated in (False, True) for shown in (False, True)
] + [{"layout": "steps"}]


@pytest.mark.parametrize("rollout", ROLLOUTS, ids=str)
def test_demonstrations_are_written_as_episodes_are_played(rollout: dict[str, Any]) -> None:
    """A model that plays what the expert plays leaves segments equal to the rows of imitation, spans to its targets."""
    config = tiny(rollout=rollout)
    model = build_model(config.model, ["Open box 1. You see 1, 2, 3, 4, nothing."], seed=0)
    env, task = Boxes(), Boxes().tasks("train")[1]
    demonstration = demonstrate(env, task, config, 0)
    wanted = [step.action.text for step in demonstration.trajectory.transitions]
    renderer, settings = renderer_of(model, form_of(config)), play_settings(config, 1.0)
    (played,) = [
        trajectory
        for trajectory in play_model(model, renderer, Boxes, [task] * 400, range(400), settings, seed=0)
        if [step.action.text for step in trajectory.transitions] == wanted
    ][:1]
    told = written(demonstration, renderer)
    assert told is not None
    rows = imitation_rows(told)
    assert [row.token_ids.tolist() for row in rows] == [segment.token_ids.tolist() for segment in played.segments]
    for row, segment in zip(rows, played.segments, strict=True):
        sampled = [place for span in segment.spans for place in range(span.start, span.stop)]
        assert row.terms[0].positions_T.tolist() == sampled


def test_separate_rows_of_the_warm_start_have_their_mark_whatever_form_rl_takes() -> None:
    config = tiny(
        warm_auxiliary={
            "state": {"weight": 0.2, "deduplicate": False},
            "inverse": {"weight": 0.1, "deduplicate": False},
        },
        auxiliary={"echo": {"weight": 0.2}},
    )
    model = build_model(config.model, ["Open box 1. You see 1, 2, 3, 4, nothing."], seed=0)
    codec = model.codec
    renderer = renderer_of(model, form_of(config))
    played = [written(demonstrate(Boxes(), task, config, 0), renderer) for task in Boxes().tasks("train")[:3]]
    demonstrations = [each for each in played if each is not None]
    rows, figures = batch_rows(demonstrations, config.auxiliaries("warm_start"), renderer, (0,))
    steps = sum(len(d.trajectory.transitions) for d in demonstrations)
    assert len(demonstrations) == 3
    assert figures == {"rows/state": steps, "rows/inverse": steps}
    assert [row.terms[0].component for row in rows[:3]] == ["imitation"] * 3
    first = [int(row.token_ids[0]) for row in rows[3:]]
    assert first == [codec.marks["state"]] * steps + [codec.marks["inverse"]] * steps


def test_warm_start_lines_follow_the_demonstrations(run: Path) -> None:
    """8 demonstrations in batches of 4, 2 epochs: 4 steps, measured at the end of each epoch."""
    records = lines(run / "warm_start.jsonl")
    assert [(r["step"], r["epoch"]) for r in records] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert ["held_out/imitation" in r for r in records] == [False, True, False, True]
    assert records[-1]["loss/imitation"] < records[0]["loss/imitation"]
    peak = tiny().warm_start.learning_rate
    assert records[0]["learning_rate"] == peak
    assert records[-1]["learning_rate"] == pytest.approx(peak * (0.1 + 0.45 * (1 + math.cos(math.pi * 2 / 3))))


# --- every setting that changes what is trained ----------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "in_pass": {"auxiliary": {"echo": {"weight": 0.2}}},
    "placebo": {"auxiliary": {"state": {"weight": 0.2, "placebo": True}, "inverse": {"weight": 0.1, "placebo": True}}},
    "placebo in pass": {"auxiliary": {"echo": {"weight": 0.2, "placebo": True}}},
    "gigpo": {"objective": {"estimator": "gigpo"}, "owned": {"objective.gigpo.step_norm": "mean"}},
    "rows of every step": {
        "objective": {"aggregation": "token_mean"},
        "owned": {"objective.grpo.baseline": "steps", "objective.grpo.std": False},
    },
    "gspo": {
        "objective": {"loss": "gspo"},
        "owned": {"objective.gspo.clip_low": 0.01, "objective.gspo.clip_high": 0.01},
        "train": {"epochs": 2},
    },
    "kl": {"objective": {"kl_weight": 0.1}},
    "entropy": {"objective": {"entropy_weight": 0.01}},
    "several steps": {"train": {"epochs": 2, "minibatches": 2}},
    "bf16": {"train": {"precision": "bf16"}},
    "steps": {"rollout": {"layout": "steps"}, "auxiliary": {"state": {"weight": 0.2}, "inverse": {"weight": 0.1}}},
    "steps, commands shown": {"rollout": {"layout": "steps", "history": 1, "show_admissible": True}},
    "free": {"rollout": {"actions": "free", "invalid_penalty": 0.1, "temperature": 0.8}},
    "muon": {"warm_start": {"optimizer": "muon", "matrix_learning_rate": 0.02}},
    "task repeated": {"rollout": {"repeat_task": True}},
    "no demonstrations": {"warm_start": {"demonstrations": 0}},
    "walkthroughs": {"warm_start": {"demonstrator": "walkthrough"}},
    "noise": {"warm_start": {"noise": 0.3}},
    "auxiliary rows in the warm start": {
        "warm_auxiliary": {"state": {"weight": 0.2, "fraction": 0.5}, "inverse": {"weight": 0.1, "fraction": 0.5}}
    },
    "reward scale": {"rollout": {"reward_scale": 10.0}},
}


def variant(tmp_path: Path, **settings: Any) -> Path:
    together = {"eval": QUICK, **settings}
    together["train"] = {"updates": 2, **together.get("train", {})}
    return train(tiny(**together), tmp_path / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variant(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_setting_is_not_without_effect(name: str, plain: Path, tmp_path: Path) -> None:
    """Every variant runs to its end with finite figures, and ends with other weights than the plain recipe."""
    run = variant(tmp_path, **VARIANTS[name])
    last = Path("checkpoints", "step-000002", "model.safetensors")
    assert (run / last).read_bytes() != (plain / last).read_bytes()
    for record in metrics(run):
        assert record["skipped"] == 0.0
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))
    checks.get(name, lambda _: None)(run)


def check_in_pass(run: Path) -> None:
    for record in metrics(run):
        assert record["rows/echo"] <= 12, "terms of the policy's rows, one an episode, and no rows of their own"
        assert record["loss/echo"] > 0.0


def check_placebo_in_pass(run: Path) -> None:
    for record in metrics(run):
        assert record["placebo/echo_coincidences"] < record["train/steps"]
        assert "placebo/echo_other_length" in record
        assert record["loss/echo"] > 0.0


def check_placebo(run: Path) -> None:
    record = metrics(run)[0]
    assert record["placebo/state_coincidences"] <= record["rows/state"]
    assert "placebo/inverse_other_length" in record


def check_kl(run: Path) -> None:
    first, second = metrics(run)
    assert first["kl"] == pytest.approx(0.0, abs=1e-9)
    assert second["kl"] > 0.0


def check_bf16(run: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "latest")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert 1e-5 < metrics(run)[0]["sampler_mismatch"] < 0.3


def check_steps(run: Path) -> None:
    for record in metrics(run):
        assert record["rows/policy"] <= record["train/steps"]
        assert record["rows/policy"] > 12 * record["train/groups_used"]


def check_free(run: Path) -> None:
    record = metrics(run)[0]
    assert record["train/valid_action_rate"] < 1.0
    assert record["train/admissible_action_rate"] < 1.0
    assert lines(run / "eval.jsonl")[0]["free/episodes"] == 7, "free play is the evaluation itself"


def check_no_demonstrations(run: Path) -> None:
    assert not (run / "warm_start.jsonl").read_text()
    assert (run / "warm_start" / "model.safetensors").is_file()


def check_reward_scale(run: Path) -> None:
    for record in metrics(run):
        assert record["train/return"] == pytest.approx(10 * record["train/success_rate"])
    assert lines(run / "eval.jsonl")[0]["score"] <= 1.0, "evaluation knows the world's own rewards"


checks = {
    "in_pass": check_in_pass,
    "placebo": check_placebo,
    "placebo in pass": check_placebo_in_pass,
    "kl": check_kl,
    "bf16": check_bf16,
    "steps": check_steps,
    "free": check_free,
    "no demonstrations": check_no_demonstrations,
    "reward scale": check_reward_scale,
}


def test_training_on_success_alone_does_not_see_the_worlds_other_rewards(plain: Path, tmp_path: Path) -> None:
    run = variant(tmp_path, rollout={"reward": "success"}, env={"step_cost": 0.25})
    last = Path("checkpoints", "step-000002", "model.safetensors")
    assert (run / last).read_bytes() == (plain / last).read_bytes(), "the world itself pays 1 for a win, too"
    for record in lines(run / "eval.jsonl"):
        assert record["score"] == pytest.approx(record["success_rate"] - 0.25 * record["turns"])


def test_long_steps_are_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes that are over at once: every step of the warm start and every update, whatever `every` says."""
    saved: list[int] = []
    monkeypatch.setattr(warm_start._Stage, "_save", lambda stage: saved.append(stage.step))
    config = tiny(
        train={"updates": 2},
        warm_start={"demonstrations": 6, "batch": 2, "epochs": 1, "every": 100},
        checkpoint={"every": 100, "minutes": 1e-9, "keep": 5},
        eval=QUICK,
    )
    train(config, tmp_path / "run")
    assert saved == [1, 2, 3]
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-000000", "step-000001", "step-000002"]


def test_no_updates_is_warm_start_and_evaluation_only(tmp_path: Path) -> None:
    run = train(tiny(train={"updates": 0}), tmp_path / "run")
    assert metrics(run) == []
    assert [(r["update"], r["episodes"]) for r in lines(run / "eval.jsonl")] == [(0, 10), (0, 7)]
    start = (run / "warm_start" / "model.safetensors").read_bytes()
    assert (run / "checkpoints" / "step-000000" / "model.safetensors").read_bytes() == start


def test_an_auxiliary_loss_whose_weight_has_fallen_to_0_costs_no_rows(tmp_path: Path) -> None:
    table = {"weight": 0.1, "schedule": "linear", "schedule_updates": 1}
    first, second = metrics(variant(tmp_path, auxiliary={"inverse": table}))
    assert (first["weight/inverse"], second["weight/inverse"]) == (0.1, 0.0)
    assert first["rows/inverse"] > 0
    assert "rows/inverse" not in second


def test_placebo_and_true_rows_differ_in_their_targets_alone(tmp_path: Path) -> None:
    table = {"weight": 0.1, "deduplicate": False, "schedule": "constant"}
    true = tiny(auxiliary={"inverse": table}, train={"updates": 0}, eval=QUICK)
    placebo = with_tables(true, {"inverse": {"placebo": True}})
    run = train(true, tmp_path / "run")
    model = load_model(run / "checkpoints" / "latest")
    tasks = [task for task in Boxes().tasks("train")[:3] for _ in range(4)]
    renderer = renderer_of(model, Form())
    played = play_model(model, renderer, Boxes, tasks, [0, 1, 2, 3] * 3, play_settings(true, 1.0), seed=0, update=1)
    prompts, targets = [], []
    for config in (true, placebo):
        batch = build_batch(grouped(played, 4), config, renderer, 1)
        rows = [r for r in batch.rows if r.terms[0].component == "inverse"]
        starts = [int(row.terms[0].positions_T[0]) for row in rows]
        prompts.append([row.token_ids[:start].tolist() for row, start in zip(rows, starts, strict=True)])
        targets.append([tuple(row.token_ids[start:].tolist()) for row, start in zip(rows, starts, strict=True)])
    assert prompts[0] == prompts[1]
    assert sorted(targets[0]) == sorted(targets[1])
    kept = sum(a == b for a, b in zip(*targets, strict=True))
    most = max(targets[0].count(target) for target in targets[0])
    assert kept == max(0, 2 * most - len(targets[0])), "as few as any exchange of these targets can leave"
    assert kept < len(targets[0])


def test_in_pass_the_fraction_is_a_share_of_the_episodes(tmp_path: Path) -> None:
    whole = tiny(auxiliary={"echo": {"weight": 0.1, "schedule": "constant"}}, train={"updates": 0}, eval=QUICK)
    model = load_model(train(whole, tmp_path / "run") / "checkpoints" / "latest")
    tasks = [task for task in Boxes().tasks("train")[:3] for _ in range(4)]
    renderer = renderer_of(model, Form())
    played = play_model(model, renderer, Boxes, tasks, [0, 1, 2, 3] * 3, play_settings(whole, 1.0), seed=0, update=1)

    def origins(component: str, share: float, update: int = 1) -> list[str]:
        config = with_tables(whole, {"echo": {"fraction": share}})
        rows = build_batch(grouped(played, 4), config, renderer_of(model, form_of(config)), update).rows
        return [row.origin for row in rows if any(term.component == component for term in row.terms)]

    everything = origins("echo", 1.0)
    assert len(everything) == sum(len(trajectory.transitions) > 1 for trajectory in played)
    assert origins("echo", 0.0) == []
    some = origins("echo", 0.5)
    assert 0 < len(some) < len(everything)
    assert set(some) < set(everything)
    assert any(origins("echo", 0.5, update) != some for update in (2, 3, 4)), "each update draws its own"
    assert origins("policy", 0.0) == origins("policy", 0.5) == origins("policy", 1.0)


# --- worlds that offer less, and misuse ------------------------------------------------------------------------------


class Plain:
    """The same world without expert, walkthroughs, or a list of commands."""

    def __init__(self) -> None:
        self.inner = Boxes()

    def tasks(self, split: str) -> Sequence[Task]:
        return self.inner.tasks(split)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        return replace(self.inner.reset(task, seed), admissible=None)

    def step(self, action: str) -> Step:
        step = self.inner.step(action)
        return replace(step, observation=replace(step.observation, admissible=None))


def test_a_world_without_expert_or_commands_trains_from_nothing(tmp_path: Path) -> None:
    register_env("plain-boxes", Plain)
    config = tiny(env={"name": "plain-boxes"}, warm_start={"demonstrations": 0}, train={"updates": 1}, eval=QUICK)
    run = train(config, tmp_path / "run")
    assert lines(run / "eval.jsonl")[-1]["admissible_action_rate"] == 1.0, "none is listed, so none is wrong"
    with pytest.raises(UserError, match="no scripted expert"):
        train(tiny(env={"name": "plain-boxes"}), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_context_that_is_full_ends_episodes_not_the_run(tmp_path: Path) -> None:
    """Long enough for the first turn, and too short for the third."""
    run = train(in_context(70), tmp_path / "run")
    for record in metrics(run):
        assert 0.1 <= record["train/context_full"] < 1.0
        assert record["train/steps"] > 0


def in_context(tokens: int) -> Config:
    return tiny(
        model={"context": tokens},
        warm_start={"demonstrations": 0},
        rollout={"response_tokens": 4},
        train={"updates": 2},
        eval=QUICK,
    )


def test_a_context_in_which_no_episode_can_begin_is_refused(tmp_path: Path) -> None:
    """A preset's tokenizer is made on the way, and its run leaves nothing behind."""
    for context, also in ((45, r"lower rollout\.response_tokens, or "), (24, "")):
        says = (
            r"no episode of the split 'train' can begin: the first prompts of 32 of its tasks have 42 tokens or more, "
            rf"which beside responses of 4 do not fit the model's context of {context}: {also}raise model\.context$"
        )
        with pytest.raises(UserError, match=says):
            train(in_context(context), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_half_of_a_surrogate_pair_is_text_that_cannot_be_encoded(layout: str, tmp_path: Path) -> None:
    """The tokenizer reads U+FFFD, the world gets its own commands, files have what it said."""
    config = tiny(
        env={"name": "halves"},
        rollout={"layout": layout, "show_admissible": True},
        warm_start={"demonstrations": 8, "demonstrator": "walkthrough"},
        auxiliary={"state": {"weight": 0.1}, "inverse": {"weight": 0.1}},
        train={"updates": 1, "trajectories_every": 1},
        eval=QUICK,
    )
    run = train(config, tmp_path / "run")
    (record,) = metrics(run)
    assert record["train/token_mismatches"] == 0
    assert record["train/steps"] > 0
    assert record["train/admissible_action_rate"] == 1.0
    first = json.loads((run / "trajectories" / "update-000001.jsonl").read_text().splitlines()[0])["steps"][0]
    assert first["observation"].startswith(f"{HALF}There are four boxes")
    assert main(["report", str(run)]) == 0
    assert main(["eval", str(run), "--split", "valid_b", "--json", str(tmp_path / "found.json")]) == 0
    codec = load_model(run / "checkpoints" / "latest").codec
    assert codec.decode(codec.encode(f"box {HALF}1")) == "box \ufffd1"


def test_a_loss_that_is_never_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*arguments: Any) -> Any:
        batch = build_batch(*arguments)
        for row in batch.rows:
            row.terms[0].weights_T[0] = np.nan
        return batch

    monkeypatch.setattr(running, "build_batch", poisoned)
    config = tiny(train={"updates": 9}, auxiliary={"state": {"weight": 0.1}}, eval=QUICK)
    with pytest.raises(RunError, match="not finite"):
        train(config, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "skipped").iterdir()) == [
        "update-000001.json",
        "update-000002.json",
        "update-000003.json",
    ]
    assert [record["skipped"] for record in metrics(tmp_path / "run")] == [1.0, 1.0]
    saved = tmp_path / "run" / "checkpoints" / "step-000002" / "model.safetensors"
    assert saved.read_bytes() == (tmp_path / "run" / "warm_start" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="3 batches in a row"):  # resumed from update 2, it remembers the first two
        train(config, tmp_path / "run", resume=True)


# --- which games, in which order -------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 100), st.integers(1, 9), st.integers(1, 6))
def test_every_task_is_drawn_once_before_any_is_drawn_again(size: int, seed: int, count: int, updates: int) -> None:
    tasks = [Task(str(i), "train") for i in range(size)]
    drawn = [task.id for update in range(1, updates + 1) for task in draw_tasks(tasks, seed, update, count)]
    for first in range(0, len(drawn) - size + 1, size):
        assert len(set(drawn[first : first + size])) == size


@given(st.integers(1, 5), st.integers(1, 12), st.integers(2, 5))
def test_no_two_episodes_of_an_update_share_their_random_numbers(size: int, count: int, group: int) -> None:
    tasks = [Task(str(i), "train") for i in range(size)]
    config = tiny(rollout={"tasks": count, "group_size": group})
    episodes = [(each.assignment.task, each.member) for each in Tasks(tasks, config).next(1, Counter())]
    assert len(episodes) == count * group == len({(task.id, member) for task, member in episodes})
    for first in range(0, len(episodes), group):
        assert len({task.id for task, _ in episodes[first : first + group]}) == 1


def test_groups_may_be_of_any_size() -> None:
    """Returns of 1 and 0 beside 1, 0 and 0: each episode against the mean and deviation of its own group."""
    seen = Observation("A room.")

    def episode(reward: float) -> Trajectory:
        return Trajectory(
            Task("a", "train"), 0, (Transition(seen, Action("look"), reward, seen, True, True),), (), StopReason.DONE
        )

    groups = [TrajectoryGroup(Task("a", "train"), tuple(map(episode, each))) for each in ((1.0, 0.0), (1.0, 0.0, 0.0))]
    found = [float(each[0]) for each in step_advantages(groups, tiny())]
    assert found == pytest.approx([0.5**0.5, -(0.5**0.5), 2 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5], rel=1e-5)
    assert [group.differs for group in groups] == [True, True]
    assert not TrajectoryGroup(Task("a", "train"), (episode(1.0),)).differs


# --- it learns -------------------------------------------------------------------------------------------------------


def learning(**settings: Any) -> Config:
    return tiny(
        env={"max_steps": 1},
        warm_start={"demonstrations": 0},
        rollout={"tasks": 8, "group_size": 8},
        train={"updates": 30, "learning_rate": 1e-3, "trajectories": 0},
        eval={"every": 0, "split": ("train",), "free_episodes": 0, "probe_episodes": 0, "temperature": 1.0},
        **settings,
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"objective": {"estimator": "gigpo"}}, {"auxiliary": {"state": {"weight": 0.2}, "inverse": {"weight": 0.1}}}],
    ids=["grpo", "gigpo", "envrl"],
)
def test_rl_finds_where_things_are_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    """With one try, chance finds 1 of 4; 48 games, so that even 0.6 is more than 5 standard errors above it."""
    run = train(learning(**settings), tmp_path / "run")
    before, after = lines(run / "eval.jsonl")
    assert before["episodes"] == after["episodes"] == SIZES["train"]
    assert before["success_rate"] < 0.5
    assert after["success_rate"] > 0.7
    assert after["ci95"][0] > before["ci95"][1]
