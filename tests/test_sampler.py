"""The sampler against a plain full pass: log-probs, restriction, frequencies, and what a draw depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from envrl.build import renderer_of
from envrl.config.schema import ModelConfig
from envrl.models.load import LanguageModel, build_model
from envrl.randomness import key_of
from envrl.rendering.formats import action_ids
from envrl.rendering.renderer import Form
from envrl.rollout import slot_sampler as module
from envrl.rollout.predict import predict_targets
from envrl.rollout.slot_sampler import Draft, SlotSampler
from envrl.rollout.trie import Commands, Node, build_trie
from envrl.types import Observation, Pair, Template
from playing import sample

ROOMS = ("drawer 1", "drawer 2", "shelf 1", "shelf 12", "fridge 1")
COMMANDS = (*(f"go to {room}" for room in ROOMS), "look", "look around", "take cup 2 from shelf 1")
TEXTS = [f"You arrive at {room}. On the {room}, you see a cup 2, and a mug 1." for room in ROOMS] * 10 + [*COMMANDS] * 8
PARTS = ("You arrive at shelf 12.", "Nothing happens.", "You see a mug 1, and a cup 2 on the drawer 1.", "x")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build_model(ModelConfig(hidden_size=32, layers=3, heads=2, vocabulary=330, context=256), TEXTS, seed=1)


def new_sampler(model: LanguageModel, slots: int, temperature: float = 1.0, most: int = 12) -> SlotSampler:
    return SlotSampler(model, slots, temperature, most, frozenset({model.codec.marks["end"]}))


def commands_of(model: LanguageModel) -> Commands:
    return Commands(model.codec, renderer_of(model, Form()))


def keys_of(count: int, update: int = 0) -> NDArray[np.uint64]:
    return np.array([key_of(0, update, "task", member) for member in range(count)], dtype=np.uint64)


def trie_of(model: LanguageModel, commands: Sequence[str] = COMMANDS) -> Node:
    trie = commands_of(model).trie(Observation("", tuple(commands)))
    assert trie is not None
    return trie


def prompt(model: LanguageModel, *parts: str) -> tuple[int, ...]:
    marks = model.codec.marks
    return (marks["observation"], *(i for part in parts for i in model.codec.encode(part)), marks["action"])


def drawn(drafts: Sequence[Draft | None]) -> list[Draft]:
    found = [draft for draft in drafts if draft is not None]
    assert len(found) == len(drafts)
    return found


@torch.no_grad()
def full_pass(model: LanguageModel, before: Sequence[int], draft: Draft, temperature: float = 1.0) -> list[float]:
    """The log-probs of a response's tokens by one pass over everything, under the response's own restrictions."""
    ids = [*before, *draft.token_ids]
    logits = model.network(input_ids=torch.tensor([ids])).logits[0].double() / temperature
    result = []
    for place, (token, allowed) in enumerate(zip(draft.token_ids, draft.allowed, strict=True)):
        row = logits[len(before) + place - 1]
        among = row if allowed is None else row[list(allowed)]
        result.append(float(row[token] - among.logsumexp(-1)))
    return result


@pytest.mark.parametrize(("restricted", "temperature"), [(True, 1.0), (True, 0.4), (False, 1.0), (False, 1.7)])
def test_recorded_logprobs_are_those_of_a_full_pass(model: LanguageModel, restricted: bool, temperature: float) -> None:
    # Seven sequences of unlike lengths; some rest for a turn, some are dropped, the others change their slots.
    sampler, fed = new_sampler(model, 7, temperature, most=9), [[] for _ in range(7)]
    slots = list(range(7))
    worst, seen = 0.0, 0
    for turn, kept in enumerate([None, None, [6, 0, 3, 4], None, [1, 3], None]):
        if kept is not None:
            sampler.keep(kept)
            slots = [slots[position] for position in kept]
        prompts = [
            None if turn and (turn + slot) % 4 == 0 else prompt(model, *PARTS[: 1 + (slot * (turn + 1)) % 4])
            for slot in slots
        ]
        tries = [trie_of(model, COMMANDS[slot % 3 :]) if restricted else None for slot in slots]
        drafts = sample(sampler, prompts, tries, keys_of(7)[slots], turn)
        for position, (slot, text, draft) in enumerate(zip(slots, prompts, drafts, strict=True)):
            assert (text is None) == (draft is None)
            if text is None or draft is None:
                continue
            fed[slot] += text
            expected = full_pass(model, fed[slot], draft, temperature)
            worst = max(worst, np.abs(np.subtract(expected, draft.logprobs)).max())
            seen += len(expected)
            fed[slot] += draft.token_ids
            assert sampler.length(position) == len(fed[slot])
    assert seen > 60
    assert worst < 1e-4


def test_forgetting_starts_anew(model: LanguageModel) -> None:
    sampler = new_sampler(model, 2)
    sample(sampler, [prompt(model, "x")] * 2, [None] * 2, keys_of(2), 0)
    sampler.forget([0, 1])
    text = prompt(model, PARTS[0])
    (again, *_) = drawn(sample(sampler, [text] * 2, [trie_of(model)] * 2, keys_of(2), 1))
    assert np.allclose(again.logprobs, full_pass(model, text, again), atol=1e-4)


def recorded_passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes (rows, columns) of all chunks that go through the network from now on."""
    shapes: list[tuple[int, ...]] = []
    original = module.chunk_states

    def record(network: Any, cache: Any, ids: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return original(network, cache, ids, *rest, **named)

    monkeypatch.setattr(module, "chunk_states", record)
    return shapes


def test_a_groups_equal_prompts_are_run_once_and_give_what_single_ones_give(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt(model, PARTS[slot // 4]) for slot in range(8)]
    alone = []
    for slot in range(8):
        single = new_sampler(model, 1)
        turns = [sample(single, [text], [trie_of(model)], keys_of(8)[[slot]], t) for t, text in enumerate(prompts[:2])]
        alone.append([drawn(drafts)[0] for drafts in turns] if slot < 4 else None)
    shapes = recorded_passes(monkeypatch)
    sampler = new_sampler(model, 8)
    turns = [
        drawn(sample(sampler, texts, [trie_of(model)] * 8, keys_of(8), t)) for t, texts in enumerate([prompts] * 2)
    ]
    assert shapes[0] == (2, max(map(len, prompts))), "eight slots, two different prompts"
    for slot in range(4):
        for turn, expected in enumerate(alone[slot] or []):
            assert turns[turn][slot].token_ids == expected.token_ids
            assert np.allclose(turns[turn][slot].logprobs, expected.logprobs, atol=1e-5)


def test_a_slot_that_rests_from_the_start_is_no_obstacle(model: LanguageModel) -> None:
    sampler, text = new_sampler(model, 3), prompt(model, PARTS[2])
    first = sample(sampler, [text, None, text], [trie_of(model)] * 3, keys_of(3), 0)
    assert first[1] is None
    assert sampler.length(1) == 0
    late = drawn(sample(sampler, [text] * 3, [trie_of(model)] * 3, keys_of(3), 1))[1]
    assert np.allclose(late.logprobs, full_pass(model, text, late), atol=1e-4)


def test_where_all_rest_nothing_is_run(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = recorded_passes(monkeypatch)
    sampler = new_sampler(model, 2)
    assert sample(sampler, [None, None], [None, None], keys_of(2), 0) == [None, None]
    assert shapes == []


def test_a_restricted_response_is_one_of_the_commands_and_the_closing_mark(model: LanguageModel) -> None:
    tries = [trie_of(model, COMMANDS[first : first + 3]) for first in range(6)] * 20
    sampler = new_sampler(model, 120, temperature=2.0)
    drafts = drawn(sample(sampler, [prompt(model, PARTS[0])] * 120, tries, keys_of(120), 0))
    for number, draft in enumerate(drafts):
        listed = COMMANDS[number % 6 : number % 6 + 3]
        assert tuple(draft.token_ids) in {action_ids(model.codec, command) for command in listed}
        for place, (token, allowed) in enumerate(zip(draft.token_ids, draft.allowed, strict=True)):
            ahead = {
                ids[place]
                for c in listed
                if (ids := action_ids(model.codec, c))[:place] == tuple(draft.token_ids[:place])
            }
            assert allowed is not None
            assert token in allowed
            assert set(allowed) == ahead, "the next tokens of all commands that begin so"


def test_frequencies_are_those_of_the_restricted_distribution(model: LanguageModel) -> None:
    text, root = prompt(model, PARTS[1]), trie_of(model)
    expected = {}
    for command in COMMANDS:
        node, draft = root, Draft(root)
        for token in action_ids(model.codec, command):
            draft.token_ids.append(token)
            draft.allowed.append(tuple(node))
            node = node[token]
        expected[command] = float(np.exp(sum(full_pass(model, text, draft, temperature=1.5))))
    assert sum(expected.values()) == pytest.approx(1.0)
    counts: Counter[str] = Counter()
    for update in range(5):
        sampler = new_sampler(model, 600, temperature=1.5)
        drafts = drawn(sample(sampler, [text] * 600, [root] * 600, keys_of(600, update), 0))
        counts.update(model.codec.decode(draft.token_ids) for draft in drafts)
    assert set(counts) <= set(COMMANDS)
    assert min(expected.values()) * 3000 > 5, "enough of each for the chi-square distribution to hold"
    chi_square = sum((counts[c] - 3000 * p) ** 2 / (3000 * p) for c, p in expected.items())
    assert 0.6 < chi_square < 24.3, "7 degrees of freedom: the middle 99.8 %"


def test_free_frequencies_are_those_of_the_whole_distribution(model: LanguageModel) -> None:
    text = prompt(model, PARTS[3])
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([text])).logits[0, -1]
    expected = (logits.double() / 0.7).softmax(-1).numpy()
    tokens = []
    for update in range(5):
        sampler = new_sampler(model, 600, temperature=0.7, most=1)
        drafts = drawn(sample(sampler, [text] * 600, [None] * 600, keys_of(600, update), 0))
        tokens += [draft.token_ids[0] for draft in drafts]
    order = np.argsort(-expected)
    edges = np.searchsorted(expected[order].cumsum(), np.linspace(0.1, 0.9, 9)) + 1  # ten bins of like mass
    bins = np.split(order, edges)
    mass = np.array([expected[members].sum() for members in bins]) * 3000
    found = np.array([np.isin(tokens, members).sum() for members in bins])
    assert mass.min() > 5
    assert 1.15 < ((found - mass) ** 2 / mass).sum() < 27.9, "9 degrees of freedom: the middle 99.8 %"


def played(model: LanguageModel, members: Sequence[int], *, free: bool = False) -> dict[int, list[Draft]]:
    """Two turns of some members together, each with a prompt, a trie and a key of its own."""
    sampler = new_sampler(model, len(members))
    keys, result = keys_of(12)[list(members)], {member: [] for member in members}
    for turn in range(2):
        prompts = [prompt(model, *PARTS[: 1 + (m + turn) % 4]) for m in members]
        tries = [None if free else trie_of(model, COMMANDS[m % 4 :]) for m in members]
        for member, draft in zip(members, drawn(sample(sampler, prompts, tries, keys, turn)), strict=True):
            result[member].append(draft)
    return result


@pytest.mark.parametrize("free", [False, True])
def test_what_is_drawn_depends_on_the_member_not_on_its_slot_or_company(model: LanguageModel, free: bool) -> None:
    whole = played(model, range(12), free=free)
    assert len({tuple(drafts[0].token_ids) for drafts in whole.values()}) > 3
    for members in ([11, 3, 7, 0, 5], [4], list(reversed(range(12)))):
        part = played(model, members, free=free)
        for member in members:
            for mine, theirs in zip(part[member], whole[member], strict=True):
                assert mine.token_ids == theirs.token_ids
                assert mine.allowed == theirs.allowed
                assert np.allclose(mine.logprobs, theirs.logprobs, atol=1e-5)


def test_the_same_batch_is_the_same_bit_for_bit(model: LanguageModel) -> None:
    first, second = played(model, range(12)), played(model, range(12))
    assert first == second


def test_other_turns_and_keys_draw_other_numbers(model: LanguageModel) -> None:
    def responses(update: int, turn: int) -> list[list[int]]:
        sampler, text = new_sampler(model, 40, temperature=3.0), prompt(model, PARTS[0])
        drafts = drawn(sample(sampler, [text] * 40, [trie_of(model)] * 40, keys_of(40, update), turn))
        return [draft.token_ids for draft in drafts]

    first = responses(0, 0)
    for other in (responses(1, 0), responses(0, 1)):
        same = sum(a == b for a, b in zip(first, other, strict=True))
        assert same < 25, "unrelated draws agree now and then, but not all"


@pytest.mark.parametrize("restricted", [True, False])
def test_temperature_zero_takes_the_most_likely_token(model: LanguageModel, restricted: bool) -> None:
    sampler, before = new_sampler(model, 1, temperature=0.0, most=6), list(prompt(model, PARTS[2]))
    trie = trie_of(model) if restricted else None
    (draft,) = drawn(sample(sampler, [before], [trie], keys_of(1), 0))
    assert np.allclose(draft.logprobs, full_pass(model, before, draft), atol=1e-4), "as at temperature 1"
    for token, allowed in zip(draft.token_ids, draft.allowed, strict=True):
        with torch.no_grad():
            row = model.network(input_ids=torch.tensor([before])).logits[0, -1]
        among = range(len(row)) if allowed is None else allowed
        assert token == max(among, key=lambda i: float(row[i]))
        before.append(token)


def test_a_free_response_ends_with_the_closing_mark_or_at_its_longest(model: LanguageModel) -> None:
    sampler, end = new_sampler(model, 300, temperature=1.5, most=5), model.codec.marks["end"]
    drafts = drawn(sample(sampler, [prompt(model, PARTS[0])] * 300, [None] * 300, keys_of(300), 0))
    for draft in drafts:
        assert len(draft.token_ids) == 5 or draft.token_ids[-1] == end
        assert len(draft.token_ids) <= 5
        assert end not in draft.token_ids[:-1]
        assert draft.allowed == [None] * len(draft.token_ids)
    assert {len(draft.token_ids) for draft in drafts} >= {5}
    assert any(draft.token_ids[-1] == end for draft in drafts)


def test_other_stops_end_a_free_response_too(model: LanguageModel) -> None:
    text = prompt(model, PARTS[0])

    def greedy(stops: frozenset[int]) -> list[int]:
        sampler = SlotSampler(model, 1, 0.0, 8, stops)
        return drawn(sample(sampler, [text], [None], keys_of(1), 0))[0].token_ids

    whole = greedy(frozenset())
    assert len(whole) == 8
    stop = whole[4]
    assert greedy(frozenset({stop})) == whole[: whole.index(stop) + 1]


def test_free_and_restricted_slots_live_side_by_side(model: LanguageModel) -> None:
    sampler, text = new_sampler(model, 6, most=4), prompt(model, PARTS[0])
    tries = [trie_of(model) if slot % 2 else None for slot in range(6)]
    for slot, draft in enumerate(drawn(sample(sampler, [text] * 6, tries, keys_of(6), 0))):
        assert all((allowed is None) == (slot % 2 == 0) for allowed in draft.allowed)
        assert np.allclose(draft.logprobs, full_pass(model, text, draft), atol=1e-4)


def test_a_command_that_begins_another_can_be_meant(model: LanguageModel) -> None:
    sampler = new_sampler(model, 60, temperature=3.0)
    trie = trie_of(model, ("look", "look around"))
    drafts = drawn(sample(sampler, [prompt(model, PARTS[0])] * 60, [trie] * 60, keys_of(60), 0))
    assert {model.codec.decode(draft.token_ids) for draft in drafts} == {"look", "look around"}
    assert all(draft.token_ids[-1] == model.codec.marks["end"] for draft in drafts)


def test_tokens_without_a_choice_cost_no_pass(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = recorded_passes(monkeypatch)
    sampler, text = new_sampler(model, 2), prompt(model, PARTS[0])
    trie = trie_of(model, ("take cup 2 from shelf 1",))
    drafts = drawn(sample(sampler, [text] * 2, [trie] * 2, keys_of(2), 0))
    assert shapes == [(1, len(text))], "one pass, over the prompt that both share"
    for draft in drafts:
        assert tuple(draft.token_ids) == action_ids(model.codec, "take cup 2 from shelf 1")
        assert draft.logprobs == [0.0] * len(draft.token_ids)
        assert draft.allowed == [(token,) for token in draft.token_ids]


def test_closed_responses_wait_for_the_next_observation(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # One slot of twelve has to choose; the others' only command is closed at once and goes in with what comes next.
    tries = [trie_of(model) if slot == 0 else trie_of(model, ("look",)) for slot in range(12)]
    sampler, prompts = new_sampler(model, 12), [prompt(model, PARTS[slot % 2]) for slot in range(12)]
    shapes = recorded_passes(monkeypatch)
    drafts = drawn(sample(sampler, prompts, tries, keys_of(12), 0))
    assert shapes[0][0] == 2
    assert [rows for rows, _ in shapes[1:]] == [1] * (len(shapes) - 1)
    again = drawn(sample(sampler, prompts, tries, keys_of(12), 1))
    for slot in range(12):
        before = [*prompts[slot], *drafts[slot].token_ids, *prompts[slot]]
        assert np.allclose(again[slot].logprobs, full_pass(model, before, again[slot]), atol=1e-4)


def test_a_long_chunk_among_short_ones_is_not_what_all_are_padded_to(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = new_sampler(model, 16)
    texts = [prompt(model, PARTS[1])] * 16
    first = drawn(sample(sampler, texts, [trie_of(model)] * 16, keys_of(16), 0))
    shapes, second = recorded_passes(monkeypatch), list(texts)
    second[5] = prompt(model, *[PARTS[2]] * 9)
    drafts = drawn(sample(sampler, second, [trie_of(model, ("look",))] * 8 + [trie_of(model)] * 8, keys_of(16), 1))
    assert sum(rows * columns for rows, columns in shapes[:2]) < 16 * len(second[5]) / 2
    for slot in range(8, 16):
        before = [*texts[slot], *first[slot].token_ids, *second[slot]]
        assert np.allclose(drafts[slot].logprobs, full_pass(model, before, drafts[slot]), atol=1e-4)
    assert sampler.length(5) == len(texts[5]) + len(first[5].token_ids) + len(second[5]) + len(drafts[5].token_ids)


@pytest.mark.parametrize("slots", [16, 1])
def test_predictions_are_greedy_up_to_the_first_mark(
    model: LanguageModel, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a slot each, and in one slot after the other, where the second is fed from where it differs."""
    monkeypatch.setattr("envrl.rollout.predict._SLOTS", slots)
    texts = [prompt(model, *parts) for parts in (PARTS[:1], PARTS[:2], PARTS[2:3])]
    assert texts[1][: len(texts[0]) // 2] == texts[0][: len(texts[0]) // 2]
    unlike, too_long = Pair(texts[0], ()), Pair((*texts[0], *model.codec.encode("x" * 250)), ())
    found = predict_targets(model, [*(Pair(text, ()) for text in texts), too_long, unlike], frozenset(), max_tokens=8)
    for text, predicted in zip([*texts, texts[0]], [*found[:3], found[4]], strict=True):
        ids = list(text)
        while len(ids) < len(text) + 8:
            with torch.no_grad():
                ids.append(int(model.network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in model.codec.mark_ids:
                break
        assert predicted == model.codec.decode(ids[len(text) :])
    assert found[3] == "", "no room for an answer"


def test_the_trie_by_hand() -> None:
    assert build_trie([(5, 9), (2, 7, 9), (2, 8, 9), (2, 9)]) == {2: {7: {9: {}}, 8: {9: {}}, 9: {}}, 5: {9: {}}}
    assert list(build_trie([(5, 9), (2, 7, 9)])) == [2, 5], "children in the order of their ids"


# --- commands with free words ----------------------------------------------------------------------------------------

SEARCH = Template("search[", ("oak", "oaken", "table", "oak", "lamp", "x-large"), "]")


def sequences(node: Node, before: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Return every way through a graph to a leaf."""
    if not node:
        return [before]
    return [way for token, onward in node.items() for way in sequences(onward, (*before, token))]


def test_free_words_are_those_of_the_template_in_their_order(model: LanguageModel) -> None:
    words = list(dict.fromkeys(SEARCH.words))
    chosen = [[word for bit, word in enumerate(words) if number >> bit & 1] for number in range(1, 1 << len(words))]
    graph = commands_of(model).trie(Observation("", ("look", "search"), templates=(SEARCH,)))
    assert graph is not None
    texts = Counter(model.codec.decode(way[:-1]) for way in sequences(graph))
    assert set(texts) == {"look", "search", *(f"search[{' '.join(some)}]" for some in chosen)}
    assert all(way[-1] == model.codec.marks["end"] for way in sequences(graph))


@pytest.mark.parametrize("before", ["search[", "search[for ", "look for the "])
def test_free_words_are_spelled_as_a_demonstration_spells_them(model: LanguageModel, before: str) -> None:
    """A blank in front of a word is part of the word's first token, which is one of its own for `cup` here."""
    search = Template(before, ("cup", "oak", "mug", "x-large"), "]")
    graph = commands_of(model).trie(Observation("", (), templates=(search,)))
    assert graph is not None
    assert action_ids(model.codec, f"{before}cup mug x-large]") in sequences(graph)


def test_what_can_follow_in_the_same_way_is_one_node(model: LanguageModel) -> None:
    many = Template("search[", tuple(f"w{'abcdefghijklmnopqrstuvwxyz'[n]}" for n in range(26)), "]")
    graph = commands_of(model).trie(Observation("", (), templates=(many,)))
    assert graph is not None
    nodes: dict[int, Node] = {}
    waiting = [graph]
    while waiting:
        node = waiting.pop()
        if id(node) not in nodes:
            nodes[id(node)] = node
            waiting += node.values()
    assert len(nodes) < 200, "2 ** 26 sequences"


def test_a_drawn_response_follows_the_template(model: LanguageModel) -> None:
    sampler, commands = new_sampler(model, 6), commands_of(model)
    offered = Observation("", ("look",), templates=(SEARCH,))
    drafts = drawn(sample(sampler, [prompt(model, "x")] * 6, [commands.trie(offered)] * 6, keys_of(6), 0))
    for draft in drafts:
        text = model.codec.decode(draft.token_ids[:-1])
        assert offered.accepts(text), text
        assert len(draft.token_ids) <= commands.longest(offered)
        assert all(token in (allowed or ()) for token, allowed in zip(draft.token_ids, draft.allowed, strict=True))
    assert len({tuple(draft.token_ids) for draft in drafts}) > 1


def test_a_template_accepts_any_words() -> None:
    assert SEARCH.accepts("search[anything at all]")
    assert not any(SEARCH.accepts(text) for text in ("search[]", "search[ ]", "search", "find[oak]", "search[oak"))
    assert Observation("", (), templates=(SEARCH,)).accepts("search[red]")
    assert not Observation("", (), templates=(SEARCH,)).accepts("look")
    assert Observation("", None).accepts("whatever")
