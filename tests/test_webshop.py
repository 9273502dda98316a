"""WebShop against the original: its recordings, and the libraries that it runs on."""

from __future__ import annotations

import hashlib
import json
import random
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SHARED, shared_lines
from envrl.envs import make
from envrl.envs.webshop import Index, WebShop, make_goals, score
from envrl.envs.webshop.analysis import analyze, stem, words
from envrl.envs.webshop.index import stored_length
from envrl.envs.webshop.nouns import title_nouns
from envrl.envs.webshop.reward import COLORS
from envrl.envs.webshop.similarity import similar
from envrl.envs.webshop.visit import parse_action

Files = dict[str, Any]


@pytest.fixture(scope="session")
def raw(webshop_data: Path) -> Files:
    """The original's files, parsed: products, attributes, human, nouns, colors."""
    names = {
        "products": "items_shuffle_1000.json",
        "attributes": "items_ins_v2_1000.json",
        "human": "items_human_ins_1000.json",
        "nouns": "title_nouns.json",
        "colors": "color_words.json",
    }
    return {key: json.loads((webshop_data / name).read_text(encoding="utf-8")) for key, name in names.items()}


@pytest.fixture(scope="session")
def index(raw: Files) -> Index:
    return Index(raw["products"], raw["attributes"])


# --- the reward ------------------------------------------------------------------------------------------------------


def test_every_recorded_reward() -> None:
    cases = shared_lines("webshop_rewards_public.jsonl")
    for case in cases:
        found = score(case["product"], case["goal"], case["options"], case["price"], case["nouns"])
        assert found.keys() == case["expect"].keys(), case["id"]
        for name, value in case["expect"].items():
            assert found[name] == pytest.approx(value, abs=1e-9), (case["id"], name)
    assert len(cases) == 57


def test_the_colours_are_the_originals(raw: Files) -> None:
    assert list(COLORS) == raw["colors"]


def test_likeness_is_thefuzz(raw: Files) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends a faster library, which rounds otherwise
        from thefuzz import fuzz
    texts = [attribute for entry in raw["attributes"].values() for attribute in entry["attributes"]]
    groups = [g for product in raw["products"] for g in (product["customization_options"] or {}).values()]
    texts += [option["value"] for group in groups for option in group or ()]
    draw = random.Random(1)
    above = 0
    for _ in range(3000):
        first, second = draw.choice(texts), draw.choice(texts)
        if draw.random() < 0.5:
            mixed = draw.sample(first.split(), len(first.split()))
            second = " ".join(mixed[: draw.randint(0, 4)]) + draw.choice(("", "s", " é", " x", f" {second}"))
        expected = fuzz.token_set_ratio(first, second)
        assert similar(first, second) == (expected > 85), (first, second)
        above += expected > 85
    assert above > 500


def test_guessed_nouns_mostly_give_the_same_type_score(raw: Files, index: Index) -> None:
    nouns, products = raw["nouns"], {product["asin"]: product for product in raw["products"]}
    draw = random.Random(2)
    same = tried = 0
    for asin in draw.sample(sorted(products), 400):
        goal = {**products[asin], "attributes": ["x"], "goal_options": [], "price_upper": 10.0}
        others = [found for found, _ in index.search(products[asin]["query"], 10)]
        for other in [*others, *draw.sample(sorted(products), 5)]:
            product = {**products[other], "attributes": [], "bullet_points": [], "description": ""}
            exact = score(product, goal, {}, 1.0, {"product": nouns[other], "goal": nouns[asin]})
            same += score(product, goal, {}, 1.0)["r_type"] == exact["r_type"]
            tried += 1
    assert tried == 5859
    assert round(same / tried, 3) == 0.953


def test_title_nouns_leaves_out_stop_words_and_numbers() -> None:
    words = title_nouns("2 Pack of the Men's Oak-Table Lamps, 12V, for Your T-Shirt")
    assert words == ("pack", "men", "oak", "table", "lamps", "t", "shirt")


# --- the goals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(3))
def test_every_recorded_goal_list(raw: Files, number: int) -> None:
    path = SHARED / "webshop_goals_public.json"
    if not path.is_file():
        pytest.skip(f"no recorded goals: there is no {path}")
    case = json.loads(path.read_text(encoding="utf-8"))[number]
    human = raw["human"] if case["human_goals"] else None
    goals = make_goals(raw["products"], raw["attributes"], human, case["seed_before_load"], case["shuffle_seed"])
    assert len(goals) == case["count"]
    texts = "\n".join(goal["instruction_text"] for goal in goals)
    assert hashlib.sha256(texts.encode()).hexdigest() == case["sha256"]
    for place, expected in case["goals"].items():
        assert {name: goals[int(place)].get(name) for name in expected} == expected


# --- the pages -------------------------------------------------------------------------------------------------------


def test_every_recorded_page() -> None:
    steps = 0
    for episode in shared_lines("webshop_pages_public.jsonl"):

        def search(query: str, found: dict[str, list[str]] = episode["search"]) -> list[str]:
            return found.get(query, [])

        env = WebShop(
            products=episode["products"],
            attributes=episode["attributes"],
            goals=[episode["goal"]],
            search=search,
            prices=episode["prices"],
        )
        (task,) = env.tasks("all")
        for line in episode["steps"]:
            if "error" in line:
                break
            if line["action"] is None:
                observation, reward, done = env.reset(task), 0.0, False
            else:
                step = env.step(line["action"])
                observation, reward, done = step.observation, step.reward, step.done
                if done and episode["final"]["verbose"]:
                    assert step.info["options"] == episode["final"]["options"]
                    for name in episode["final"]["verbose"].keys() - {"title_score"}:  # that needs a tagger
                        assert step.info["scores"][name] == pytest.approx(episode["final"]["verbose"][name], abs=1e-9)
            where = (episode["id"], line["action"])
            assert observation.text == line["observation"], where
            assert observation.info["clickables"] == line["clickables"], where
            assert observation.info["has_search_bar"] == line["has_search_bar"], where
            assert (reward, done) == (pytest.approx(line["reward"], abs=1e-9), line["done"]), where
            steps += 1
    assert steps == 53


# --- the search ------------------------------------------------------------------------------------------------------


def test_every_recorded_search(index: Index) -> None:
    cases = shared_lines("webshop_search_public.jsonl")
    for case in cases:
        assert analyze(case["query"]) == case["tokens"]
        found = index.search(case["query"])
        assert [asin for asin, _ in found] == case["asins"], case["id"]
        assert [points for _, points in found] == pytest.approx(case["scores"], abs=5.01e-5), case["id"]
    assert len(cases) == 50


def test_stems_are_porters(raw: Files) -> None:
    from nltk.stem.porter import PorterStemmer

    texts = [text for p in raw["products"] for text in (p["name"], p["full_description"], *p["small_description"])]
    vocabulary = {word.lower() for text in texts for word in words(text)}
    plain = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    assert len(plain) > 5000
    porter = PorterStemmer(mode=PorterStemmer.MARTIN_EXTENSIONS)
    assert [stem(word) for word in plain] == [porter.stem(word) for word in plain]


@given(
    st.text(alphabet="acdtlsrnaeiouy", max_size=6),
    st.sampled_from(["sses", "ies", "eed", "ing", "logi", "bli", "ization", "ement", "ion", "iviti", "ll", "e", "y"]),
)
def test_stems_of_made_words_are_porters(start: str, end: str) -> None:
    from nltk.stem.porter import PorterStemmer

    assert stem(start + end) == PorterStemmer(mode=PorterStemmer.MARTIN_EXTENSIONS).stem(start + end)


def test_words_are_those_of_uax_29() -> None:
    text = "a:b c.d e'f 1,000.5 1⁄2 1;2 foo_bar __ 8gb-ram l’oreal ★★ 👨\u200d💼 🇩🇪🇫🇷 漢字 カタカナ ½ 2.x 5\""
    assert words(text) == [
        *("a:b", "c.d", "e'f", "1,000.5", "1⁄2", "1;2", "foo_bar", "8gb", "ram", "l’oreal", "★", "★", "👨\u200d💼"),
        *("🇩🇪", "🇫🇷", "漢", "字", "カタカナ", "2", "x", "5"),
    ]
    assert [len(word) for word in words("x" * 600)] == [255, 255, 90]


def test_lengths_are_kept_in_one_byte() -> None:
    assert [stored_length(n) for n in (0, 39, 40, 41, 56, 57, 88, 91, 92)] == [0, 39, 40, 40, 56, 56, 88, 88, 92 - 4]
    assert stored_length(24 + 0b10110111) == 24 + 0b10110000


@pytest.mark.parametrize(("block", "long"), [(1 << 17, 100_000), (90, 100_000), (90, 30)])
def test_search_matches_a_plain_sum_over_all_documents(
    raw: Files, index: Index, block: int, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pruned search returns what scoring every document returns, for long queries of common words too."""
    monkeypatch.setattr("envrl.envs.webshop.index._BLOCK", block)
    monkeypatch.setattr("envrl.envs.webshop.index._LONG", long)
    from collections import Counter
    from math import log

    from envrl.envs.webshop.products import read_products, search_text

    documents = {p.asin: Counter(analyze(search_text(p))) for p in read_products(raw["products"], raw["attributes"])}
    mean = sum(sum(terms.values()) for terms in documents.values()) / len(documents)
    holders = Counter(term for terms in documents.values() for term in terms)
    draw = random.Random(3)
    vocabulary = [term for term, count in holders.most_common(400)]
    for _ in range(20):
        query = draw.choices(vocabulary, k=draw.randint(1, 30))
        query = [word for word in query if analyze(word) == [word]]
        expected = {}
        for asin, terms in documents.items():
            size = 0.9 * (0.6 + 0.4 * stored_length(sum(terms.values())) / mean)
            parts = [
                log(1 + (1000 - holders[t] + 0.5) / (holders[t] + 0.5)) * terms[t] / (terms[t] + size)
                for t in query
                if t in terms
            ]
            if parts:
                expected[asin] = sum(parts)
        best = sorted(expected, key=lambda asin: (-round(expected[asin], 9), asin))[:50]
        found = index.search(" ".join(query))
        assert [points for _, points in found] == pytest.approx([expected[asin] for asin in best], rel=1e-9)
        assert [asin for asin, _ in found] == best
        assert index.search(" ".join(query), 3) == found[:3]


# --- actions ---------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab[] \n", max_size=12))
def test_actions_are_read_as_the_originals_pattern_reads_them(action: str) -> None:
    match = re.match(r"(.+)\[(.+)\]", action)
    assert parse_action(action) == ((match[1], match[2].lower()) if match else ("", ""))


def test_the_real_shop_has_the_originals_goals(webshop_data: Path) -> None:
    env = make("webshop", data=str(webshop_data))
    assert [len(env.tasks(split)) for split in ("test", "valid", "train", "all")] == [500, 1000, 5410, 6910]
    test, valid = env.tasks("test"), env.tasks("valid")
    assert test[7] in test
    assert test[7] not in valid
    assert valid[7] not in test
    assert replace(test[7], kind="none") not in test
    people = make("webshop", data=str(webshop_data), goals="human")
    assert [len(people.tasks(split)) for split in ("test", "valid", "train", "all")] == [13, 0, 0, 13]
