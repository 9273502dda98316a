"""Narrowed sampling: which choices stay, what is drawn and recorded, what the trainer makes of it; stop sequences."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boxes import Boxes, tiny
from envrl.build import form_of, play_settings, renderer_of, training_settings
from envrl.config.schema import ModelConfig
from envrl.engine.update import LossSettings, policy_logprobs
from envrl.models.load import LanguageModel, build_model
from envrl.randomness import key_of
from envrl.rollout.draw import choose, renormalised, top_choices
from envrl.rollout.slot_sampler import Draft, SlotSampler
from envrl.rollout.trie import build_trie
from envrl.samples.rows import policy_rows
from playing import play_model, sample

TEXTS = [f"You open box {n} and find the key. You see a red door, and a lamp on it." for n in range(4)] * 10
LOGPROBS = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build_model(ModelConfig(hidden_size=32, layers=3, heads=2, vocabulary=330, context=256), TEXTS, seed=1)


@pytest.mark.parametrize(
    ("top_k", "top_p", "staying"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (2, 1.0, [1, 3]),
        (9, 1.0, [0, 1, 2, 3]),
        (0, 0.69, [1, 3]),
        (0, 0.71, [1, 2, 3]),
        (0, 0.01, [1]),
        (3, 0.75, [1, 3]),  # of 0.9: 0.44, 0.33, 0.22
        (3, 0.79, [1, 2, 3]),
    ],
)
def test_what_stays_by_hand(top_k: int, top_p: float, staying: list[int]) -> None:
    assert top_choices(LOGPROBS, top_k, top_p)[0].nonzero()[:, 0].tolist() == staying


@given(st.integers(0, 6), st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_what_stays_is_the_least_set_and_its_distribution_sums_to_one(top_k: int, top_p: float, seed: int) -> None:
    logprobs = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (3, 9))).log_softmax(-1)
    logprobs[1, 6:] = -1e30  # padding
    stays = top_choices(logprobs, top_k, top_p)
    probabilities = renormalised(logprobs, stays).exp()
    assert torch.allclose(probabilities.sum(-1), torch.ones(3, dtype=torch.float64))
    assert not stays[1, 6:].any()
    for row, mask, found in zip(logprobs.exp(), stays, probabilities, strict=True):
        left = row[mask]
        assert float(left.min()) >= float(row[~mask].max() if (~mask).any() else 0.0)
        assert len(left) <= (top_k or 9)
        assert torch.allclose(found[mask], left / left.sum())
        pool = row.sort(descending=True).values[: top_k or 9]
        if len(left) < int((pool > 0).sum()):
            assert float(left.sum() / pool.sum()) >= top_p - 1e-9
        if top_p < 1 and len(left) > 1:
            assert float((left.sum() - left.min()) / pool.sum()) < top_p


def test_a_number_falls_on_the_choice_that_covers_it() -> None:
    rows = LOGPROBS.expand(6, -1)
    assert choose(rows, np.array([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 1 - 2**-53])).tolist() == [0, 0, 1, 1, 2, 3]
    stays = torch.tensor([[False, True, True, False]]).expand(4, -1)
    found = choose(renormalised(rows[:4], stays), np.array([0.0, 0.66, 0.67, 1 - 2**-53]))
    assert found.tolist() == [1, 1, 2, 2], "two thirds and one third; what does not stay is never drawn"


def responses(model: LanguageModel, restricted: bool, **narrow: float) -> list[Draft]:
    prompt = model.codec.encode("You open box 1 and find the key.")
    trie = build_trie([(*model.codec.encode(text), model.codec.marks["end"]) for text in ("a red", "a door", "lamp")])
    sampler = SlotSampler(model, 200, 1.3, 3, {model.codec.marks["end"]}, **narrow)  # type: ignore[arg-type]
    keys = np.array([key_of(0, member) for member in range(200)], dtype=np.uint64)
    return [d for d in sample(sampler, [prompt] * 200, [trie if restricted else None] * 200, keys, 0) if d is not None]


@pytest.mark.parametrize("restricted", [False, True])
def test_recorded_logprobs_are_those_of_the_ids_that_stayed(model: LanguageModel, restricted: bool) -> None:
    prompt = model.codec.encode("You open box 1 and find the key.")
    sizes = Counter[int]()
    for draft in responses(model, restricted, top_k=40, top_p=0.9):
        ids = torch.tensor([[*prompt, *draft.token_ids]])
        with torch.no_grad():
            logits = model.network(input_ids=ids).logits[0].double() / 1.3
        for place, (token, allowed) in enumerate(zip(draft.token_ids, draft.allowed, strict=True)):
            assert allowed is not None
            among = logits[len(prompt) + place - 1][list(allowed)]
            assert draft.logprobs[place] == pytest.approx(
                float(logits[len(prompt) + place - 1, token] - among.logsumexp(-1)), abs=1e-4
            )
            assert list(allowed) == sorted(allowed)
            sizes[len(allowed)] += 1
    assert max(sizes) <= (2 if restricted else 40)
    assert max(sizes) > 1


def test_narrowed_drawing_keeps_to_the_narrowed_frequencies(model: LanguageModel) -> None:
    plain, narrow = responses(model, False), responses(model, False, top_k=5)
    assert {draft.allowed[0] for draft in plain} == {None}
    ((allowed,),) = {(draft.allowed[0],) for draft in narrow}
    assert allowed is not None
    assert len(allowed) == 5
    counts = Counter(draft.token_ids[0] for draft in narrow)
    expected = {draft.token_ids[0]: float(np.exp(draft.logprobs[0])) for draft in narrow}
    assert sum(expected.values()) == pytest.approx(1.0), "all five were drawn"
    assert 0.1 < sum((counts[t] - 200 * p) ** 2 / (200 * p) for t, p in expected.items()) < 18.5, "99.8 % of χ², 4"


def test_greedy_sampling_is_not_narrowed(model: LanguageModel) -> None:
    prompt, key = model.codec.encode("You open box 1"), np.zeros(1, dtype=np.uint64)
    (draft,) = sample(SlotSampler(model, 1, 0.0, 3, {-1}, top_k=2, top_p=0.5), [prompt], [None], key, 0)
    assert draft is not None
    assert draft.allowed == [None] * len(draft.token_ids)


@pytest.mark.parametrize("actions", ["free", "admissible"])
@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_the_trainer_applies_what_sampling_was_narrowed_to(actions: str, layout: str) -> None:
    config = tiny()
    rollout = replace(config.rollout, top_p=0.7, top_k=12, actions=actions, layout=layout, temperature=1.2)
    config = replace(config, rollout=rollout)
    boxes = build_model(config.model, TEXTS, 0)
    settings = training_settings(config)
    assert (settings.top_p, settings.top_k) == (0.7, 12)
    assert play_settings(config, 0.4).top_p == 1.0, "evaluation draws from the whole distribution"
    tasks = Boxes().tasks("train")[:4]
    renderer = renderer_of(boxes, form_of(config))
    played = play_model(boxes, renderer, Boxes, tasks, [0] * 4, settings, seed=0, update=1)
    rows = [row for t in played for row in policy_rows(t, np.ones(len(t.transitions)), "token_mean")]
    found = policy_logprobs(boxes, rows, LossSettings({}, temperature=1.2))
    assert len(rows) > 3
    for row in rows:
        assert np.allclose(found[row.origin], row.terms[0].streams["sampled_logprobs"], atol=1e-4)
