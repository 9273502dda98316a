"""The world webshop where recordings say nothing: the generated catalogue, bad input, fixes, the cache, short texts."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envrl.envs import make
from envrl.envs.check import ODD_COMMANDS, check_env
from envrl.envs.protocol import draw_command
from envrl.envs.webshop import Index, WebShop, score
from envrl.envs.webshop.bench import bench_search
from envrl.envs.webshop.catalogue import generate, generate_product
from envrl.envs.webshop.compact import CompactShop
from envrl.envs.webshop.nouns import noun_source
from envrl.envs.webshop.products import Oddities, read_options, read_price, read_products, score_record
from envrl.envs.webshop.shopper import Shopper, wanted_phrases
from envrl.envs.webshop.visit import search_template
from envrl.errors import UserError
from envrl.rollout.scripts import play_script
from envrl.types import Observation, Task, Template

LAMP = {
    "asin": "L000000001",
    "name": "Oak Lamp",
    "category": "garden",
    "query": " Table Lamps ",
    "product_category": "Home › Lighting › Lamps",
    "pricing": "$20.0",
    "full_description": "A lamp of oak. \n",
    "small_description": ["Dimmable", " \n ", " "],
    "customization_options": {
        "Color": [{"value": "Dark Red"}, {"value": "covered/Oak"}, {"value": "description"}],
        "Size": [{"value": "large"}, {"value": "Dark Red"}, {"value": "next >"}],
        "Finish": None,
    },
}
GOAL = {
    "asin": "L000000001",
    "category": "garden",
    "query": "table lamps",
    "name": "Oak Lamp",
    "product_category": "Home › Lighting › Lamps",
    "instruction_text": "an oak lamp in red, and price lower than 30.00 dollars",
    "attributes": ["dimmable"],
    "price_upper": 30.0,
    "goal_options": {"color": "red"},
    "weight": 1,
}


def lamp_shop(found: int = 1, **options: Any) -> WebShop:
    """A shop of lamps whose every search finds the first `found`; the first is `LAMP`."""
    more = [{**LAMP, "asin": f"L{n:09}", "name": f"Lamp {n}"} for n in range(2, 25)]
    lamps = [LAMP, *more]
    attributes = {lamp["asin"]: {"attributes": ["dimmable light"]} for lamp in lamps}
    asins = [lamp["asin"] for lamp in lamps[:found]]
    return WebShop(lamps, attributes, [GOAL], search=lambda query: asins, **options)


def visit(shop: Any, *actions: str) -> Observation:
    observation = shop.reset(shop.tasks("all")[0])
    for action in actions:
        observation = shop.step(action).observation
    return observation


# --- the generated catalogue -----------------------------------------------------------------------------------------


def test_a_product_is_a_function_of_seed_and_index() -> None:
    some = list(generate(40, seed=7))
    assert [generate_product(index, 7) for index in reversed(range(40))] == some[::-1]
    assert generate_product(3, 8) != some[3]


def test_the_generated_catalogue_is_wide() -> None:
    records = list(generate(3000))
    products = [record.product for record in records]
    assert len({product["asin"] for product in products}) == 3000
    assert len({product["category"] for product in products}) == 5
    assert len({product["query"] for product in products}) > 50
    assert len({product["name"] for product in products}) > 2500
    tags = Counter(read_price(product["pricing"])[1].count("$") for product in products)
    assert tags[2] > 150
    assert sum(not product["pricing"] for product in products) > 100
    assert len({a for record in records for a in record.attributes["attributes"]}) > 80


def test_the_product_that_was_asked_for_has_the_full_reward() -> None:
    env = make("webshop", products=600)
    assert isinstance(env, WebShop)
    assert len(env.tasks("all")) == 600
    for task in env.tasks("test")[:200]:
        goal = env.goal(task)
        product = env.shop.product(goal["asin"])
        assert product is not None
        options = {str(n): value for n, value in enumerate(goal["goal_options"])}
        assert score(score_record(product), goal, options, env.shop.price(goal["asin"]))["reward"] == 1.0, goal


@pytest.mark.parametrize("options", [{"products": 300}, {"products": 300, "goals": "synthetic"}, {"compact": 8}])
def test_it_keeps_the_contract(options: dict[str, Any]) -> None:
    report = check_env(make("webshop", **options), split="all", episodes=3)
    assert report.passed, str(report)


def test_the_default_needs_no_data_and_has_ten_thousand_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    env = make("webshop")
    assert [len(env.tasks(split)) for split in ("test", "valid", "train", "all")] == [500, 1000, 8500, 10_000]
    tests = {task.id for task in env.tasks("test")} | {task.id for task in env.tasks("valid")}
    assert tests.isdisjoint(task.id for task in env.tasks("train"))


def test_the_shopper_wins_often_and_random_play_seldom() -> None:
    env = make("webshop")
    tasks = env.tasks("valid")[:60]
    shopped = [play_script(env, task, Shopper().act, 15).success for task in tasks]
    generator = random.Random(0)

    def anything(observation: Observation) -> str:
        return draw_command(observation, generator) or "look"

    assert sum(shopped) >= 42
    assert sum(play_script(env, task, anything, 15).success for task in tasks) <= 6


# --- what the original leaves open -----------------------------------------------------------------------------------


def test_searches_without_a_known_word_find_nothing() -> None:
    env = make("webshop", products=300)
    task = env.tasks("all")[0]
    for query in ("the of and", "zzzz", "' '", "★", "a" * 5000):
        env.reset(task)
        assert "Page 1 (Total results: 0)" in env.step(f"search[{query}]").observation.text
    env.reset(task)
    many = " ".join(["oak lamp blue shirt men"] * 2000)
    assert "Page 1 (Total results: 50)" in env.step(f"search[{many}]").observation.text


def test_odd_actions_leave_the_page() -> None:
    shop = lamp_shop()
    start = visit(shop)
    for action in (*ODD_COMMANDS, "click[search]", "Click[search]", " search[x]", "search[]", "click[buy now]", "[x]"):
        step = shop.step(action)
        assert (step.observation, step.reward, step.done) == (start, 0.0, False), action[:50]
    with pytest.raises(TypeError, match="an action is a text, not bytes"):
        shop.step(b"search[x]")  # type: ignore[arg-type]


def test_a_long_action_of_brackets_takes_no_long_time() -> None:
    shop = lamp_shop()
    visit(shop)
    shop.step("[" * 1_000_000)
    shop.step("search[" + "[]" * 500_000)


def test_unknown_splits_and_tasks_are_named() -> None:
    shop = lamp_shop()
    with pytest.raises(UserError, match="no split 'dev'; choose from test, valid, train, all"):
        shop.tasks("dev")
    for name in ("goal-1", "human-0", "goal-x", ""):
        with pytest.raises(UserError, match=f"no task '{name}'.* goal-0 to goal-0"):
            shop.reset(Task(name, "all"))


def test_the_marked_searches() -> None:
    shop = lamp_shop()
    assert "(Total results: 24)" in visit(shop, "search[<a> dimmable light]").text
    assert "(Total results: 24)" in visit(shop, "search[<c> garden of eden]").text
    assert "(Total results: 24)" in visit(shop, "search[<q> table lamps]").text
    assert "(Total results: 0)" in visit(shop, "search[<q> lamps]").text
    task = shop.tasks("all")[0]
    drawn = []
    for seed in (1, 1, 2):
        shop.reset(task, seed)
        drawn.append(shop.step("search[<r> x]").observation.text)
    assert drawn[0] == drawn[1] != drawn[2]


# --- the original's quirks, and their fixes --------------------------------------------------------------------------


def test_blank_parts_vanish_where_a_parser_would_drop_them() -> None:
    text = visit(lamp_shop(), "search[x]", "click[l000000001]", "click[features]").text
    assert text.endswith("Back to Search [SEP] < Prev [SEP] Dimmable [SEP] ")


def test_a_feature_that_is_empty_is_seen_since_the_template_puts_a_blank_before_it() -> None:
    lamp = {**LAMP, "small_description": [""]}
    shop = WebShop([lamp], {}, [GOAL], search=lambda query: [lamp["asin"]])
    text = visit(shop, "search[x]", "click[l000000001]", "click[features]").text
    assert text.endswith("Back to Search [SEP] < Prev [SEP] ")


def test_an_option_named_like_a_button_acts_as_the_button() -> None:
    shop = lamp_shop()
    item = visit(shop, "search[x]", "click[l000000001]")
    assert item.info["clickables"].count("description") == 1
    assert visit(shop, "search[x]", "click[l000000001]", "click[description]").info["clickables"] == [
        "back to search",
        "< prev",
    ]
    assert visit(shop, "search[x]", "click[l000000001]", "click[next >]").text == item.text, "no button of that page"


def test_a_repeated_value_belongs_to_the_last_group_that_has_it() -> None:
    shop = lamp_shop()
    visit(shop, "search[x]", "click[l000000001]", "click[dark red]")
    assert shop.step("click[buy now]").info["options"] == {"size": "dark red"}


def test_next_goes_past_the_end_unless_fixed() -> None:
    clicks = ("search[x]", "click[next >]", "click[next >]", "click[next >]")
    assert "Page 4 (Total results: 24)" in visit(lamp_shop(24), *clicks).text
    assert "Page 3 (Total results: 24)" in visit(lamp_shop(24, fixes=True), *clicks).text


def test_searching_after_the_end_is_possible_unless_fixed() -> None:
    clicks = ("search[x]", "click[l000000001]", "click[buy now]", "search[x]")
    assert "Page 1" in visit(lamp_shop(), *clicks).text
    assert visit(lamp_shop(fixes=True), *clicks).text.startswith("Thank you")


@pytest.mark.parametrize(
    ("goal", "chosen", "asis", "fixed"),
    [
        ({"color": "red"}, {"color": "dark red"}, 0.0, 1.0),  # "dark" is the first colour of the list in "dark red"
        ({"color": "red"}, {"size": "red"}, 1.0, 0.0),  # of another group
        (["oak"], {"color": "covered oak"}, 0.0, 1.0),  # "covered" is cut to "red"
        (["large"], {"size": "x-large"}, 1.0, 1.0),
    ],
)
def test_options_as_the_original_compares_them_and_fixed(
    goal: Any, chosen: dict[str, str], asis: float, fixed: float
) -> None:
    product = {**LAMP, "query": "table lamps", "attributes": ["dimmable"], "bullet_points": [], "description": ""}
    goals = {**GOAL, "goal_options": goal}
    assert score(product, goals, chosen, 1.0)["r_option"] == asis
    assert score(product, goals, chosen, 1.0, fixes=True)["r_option"] == fixed


def test_a_repeated_noun_counts_once_where_fixed() -> None:
    nouns = {"product": ["lamp"], "goal": ["lamp", "lamp", "lamp", "lamp", "lamp"]}
    product = {**LAMP, "attributes": ["dimmable"], "bullet_points": [], "description": ""}
    assert score(product, GOAL, {}, 1.0, nouns)["title_score"] == 0.2
    assert score(product, GOAL, {}, 1.0, nouns, fixes=True)["title_score"] == 1.0


def test_a_goal_that_stops_the_original_is_refused() -> None:
    product = {**LAMP, "attributes": ["dimmable"], "bullet_points": [], "description": ""}
    for wrong in ({"attributes": []}, {"price_upper": 0}):
        with pytest.raises(UserError, match="the goal for L000000001 has no"):
            score(product, {**GOAL, **wrong}, {}, 1.0)


# --- reading catalogues ----------------------------------------------------------------------------------------------


def test_prices_are_read_as_the_original_reads_them() -> None:
    assert read_price("") == ((100.0,), "$100.0") == read_price(None)
    assert read_price("$24.99") == ((24.99,), "$24.99")
    assert read_price("$10.50 - $19 or $30") == ((10.5, 19.0), "$10.5 to $19.0")
    assert read_price("$1,299.00") == ((1299.0,), "$1299.0")
    oddities = Oddities()
    assert read_price("call us", oddities) == ((100.0,), "$100.0") == read_price("$free", oddities)
    assert list(oddities.counts.values()) == [2]


def test_options_are_read_as_the_original_reads_them() -> None:
    assert read_options(LAMP["customization_options"]) == {
        "color": ("dark red", "covered | oak", "description"),
        "size": ("large", "dark red", "next >"),
    }
    oddities = Oddities()
    assert read_options({"Size": [{"value": "s"}, {"image": 1}, None]}, oddities) == {"size": ("s",)}
    assert read_options("", oddities) == {}
    assert str(oddities) == "1 with an option that has no value, left out"


def test_products_are_skipped_as_the_original_skips_them() -> None:
    oddities = Oddities()
    asins = ["nan", "L000000001", "L000000001", "L0000000012"]
    kept = list(read_products([{**LAMP, "asin": asin} for asin in asins], {}, oddities))
    assert [product.asin for product in kept] == ["L000000001"]
    assert kept[0].attributes == ("DUMMY_ATTR",)
    assert kept[0].query == "table lamps"
    assert sum(oddities.counts.values()) == 3
    with pytest.raises(UserError, match="record 1 of the product catalogue lacks name, query"):
        list(read_products([LAMP, {k: v for k, v in LAMP.items() if k not in ("name", "query")}], {}))
    with pytest.raises(UserError, match="record 0 of the product catalogue is no product but int"):
        list(read_products([3], {}))  # type: ignore[list-item]


# --- data folders and the cache --------------------------------------------------------------------------------------


def data_folder(tmp_path: Path, **files: Any) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    contents = {
        "items_shuffle_1000": [LAMP, {**LAMP, "asin": "L000000002", "pricing": "free"}],
        "items_ins_v2_1000": {
            "L000000001": {
                "attributes": ["dimmable"],
                "instruction": "Find me lamps",
                "instruction_attributes": ["dimmable"],
            }
        },
        "items_human_ins_1000": {},
    }
    for name, content in (contents | files).items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def test_a_data_folder_is_read_once_and_its_oddities_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = data_folder(tmp_path)
    with pytest.warns(UserWarning, match="1 with a price that is no number"):
        goals = len(make("webshop", data=str(folder)).tasks("all"))
    assert goals == 9
    built = sorted((tmp_path / "cache" / "envrl" / "webshop").iterdir())
    with pytest.warns(UserWarning, match="1 with a price"):
        make("webshop", data=str(folder)).tasks("all")
    assert sorted((tmp_path / "cache" / "envrl" / "webshop").iterdir()) == built
    (folder / "items_shuffle_1000.json").write_text(json.dumps([LAMP]))
    assert len(make("webshop", data=str(folder)).tasks("all")) == 9
    assert len(list((tmp_path / "cache" / "envrl" / "webshop").iterdir())) == 2, "other inputs, another shop"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"items_shuffle_1000": None}, "holds no items_shuffle.json or items_shuffle_1000.json; get it with"),
        ({"items_ins_v2_1000": None}, "holds no items_ins_v2.json or items_ins_v2_1000.json; get"),
        ({"items_shuffle_1000": '[{"asin": "x"'}, "items_shuffle_1000.json is truncated or no list of products"),
        ({"items_shuffle_1000": ""}, "items_shuffle_1000.json is truncated or no list of products"),
        ({"items_shuffle_1000": {"a": 1}}, "items_shuffle_1000.json is truncated or no list of products"),
        ({"items_shuffle_1000": [1]}, "record 0 of the product catalogue is no product but int"),
        ({"items_ins_v2_1000": "[1]"}, "items_ins_v2_1000.json is truncated or not what the original has"),
    ],
)
def test_missing_and_wrong_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=message):
        make("webshop", data=str(data_folder(tmp_path, **files))).tasks("all")
    cached = tmp_path / "cache" / "envrl" / "webshop"
    assert not cached.exists() or not list(cached.iterdir()), "nothing half built stays"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="human or synthetic, not 'robot'"):
        make("webshop", goals="robot")
    with pytest.raises(UserError, match="compact of the world 'webshop' must be at least 0, not -2"):
        make("webshop", compact=-2)
    with pytest.raises(UserError, match="at least 0, not -1"):
        make("webshop", products=-1)
    with pytest.raises(UserError, match="'/none' of the world 'webshop' does not exist; get it with"):
        make("webshop", data="/none").tasks("all")
    shop = lamp_shop(nouns="/none.json")
    visit(shop, "search[x]", "click[l000000001]")
    with pytest.raises(UserError, match=r"list of nouns '/none\.json' cannot be read"):
        shop.step("click[buy now]")


def test_a_list_of_nouns_is_used(tmp_path: Path) -> None:
    (tmp_path / "nouns.json").write_text(json.dumps({"L000000001": ["oak"]}))
    shop = lamp_shop(nouns=str(tmp_path / "nouns.json"))
    visit(shop, "search[x]", "click[l000000001]")
    assert shop.step("click[buy now]").info["scores"]["title_score"] == 1.0


def test_the_tagger_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=r"needs spaCy: pip install 'envrl\[spacy\]'"):
        noun_source("spacy")

    def no_model(name: str) -> None:
        raise OSError(f"[E050] Can't find model '{name}'.")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=no_model))
    with pytest.raises(UserError, match="spaCy lacks the model en_core_web_sm: python -m spacy download"):
        noun_source("spacy")


def test_the_taggers_nouns_and_names_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"The": "DET", "Oak": "PROPN", "lamp": "NOUN", "shines": "VERB"}

    def tag(title: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(text=word, pos_=tags[word]) for word in title.split()]

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: tag))
    assert noun_source("spacy")("L000000001", "The Oak lamp shines") == ("oak", "lamp")


def test_a_stored_index_answers_as_the_one_in_memory() -> None:
    env = make("webshop", products=300)
    assert isinstance(env, WebShop)
    records = list(generate(300))
    index = Index([r.product for r in records], {r.product["asin"]: r.attributes for r in records})
    for task in env.tasks("all")[:40]:
        words = " ".join(search_template(env.goal(task)["instruction_text"]).words)
        assert list(env.shop.search(words)) == [asin for asin, _ in index.search(words)]


# --- short texts -----------------------------------------------------------------------------------------------------


def test_the_compact_shop_by_hand() -> None:
    shop = CompactShop(lamp_shop(12), words=1)
    start = visit(shop)
    assert start.text == "Your task is to: shop for oak lamp, red, price lower than 30.00 dollars"
    assert start.templates == (Template("search[for ", ("oak lamp", "red"), "]"),)
    results = visit(shop, "search[x]")
    assert results.text.splitlines()[:3] == ["found 12, page 1", "item 1: oak $20.0", "item 2: lamp $20.0"]
    assert results.admissible is not None
    assert results.admissible[:3] == ("click[back to search]", "click[next >]", "click[item 1]")
    item = visit(shop, "search[x]", "click[item 1]")
    assert item.text == (
        "item oak $20.0\nlacks 0\nasked: nothing\ncolor: option 1 dark red, ...\nsize: option 3 large, ..."
    ), "one word a text, one value a line"
    assert item.admissible is not None
    offered = [*("description", "features", "reviews", "buy now"), *(f"option {n}" for n in (1, 2, 3, 4))]
    assert item.admissible[2:] == tuple(f"click[{name}]" for name in offered), "'description' stays the button"
    large = visit(shop, "search[x]", "click[item 1]", "click[option 3]")
    assert large.text == "size: large\nasked: nothing"
    assert visit(shop, "search[x]", "click[item 1]", "click[large]") == large, "the shop's own commands, too"
    assert visit(shop, "search[x]", "click[item 1]", "click[option 9]").text == item.text, "there is none"
    assert visit(shop, "search[x]", "click[item 1]", "click[features]").text == "features\ndimmable\n\n"
    assert visit(shop, "search[x]", "click[item 11]").text == results.text, "there is none on this page"
    last = visit(shop, "search[x]", "click[next >]")
    assert last.text.splitlines()[0] == "found 12, page 2"
    assert shop.step("click[item 2]").observation.info["page"].product.asin == "L000000012"


def test_the_compact_shop_marks_what_is_asked_for_and_what_is_too_dear() -> None:
    instruction = "find me a brass lamp in dark red and large, and price lower than 15.00 dollars"
    colors, sizes = [{"value": "Dark Red"}, {"value": "covered/Oak"}], [{"value": "next >"}, {"value": "large"}]
    lamp = LAMP | {"customization_options": {"Color": colors, "Size": sizes}}
    goal = GOAL | {"instruction_text": instruction}
    shop = CompactShop(WebShop([lamp], {}, [goal], search=lambda query: [LAMP["asin"]]))
    assert visit(shop, "search[x]").text == "found 1, page 1\ndear 1: oak lamp $20.0"
    item = visit(shop, "search[x]", "click[item 1]").text.splitlines()
    assert item[1:3] == ["lacks 1", "asked: option 1 dark red, option 2 large"], "brass"
    assert item[3:] == ["color: option 3 covered | oak", "size: option 4 next >"]
    chosen = visit(shop, "search[x]", "click[item 1]", "click[option 1]")
    assert chosen.text == "color: dark red\nasked: option 2 large"
    chosen = shop.step("click[option 3]").observation
    assert chosen.text == "color: covered | oak\nasked: option 1 dark red, option 2 large", "it took the other's place"


def test_the_compact_shop_gives_the_same_rewards() -> None:
    plain, short = make("webshop", products=300), make("webshop", products=300, compact=5)
    for task in plain.tasks("all")[:20]:
        assert isinstance(short, CompactShop)
        found = play_script(short, task, short.expert(0), 15)
        expected = play_script(plain, task, Shopper(reads=0).act, 15)
        assert [t.reward for t in found.transitions] == [t.reward for t in expected.transitions]
        assert found.transitions[-1].done


@pytest.mark.parametrize(
    ("instruction", "phrases"),
    [
        ("i want a red rug for kids, please", ("red rug", "kids")),
        ("Find a (long) polo, cotton. And polo, and price lower than 3.00 dollars", ("long polo", "cotton", "polo")),
        ("i am looking for a", ()),
        ("", ()),
    ],
)
def test_what_an_instruction_wants_in_phrases(instruction: str, phrases: tuple[str, ...]) -> None:
    assert wanted_phrases(instruction) == phrases


def test_the_words_to_search_with_are_those_of_the_instruction() -> None:
    asked = "Find me a (x-large) men's polo, 100% cotton. And polo - and price lower than 30.00 dollars"
    assert search_template(asked).words == ("find", "me", "a", "x-large", "men's", "polo", "100", "cotton", "and")


def test_the_benchmark_of_the_search_counts_workers_that_share() -> None:
    found = bench_search(products=1_000, workers=3)
    assert found["products"] == 1_000
    assert 0 < found["search_ms"]["median"] <= found["search_ms"]["worst"]
    for memory in found["memory_mb"].values():
        assert memory["one"] < memory["3_workers"] < 2.5 * memory["one"]
        assert memory["ratio"] == round(memory["3_workers"] / memory["one"], 2)
