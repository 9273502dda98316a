"""Prompt formats for chat models: the message of a turn, and responses that are a command or a named fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from envrl.errors import UserError
from envrl.rendering.prompts import FORMATS, NO_COMMAND, find_format, with_summary, with_thought
from envrl.rendering.responses import FAULTS, Thought
from envrl.types import Observation, Template

PAGE = Path(__file__).resolve().parent.parent / "docs" / "prompts.md"

FAULTY = [
    ("tags", "", "empty"),
    ("tags", " \n\t", "empty"),
    ("tags", "I would look around first.", "no action"),
    ("tags", "<think>look</think>", "no action"),
    ("tags", "<think>look</think> go to desk 1", "no action"),
    ("tags", "<think>look</think><action> </action>", "no action"),
    ("tags", "<action>look</action>", "no thought"),
    ("tags", "<action>look</action><think>done</think>", "no thought"),
    ("tags", "hm</think><action>look</action>", "no thought"),
    ("tags", "<think>on and on <action>look</action>", "unclosed"),
    ("tags", "<think>hm</think><action>look", "unclosed"),
    ("tags", "<think>hm</think><action>look</action><action>help</action>", "several actions"),
    ("tags", "<think>hm</think><action>look<action>help</action>", "several actions"),
    ("tags", "<think>hm</think><action>look</action> You see a desk 1.", "imagined observation"),
    ("tags", "<think>hm</think><action>look</action>\n<observation>a desk 1", "imagined observation"),
    ("tags", "<think>hm</think><action>look</action> That should do.", "text after the action"),
    ("tags", "Sure! <think>hm</think><action>look</action>", "stray text"),
    ("tags", "<think>hm</think> so: <action>look</action>", "stray text"),
    ("tags", "<think>hm</think><action>look\nhelp</action>", "several lines"),
    ("tags", "<think>hm</think><action>look\x00</action>", "control characters"),
    ("tags", "<think>hm</think><action>look \ud83d</action>", "control characters"),
    ("plan", "<think>hm</think><action>look</action>", "no plan"),
    ("plan", "1. look 2. take", "no action"),
    ("subgoal", "<subgoal>a pen</subgoal><action>look</action>", "no switch"),
    ("subgoal", "<switch>PERHAPS</switch><subgoal>a pen</subgoal><action>look</action>", "no switch"),
    ("subgoal", "<switch>KEEP</switch><action>look</action>", "no sub-goal"),
    ("subgoal", "<switch>KEEP</switch><subgoal>a pen</subgoal>look", "no action"),
    ("subgoal", "<switch>KEEP</switch><subgoal>a pen</subgoal> so <action>look</action>", "stray text"),
    ("action with a summary", "look", "no summary"),
    ("action with a summary", "so <summary>a</summary>look", "no summary"),
    ("action with a summary", "<summary>look", "unclosed"),
    ("action with a summary", "<summary>a</summary>", "empty"),
    ("tags with a summary", "<summary>a</summary><action>look</action>", "no thought"),
    ("plan", "<plan>look, then take it", "unclosed"),
    ("action", "", "empty"),
    ("action", "look\nhelp", "several lines"),
    ("action", "look\n\nObservation: a desk 1", "imagined observation"),
    ("action", "look\nYou see a desk 1.", "imagined observation"),
    ("action", "lo\x07ok", "control characters"),
    ("react", "\n", "empty"),
    ("react", "Thought: hm Action: look", "no action"),
    ("react", "Thought: hm\nAction:", "no action"),
    ("react", "Action: look", "no thought"),
    ("react", "Well.\nThought: hm\nAction: look", "stray text"),
    ("react", "Thought: hm\nAction: look\nAction: help", "several actions"),
    ("react", "Thought: hm\nAction: look\nObservation: a desk\nThought: so\nAction: help", "imagined observation"),
    ("react", "Thought: hm\nAction: look\nand then help", "text after the action"),
    *((f"{name} in a thought", "hm\nlook", "unclosed thought") for name in FORMATS),
    ("json", " ", "empty"),
    ("json", "look", "not JSON"),
    ("json", '```json\n{"name": "act", "arguments": {"command": "look"}}\n```', "not JSON"),
    ("json", '{"name": "act", "arguments": {"command": "look"}', "not JSON"),
    ("json", "3 doors", "not JSON"),
    ("json", "[" * 100_000, "not JSON"),
    ("json", "9" * 10_000, "not JSON"),
    ("json", "3", "wrong fields"),
    ("json", "null", "wrong fields"),
    ("json", '{"command": "look"}', "wrong fields"),
    ("json", '{"name": "open", "arguments": {"command": "look"}}', "wrong fields"),
    ("json", '{"name": "act", "arguments": {"command": 3}}', "wrong fields"),
    ("json", '{"name": "act", "arguments": "{\\"command\\": \\"look\\"}"}', "wrong fields"),
    ("json", '{"name": "act", "arguments": {"command": "look", "why": "hm"}}', "wrong fields"),
    ("json", '{"name": "act", "arguments": {"command": "look"}, "id": 1}', "wrong fields"),
    ("json", '{"name": "act", "arguments": {"command": "look", "command": "help"}}', "wrong fields"),
    ("json", '[{"name": "act", "arguments": {"command": "look"}}]', "wrong fields"),
    ("json", '{"name": "act", "arguments": {"command": ""}}', "no action"),
    ("json", '{"name": "act", "arguments": {"command": "look\\nhelp"}}', "several lines"),
    ("json", '{"name": "act", "arguments": {"command": "\\ud83d"}}', "control characters"),
    ("json", '{"name": "act", "arguments": {"command": "look"}} Done.', "text after the action"),
    ("json", '{"name": "act", "arguments": {"command": "look"}}\nObservation: a desk', "imagined observation"),
    ("json", '{"name": "act", "arguments": {"command": "look"}}{"name": "act"}', "several actions"),
]


@pytest.mark.parametrize(("name", "response", "fault"), FAULTY)
def test_faults_by_hand(name: str, response: str, fault: str) -> None:
    form = FORMATS[name.partition(" ")[0]]
    if "thought" in name:
        form = with_thought(form, Thought(by="template"))
    parsed = (with_summary(form) if "summary" in name else form).parse(response)
    assert (parsed.command, parsed.fault) == ("", fault)


def test_every_fault_has_an_example_and_a_line_in_the_documentation() -> None:
    assert {fault for *_, fault in FAULTY} == set(FAULTS)
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", page.partition("## Faults")[2].partition("\n## ")[0], re.M
    )
    assert {fault: meaning for fault, meaning, _ in rows} == FAULTS
    for fault, _, where in rows:
        named = set(re.findall(r"`(\w+)`", where))
        possible = set(FORMATS) - named if where.startswith("all") else named
        plain = {name for name, _, kind in FAULTY if kind == fault and " " not in name}
        assert plain <= possible, fault
    assert set(FORMATS) <= set(re.findall(r"`(\w+)`", page))


@pytest.mark.parametrize(
    ("name", "response"),
    [
        ("tags", "\n<think>The desk. <action>no</action>\n\nSo:</think>\n<action> go to desk 1 </action>\n"),
        ("tags", "<think></think><action>go to desk 1</action>"),
        ("plan", "<plan>1. the desk\n2. the pen</plan>\n<action>go to desk 1</action>"),
        ("subgoal", "<switch> keep </switch>\n<subgoal>a <action></subgoal><action>go to desk 1</action>"),
        ("action", "  go to desk 1\n"),
        ("react", "Thought: the desk,\nor the bed. Action: none yet\n\n  Action:  go to desk 1  \n"),
        ("json", '{"arguments": {"command": "go to desk 1"},\n "name": "act"}\n'),
    ],
)
def test_well_formed_responses_by_hand(name: str, response: str) -> None:
    parsed = FORMATS[name].parse(response)
    assert (parsed.command, parsed.fault) == ("go to desk 1", "")


_PIECES = [
    "<think>",
    "</think>",
    "<plan>",
    "</plan>",
    "<switch>KEEP</switch>",
    "<subgoal>",
    "</subgoal>",
    "<action>",
    "</action>",
    "Thought:",
    "Action:",
    "\n",
    " ",
    "look",
]
_JSON_PIECES = ['{"name": "act", ', '"arguments": ', '{"command": ', '"look"', "}", "}}", "[", "null", "You ", "\ud800"]
_ANY = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.lists(st.one_of(st.sampled_from(_PIECES), st.sampled_from(_JSON_PIECES), st.text(max_size=3))).map("".join),
)


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None)
@given(response=_ANY)
@example(response="\x1c")
@example(response="\x85look")
def test_any_text_is_a_command_or_a_known_fault(name: str, response: str) -> None:
    parsed = FORMATS[name].parse(response)
    if parsed.fault:
        assert parsed.command == ""
        assert parsed.fault in FAULTS
    else:
        assert parsed.command == parsed.command.strip() != ""
        assert len(parsed.command.splitlines()) == 1
        assert parsed.command.encode("utf-8").decode("utf-8") == parsed.command
        again = FORMATS[name].parse(FORMATS[name].write("", parsed.command))
        assert (again.command, again.fault) == (parsed.command, "")


_LINE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="<>"), min_size=1)
_COMMANDS = _LINE.map(str.strip).filter(bool)
_THOUGHTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>")).filter(
    lambda thought: not any(line.strip().startswith("Action:") for line in thought.splitlines())
)


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None)
@given(thought=_THOUGHTS, command=_COMMANDS)
def test_a_well_formed_response_reads_back(name: str, thought: str, command: str) -> None:
    written = FORMATS[name].write(thought, command)
    assert FORMATS[name].parse(f"\n{written} \n").command == command


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_shows_a_response_of_its_own_form(name: str) -> None:
    """The last lines of the prompt are an example; only `action` has nothing to show but words."""
    form = FORMATS[name]
    example = form.asks.partition(":\n")[2]
    if name != "action":
        assert form.parse(example).command == "your command"


BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"


def test_the_message_of_a_turn_by_hand() -> None:
    start = Observation(f"{BANNER}A room.\n\nYour task is to: find the pen.", ("look",))
    seen, now = Observation("Nothing happens."), Observation("On the desk 1, you see a pen 1.", ("look", "take pen 1"))
    ((role, content),) = find_format("action").messages(
        "find the pen.", [(start, ""), (seen, "go to desk 1")], now, show_admissible=True
    )
    assert role == "user"
    assert content == (
        "You act in a world that is described in words. Every turn you give it one command.\n\n"
        "Your task: find the pen.\n\n"
        "Your last turns, oldest first:\n\n"
        f"Observation: A room.\n\nYour task is to: find the pen.\nCommand: {NO_COMMAND}\n\n"
        "Observation: Nothing happens.\nCommand: go to desk 1\n\n"
        "What you see now:\nOn the desk 1, you see a pen 1.\n\n"
        "The commands that the world accepts now, one a line:\nlook\ntake pen 1\n\n"
        "Answer with your command alone, on one line, without quotes or any other word."
    )


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_message_leaves_out(name: str) -> None:
    form, shop = FORMATS[name], Observation("A shop.", ("back",), templates=(Template("search[", ("pen",), "]"),))
    (shown,), (hidden,) = form.messages("buy", [], shop), form.messages("buy", [], shop, show_admissible=False)
    assert "search[<words>]\nback\n" in shown.content
    assert "words of your own" in shown.content
    assert "back" not in hidden.content
    assert "last turns" not in shown.content
    (unknown,) = form.messages("A shop.", [], Observation("A shop.", None))
    assert unknown.content.count("A shop.") == 1, "a world without a task's sentence says its text once"
    assert "accepts now" not in unknown.content


def test_an_unknown_format_is_a_sentence() -> None:
    with pytest.raises(UserError, match="unknown prompt format 'tag'; did you mean 'tags'"):
        find_format("tag")


def test_prompts_need_neither_torch_nor_a_tokenizer() -> None:
    heavy = "{'torch', 'tokenizers', 'transformers', 'openai'}"
    code = f"import sys, envrl.rendering.prompts; print({heavy} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"
