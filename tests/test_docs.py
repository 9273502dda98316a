"""The documentation holds: links resolve, commands parse, keys exist, examples run, token layouts are the code's."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

from envrl.cli.arguments import Parser, split_overrides
from envrl.cli.main import COMMANDS, main
from envrl.config.keys import KEYS, SECTIONS, find_key, is_table
from envrl.config.load import load_recipe
from envrl.config.plugins import load_plugins
from envrl.config.recipes_index import recipe_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
EXAMPLE = ROOT / "docs" / "your-own-environment.md"
EXTENDING = ROOT / "docs" / "extend.md"
PENDING: set[str] = set()
"""What the pages link to and is not written yet."""

_FENCE = re.compile(r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"^    .*$", re.M)
_INLINE = re.compile(r"`([^`\n]+)`")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without code blocks."""
    return _INDENTED.sub("", _FENCE.sub("", text_of(page)))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)).lower() for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            broken += [target] if file.relative_to(ROOT).as_posix() not in PENDING else []
        elif anchor and anchor not in anchors(file):
            broken.append(target)
    assert not broken


def test_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+\.md)\)", text_of(index))}
    assert [name for page, name in zip(PAGES, NAMES, strict=True) if page != index and page not in linked] == []


class Parsed(Exception):
    """Raised in place of a command's work, once its arguments are understood."""


def commands_in(page: Path) -> Iterator[str]:
    """Every command line of the page: lines of code blocks, and inline code."""
    body = text_of(page)
    for line in [*_INDENTED.findall(body), *_INLINE.findall(prose(page))]:
        for part in line.split("&&"):
            command = part.partition(" # ")[0].strip().removeprefix(".venv/bin/")
            if re.match(r"envrl [a-z]", command) and "://" not in command:
                yield command


def is_form(command: str) -> bool:
    """Whether a line is a form with placeholders, not a command to type."""
    return bool(re.search(r"…|\.\.\.|\[|\||COMMAND", command)) or len(command.split()) == 2


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_command_lines_parse(page: Path, example_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[Parser] = []

    def note(self: Parser, arguments: Any, also: Any = ()) -> Any:
        parsers.append(self)
        if arguments != ["any", "thing"][: len(arguments)]:
            original(self, arguments, also)
        raise Parsed

    original = Parser.parse
    monkeypatch.setattr(Parser, "parse", note)
    for command in commands_in(page):
        _, name, *arguments = shlex.split(command)
        assert name in COMMANDS, command
        module = import_module(f"envrl.cli.{name.replace('-', '_')}")
        form = is_form(command)
        with pytest.raises(Parsed):
            module.run(["any", "thing"] if form else arguments)
        if form:
            options = set(re.findall(r"--[a-z][a-z-]*(?![\w.])", command)) - {"--section", "--help"}
            assert options <= set(parsers[-1].options()), command
        elif name == "train" and arguments[0] in recipe_names():
            overrides, rest = split_overrides(arguments, KEYS)
            plugins = [file for option, file in pairwise(rest) if option == "--plugin"]
            load_recipe(arguments[0], overrides, plugins)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_keys_exist(page: Path, example_folder: Path) -> None:
    """Those of the schema, and those of the tables of what can be chosen, the examples of docs/extend.md included."""
    if page == EXTENDING:
        load_plugins([mark.removeprefix("file: ") for mark, _ in blocks(page) if mark.startswith("file: ")])
    named = {
        key
        for code in _INLINE.findall(prose(page))
        for key in re.findall(r"(?<![\w./-])([a-z_]+\.[a-z_+-]+(?:\.[a-z_]+){0,2})(?![\w(/.-])", code)
        if key.partition(".")[0] in SECTIONS and not key.endswith((".jsonl", ".safetensors", ".partial"))
    }
    assert {key for key in named if find_key(key) is None and not is_table(key)} == set()


def test_logged_names_exist() -> None:
    """Names like `loss/state` are written in the source, whole or with a part put in that is itself written there."""
    files = [file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py")]
    source = "\n".join([*files, *(text for mark, text in blocks(EXTENDING) if mark.startswith("file: "))])
    families = "loss|weight|rows|placebo|train|free|held_out"
    templates = set(re.findall(rf'"((?:{families})/[\w{{}}]+)"', source))
    patterns = [re.compile(re.sub(r"\{\w+\}", r"(\\w+)", template)) for template in templates]
    named = {
        name
        for page in PAGES
        for name in _INLINE.findall(prose(page))
        if re.fullmatch(rf"(?:{families})/[a-z_]+", name)
    }
    assert len(named) > 20
    for name in sorted(named):
        found = [match for pattern in patterns if (match := pattern.fullmatch(name))]
        assert any(all(f'"{part}"' in source for part in match.groups()) for match in found), name


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The marked code blocks of a page, in order: what the comment before says ("run", "file: NAME"), and the code."""
    for block in _FENCE.finditer(text_of(page)):
        yield block["mark"] or "", block["text"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_are_marked_and_parse(page: Path) -> None:
    for block in _FENCE.finditer(text_of(page)):
        if block["language"] == "python":
            assert re.match(r"run|compile|file: ", block["mark"] or ""), block["text"]
            ast.parse(block["text"])


def test_readme_examples_run() -> None:
    play, objective = (code for mark, code in blocks(ROOT / "README.md") if mark == "run")
    exec(play, {})
    names: dict[str, Any] = {}
    exec(objective, names)
    # Three steps share the observation "hall"; the one that led to the win has the larger return, so it gains there.
    won, lost = names["advantages"]
    assert won[0] > won[1] > 0 > lost[1] > lost[0]


@pytest.fixture
def example_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the pages about things of one's own, which is the working folder and on the path."""
    for mark, text in [*blocks(EXAMPLE), *blocks(EXTENDING)]:
        if mark.startswith("file: "):
            (tmp_path / mark.removeprefix("file: ")).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("parcels", "taxi"):
        sys.modules.pop(name, None)


@pytest.fixture
def example(example_folder: Path) -> list[str]:
    """The code of that page to run in its folder."""
    return [text for mark, text in blocks(EXAMPLE) if mark == "run"]


def test_the_class_of_the_example_is_short(example: list[str]) -> None:
    source = Path("parcels.py").read_text(encoding="utf-8")
    (cls,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    assert cls.end_lineno is not None
    assert cls.end_lineno - cls.lineno < 42
    assert len([line for line in source.splitlines() if line]) == 38  # as the page says


def test_example_world_is_checked_and_trained(example: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    check, _, train = example
    exec(check, {})
    assert "parcels keeps the contract" in capsys.readouterr().out
    exec(train, {})
    first, last = success_rates(Path("runs/parcels"))
    assert last > first + 0.1
    assert main(["eval", "expert", "--env", "parcels", "--split", "valid"]) == 0
    assert "100.0 %" in capsys.readouterr().out


def test_example_on_gymnasium_is_checked(example: list[str]) -> None:
    pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'envrl[gymnasium]'")
    exec(example[1], {})


def success_rates(run: Path) -> list[float]:
    return [json.loads(line)["success_rate"] for line in (run / "eval.jsonl").read_text(encoding="utf-8").splitlines()]


def install_plug_in() -> None:
    """Do by hand what `pip install` of the pyproject.toml in the working folder, which is on the path, would."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = Path("envrl_parcels-0.1.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n")
    points = [f"{name} = {target}" for name, target in project["entry-points"]["envrl.envs"].items()]
    (folder / "entry_points.txt").write_text("\n".join(["[envrl.envs]", *points, ""]))
    importlib.invalidate_caches()


def test_example_world_is_found_as_a_plug_in(example: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    install_plug_in()
    assert main(["check-env", "parcels"]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_token_layouts_are_those_of_the_code() -> None:
    """The marked blocks of method.md against the rows of that episode; how texts fall into tokens is left out."""
    from envrl.envs.registry import make
    from envrl.models.tokenizer import Codec, train_tokenizer
    from envrl.registry import find
    from envrl.rendering.marks import MarksRenderer
    from envrl.rendering.renderer import Form
    from envrl.rollout.scripts import play_script
    from envrl.types import TrajectoryGroup

    env = make("household")
    (task,) = [task for task in env.tasks("train")[200:250] if task.id.endswith("/000226")]
    episode = play_script(env, task, env.expert(0), 30)  # type: ignore[attr-defined]
    codec = Codec(train_tokenizer(["a text"], 300, 512))
    marks = {number: f"<{name}>" for name, number in codec.marks.items()}

    def written(ids: tuple[int, ...]) -> str:
        runs = groupby(ids, key=lambda i: marks.get(i, ""))
        return "".join(mark * len(list(run)) if mark else codec.decode(list(run)) for mark, run in runs)

    page = text_of(ROOT / "docs" / "method.md")
    shown = re.findall(r"<!-- layout: (\w+) (\d) (\w+) -->\n\n((?:    .*\n)+)", page)
    assert len(shown) == 4
    for layout, step, kind, block in shown:
        examples = list(find("auxiliary", kind).target([TrajectoryGroup(task, (episode,))]))
        pair = MarksRenderer(codec, Form(layout, 1), 512).pair(kind, examples[int(step)])
        expected = "".join(line.strip() for line in block.splitlines()).replace("·", "")
        assert f"{written(pair.prompt)}[{written(pair.target)}]" == expected


@pytest.mark.parametrize("kind", ["state", "inverse"])
def test_questions_are_asked_as_the_page_says(kind: str, tmp_path: Path) -> None:
    """The table of method.md, line by line, against what a model with marks and a chat model are asked."""
    from chat_models import save_chat_model
    from envrl.build import renderer_of
    from envrl.envs.registry import make
    from envrl.models.load import load_model
    from envrl.models.tokenizer import Codec, train_tokenizer
    from envrl.registry import find
    from envrl.rendering.marks import MarksRenderer
    from envrl.rendering.renderer import Form
    from envrl.rollout.scripts import play_script
    from envrl.types import TrajectoryGroup

    section = text_of(ROOT / "docs" / "method.md").partition("## How a question is asked")[2]
    page = section.partition("\n\n| objective")[0]
    lines = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", page, re.M)
    absent = {"state": "what followed|choices", "inverse": "the command,|the admissible commands"}[kind]
    told = [line for line in lines if not re.match(absent, line[0])]
    env = make("household")
    task = env.tasks("train")[0]
    groups = [TrajectoryGroup(task, (play_script(env, task, env.expert(0), 30),))]  # type: ignore[attr-defined]
    settings = {"choices": True} if kind == "inverse" else {}
    example = list(find("auxiliary", kind).target(groups, **settings))[1]

    codec = Codec(train_tokenizer(["a text"], 300, 512))
    pair = MarksRenderer(codec, Form("steps", 1, show_admissible=True), 4096).pair(kind, example)
    names = {number: f"<{name}>" for name, number in codec.marks.items()}
    asked = [mark for _, cell, _ in told[1:-2] for mark in re.findall(r"<\w+>", cell)]
    last = re.findall(r"<\w+>", told[-2][1])[kind == "state"]
    assert [names[token] for token in pair.prompt if token in names] == [f"<{kind}>", *asked, last]
    assert [names[token] for token in pair.target if token in names] == re.findall(r"<\w+>", told[-1][1])

    model = load_model(save_chat_model("qwen2", tmp_path / "model", context=8192), marks=False)
    renderer = renderer_of(model, Form("steps", 1, format="action", show_admissible=True))
    said = model.codec.decode(renderer.pair(kind, example).prompt)
    phrases = [phrase.partition("…")[0] for _, _, cell in told[1:-2] for phrase in re.findall(r"`([^`]+)`", cell)]
    places = [said.find(phrase) for phrase in [*phrases, example.question]]
    assert -1 not in places
    assert places == sorted(places)
    assert len(phrases) == 7


def test_parameter_formula_of_the_preset() -> None:
    from envrl.config.schema import ModelConfig
    from envrl.models.tiny import build_tiny

    for shape in (ModelConfig(), ModelConfig(hidden_size=48, layers=3, heads=2, key_heads=1)):
        d, layers, heads, vocabulary = shape.hidden_size, shape.layers, shape.heads, 1032
        attention = (8 * d**2 + 2 * shape.key_heads * d**2 // heads) * (layers - 1)
        formula = vocabulary * d + 10 * d**2 + attention + (2 * layers + 4) * d + 2 * (layers - 1) * d // heads
        assert sum(p.numel() for p in build_tiny(shape, vocabulary, 0, 1, seed=0).parameters()) == formula
    assert "740,032 for V = 1,032" in text_of(ROOT / "docs" / "models.md")
