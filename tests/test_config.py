"""Recipes: what loads, what it comes to, and the sentence that answers each mistake."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from msgspec import Meta

from envrl.config import check, reference
from envrl.config.check import check_together
from envrl.config.keys import KEYS, describe, parse_value
from envrl.config.load import config_differences, dump_config, load_recipe
from envrl.config.recipes_index import recipe_names, recipe_summary
from envrl.config.schema import Config
from envrl.errors import UserError


def write(folder: Path, text: str, name: str = "recipe.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def mistake(recipe: str, *overrides: tuple[str, str]) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(recipe, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


# What ships


def test_every_recipe_that_the_docs_promise_ships_and_loads() -> None:
    promised = {"household-demo", "alfworld-grpo", "alfworld-envrl", "alfworld-envrl-gigpo", "alfworld-placebo"}
    assert promised <= set(recipe_names())
    for name in recipe_names():
        assert recipe_summary(name), name
        assert isinstance(load_recipe(name), Config)


def test_the_alfworld_recipes_differ_only_in_what_they_study() -> None:
    grpo, envrl = load_recipe("alfworld-grpo"), load_recipe("alfworld-envrl")
    assert grpo.auxiliaries() == []
    assert [each.name for each in grpo.auxiliaries("warm_start")] == ["inverse"]
    keys = [f"{name}.{key}" for name in ("state", "inverse") for key in ("weight", "schedule_updates", "fraction")]
    assert config_differences(grpo, envrl) == [f"auxiliary.{key}" for key in keys]
    assert config_differences(envrl, load_recipe("alfworld-envrl-gigpo")) == ["objective.estimator"]
    exchanged = ["auxiliary.state.placebo", "auxiliary.inverse.placebo"]
    assert config_differences(envrl, load_recipe("alfworld-placebo")) == exchanged
    assert envrl.env.name == "alfworld"
    assert envrl.train.updates >= 100


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "")) == Config()


# What a recipe may say


def test_values_of_a_file_and_of_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'seed = 7\n[train]\nupdates = 3\nmax_grad_norm = 2\n[eval]\nsplit = ["valid_unseen"]\n')
    given = [("train.updates", "4"), ("objective.grpo.std", "false"), ("train.updates", "5"), ("eval.split", "a, b")]
    config = load_recipe(path, given)
    assert (config.seed, config.train.updates, config.settings("estimator")["std"]) == (7, 5, False)
    assert config.eval.split == ("a", "b")
    assert config.train.max_grad_norm == 2.0
    assert isinstance(config.train.max_grad_norm, float)
    assert load_recipe(path).eval.split == ("valid_unseen",)


def test_extends_a_file_beside_it_and_a_recipe_that_ships(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "alfworld-envrl"\n[train]\nupdates = 9\n[rollout]\ntasks = 2\n', "base.toml")
    (tmp_path / "inner").mkdir()
    path = write(tmp_path / "inner", 'extends = "../base.toml"\n[rollout]\ntasks = 3\n')
    config = load_recipe(path)
    assert (config.env.name, config.train.updates, config.rollout.tasks) == ("alfworld", 9, 3)
    assert config.auxiliaries() == load_recipe("alfworld-envrl").auxiliaries() != []


def test_a_circle_of_recipes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b.toml"', "a.toml")
    write(tmp_path, 'extends = "a.toml"', "b.toml")
    assert "circle" in mistake(str(tmp_path / "a.toml"))
    assert "extends must be" in mistake(write(tmp_path, "extends = 3"))
    assert "no recipe file 'gone.toml'" in mistake(write(tmp_path, 'extends = "gone.toml"'))


def test_parse_value_reads_by_the_type_of_the_key() -> None:
    assert parse_value("3", int) == 3
    assert parse_value("1e-3", float) == 0.001
    assert parse_value("TRUE", bool) is True
    assert parse_value("a,b", tuple[str, ...]) == ["a", "b"]
    assert parse_value("12", str) == "12"
    assert parse_value("yes", bool) == "yes"


# Mistakes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[trian]\nupdates = 3", ["unknown section [trian]", "did you mean 'train'?"]),
        ("[train]\nupdats = 3", ["unknown key 'train.updats'", "did you mean 'train.updates'?"]),
        ("updates = 3", ["unknown key 'updates'", "did you mean 'train.updates'?"]),
        ("[train]\ntemperature = 1.0", ["'train.temperature'", "'rollout.temperature' or 'eval.temperature'"]),
        ("train = 3", ["'train' is a section, written [train], not a key with the value 3"]),
        ("seed.x = 3", ["seed must be a whole number of at least 0, not a table"]),
        ('[train]\nupdates = "3"', ["train.updates must be a whole number of at least 0, not '3'"]),
        ("[train]\nupdates = 3.0", ["train.updates must be a whole number of at least 0, not 3.0"]),
        ("[train]\nupdates = true", ["train.updates must be a whole number of at least 0, not true"]),
        ("[train]\nupdates = -1", ["train.updates must be a whole number of at least 0, not -1"]),
        ("[train]\nlearning_rate = 0", ["train.learning_rate must be a number above 0 and at most 1, not 0"]),
        ("[train]\nlearning_rate = 1.5", ["train.learning_rate must be a number above 0 and at most 1, not 1.5"]),
        ("[auxiliary.state]\nweight = -0.1", ["auxiliary.state.weight must be a number from 0 to 10, not -0.1"]),
        ("[auxiliary.state]\nweight = nan", ["auxiliary.state.weight must be a number from 0 to 10, not nan"]),
        ("[objective.ppo]\nclip_high = inf", ["objective.ppo.clip_high must be a number of at least 0, not inf"]),
        ("[objective.grpo]\nstd = 1", ["objective.grpo.std must be true or false, not 1"]),
        ('[train]\nprecision = "fp16"', ["train.precision must be one of 'fp32', 'bf16', 'auto', not 'fp16'"]),
        ('[eval]\nsplit = "valid_seen"', ["eval.split must be a list of texts, not 'valid_seen'"]),
        ("[eval]\nsplit = [1]", ["eval.split must be a list of texts, not [1]"]),
        ("[env]\nname = 2020-01-01", ["env.name must be a text, not 2020-01-01"]),
        (f"seed = {2**63}", ["seed must be a whole number of at least 0"]),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence_that_names_key_value_and_file(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    path = write(tmp_path, text)
    message = mistake(path)
    assert path in message
    for part in said:
        assert part in message


def test_mistakes_on_the_command_line() -> None:
    assert mistake("household-demo", ("objective.estimater", "grpo")) == (
        "unknown key 'objective.estimater' on the command line; did you mean 'objective.estimator'?"
    )
    assert mistake("household-demo", ("env", "x")).startswith("unknown key 'env' on the command line")
    assert mistake("household-demo", ("train.updates", "many")) == (
        "train.updates must be a whole number of at least 0, not 'many' (on the command line)"
    )
    assert "env.data must be a text" in mistake("household-demo", ("env.data", "\udcff"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.preset", "tyni", "unknown model.preset 'tyni'"),
        ("train.device", "gpu", "train.device must be 'cpu', 'cuda' or 'cuda:N', not 'gpu'"),
        ("train.device", "cuda:", "train.device must be"),
        ("rollout.group_size", "1", "rollout.group_size must be at least 2, not 1"),
        ("model.hidden_size", "130", "model.hidden_size = 130"),
        ("rollout.response_tokens", "5000", "rollout.response_tokens = 5000"),
        ("objective.importance_cap", "0.5", "objective.importance_cap must be at least 1, or 0"),
        ("model.key_heads", "3", "model.heads = 4 must be a multiple of model.key_heads = 3"),
        ("eval.temperature", "1e-9", "eval.temperature must be 0 (the most likely token) or at least 0.01"),
        ("rollout.max_steps", "31", "rollout.max_steps = 31 is above env.max_steps = 30"),
        ("eval.split", "", "eval.split must list at least one split"),
        ("eval.split", "a,a", "eval.split must list at least one split, each once"),
        ("env.name", "", "env.name must name a world"),
        ("env.split", "", "env.split must name a split"),
    ],
)
def test_values_that_no_type_catches(key: str, value: str, said: str) -> None:
    assert said in mistake("household-demo", (key, value))


def test_values_that_contradict_each_other() -> None:
    recipe = "alfworld-envrl"
    in_pass, steps = ("auxiliary.echo.weight", "0.1"), ("rollout.layout", "steps")
    once = ("rollout.repeat_task", "false")
    assert load_recipe(recipe, [steps, once]).rollout.layout == "steps"
    assert [each.name for each in load_recipe(recipe, [in_pass]).auxiliaries()] == ["state", "inverse", "echo"]
    assert "auxiliary.echo.weight needs rollout.layout = 'concat'" in mistake(recipe, in_pass, steps, once)
    assert "rollout.repeat_task = true needs" in mistake(recipe, steps)
    assert "warm_start.auxiliary.echo.weight needs rollout.layout = 'concat'" in mistake(
        recipe, steps, once, ("warm_start.auxiliary.echo.weight", "0.1")
    )
    assert load_recipe(recipe, [in_pass, ("auxiliary.echo.placebo", "true")]).auxiliaries()[-1].common.placebo
    noisy = ("warm_start.noise", "0.1")
    assert "warm_start.noise needs" in mistake(recipe, noisy, ("warm_start.demonstrator", "walkthrough"))


def test_a_recipe_that_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    assert mistake("household-dmeo") == "unknown recipe 'household-dmeo'; did you mean 'household-demo'?"
    assert mistake("gone/household-demo.toml").startswith("there is no recipe file 'gone/household-demo.toml'")
    assert "unknown recipe ''" in mistake("")
    assert "there is no recipe file" in mistake(str(tmp_path))
    assert "(at line 2, column 10)" in mistake(write(tmp_path, "[train]\nupdates =\nepochs = 1\n"))
    assert "(at line 3, the end of the file)" in mistake(write(tmp_path, '\n[env]\nname = """a'))
    assert "at line 3, column" in mistake(write(tmp_path, "[train]\nupdates = 1\nupdates = 2\n"))
    assert "nested too deeply" in mistake(write(tmp_path, f"seed = {'[' * 5000}"))
    (tmp_path / "latin.toml").write_bytes(b"# one\n# two \xe9\n")
    assert "is not UTF-8 text (at line 2)" in mistake(str(tmp_path / "latin.toml"))


# Resolved configurations


def _values_of(key: str) -> st.SearchStrategy[Any]:
    annotation = KEYS[key].annotation
    kind, meta = annotation, Meta(ge=-5)
    if get_origin(annotation) is Annotated:
        kind, meta = get_args(annotation)
    if kind is int:
        return st.integers(min_value=int(meta.ge or 0), max_value=2**63 - 1 if meta.le is None else int(meta.le))
    if kind is float:
        low = meta.ge if meta.gt is None else meta.gt
        return st.floats(min_value=low, max_value=meta.le or 1e300, exclude_min=meta.gt is not None)
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    if get_origin(kind) is tuple:
        return st.lists(st.text("ab_ ,'\"\\\n", min_size=1), min_size=1, unique=True).map(tuple)
    return st.sampled_from(get_args(kind))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    config = Config(seed=draw(_values_of("seed")))
    # Names and sizes that must fit together keep their defaults.
    free = [k for k in KEYS if k.startswith(("env.data", "warm_start", "train", "eval", "checkpoint"))]
    for key in draw(st.lists(st.sampled_from([k for k in free if k != "train.device"]), unique=True, max_size=12)):
        section, _, name = key.partition(".")
        value = draw(_values_of(key))
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    try:
        check_together(config)
    except UserError:
        reject()
    return config


@settings(max_examples=60, deadline=None)
@given(configs())
def test_a_dumped_configuration_loads_equal(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.mktemp("dump") / "config.toml"
    path.write_text(dump_config(config), encoding="utf-8", newline="\n")
    again = load_recipe(str(path))
    assert again == config
    assert config_differences(again, config) == []
    assert dump_config(again) == dump_config(config)


def test_a_dump_has_every_key(tmp_path: Path) -> None:
    text = dump_config(load_recipe("alfworld-envrl"))
    owned = 2 + 3 + 17 + 2 * 18  # of grpo and ppo, state prediction, and inverse dynamics in both stages
    assert text.count(" = ") + text.count("[model.template_arguments]") == len(KEYS) + owned
    assert 'name = "alfworld"' in text


# Names that other packages define, and what is made from the schema


def test_the_presets_that_recipes_may_name_are_those_that_exist() -> None:
    from envrl.models.tiny import PRESETS

    assert check.PRESETS == PRESETS


def test_every_key_has_a_type_in_words_and_a_meaning() -> None:
    text = reference.recipe_reference()
    for name, key in KEYS.items():
        assert describe(key.annotation)
        assert name in ("seed", "quick", "plugins") or f"| `{name}` | {describe(key.annotation)} |" in text
    assert "|  |\n" not in text


def test_docs_recipes_is_made_from_the_schema() -> None:
    page = Path(__file__).parent.parent / "docs" / "recipes.md"
    assert page.read_text(encoding="utf-8") == reference.recipe_reference(), "run `make docs`"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"seed = 0x{'f' * 5000}", "seed must be a whole number of at least 0, not a number of more than 64 bits"),
        (f"seed = {'9' * 5000}", "is not a recipe: Exceeds the limit"),
        ('extends = "a\\u0000b"', "extends must be the name or file of another recipe"),
        ('[env]\nname = "a\\u0000b"', "env.name must be"),
        ("[model]\nlayers = 9223372036854775807", "model.layers must be a whole number from 2 to 1024"),
    ],
)
def test_what_no_file_or_number_could_be_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "odd.toml").write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_recipe(str(tmp_path / "odd.toml"))


def test_a_long_line_of_recipes_ends_with_a_sentence(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n')
    with pytest.raises(UserError, match=r"recipes extend each other more than 50 deep, at '.*50.toml'"):
        load_recipe(str(tmp_path / "0.toml"))
