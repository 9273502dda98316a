"""Rows and micro-batches: which tokens count, with what weight, and that nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxes import tiny
from envrl.batches.examples import pair_rows
from envrl.build import renderer_of
from envrl.config.schema import ModelConfig
from envrl.eval.questions import ask
from envrl.models.load import LanguageModel, build_model
from envrl.rendering.formats import observation_ids
from envrl.rendering.renderer import Form
from envrl.rollout.in_pass import pairs_in_pass
from envrl.rollout.scheduler import PlaySettings
from envrl.samples.packing import denominators, pack
from envrl.samples.rows import counted_term, places, policy_rows, ragged
from envrl.types import (
    Action,
    LossTerm,
    Observation,
    Pair,
    Row,
    Segment,
    Span,
    Step,
    StopReason,
    Task,
    Trajectory,
    Transition,
)
from playing import play_model

DARK, LIGHT = Observation("It is dark."), Observation("It is light.")


def step(allowed: Sequence[tuple[int, ...] | None], ids: tuple[int, ...], logprobs: tuple[float, ...]) -> Transition:
    return Transition(DARK, Action("switch", ids, logprobs, tuple(allowed)), 0.0, LIGHT, False, False)


TWO_STEPS = Trajectory(
    task=Task("house/3", "train"),
    member=5,
    transitions=(
        step([(7, 8), (9,), None], (7, 9, 1), (-0.5, 0.0, -2.0)),
        step([(6,), (2, 3, 4)], (6, 4), (0.0, -1.5)),
    ),
    segments=(Segment(np.array([50, 51, 7, 9, 1, 52, 53, 54, 6, 4], dtype=np.int32), (Span(0, 2, 5), Span(1, 8, 10))),),
    stop_reason=StopReason.MAX_STEPS,
)
AS_STEPS = Trajectory(
    task=TWO_STEPS.task,
    member=5,
    transitions=TWO_STEPS.transitions,
    segments=(
        Segment(np.array([50, 51, 7, 9, 1], dtype=np.int32), (Span(0, 2, 5),)),
        Segment(np.array([52, 53, 54, 6, 4], dtype=np.int32), (Span(1, 3, 5),)),
    ),
    stop_reason=StopReason.MAX_STEPS,
)


def test_a_policy_row_by_hand() -> None:
    (row,) = policy_rows(TWO_STEPS, np.array([0.5, -1.0]), "sequence_mean")
    (term,) = row.terms
    assert row.origin == "v0/house/3#5/0"
    assert row.token_ids is TWO_STEPS.segments[0].token_ids
    assert term.component == "policy"
    assert term.positions_T.tolist() == [2, 4, 9], "tokens without a choice (9 and 6) are not counted"
    assert term.weights_T.tolist() == pytest.approx([1 / 3] * 3)
    assert term.token_count == 1.0
    assert term.streams["advantages"].tolist() == [0.5, 0.5, -1.0]
    assert term.streams["sampled_logprobs"].tolist() == [-0.5, -2.0, -1.5]
    assert term.allowed is not None
    assert term.allowed.values.tolist() == [7, 8, 2, 3, 4]
    assert term.allowed.offsets.tolist() == [0, 2, 2, 5], "the empty list in the middle is the whole vocabulary"


def test_token_mean_weighs_tokens_and_counts_them() -> None:
    (row,) = policy_rows(TWO_STEPS, np.array([0.5, -1.0]), "token_mean")
    assert (row.terms[0].weights_T.tolist(), row.terms[0].token_count) == ([1.0, 1.0, 1.0], 3.0)


def test_every_segment_is_a_row_of_its_own() -> None:
    rows = policy_rows(AS_STEPS, np.array([0.5, -1.0]), "sequence_mean")
    assert [row.origin for row in rows] == ["v0/house/3#5/0", "v0/house/3#5/1"]
    assert [row.terms[0].positions_T.tolist() for row in rows] == [[2, 4], [4]]
    assert [row.terms[0].weights_T.tolist() for row in rows] == [[0.5, 0.5], [1.0]]


@pytest.mark.parametrize("trajectory", [TWO_STEPS, AS_STEPS])
def test_equal_returns_cost_nothing(trajectory: Trajectory) -> None:
    assert policy_rows(trajectory, np.zeros(2), "sequence_mean") == []


def test_a_step_without_advantage_still_counts_in_its_row() -> None:
    (row,) = policy_rows(TWO_STEPS, np.array([0.0, -1.0]), "token_mean")
    assert row.terms[0].token_count == 3.0
    (only,) = policy_rows(AS_STEPS, np.array([0.0, -1.0]), "token_mean")
    assert only.origin == "v0/house/3#5/1"


def test_a_segment_without_any_choice_has_no_policy_term() -> None:
    forced = Trajectory(
        Task("a", "train"),
        0,
        (step([(6,), (1,)], (6, 1), (0.0, 0.0)),),
        (Segment(np.array([50, 6, 1], dtype=np.int32), (Span(0, 1, 3),)),),
        StopReason.MAX_STEPS,
    )
    assert policy_rows(forced, np.array([1.0]), "sequence_mean") == []


def test_terms_in_pass_join_the_policys_or_make_a_row_where_the_policy_has_none() -> None:
    in_pass = {0: [counted_term("echo", places([Span(0, 6, 8)]))]}
    for advantages, components in ((np.array([0.5, -1.0]), ["policy", "echo"]), (np.zeros(2), ["echo"])):
        (row,) = policy_rows(TWO_STEPS, advantages, "sequence_mean", in_pass)
        assert [term.component for term in row.terms] == components
        term = row.terms[-1]
        assert (term.positions_T.tolist(), term.weights_T.tolist(), term.token_count) == ([6, 7], [1.0, 1.0], 2.0)


def test_pair_rows_by_hand() -> None:
    first, second = pair_rows([Pair((5, 6, 7), (8, 9)), Pair((5,), (1,))], "state")
    assert first.token_ids.tolist() == [5, 6, 7, 8, 9]
    assert first.terms[0].positions_T.tolist() == [3, 4]
    assert (first.terms[0].component, first.terms[0].token_count) == ("state", 2.0)
    assert first.terms[0].weights_T.tolist() == [1.0, 1.0]
    assert (second.origin, second.terms[0].positions_T.tolist()) == ("state/1", [1])
    assert (first.terms[0].streams, first.terms[0].allowed) == ({}, None)


@given(st.lists(st.none() | st.lists(st.integers(0, 2**31 - 1))))
def test_ragged_lists_come_back(lists: list[list[int] | None]) -> None:
    laid = ragged(lists)
    back = [laid.values[start:stop].tolist() for start, stop in zip(laid.offsets[:-1], laid.offsets[1:], strict=True)]
    assert back == [ids or [] for ids in lists]
    assert laid.values.dtype == laid.offsets.dtype == np.int32


class Weather:
    """A world with answers of unlike lengths, an empty one among them."""

    ANSWERS = ("", "It rains.", "The sun shines, and the wind goes round and round.", "It is 12 o'clock.")

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}/{i}", split, i) for i in range(4)]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.count = seed
        return Observation("Your task is to: wait and look", ("look up", "wait"))

    def step(self, action: str) -> Step:
        self.count += 1 + len(action) % 2
        return Step(Observation(self.ANSWERS[self.count % 4], ("look up", "wait", "wait long")), 0.0, False, False)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    shape = ModelConfig(hidden_size=16, layers=2, heads=2, vocabulary=320, context=400)
    return build_model(shape, [*Weather.ANSWERS, "look up", "wait long"] * 12, seed=4)


PLAIN = Form()


def weather(model: LanguageModel, form: Form = PLAIN, actions: str = "admissible") -> list[Trajectory]:
    play = PlaySettings(max_steps=5, temperature=1.5, actions=actions)
    return play_model(model, renderer_of(model, form), Weather, Weather().tasks("train"), [0] * 4, play, seed=0)


def answers_of(trajectory: Trajectory) -> list[list[tuple[int, int]]]:
    return [[(answer.start, answer.stop) for answer in segment.answers] for segment in trajectory.segments]


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("actions", ["admissible", "free"])
def test_in_pass_state_tokens_are_just_the_answers_and_the_mark_that_ends_them(
    model: LanguageModel, shown: bool, actions: str
) -> None:
    found = 0
    for trajectory in weather(model, Form(show_admissible=shown), actions):
        ((segment, ranges),) = zip(trajectory.segments, answers_of(trajectory), strict=True)
        texts = [model.codec.decode(segment.token_ids[start : stop - 1].tolist()) for start, stop in ranges]
        answers = [s.next_observation.text for s in trajectory.transitions[:-1]]  # the last one is never fed
        assert texts == answers, "an empty answer is the mark that ends it"
        ending = model.codec.marks["commands" if shown else "action"]
        assert all(segment.token_ids[stop - 1] == ending for _, stop in ranges)
        covered = {i for start, stop in ranges for i in range(start, stop - 1)}
        sampled = {i for span in segment.spans for i in range(span.start, span.stop)}
        assert not covered & sampled
        assert not {int(segment.token_ids[i]) for i in covered} & model.codec.mark_ids
        found += len(texts)
    assert found >= 10


def test_the_steps_layout_has_no_state_tokens_in_its_own_pass(model: LanguageModel) -> None:
    for trajectory in weather(model, Form("steps")):
        assert answers_of(trajectory) == [[]] * 5


def test_policy_positions_point_at_the_sampled_tokens(model: LanguageModel) -> None:
    for layout in ("concat", "steps"):
        for trajectory in weather(model, Form(layout)):
            rows = policy_rows(trajectory, np.arange(1.0, 6.0), "token_mean")
            steps = trajectory.transitions
            chosen = [
                (token, logprob, choices, float(number + 1))
                for number, s in enumerate(steps)
                for token, logprob, choices in zip(s.action.token_ids, s.action.logprobs, s.action.allowed, strict=True)
                if choices is None or len(choices) > 1
            ]
            found = []
            for row in rows:
                (term,) = row.terms
                assert term.allowed is not None
                lists = np.split(term.allowed.values, term.allowed.offsets[1:-1])
                found += zip(
                    row.token_ids[term.positions_T].tolist(),
                    term.streams["sampled_logprobs"].tolist(),
                    [tuple(ids.tolist()) or None for ids in lists],
                    term.streams["advantages"].tolist(),
                    strict=True,
                )
            assert [f[0] for f in found] == [c[0] for c in chosen]
            assert [f[1] for f in found] == pytest.approx([c[1] for c in chosen])
            assert [f[2:] for f in found] == [c[2:] for c in chosen]
            assert len(chosen) >= 5


@pytest.mark.parametrize("form", [Form(), Form("steps", history=2), Form("steps", history=1, show_admissible=True)])
def test_auxiliary_pairs_hold_one_transition_each_and_begin_with_their_mark(model: LanguageModel, form: Form) -> None:
    trajectories, codec, marks, renderer = weather(model), model.codec, model.codec.marks, renderer_of(model, form)
    steps = [s for t in trajectories for s in t.transitions]
    asked = ask(tiny(), renderer, trajectories)
    states, inverses = asked.state, asked.inverse
    assert len(states) == len(inverses) == len(steps) == 20
    for s, state, inverse in zip(steps, states, inverses, strict=True):
        command, answer = codec.encode(s.action.text), codec.encode(s.next_observation.text)
        present = observation_ids(codec, s.observation, form.show_admissible)[:-1]
        assert state.prompt[0] == marks["state"]
        assert state.prompt[1] == inverse.prompt[1] == marks["task"]
        assert state.prompt[-len(command) - len(present) - 2 :] == (*present, marks["action"], *command, marks["next"])
        assert state.target == (*answer, marks["end"])
        assert inverse.prompt[0] == marks["inverse"]
        ending = (*present, marks["next"], *answer, marks["action"])
        assert inverse.prompt[-len(ending) :] == ending
        assert inverse.target == (*command, marks["end"])


def test_history_stands_in_the_auxiliary_prompts_of_the_steps_layout_alone(model: LanguageModel) -> None:
    trajectories, observation = weather(model), model.codec.marks["observation"]
    turns = {
        form: [pair.prompt.count(observation) for pair in ask(tiny(), renderer_of(model, form), trajectories).state][:5]
        for form in (Form(), Form("steps", history=2), Form("steps", history=0))
    }
    assert list(turns.values()) == [[1] * 5, [1, 2, 3, 3, 3], [1] * 5]


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_in_pass_pairs_are_what_the_policys_own_rows_predict(model: LanguageModel, shown: bool, repeated: bool) -> None:
    form = Form(show_admissible=shown, repeat_task=repeated)
    trajectories = weather(model, form, "free")
    pairs = iter(pairs_in_pass(trajectories, renderer_of(model, form)))
    for trajectory in trajectories:
        (segment,), (ranges,) = trajectory.segments, answers_of(trajectory)
        ours = [next(pairs) for _ in trajectory.transitions][:-1]  # the last answer is not in the segment
        assert [(len(p.prompt), len(p.prompt) + len(p.target)) for p in ours] == ranges
        for pair, (start, stop) in zip(ours, ranges, strict=True):
            assert segment.token_ids[:stop].tolist() == [*pair.prompt, *pair.target]
            assert len(pair.prompt) == start
    assert next(pairs, None) is None


def row_of(length: int, *terms: LossTerm, origin: str = "") -> Row:
    return Row(np.zeros(length, dtype=np.int32), terms, origin)


def test_packing_by_hand() -> None:
    rows = [row_of(length, origin=str(place)) for place, length in enumerate([3, 9, 4, 20, 4, 1])]
    packed = [[row.origin for row in batch] for batch in pack(rows, 12)]
    assert packed == [["3"], ["1"], ["2", "4", "0"], ["5"]]


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_packing_loses_nothing_and_keeps_the_budget(lengths: list[int], budget: int) -> None:
    rows = [row_of(length, origin=str(place)) for place, length in enumerate(lengths)]
    batches = pack(rows, budget)
    flat = [row for batch in batches for row in batch]
    assert sorted(int(row.origin) for row in flat) == list(range(len(rows)))
    for batch in batches:
        longest = max(len(row.token_ids) for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    order = [(-len(row.token_ids), int(row.origin)) for row in flat]
    assert order == sorted(order), "longest first, rows of one length in their order"
    for first, second in pairwise(batches):
        joined = (len(first) + 1) * len(first[0].token_ids)
        assert joined > budget, f"a micro-batch ends only when it is full ({len(second)} rows follow)"


def test_denominators_add_up_shares_by_component() -> None:
    def term(component: str, share: float) -> LossTerm:
        return LossTerm(component, np.array([1], dtype=np.int32), np.ones(1, dtype=np.float32), share)

    rows = [row_of(4, term("policy", 1.0), term("state", 7.0)), row_of(4, term("state", 3.0)), row_of(2)]
    assert denominators(rows) == {"policy": 1.0, "state": 10.0}
    assert denominators([]) == {}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 120))
def test_denominators_do_not_depend_on_the_packing(counts: list[int], budget: int) -> None:
    rows = pair_rows([Pair((1,) * (n % 5 + 1), (2,) * n) for n in counts], "state")
    parts = [denominators(batch)["state"] for batch in pack(rows, budget)]
    assert sum(parts) == denominators(rows)["state"] == sum(counts)
