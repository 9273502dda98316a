"""Methods that learn the world's dynamics: PaW's and UI-Shift's losses and weights, by hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boxes import tiny
from chat_models import make_tokenizer
from envrl.batches.auxiliary import make_rows
from envrl.batches.batch import build_batch
from envrl.build import form_of, renderer_of
from envrl.cli.main import main
from envrl.config.check import check_together
from envrl.config.load import dump_config
from envrl.engine.local import loss_settings
from envrl.engine.update import Totals, micro_loss
from envrl.errors import UserError
from envrl.eval.diversity import diversity
from envrl.eval.probe import probe
from envrl.eval.questions import ask
from envrl.models.load import LanguageModel, build_model
from envrl.models.tokenizer import Codec
from envrl.objective.auxiliary.aawm import aawm, retrieve
from envrl.objective.auxiliary.paw import clipped_error, paw
from envrl.objective.auxiliary.uishift import expected_miss, uishift
from envrl.rendering.kinds import TOKEN_KINDS, kinds_of
from envrl.samples.packing import denominators
from envrl.stacks.rows import auxiliary_rows as other_rows
from envrl.types import Example, InPass, TrajectoryGroup
from test_auxiliary import ANSWERS, SAID, episode, model, terms_of

__all__ = ["model"]


def paid(*returns: float) -> TrajectoryGroup:
    """Return a group of episodes with these returns, all paid at the end."""
    played = []
    for member, total in enumerate(returns):
        *steps, last = episode(ANSWERS[member % 2], member).transitions
        won = replace(last, reward=total, success=total > 0)
        played.append(replace(episode(ANSWERS[member % 2], member), transitions=(*steps, won)))
    return TrajectoryGroup(played[0].task, tuple(played))


# --- PaW -------------------------------------------------------------------------------------------------------------


def test_the_clipped_error_stops_at_the_confidence() -> None:
    """1 − min(p, ρ): for p = 0.1, 0.2 and 0.5 and ρ = 0.2 it is 0.9, 0.8, 0.8; the first alone has a gradient, −p."""
    logprobs = torch.tensor([log(0.1), log(0.2) + 1e-6, log(0.5)], dtype=torch.float64, requires_grad=True)
    losses = clipped_error(logprobs, torch.zeros(3, dtype=torch.long), confidence=0.2)
    assert losses.tolist() == pytest.approx([0.9, 0.8, 0.8])
    losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.1, 0.0, 0.0])


@pytest.mark.parametrize(
    ("groups", "least", "weights"),
    [
        ([(10.0, 0.0, 0.0, 0.0), (10.0, 10.0), (0.0, 0.0)], 0.0, [0.75, 0.0, 1.0]),
        ([(10.0, 10.0), (5.0, 0.0)], 0.1, [0.1, 0.75]),
        ([(0.0, 0.0), (0.0,)], 0.0, [1.0, 1.0]),
        ([(-1.0, 0.0), (2.0, 0.0)], 0.0, [1.0, 0.5]),
    ],
)
def test_a_group_weighs_less_the_more_it_achieves(
    groups: list[tuple[float, ...]], least: float, weights: list[float]
) -> None:
    """w = max(least, 1 − mean / best); without a return above 0 it is 1, and it is never above 1."""
    made = [paid(*returns) for returns in groups]
    for own_rows, kind in ((False, InPass), (True, Example)):
        found = list(paw(made, least=least, own_rows=own_rows))
        assert {type(each) for each in found} == {kind}
        counts = [4 * len(returns) for returns in groups]
        expected = [weight for weight, count in zip(weights, counts, strict=True) for _ in range(count)]
        assert [each.weight for each in found] == pytest.approx(expected)


@pytest.mark.parametrize("own_rows", [False, True])
def test_paw_is_the_weighted_clipped_error_of_the_rows(own_rows: bool, model: LanguageModel) -> None:
    """Σ w (1 − min(p, ρ)) / N over the tokens of what is kept, N all of them: a group's weight is not in N."""
    table: dict[str, Any] = {"weight": 0.5, "own_rows": own_rows, "confidence": 0.003, "select": "all", "fraction": 1.0}
    config = tiny(auxiliary={"paw": table}, rollout={"layout": "steps"} if own_rows else {})
    renderer = renderer_of(model, form_of(config))
    groups = []
    for number, group in enumerate((paid(1.0, 0.0, 0.0, 0.0), paid(0.0, 0.0))):
        named = replace(group.task, id=f"room {number}")
        episodes = [
            replace(episode(ANSWERS[each.member % 2], each.member, renderer), task=named, transitions=each.transitions)
            for each in group.trajectories
        ]
        groups.append(TrajectoryGroup(named, tuple(episodes)))
    rows = build_batch(groups, config, renderer, 1).rows
    total, count, clipped = 0.0, 0, set()
    for row, term in terms_of(rows, "paw"):
        with torch.no_grad():
            logprobs = model.network(torch.tensor(row.token_ids[None].astype(np.int64))).logits[0].log_softmax(-1)
        for place, weight in zip(term.positions_T, term.weights_T, strict=True):
            p = exp(float(logprobs[place - 1, row.token_ids[place]]))
            clipped.add(p > 0.003)
            total += float(weight) * (1 - min(p, 0.003))
            count += 1
    assert clipped == {True, False}
    assert {round(float(w), 6) for _, term in terms_of(rows, "paw") for w in term.weights_T} == {0.75, 1.0}
    settings = replace(loss_settings(config, {"paw": 0.5}), weights={"paw": 0.5, "policy": 0.0})
    loss = micro_loss(model, rows, Totals(), denominators(rows), settings)
    assert float(loss.detach()) == pytest.approx(0.5 * total / count, rel=1e-5)


# --- UI-Shift ---------------------------------------------------------------------------------------------------------


def test_the_expected_miss_is_one_minus_the_product() -> None:
    """Rows with p = 0.5, 0.5 and p = 0.1: misses 0.75 and 0.9; the gradient of a row's mean is −P for each token."""
    logprobs = torch.tensor([log(0.5), log(0.5), log(0.1)], dtype=torch.float64, requires_grad=True)
    losses = expected_miss(logprobs, torch.tensor([0, 0, 1]))
    assert losses.tolist() == pytest.approx([0.75, 0.75, 0.9])
    (losses * torch.tensor([0.5, 0.5, 1.0])).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.25, -0.25, -0.1])


def test_its_gradient_is_that_of_the_reward_of_sampled_answers() -> None:
    """E[1{a = true} ∇log p(a)] over all answers of two tokens, each of three ids, is −∇ of the expected miss."""
    logits = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, -0.4]], dtype=torch.float64, requires_grad=True)
    true = (1, 2)
    logprobs = logits.log_softmax(-1)
    expected_miss(logprobs[range(2), true], torch.zeros(2, dtype=torch.long)).mean().backward()
    assert logits.grad is not None
    found, total = logits.grad.clone(), torch.zeros(2, 3, dtype=torch.float64)
    for first in range(3):
        for second in range(3):
            fresh = logits.detach().clone().requires_grad_()
            logp = fresh.log_softmax(-1)[range(2), (first, second)].sum()
            logp.backward()
            assert fresh.grad is not None
            total += float((first, second) == true) * logp.detach().exp() * fresh.grad
    assert found.tolist() == pytest.approx(np.array((-total).tolist()))


def test_it_asks_for_the_first_command_on_the_way() -> None:
    played = episode(ANSWERS[0])
    for k in (1, 2, 4, 5):
        found = list(uishift([TrajectoryGroup(played.task, (played,))], k=k))
        assert [each.target for each in found] == list(SAID[: 5 - k])
        assert [each.following for each in found] == list(ANSWERS[0][k - 1 :])


def test_its_rows_weigh_the_same_by_default(model: LanguageModel) -> None:
    config = tiny(auxiliary={"uishift": {"weight": 0.5}})
    (auxiliary,) = config.auxiliaries()
    assert auxiliary.common.aggregation == "sequence_mean"
    renderer = renderer_of(model, form_of(config))
    played = episode(ANSWERS[0], 0, renderer)
    rows = make_rows([auxiliary], [TrajectoryGroup(played.task, (played,))], renderer, (0,)).rows
    assert [row.terms[0].token_count for row in rows] == [1.0] * 4
    totals, chance = Totals(), []
    for row in rows:
        with torch.no_grad():
            logprobs = model.network(torch.tensor(row.token_ids[None].astype(np.int64))).logits[0].log_softmax(-1)
        places = row.terms[0].positions_T
        chance.append(exp(sum(float(logprobs[p - 1, row.token_ids[p]]) for p in places)))
    loss = micro_loss(model, rows, totals, denominators(rows), loss_settings(config, {"uishift": 1.0}))
    assert float(loss.detach()) == pytest.approx(1 - sum(chance) / 4, rel=1e-6)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"auxiliary": {"paw": {"weight": 0.1}}, "rollout": {"layout": "steps"}}, "needs rollout.layout = 'concat'"),
        ({"warm_auxiliary": {"paw": {"weight": 0.1}}}, "about episodes that the policy played"),
        ({"auxiliary": {"state": {"weight": 0.1, "select": "novel"}}}, "fraction must be below 1"),
        ({"auxiliary": {"echo": {"weight": 0.1, "reservoir": 9}}}, "is for rows of their own"),
        ({"warm_auxiliary": {"state": {"weight": 0.1, "select": "failures"}}}, "a warm start has its demonstrations"),
        ({"warm_auxiliary": {"state": {"weight": 0.1, "reservoir": 9}}}, "a warm start has its demonstrations"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_together(tiny(**settings))
    allowed = tiny(auxiliary={"paw": {"weight": 0.1, "own_rows": True}}, rollout={"layout": "steps"})
    check_together(allowed)


PLUGIN = """
import envrl


def halved(logprobs_N, row_N, *, share: float):
    return -share * logprobs_N


def wrong(logprobs_N, row_N):
    return 1.0


@envrl.register("auxiliary", "half", in_pass=True, loss=halved)
def half(groups, *, share: float = 0.5):
    for group in groups:
        for episode in group.trajectories:
            for step in range(len(episode.transitions)):
                yield envrl.InPass(episode, step)


@envrl.register("auxiliary", "shapeless", in_pass=True, loss=wrong)
def shapeless(groups):
    yield from half(groups)
"""


def test_an_objective_of_a_user_brings_its_own_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the cross-entropy is half of echo's loss; a loss that is no loss a token is refused by name."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    quick = {"every": 0, "split": ("valid_b",), "episodes": 2, "final": 2, "free_episodes": 0, "probe_episodes": 0}
    (tmp_path / "small.toml").write_text(dump_config(tiny(train={"updates": 1, "trajectories": 0}, eval=quick)))
    both = ["train", str(tmp_path / "small.toml"), "--plugin", str(tmp_path / "mine.py")]
    chosen = ["--auxiliary.half.weight", "0.1", "--auxiliary.half.share", "0.25", "--auxiliary.echo.weight", "0.1"]
    assert main([*both, "--run", str(tmp_path / "run"), *chosen]) == 0
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["loss/half"] == pytest.approx(0.25 * line["loss/echo"], rel=1e-6)
    capsys.readouterr()
    assert main([*both, "--run", str(tmp_path / "other"), "--auxiliary.shapeless.weight", "0.1"]) == 2
    assert "the loss of the auxiliary objective 'shapeless' must return one loss a token" in capsys.readouterr().err


# --- diagnostics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "kinds"),
    [
        (
            ["You arrive at", " desk", " 1", ". On the", " desk", " 1", ", you see nothing", "."],
            [0, 1, 2, 0, 1, 2, 0, 0],
        ),
        (["a cab", "inet", " 12", " and 3.50"], [1, 1, 2, 2]),
        (["", "1", "", "desk"], [0, 2, 0, 0]),
        ([], []),
    ],
)
def test_the_kind_of_each_token(texts: list[str], kinds: list[int]) -> None:
    """The number decides where a token holds a name and a number; a word is a name only before a number."""
    assert kinds_of(texts).tolist() == kinds


@pytest.mark.parametrize("name", ["state", "echo", "inverse"])
@pytest.mark.parametrize("placebo", [False, True])
def test_the_cross_entropy_by_kind_adds_up_to_the_loss(name: str, placebo: bool, model: LanguageModel) -> None:
    """Σ_kinds (tokens of the kind · its mean) = tokens · loss; "Box 3" has a name and a number, "Rain." has neither."""
    config = tiny(auxiliary={name: {"weight": 0.5, "placebo": placebo}})
    renderer = renderer_of(model, form_of(config))
    played = tuple(episode(answers, member, renderer) for member, answers in enumerate(ANSWERS))
    rows = build_batch([TrajectoryGroup(played[0].task, played)], config, renderer, 1).rows
    totals = Totals()
    micro_loss(model, rows, totals, denominators(rows), loss_settings(config, {name: 0.5}))
    by_hand: dict[str, list[float]] = {}
    for row, term in terms_of(rows, name):
        with torch.no_grad():
            logprobs = model.network(torch.tensor(row.token_ids[None].astype(np.int64))).logits[0].log_softmax(-1)
        labels = term.streams.get("targets", row.token_ids[term.positions_T])
        texts = model.codec.texts(labels.tolist())
        for number, (place, label, text) in enumerate(zip(term.positions_T, labels, texts, strict=True)):
            follows = "".join(texts[number + 1 : number + 2])
            digit, named = any(c.isdigit() for c in text), text.strip().isalpha() and follows.strip()[:1].isdigit()
            kind = "number" if digit else "name" if named else "word"
            by_hand.setdefault(kind, []).append(-float(logprobs[place - 1, label]))
    figures = totals.figures()
    found = {key.split("/")[2]: value for key, value in figures.items() if key.startswith(f"nll/{name}/")}
    assert set(found) == set(by_hand) == {"word", "name", "number"}
    for kind, values in by_hand.items():
        assert found[kind] == pytest.approx(np.mean(values), rel=1e-5)
    everything = [value for values in by_hand.values() for value in values]
    assert figures[f"loss/{name}"] == pytest.approx(np.mean(everything), rel=1e-5)


def test_how_different_episodes_are() -> None:
    """Two equal episodes and another: 5 + 4 observations after a common start, in which the first repeats none."""
    one, two, three = episode(ANSWERS[0]), episode(ANSWERS[0], 1), episode(ANSWERS[1], 2)
    looping = replace(one.transitions[1], observation=one.transitions[0].observation)
    three = replace(three, transitions=(three.transitions[0], looping, *three.transitions[2:]))
    group = TrajectoryGroup(one.task, (one, two, three))
    # 12 steps; seen before them: 4 of the first two alike; the third sees the start twice, and two of its own
    assert diversity([group]) == {
        "distinct_states": 6 / 12,
        "repeated_states": pytest.approx(1 / 12),
        "distinct_episodes": 1 / 3,
    }
    other = replace(three.transitions[3], action=replace(three.transitions[3].action, text="look"))
    apart = replace(three, transitions=(*three.transitions[:3], other))
    assert diversity([TrajectoryGroup(one.task, (one, two, apart))])["distinct_episodes"] == 2 / 3
    assert set(diversity([TrajectoryGroup(one.task, ())]).values()) == {0.0}


def test_the_probe_tells_kinds_apart(model: LanguageModel) -> None:
    config = tiny(auxiliary={"state": {"weight": 0.5}})
    renderer = renderer_of(model, form_of(config))
    played = [episode(answers, member) for member, answers in enumerate(ANSWERS)]
    asked = ask(config, renderer, played)
    found = probe(model, asked, played)
    counts = np.zeros(3)
    for pair in asked.state:
        counts += np.bincount(renderer.kinds(pair.target), minlength=3)
    means = [found[f"state_nll_{kind}"] for kind in TOKEN_KINDS]
    assert float(counts @ means / counts.sum()) == pytest.approx(found["state_nll"], rel=1e-6)
    assert len({round(mean, 3) for mean in means}) == 3


# --- AAWM -------------------------------------------------------------------------------------------------------------


def test_records_are_found_by_the_words_that_few_of_them_hold() -> None:
    """log(4/1) for "lamp", log(4/2) for "door", 0 for "the" in all; a repeat is left out."""
    records = [Counter(text.split()) for text in ("the lamp", "the door", "the key", "the door")]
    assert retrieve(["Is the lamp by the door?"], records, 3) == [[0, 1]]
    assert retrieve(["lamp door key"], records, 2) == [[0, 2]]
    assert retrieve(["the", "nothing"], records, 2) == [[], []]
    assert retrieve([], records, 2) == []


def test_the_agent_says_what_it_needs_reads_what_fits_and_its_answer_is_the_target() -> None:
    """Two of eight states. One need fits one record best; the other one fits none, and is shown none."""
    groups = [TrajectoryGroup(each.task, (each,)) for each in (episode(ANSWERS[0]), episode(ANSWERS[1], 1))]
    said: list[list[Example]] = []

    def write(examples: list[Example]) -> list[str]:
        said.append(examples)
        return [["Does it help to shake a false bottom?", "xyzzy"], [" Box 4 holds a coin. ", "..."]][len(said) - 1]

    found = list(aawm(groups, write, states=2, evidence=1))
    needs, asked = said
    assert len({(each.trajectory.member, each.step) for each in needs}) == 2
    assert [(each.trajectory, each.step) for each in asked] == [(each.trajectory, each.step) for each in needs]
    record = "Observation: Box 3 has a false bottom of thin wood.\nCommand: shake box 4\nAnswer: You find a coin there."
    for each, others in zip(asked, ([record], []), strict=True):
        shown = each.question.split("\n\n")
        assert [part for part in shown if part.startswith("Observation:")][1:] == others
        step = each.trajectory.transitions[each.step]
        assert f"Command: {step.action.text}\nAnswer: {step.next_observation.text}" in each.question
    assert "Does it help to shake a false bottom?" in asked[0].question
    (example,) = found
    assert (example.trajectory, example.step) == (needs[0].trajectory, needs[0].step)
    assert example.target == "Box 4 holds a coin."
    assert "coin" not in example.question, "what is learned is asked without the records"
    again = list(aawm(groups, lambda examples: ["a coin"] * len(examples), states=2))
    assert [(e.trajectory.member, e.step) for e in again] == [(e.trajectory.member, e.step) for e in needs]
    assert len(list(aawm(groups, lambda examples: ["a coin"] * len(examples), states=99))) == 8


@pytest.mark.parametrize("name", ["paw", "uishift"])
def test_another_trainer_is_not_given_rows_of_another_loss(name: str) -> None:
    with pytest.raises(UserError, match="has a loss of its own"):
        other_rows(name, [], None)


CHATS = {"model": {"chat_template": "chatml", "vocabulary": 600, "context": 1024}, "rollout": {"format": "action"}}


def test_a_chat_model_learns_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In both stages; with marks, in a warm start of shards and in another stack's trainer it is refused."""
    quick = {"every": 0, "split": ("valid_b",), "episodes": 2, "final": 2, "free_episodes": 0, "probe_episodes": 0}
    config = tiny(
        auxiliary={"aawm": {"weight": 0.1, "states": 3}},
        warm_auxiliary={"aawm": {"weight": 0.1, "states": 2}},
        train={"updates": 1, "trajectories": 0},
        eval=quick,
        **CHATS,
    )
    (tmp_path / "chat.toml").write_text(dump_config(config))
    assert main(["train", str(tmp_path / "chat.toml"), "--run", str(tmp_path / "run")]) == 0
    for name in ("metrics", "warm_start"):
        lines = [json.loads(line) for line in (tmp_path / "run" / f"{name}.jsonl").read_text().splitlines()]
        assert any(line.get("loss/aawm", 0) > 0 and line["rows/aawm"] in (1, 2, 3) for line in lines), name
    capsys.readouterr()
    with pytest.raises(UserError, match="needs a chat"):
        check_together(tiny(auxiliary={"aawm": {"weight": 0.1}}))
    with pytest.raises(UserError, match="lies in shards"):
        check_together(replace(config, train=replace(config.train, engine="sharded")))
    renderer = renderer_of(model_of_chats(), form_of(config))
    groups = [TrajectoryGroup(episode(ANSWERS[0]).task, (episode(ANSWERS[0]),))]
    with pytest.raises(UserError, match="needs a policy at hand"):
        make_rows(config.auxiliaries(), groups, renderer, (0,))


def model_of_chats() -> LanguageModel:
    return build_model(tiny(**CHATS).model, ["Box 3 has a false bottom."] * 8, seed=0)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_pieces_have_the_letters_digits_and_spaces_of_the_text(kind: str) -> None:
    """As the texts have them, for any text of ASCII; one of SentencePiece begins with a space of its own."""
    codec = Codec(make_tokenizer(kind))
    text = "You arrive at desk 1.\nOn the desk 12, you see 3 pens (2 pens)."
    ids = codec.encode(text)
    assert "".join(codec.pieces(ids)).strip() == "".join(codec.texts(ids)) == text
    assert kinds_of(codec.pieces(ids)).tolist() == kinds_of(codec.texts(ids)).tolist()
