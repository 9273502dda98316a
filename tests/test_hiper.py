"""HiPER: advantages from sub-goal to sub-goal and within one, the tokens that have them, and a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxes import Boxes, tiny
from envrl.build import form_of, renderer_of
from envrl.config.check import check_together
from envrl.errors import UserError
from envrl.models.load import LanguageModel, build_model
from envrl.objective.advantage import ESTIMATORS
from envrl.progress import Reporter
from envrl.randomness import key_of
from envrl.registry import register
from envrl.rollout.sampler import Request
from envrl.rollout.scripts import play_script
from envrl.samples.rows import policy_rows
from envrl.trainer.loop import train
from envrl.types import Action, Completion, Segment, Span, StopReason, Trajectory, Transition

CHAT: dict[str, Any] = {
    "model": {"chat_template": "chatml", "vocabulary": 600, "context": 1024},
    "rollout": {"format": "subgoal", "actions": "free", "response_tokens": 64, "sampler": "planner"},
    "objective": {"estimator": "hiper"},
}


def written(switch: str, subgoal: str, command: str) -> str:
    return f"<switch>{switch}</switch><subgoal>{subgoal}</subgoal><action>{command}</action>"


def test_numbers_worked_by_hand() -> None:
    """Three steps with γ = λ = λ' = 1/2 and rewards 0, 1, 2; the third takes a new sub-goal.

    Its command: 2 − 3. Its plan: 2 − 6. Before it: 1 + 6/2 − 2 = 2 (the plans' head is what follows), 0 + 2/2 − 1 + 2/4
    = 1/2. The first plan: 0 + 1/2 + 6/4 − 4 + 1/4 · 1/2 · (−4).
    """
    values = [[[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]]
    given: dict[str, Any] = {"values": values, "heads": {"plan": [[4.0, 5.0, 6.0]]}, "whiten": False}
    given |= {"switches": [[False, False, True]], "gamma": 0.5, "lam": 0.5, "plan_lam": 0.5}
    (advantages,), learned = ESTIMATORS["hiper"].credit([[0.0, 1.0, 2.0]], [["a", "b", "c"]], **given)
    assert [each.tolist() for each in advantages] == [[-2.5, 0.5], [0.0, 2.0], [-4.0, -1.0]]
    assert [each.tolist() for each in learned["value"][0]] == [[0.0, 1.5], [0.0, 4.0], [0.0, 2.0]]
    assert learned["plan"][0].tolist() == [1.5, 5.0, 2.0]  # a kept plan learns nothing


def test_penalties_are_paid_and_a_response_without_a_plan_has_one_advantage() -> None:
    given: dict[str, Any] = {"values": [[[1.0], [0.0, 2.0]]], "heads": {"plan": [[0.0, 0.0]]}, "whiten": False}
    given |= {"penalties": [[0.5, 0.0]], "switches": [[False, False]]}
    (advantages,), _ = ESTIMATORS["hiper"].credit([[0.0, 4.0]], [["a", "b"]], **given)
    assert [np.atleast_1d(each).tolist() for each in advantages] == [[2.5], [0.0, 2.0]]


@pytest.mark.parametrize("seed", range(4))
def test_a_sub_goal_that_is_never_left_is_gae_over_steps(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 7, size=5)
    rewards, values, plans = ([random.normal(size=n).tolist() for n in lengths] for _ in range(3))
    texts = [["x"] * n for n in lengths]
    two = [[[0.0, v] for v in of_one] for of_one in values]
    found = ESTIMATORS["hiper"](rewards, texts, values=two, heads={"plan": plans}, gamma=0.9, lam=0.8, whiten=False)
    expected = ESTIMATORS["gae"](rewards, texts, values=values, gamma=0.9, lam=0.8, level="step")
    for ours, theirs in zip(found, expected, strict=True):
        assert [each[1] for each in ours] == pytest.approx(theirs.tolist(), abs=1e-12)
        assert all(each[0] == 0.0 for each in ours[1:])


def test_commands_and_plans_are_whitened_apart() -> None:
    random = np.random.default_rng(0)
    values = [[[0.0, v] for v in random.normal(size=4)] for _ in range(3)]
    switches = [[True, False, True, False]] * 3
    given: dict[str, Any] = {"values": values, "heads": {"plan": random.normal(size=(3, 4)).tolist()}}
    found = ESTIMATORS["hiper"](random.normal(size=(3, 4)).tolist(), [["x"] * 4] * 3, switches=switches, **given)
    both = np.array([each for of_one in found for each in of_one])
    assert both[:, 1].mean() == pytest.approx(0.0, abs=1e-12)
    assert both[:, 1].std() == pytest.approx(1.0, abs=1e-6)
    begun = both[np.array(switches).ravel(), 0]
    assert (begun.mean(), begun.std()) == (pytest.approx(0.0, abs=1e-12), pytest.approx(1.0, abs=1e-6))
    assert not both[~np.array(switches).ravel(), 0].any()


def test_the_tokens_before_the_command_have_the_plans_advantage() -> None:
    def step(count: int, plan: int) -> Transition:
        seen = Boxes().reset(Boxes().tasks("train")[0])
        action = Action("look", tuple(range(count)), (-1.0,) * count, (None,) * count, plan=plan)
        return Transition(seen, action, 0.0, seen, False, False)

    steps, spans = (step(5, 3), step(2, 0)), (Span(0, 4, 9), Span(1, 10, 12))
    segment = Segment(np.arange(12, dtype=np.int32), spans)
    episode = Trajectory(Boxes().tasks("train")[0], 0, steps, (segment,), StopReason.DONE)
    advantages = np.empty(2, dtype=object)
    advantages[:] = [np.array([7.0, -2.0]), np.array([0.5])]
    (row,) = policy_rows(episode, advantages, "token_mean", level="parts")
    assert row.terms[0].streams["advantages"].tolist() == [7.0] * 3 + [-2.0] * 2 + [0.5] * 2


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build_model(tiny(model=CHAT["model"]).model, ["Box 3 has a false bottom."] * 8, seed=0)


@pytest.mark.parametrize(("switch", "switches"), [("SWITCH", True), ("KEEP", False)])
def test_a_response_says_where_its_plan_ends(switch: str, switches: bool, model: LanguageModel) -> None:
    renderer = renderer_of(model, form_of(tiny(rollout={"format": "subgoal", "actions": "free"})))
    text = written(switch, "the key, <action> or not", "open box 3")
    ids = (*model.codec.encode_special(text), renderer.end)
    action = renderer.read(Completion(ids, (0.0,) * len(ids), (None,) * len(ids)))
    assert (action.text, action.fault, action.summary) == ("open box 3", "", "the key, <action> or not")
    assert action.switches == switches
    plan, act = (model.codec.decode(part) for part in (ids[: action.plan], ids[action.plan : -1]))
    assert plan + act == text
    assert "<action>open".startswith(act[: len("<action>open")]) or act.startswith("action>open")  # by whole tokens
    faulty = renderer.read(Completion((*model.codec.encode_special(text[:-9]), renderer.end)))
    assert (faulty.plan, faulty.fault) == (0, "unclosed")


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_later_prompts_recall_the_sub_goal(layout: str, model: LanguageModel) -> None:
    renderer = renderer_of(model, form_of(tiny(rollout={"format": "subgoal", "layout": layout, "actions": "free"})))
    episode = play_script(Boxes(), Boxes().tasks("train")[0], lambda _: "open box 4", 1)
    ids = (*model.codec.encode_special(written("SWITCH", "find the key", "open box 4")), renderer.end)
    known = replace(episode.transitions[0], action=renderer.read(Completion(ids)))
    from envrl.rollout.transcript import Transcript

    transcript = Transcript()
    assert transcript.write(renderer, [], known)
    prompt = renderer.prompt([known], known.next_observation, transcript.segment, 8)
    assert prompt is not None
    text = model.codec.decode([*transcript.ids, *prompt.ids] if not prompt.fresh else list(prompt.ids))
    assert ("Your sub-goal until now:\nfind the key" if layout == "steps" else "<subgoal>find the key<") in text


@register("sampler", "planner")
class Planner:
    """Says a well-formed response, drawn by the request's key: the sub-goal is kept half of the time."""

    def __init__(self, model: LanguageModel, precision: str) -> None:
        self.codec, self.requests = model.codec, dict[int, Request]()

    def submit(self, request: Request) -> None:
        self.requests[request.episode] = request

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        requests, self.requests = self.requests, {}
        return {number: self._said(request) for number, request in requests.items()}

    def release(self, episode: int) -> None:
        self.requests.pop(episode, None)

    def load(self, weights: Iterable[Any], version: int) -> None: ...

    def _said(self, request: Request) -> Completion:
        drawn = key_of(request.key, request.turn)
        text = written(("KEEP", "SWITCH")[drawn % 2], "a box", f"open box {1 + drawn // 2 % 4}")
        ids = (*self.codec.encode_special(text), next(iter(request.settings.stops)))
        return Completion(ids, (-1.0,) * len(ids), (None,) * len(ids))


def test_both_heads_are_trained_in_a_run(tmp_path: Path) -> None:
    quick = {"every": 0, "split": ("valid_b",), "episodes": 2, "final": 2, "free_episodes": 0, "probe_episodes": 0}
    config = tiny(train={"updates": 2, "trajectories": 0, "head_learning_rate": 1e-2}, eval=quick, **CHAT)
    run = train(config, tmp_path / "run", reporter=Reporter(silent=True))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(record["loss/plan"] > 0 and record["loss/value"] > 0 for record in records)
    assert all(record["train/valid_action_rate"] == 1.0 and record["rows/policy"] > 0 for record in records)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"objective": {"estimator": "hiper"}}, "rollout.format = 'marks' has none: set it to 'subgoal'"),
        ({**CHAT, "rollout": {**CHAT["rollout"], "layout": "steps", "summary": True}}, "set rollout.summary = false"),
    ],
)
def test_what_cannot_be_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_together(tiny(**changed))
