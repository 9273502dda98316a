"""Chat models in training: every prompt is the model's own template's, and what is trained on is what was sampled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as models_of_pieces
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from boxes import COMMANDS, Boxes, tiny, with_tables
from chat_models import CHATML, FAMILIES, make_in_python, make_sentencepiece, make_tokenizer, save_chat_model
from envrl.build import form_of, renderer_of
from envrl.cli.main import main
from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.eval.evaluate import evaluate
from envrl.eval.probe import score_targets
from envrl.eval.questions import ask
from envrl.models.load import LanguageModel, build_model, load_model, save_model
from envrl.models.template import ChatTemplate, cleaner
from envrl.models.tokenizer import Codec
from envrl.rendering.prompts import FORMATS
from envrl.rendering.renderer import Form, Renderer, SegmentState
from envrl.rendering.responses import FAULTS
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.scheduler import PlaySettings, RolloutStats
from envrl.rollout.transcript import write_segments
from envrl.trainer.loop import train
from envrl.types import Action, Completion, Observation, Pair, Step, StopReason, Task, Template, Trajectory, Transition
from playing import play_model
from view_runs import data_of

SETTINGS = PlaySettings(max_steps=4, temperature=1.0, actions="free", response_tokens=12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_chat_model(name, root / name, merging=name == "plain") for name in FAMILIES}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, LanguageModel]:
    return {name: load_model(folder, marks=False) for name, folder in folders.items()}


def play(model: LanguageModel, renderer: Renderer, settings: PlaySettings = SETTINGS) -> list[Trajectory]:
    tasks, stats = [task for task in Boxes().tasks("train")[:3] for _ in range(2)], RolloutStats()
    played = play_model(model, renderer, Boxes, tasks, [0, 1] * 3, settings, seed=0, stats=stats)
    assert stats.mismatches == 0
    return played


def check_faithful(model: LanguageModel, trajectories: Sequence[Trajectory], temperature: float = 1.0) -> None:
    """Every sampled token stands where its span says, with the log-prob that the network has for it there."""
    for trajectory in trajectories:
        spans = [(segment, span) for segment in trajectory.segments for span in segment.spans]
        assert [span.step for _, span in spans] == list(range(len(trajectory.transitions)))
        for segment in trajectory.segments:
            ids = torch.from_numpy(segment.token_ids).long()[None]
            with torch.no_grad():
                logprobs = (model.network(input_ids=ids).logits[0].double() / temperature).log_softmax(-1)
            for span in segment.spans:
                action = trajectory.transitions[span.step].action
                assert tuple(segment.token_ids[span.start : span.stop].tolist()) == action.token_ids
                found = logprobs[range(span.start - 1, span.stop - 1), list(action.token_ids)]
                assert found.tolist() == pytest.approx(action.logprobs, abs=2e-4)


@pytest.mark.parametrize("layout", ["concat", "steps"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_on_is_what_was_sampled(family: str, layout: str, models: dict[str, LanguageModel]) -> None:
    model = models[family]
    played = play(model, renderer_of(model, Form(layout, format="action", show_admissible=True)))
    check_faithful(model, played)
    assert sum(len(t.transitions) for t in played) == 24
    assert all(len(t.segments) == 4 for t in played) or layout == "concat"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_steps_prompt_is_what_the_models_own_template_writes(
    family: str, folders: dict[str, Path], models: dict[str, LanguageModel]
) -> None:
    """Beside `apply_chat_template` of the tokenizer as a user would load it."""
    model, tokenizer = models[family], AutoTokenizer.from_pretrained(folders[family])
    played = play(model, renderer_of(model, Form("steps", format="tags", show_admissible=True, history=1)))
    for trajectory in played:
        task = trajectory.transitions[0].observation.text.partition("to: ")[2]
        for number, step in enumerate(trajectory.transitions):
            past = [(s.observation, s.action.text) for s in trajectory.transitions[max(0, number - 1) : number]]
            (message,) = FORMATS["tags"].messages(task, past, step.observation, True)
            expected = tokenizer.apply_chat_template(
                [{"role": "user", "content": message.content}], add_generation_prompt=True, return_dict=False
            )
            segment = trajectory.segments[number]
            assert segment.token_ids[: segment.spans[0].start].tolist() == expected


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_new_segment_is_fed_from_where_it_differs(family: str, models: dict[str, LanguageModel]) -> None:
    """What a prompt and the segment before it begin with alike stays in the slot, and log-probs are the same."""
    model, stats = models[family], RolloutStats()
    renderer = renderer_of(model, Form("steps", format="action", history=1))
    tasks = [task for task in Boxes().tasks("train")[:3] for _ in range(2)]
    sampler = OwnSampler(model)
    policy = Policy(renderer, sampler, model.codec)
    played = play_episodes(policy, Boxes, tasks, [0, 1] * 3, SETTINGS, seed=0, stats=stats)
    check_faithful(model, played)
    whole = saved = 0
    for trajectory in played:
        rows = [segment.token_ids.tolist() for segment in trajectory.segments]
        whole += sum(map(len, rows))
        for before, after in pairwise(rows):
            alike = next(place for place, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
            assert alike > 20, "the form's first words, and the task"
            saved += alike
    first = sum(trajectory.segments[0].spans[0].start for trajectory in played[1::2])  # a group's first prompt
    lasts = sum(len(trajectory.transitions) for trajectory in played)  # a response's last token is fed as filler only
    assert whole - saved - first - lasts <= sampler.meter.fed <= whole - saved - first
    assert stats.mismatches == 0


@pytest.mark.parametrize("family", ["qwen2", "llama", "phi3"])
def test_a_chat_that_goes_on_reads_as_the_template_writes_it(family: str, models: dict[str, LanguageModel]) -> None:
    """The text of a whole segment is the template's for the whole chat, though no response was encoded again."""
    model = models[family]
    template, renderer = ChatTemplate(model.codec), renderer_of(model, Form(format="action"))
    whole = 0
    for trajectory in play(model, renderer):
        if len(trajectory.segments) > 1:
            continue  # a response that the template trims, or that ended with another mark than the template's
        (segment,), steps = trajectory.segments, trajectory.transitions
        first = steps[0].observation
        chat: list[tuple[str, str]] = []
        chat += FORMATS["action"].messages(first.text.partition("to: ")[2], (), first, False)
        for step in steps:
            ids = step.action.token_ids
            said = model.codec.decode(ids[:-1] if ids[-1] in renderer.stops else ids)
            chat += [("assistant", said), ("user", f"What you see now:\n{step.next_observation.text}")]
        text = template.render(chat, answer=False)
        assert text.startswith(model.codec.decode(segment.token_ids[: segment.spans[3].start].tolist()))
        whole += 1
    assert whole >= 2


def test_pieces_that_go_over_turn_borders_change_nothing(models: dict[str, LanguageModel]) -> None:
    """With plain-text borders the tokenizer would merge a response with what follows; the sampled ids stay."""
    model = models["plain"]
    renderer = renderer_of(model, Form(format="action"))
    played = play(model, renderer, replace(SETTINGS, response_tokens=5))
    check_faithful(model, played)
    other = longer = 0
    for trajectory in played:
        for segment in trajectory.segments:
            again = model.codec.encode_special(model.codec.decode(segment.token_ids.tolist()))
            other += again != tuple(segment.token_ids.tolist())
            longer += len(segment.spans) > 1
    assert other >= 3, "encoding the whole again would have given other ids"
    assert longer >= 3, "segments hold several turns"
    assert any(renderer.rewrites(s.action) for t in played for s in t.transitions)


def said(
    model: LanguageModel, renderer: Renderer, text: str, command: str, fault: str = "", summary: str = ""
) -> Action:
    return Action(command, (*model.codec.encode(text), renderer.end), fault=fault, summary=summary)


def conversation(model: LanguageModel, renderer: Renderer, texts: Sequence[tuple[str, str]]) -> list[Transition]:
    """Return the steps of an episode of boxes in which these responses were given."""
    env = Boxes()
    observation = env.reset(env.tasks("train")[1])  # a coin, in box 1
    steps = []
    for text, command in texts:
        answer = env.step(command)
        summary = text.partition("<summary>")[2].partition("</summary>")[0]
        action = said(model, renderer, text, command, summary=summary)
        steps.append(Transition(observation, action, 0.0, answer.observation, answer.done, answer.success))
        observation = answer.observation
    return steps


THINKING = [(f"<think>box {n} perhaps</think><action>open box {n}</action>", f"open box {n}") for n in (2, 3, 4, 1)]


def test_where_the_template_strips_thoughts_a_new_segment_begins(models: dict[str, LanguageModel]) -> None:
    kept, stripped = (
        write_segments(renderer, conversation(model, renderer, THINKING))
        for model in (models["qwen2"], models["qwen3"])
        for renderer in (renderer_of(model, Form(format="tags")),)
    )
    assert kept is not None
    assert stripped is not None
    assert [len(segment.spans) for segment in kept] == [4]
    assert [[span.step for span in segment.spans] for segment in stripped] == [[0], [1], [2], [3]]
    texts = [models["qwen3"].codec.decode(segment.token_ids.tolist()) for segment in stripped]
    for number, text in enumerate(texts):
        assert [f"box {n} perhaps" in text for n in (2, 3, 4, 1)] == [n == number for n in range(4)]
        assert text.count("</action>") == number + 3, "the form, its example, and every response so far"


def test_old_turns_are_cut_at_the_longest_prompt(models: dict[str, LanguageModel]) -> None:
    model = models["qwen2"]
    free = renderer_of(model, Form(format="tags"))
    (whole,) = write_segments(free, conversation(model, free, THINKING)) or ()
    lengths = [span.start for span in whole.spans]
    limit = lengths[2] - 1
    renderer = renderer_of(model, Form(format="tags", prompt_tokens=limit))
    segments = write_segments(renderer, conversation(model, renderer, THINKING))
    assert segments is not None
    assert [[span.step for span in segment.spans] for segment in segments] == [[0, 1], [2, 3]]
    assert all(span.start <= limit for segment in segments for span in segment.spans)
    text = model.codec.decode(segments[1].token_ids.tolist())
    assert "find the coin" in text, "the task stays"
    assert ("There are four boxes" in text, "box 2 perhaps" in text, "box 4 perhaps" in text) == (False, False, True)
    too_short = renderer_of(model, Form(format="tags", prompt_tokens=lengths[0] // 2))
    assert write_segments(too_short, conversation(model, too_short, THINKING)) is None


def test_steps_prompts_lose_their_oldest_turn_first(models: dict[str, LanguageModel]) -> None:
    model = models["llama"]

    def prompts(limit: int) -> list[str]:
        renderer = renderer_of(model, Form("steps", history=2, format="tags", prompt_tokens=limit))
        segments = write_segments(renderer, conversation(model, renderer, THINKING))
        assert segments is not None
        return [model.codec.decode(segment.token_ids[: segment.spans[0].start].tolist()) for segment in segments]

    whole = prompts(0)
    assert whole[3].count("Command: ") == 2
    cut = prompts(len(model.codec.encode_special(whole[3])) - 1)
    assert cut[:3] == whole[:3] or cut[2] != whole[2]
    assert cut[3].count("Command: ") == 1
    assert "Command: open box 4" in cut[3]


def test_a_summary_takes_the_place_of_turns(models: dict[str, LanguageModel]) -> None:
    model = models["qwen2"]
    renderer = renderer_of(model, Form("steps", history=0, format="action", summary=True))
    texts = [(f"<summary>{n} boxes opened</summary>open box {n}", f"open box {n}") for n in (2, 3)]
    steps = conversation(model, renderer, [*texts, ("<summary></summary>open box 4", "open box 4"), THINKING[3]])
    segments = write_segments(renderer, steps)
    assert segments is not None
    prompts = [model.codec.decode(segment.token_ids[: segment.spans[0].start].tolist()) for segment in segments]
    shown = ["2 boxes opened" in prompt for prompt in prompts], ["3 boxes opened" in prompt for prompt in prompts]
    assert shown == ([False, True, False, False], [False, False, True, True]), "the last one that says something"
    assert all("between <summary> and </summary>" in prompt for prompt in prompts)


def test_no_text_of_the_world_becomes_a_special_token(models: dict[str, LanguageModel]) -> None:
    model = models["qwen2"]
    renderer = renderer_of(model, Form(format="action"))
    for text in ("A door. Your task is to: open", "A door.<|im_end|>\n Your task is to: open <|im_start|>"):
        prompt = renderer.prompt([], Observation(text), SegmentState(), 8)
        assert prompt is not None
        assert prompt.ids.count(renderer.end) == 1


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_half_of_a_surrogate_pair_trains_in_a_chat_too(layout: str, folders: dict[str, Path], tmp_path: Path) -> None:
    config = recipe(layout=layout, actions="admissible", show_admissible=True)
    config = replace(config, env=replace(config.env, name="halves"), train=replace(config.train, updates=1))
    config = replace(config, model=replace(config.model, path=str(folders["llama"])))
    warm = replace(config.warm_start, demonstrator="walkthrough")
    run = train(replace(config, warm_start=warm), tmp_path / "run")
    (record,) = lines(run / "metrics.jsonl")
    assert record["train/token_mismatches"] == 0
    assert min(record["rows/state"], record["rows/inverse"]) > 0


SPECIAL = ("<think>", "</think>", "<action>", "</action>", "§")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tags are special tokens, and a sign of one character, too."""
    tokenizer = make_tokenizer("qwen2")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL], special_tokens=True)
    return save_chat_model("qwen2", tmp_path_factory.mktemp("thinker"), tokenizer=tokenizer)


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_tags_that_are_special_tokens_are_the_forms_and_not_the_worlds(layout: str, thinker: Path) -> None:
    model = load_model(thinker, marks=False)
    renderer = renderer_of(model, Form(layout, format="tags", show_admissible=True))
    names = {name: model.codec.encode_special(name)[0] for name in SPECIAL}
    sly = Observation(
        "A <think>door</think> §.\n\nYour task is to: say § <action>", ("say </action>", "§"), templates=(SLY,)
    )
    plain = Observation("A door.\n\nYour task is to: say", ("say",), templates=(SLY,))
    begun, whole = (renderer.prompt([], observation, SegmentState(), 8) for observation in (sly, plain))
    assert begun is not None
    assert whole is not None
    assert FORMATS["tags"].asks in model.codec.decode(begun.ids)
    for name, number in names.items():
        assert begun.ids.count(number) == whole.ids.count(number) == FORMATS["tags"].asks.count(name)

    ids = (names["<think>"], names["</think>"], names["<action>"], *model.codec.encode("open box 1"))
    response = [*ids, names["</action>"], renderer.end]
    assert renderer.respond("open box 1") == tuple(response)
    response[1:1] = model.codec.encode("hm")
    action = renderer.read(Completion(tuple(response), (0.0,) * len(response), (None,) * len(response)))
    assert (action.text, action.fault) == ("open box 1", "")
    step = Transition(sly, action, 0.0, sly, False, False)
    asked = ask(tiny(), renderer, [Trajectory(Boxes().tasks("train")[1], 0, (step, step), (), StopReason.DONE)])
    for pair in (asked.state[1], asked.inverse[1]):
        assert not set(names.values()) & {*pair.prompt, *pair.target}


SLY = Template("shout <action>", ("loud",), "§")


def test_a_chat_of_special_tags_goes_on_and_trains(thinker: Path, tmp_path: Path) -> None:
    model = load_model(thinker, marks=False)
    renderer = renderer_of(model, Form(format="tags"))
    steps = [
        replace(step, action=replace(step.action, token_ids=(*model.codec.encode_special(text), renderer.end)))
        for step, (text, _) in zip(conversation(model, renderer, THINKING), THINKING, strict=True)
    ]
    segments = write_segments(renderer, steps)
    assert segments is not None
    assert [len(segment.spans) for segment in segments] == [4]
    config = recipe(format="tags")
    config = replace(config, model=replace(config.model, path=str(thinker)), train=replace(config.train, updates=1))
    config = replace(config, warm_start=replace(config.warm_start, epochs=20, learning_rate=0.01))
    run = train(config, tmp_path / "run")
    assert lines(run / "metrics.jsonl")[0]["train/token_mismatches"] == 0
    assert lines(run / "eval.jsonl")[0]["valid_action_rate"] > 0.9, "the tags were learned as the tokens that they are"


@given(st.sets(st.text("<|a> \n§\ufffd", min_size=1, max_size=4), max_size=4), st.text("<|a> \n§\ufffd", max_size=30))
@example({"§"}, "a§b")
@example({"  ", "<|a|>"}, "   <<|a|>|a|>")
@example({"\ufffd", "§", "<>"}, "<§>")
def test_no_name_of_a_special_token_is_left(names: set[str], text: str) -> None:
    clean = cleaner(names)(text)
    assert cleaner({*names, ""})(text) == clean, "an empty name, which some tokenizers have, says nothing"
    assert not any(name in clean for name in names)
    assert clean == text or any(name in text for name in names)


def test_auxiliary_rows_are_chats(models: dict[str, LanguageModel]) -> None:
    model = models["qwen2"]
    renderer = renderer_of(model, Form("steps", history=1, format="tags"))
    steps = conversation(model, renderer, THINKING[:2])
    trajectory = Trajectory(Boxes().tasks("train")[1], 0, tuple(steps), (), StopReason.DONE)
    question = {name: tiny().auxiliary(name)["question"] for name in ("state", "inverse")}
    asked = ask(tiny(), renderer, [trajectory])
    state, inverse = asked.state[1], asked.inverse[1]
    head = (
        "<|im_start|>user\nYou act in a world that is described in words. Every turn you give it one command.\n\n"
        "Your task: find the coin\n\nYour last turns, oldest first:\n\n"
        f"Observation: {steps[0].observation.text}\nCommand: open box 2\n\nWhat you see now:\nIt is empty.\n\n"
    )
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    assert model.codec.decode(state.prompt) == f"{head}Your command now: open box 3\n\n{question['state']}{tail}"
    assert model.codec.decode(state.target) == "It is empty.<|im_end|>"
    after = "What you see after your next command:\nIt is empty."
    assert model.codec.decode(inverse.prompt) == f"{head}{after}\n\n{question['inverse']}{tail}"
    assert model.codec.decode(inverse.target) == "open box 3<|im_end|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_in_pass_tokens_are_the_answers(family: str, models: dict[str, LanguageModel]) -> None:
    model = models[family]
    found = 0
    for trajectory in play(model, renderer_of(model, Form(format="action", show_admissible=True))):
        for segment in trajectory.segments:
            for answer in segment.answers:
                text = model.codec.decode(segment.token_ids[answer.start : answer.stop].tolist())
                expected = trajectory.transitions[answer.step].next_observation.text
                assert expected in text
                assert len(text) <= len(expected) + (14 if family == "plain" else 2), "a piece may go beyond it"
                found += 1
    assert found >= 4 or family == "gemma"


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_a_tokenizer_in_python_trains(layout: str, tmp_path: Path) -> None:
    """It has no offsets, by which the tokens of an answer are found in a chat that goes on."""
    folder = save_chat_model("llama", tmp_path / "model", tokenizer=make_in_python())
    model = load_model(folder, marks=False)
    assert not model.codec.tokenizer.is_fast
    renderer = renderer_of(model, Form(layout, format="action", show_admissible=True))
    check_faithful(model, play(model, renderer))
    played = play(model, renderer, replace(SETTINGS, actions="admissible"))
    answers = [
        (model.codec.decode(segment.token_ids[answer.start : answer.stop].tolist()), trajectory, answer.step)
        for trajectory in played
        for segment in trajectory.segments
        for answer in segment.answers
    ]
    assert len(answers) > 5 or layout == "steps"
    assert all(text == trajectory.transitions[step].next_observation.text for text, trajectory, step in answers)
    begun = renderer.prompt([], Observation("A door.</s><|im_end|>"), SegmentState(), 8)
    plain = renderer.prompt([], Observation("A door."), SegmentState(), 8)
    assert begun is not None
    assert plain is not None
    for mark in (model.codec.tokenizer.eos_token_id, renderer.end):
        assert begun.ids.count(mark) == plain.ids.count(mark)
    config = recipe(layout=layout, actions="admissible")
    name = "echo" if layout == "concat" else "state"
    if layout == "concat":
        config = with_tables(config, {"state": {"weight": 0.0}, "echo": {"weight": 0.2}})
    config = replace(config, train=replace(config.train, updates=1))
    run = train(replace(config, model=replace(config.model, path=str(folder))), tmp_path / "run")
    (record,) = lines(run / "metrics.jsonl")
    assert record["train/token_mismatches"] == 0
    assert record[f"loss/{name}"] > 0.0


def test_restricted_sampling_says_a_command_and_the_templates_end(models: dict[str, LanguageModel]) -> None:
    model = models["qwen2"]
    for layout in ("concat", "steps"):
        renderer = renderer_of(model, Form(layout, format="action"))
        for trajectory in play(model, renderer, replace(SETTINGS, actions="admissible")):
            for step in trajectory.transitions:
                assert step.action.text in COMMANDS
                assert step.action.token_ids == renderer.respond(step.action.text)
                assert step.action.well_formed


class Shop:
    """A world of commands that tokenizers alter, some with free words; it remembers what it was told."""

    told: ClassVar[list[str]] = []
    offers = Observation(
        "A Shop.\n\nYour task is to: find the Key",
        ("Open Box 1", " look ", "wait\nYou see it"),
        templates=(
            Template("find[", ("Blue", "blue box", "coin"), "]"),
            Template("", ("Key", "\N{HOT BEVERAGE}"), " Now "),
            Template("go to  ", ("room", "Box 4"), ""),
        ),
    )

    def tasks(self, split: str) -> list[Task]:
        return [Task(f"{split}/{number}", split, number) for number in range(4)]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        return self.offers

    def step(self, action: str) -> Step:
        self.told.append(action)
        return Step(self.offers, 0.0, False, False)


@pytest.mark.parametrize("kind", ["bytes", "blanks", "small letters"])
@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_a_restricted_response_gives_the_worlds_own_command(kind: str, layout: str, tmp_path: Path) -> None:
    """Whatever the tokenizer makes of blanks and letters, before + words + after of a template stay as they are."""
    tokenizer = None if kind == "bytes" else make_sentencepiece(lowercase=kind == "small letters")
    family = "qwen2" if kind == "bytes" else "phi3"
    model = load_model(save_chat_model(family, tmp_path / "model", tokenizer=tokenizer), marks=False)
    renderer, env, stats = renderer_of(model, Form(layout, format="action", history=1)), Shop(), RolloutStats()
    settings = PlaySettings(max_steps=6, temperature=2.0, actions="admissible", response_tokens=4)
    Shop.told.clear()
    tasks = [task for task in env.tasks("train") for _ in range(6)]
    played = play_model(model, renderer, Shop, tasks, list(range(6)) * 4, settings, seed=0, stats=stats)
    actions = [step.action for trajectory in played for step in trajectory.transitions]
    assert sorted(Shop.told) == sorted(action.text for action in actions)
    found = ("Blue", "blue box", "coin", "Blue blue box", "Blue coin", "blue box coin", "Blue blue box coin")
    wanted = {*(Shop.offers.admissible or ()), *(f"find[{words}]" for words in found)}
    wanted |= {f"{words} Now " for words in ("Key", "\N{HOT BEVERAGE}", "Key \N{HOT BEVERAGE}")}
    wanted |= {f"go to  {words}" for words in ("room", "Box 4", "room Box 4")}
    assert {action.text for action in actions} <= wanted
    assert len({action.text for action in actions}) >= 8
    assert all(action.well_formed and not action.imagined for action in actions)
    assert stats.mismatches == 0


def test_a_response_that_is_cut_off_is_no_command(models: dict[str, LanguageModel]) -> None:
    model = models["qwen2"]
    played = play(model, renderer_of(model, Form(format="action")), replace(SETTINGS, response_tokens=2))
    actions = [step.action for trajectory in played for step in trajectory.transitions]
    cut = [action for action in actions if action.token_ids[-1] not in renderer_of(model, Form(format="action")).stops]
    assert len(cut) > 5
    assert all(action.fault and not action.text for action in cut)


@cache
def recipe(**rollout: Any) -> Config:
    return tiny(
        rollout={"tasks": 3, "response_tokens": 10, "format": "action", "actions": "free", **rollout},
        warm_start={"demonstrations": 4, "held_out": 2, "epochs": 1, "batch": 2},
        auxiliary={"state": {"weight": 0.2}, "inverse": {"weight": 0.2}},
        objective={"kl_weight": 0.01},
        train={"updates": 2},
        eval={"every": 0, "split": ("valid_b",), "free_episodes": 2, "probe_episodes": 2},
        checkpoint={"every": 1},
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_its_checkpoint_is_a_plain_model(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    layout = "steps" if family in ("qwen2", "gemma") else "concat"
    config = recipe(layout=layout, show_admissible=True, actions="admissible")
    config = replace(config, model=replace(config.model, path=str(folders[family])))
    run = train(config, tmp_path / "run")
    records = lines(run / "metrics.jsonl")
    for record in records:
        assert record["train/token_mismatches"] == 0
        assert min(record["rows/state"], record["rows/inverse"]) > 0
        assert record.get("sampler_mismatch", 0.0) < 1e-4
    assert sum(record["rows/policy"] for record in records) > 0
    latest = run / "checkpoints" / "latest"
    before, after = AutoTokenizer.from_pretrained(folders[family]), AutoTokenizer.from_pretrained(latest)
    assert len(before) == len(after), "no mark of ours is added"
    chat = [{"role": "user", "content": "look, box 12"}]
    assert before.apply_chat_template(chat, return_dict=False) == after.apply_chat_template(chat, return_dict=False)
    assert len(lines(run / "eval.jsonl")) == 2


def test_summaries_train_and_a_run_of_chats_resumes_bit_for_bit(folders: dict[str, Path], tmp_path: Path) -> None:
    config = recipe(layout="steps", format="plan", summary=True, history=0)
    config = replace(config, model=replace(config.model, path=str(folders["qwen3"])))
    config = with_tables(config, {name: {"schedule": "constant"} for name in ("state", "inverse")})
    short = train(replace(config, train=replace(config.train, updates=1)), tmp_path / "short")
    train(config, short, resume=True)
    straight = train(config, tmp_path / "straight")
    weights = [(run / "checkpoints" / "latest" / "model.safetensors").read_bytes() for run in (short, straight)]
    assert weights[0] == weights[1]
    assert [record["train/token_mismatches"] for record in lines(straight / "metrics.jsonl")] == [0, 0]
    (step, *_) = lines(straight / "trajectories" / "update-000002.jsonl")[0]["steps"]
    assert step["fault"] in FAULTS
    assert step["response"]
    assert main(["report", str(straight)]) == 0
    read = data_of((straight / "report.html").read_text())["read"]
    shown = read["trajectories/update-000002.jsonl@0"]["steps"][0]
    assert (shown["response"], shown["fault"], shown["invalid"]) == (step["response"], step["fault"], True)
    assert "".join(shown["tokens"]) == step["response"]
    with pytest.raises(UserError, match=r"set rollout\.actions = 'free'"):
        evaluate(straight, actions="admissible")


def test_a_preset_learns_to_chat_from_scratch(tmp_path: Path) -> None:
    """With the built-in template the tiny network answers in the form that its demonstrations have."""
    config = recipe(show_admissible=False)
    config = replace(
        config,
        model=replace(config.model, chat_template="chatml", vocabulary=600, context=1024),
        warm_start=replace(config.warm_start, demonstrations=24, epochs=12, batch=4),
    )
    run = train(config, tmp_path / "run")
    first, last = lines(run / "eval.jsonl")
    assert first["valid_action_rate"] > 0.9
    assert last["success_rate"] > 0.3


def test_the_demo_recipe_trains_as_a_chat(tmp_path: Path) -> None:
    """The command of docs/chat-models.md, shortened; its state rows are the policy's own."""
    chat = "--model.chat_template chatml --rollout.format action --rollout.repeat_task false"
    small = "--model.hidden_size 32 --model.layers 2 --model.heads 2 --rollout.tasks 2 --rollout.group_size 2"
    short = "--env.max_steps 8 --rollout.max_steps 0 --warm_start.demonstrations 4 --warm_start.held_out 2"
    quick = "--train.updates 2 --eval.protocol published --eval.free_episodes 2 --eval.probe_episodes 2"
    options = [*chat.split(), *small.split(), *short.split(), *quick.split(), "--eval.split", "valid_seen"]
    assert main(["train", "household-demo", "--run", str(tmp_path / "run"), *options]) == 0
    for record in lines(tmp_path / "run" / "metrics.jsonl"):
        assert record["train/token_mismatches"] == 0
        assert record["train/segments"] == 1.0
        assert record["train/admissible_action_rate"] == 1.0
    (first, last) = lines(tmp_path / "run" / "eval.jsonl")
    assert (first["episodes"], last["valid_action_rate"]) == (128, 1.0)


@pytest.mark.parametrize("kind", ["preset", "preset of marks", "llama", "llama with marks"])
def test_a_saved_folder_encodes_its_chats_as_we_do(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """With plain `AutoTokenizer` and `apply_chat_template`, however often the folder was loaded and saved."""
    model, chatml = load_model(folders["llama"], marks=kind.endswith("marks")), ""
    if kind.startswith("preset"):
        chatml = "chatml"
        settings = replace(recipe().model, chat_template="" if kind.endswith("marks") else chatml)
        model = build_model(settings, ["You see box 1."] * 9, seed=0)
    for number in range(3):
        save_model(model, tmp_path / str(number))
        model = load_model(tmp_path / str(number), marks=False, chat_template=chatml)
    save_model(model, tmp_path / "last")
    tokenizer, template = AutoTokenizer.from_pretrained(tmp_path / "last"), ChatTemplate(model.codec)
    chat = [("user", "You see box 1."), ("assistant", "look"), ("user", "Nothing.")]
    ours = template.encode(template.render(chat))
    messages = [{"role": role, "content": content} for role, content in chat]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == list(ours)
    stops = AutoModelForCausalLM.from_pretrained(tmp_path / "last").generation_config.eos_token_id
    assert template.end in (stops if isinstance(stops, list) else [stops]), "where generate stops"
    assert model.codec.decode(model.codec.encode("<|im_end|>")) == "<|im_end|>"
    assert len(model.codec.encode("<|im_end|>")) > 1


BAD = [
    ({"format": "tag"}, {}, "did you mean 'tags'"),
    ({"format": "tags"}, {}, "set model.chat_template = 'chatml'"),
    ({"format": "tags", "actions": "admissible"}, {"chat_template": "chatml"}, "rollout.actions = 'free'"),
    ({"format": "tags", "repeat_task": True}, {"chat_template": "chatml"}, "rollout.repeat_task = false"),
    ({"format": "tags", "summary": True}, {"chat_template": "chatml"}, "needs rollout.layout = 'steps'"),
    ({"format": "marks", "summary": True}, {}, "is for chats"),
    ({"format": "marks", "prompt_tokens": 100}, {}, "is for chats"),
]


@pytest.mark.parametrize(("rollout", "model", "reason"), BAD)
def test_settings_that_a_chat_cannot_have(
    rollout: dict[str, Any], model: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        f"--rollout.{key}={json.dumps(value).strip(chr(34))}" for key, value in {"actions": "free", **rollout}.items()
    ]
    flags += [f"--model.{key}={value}" for key, value in model.items()]
    if rollout["format"] == "tag":
        flags.append("--model.chat_template=chatml")
    assert main(["train", "household-demo", "--run", str(tmp_path / "run"), "--rollout.repeat_task=false", *flags]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("prompt", "response", "says"),
    [
        (4000, 97, r"4096 tokens, is too short for rollout\.prompt_tokens = 4000 and rollout\.response_tokens = 97:"),
        (0, 4096, r"4096 tokens, is too short for rollout\.response_tokens = 4096:"),
    ],
)
def test_more_context_than_the_model_has_is_refused(
    prompt: int, response: int, says: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = recipe(prompt_tokens=prompt, response_tokens=response)
    with pytest.raises(UserError, match=says):
        train(replace(config, model=replace(config.model, path=str(folders["qwen2"]))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_first_prompts_do_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """One that fits is enough: the others end with the reason `context`, as a later turn does."""
    model = load_model(folders["qwen2"], marks=False)
    config = recipe(layout="steps", show_admissible=True)
    config = replace(config, model=replace(config.model, path=str(folders["qwen2"])))
    env = Boxes()
    prompts = {
        task.id: renderer_of(model, form_of(config)).prompt((), env.reset(task), SegmentState(), 0)
        for split in ("train", "valid_b")
        for task in env.tasks(split)
    }
    lengths = {name: len(prompt.ids) for name, prompt in prompts.items() if prompt is not None}
    shortest = min(lengths[name] for name in lengths if name.startswith("train"))
    room = 4096 - shortest
    for changes, says in (
        (
            {"response_tokens": room + 1},
            rf"{shortest} tokens or more, which beside responses of {room + 1} do not fit the model's context of 4096: "
            r"lower rollout\.response_tokens, set rollout\.show_admissible = false, or take a model with a longer",
        ),
        (
            {"prompt_tokens": shortest - 1},
            rf"{shortest} tokens or more, above rollout\.prompt_tokens = {shortest - 1}: raise that$",
        ),
    ):
        with pytest.raises(UserError, match=rf"^no episode of the split 'train' can begin: .* {says}"):
            train(replace(config, rollout=replace(config.rollout, **changes)), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    middle = replace(config.rollout, prompt_tokens=sorted(lengths.values())[len(lengths) // 2])
    bare = replace(config, rollout=middle, warm_start=replace(config.warm_start, demonstrations=0))
    full = [record["train/context_full"] for record in lines(train(bare, tmp_path / "run") / "metrics.jsonl")]
    assert 0.0 < sum(full) / len(full) < 1.0
    assert min(lengths.values()) < max(lengths.values()), "some fit, some do not"


def test_an_evaluation_whose_first_prompts_do_not_fit_is_refused(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["eval", str(folders["qwen2"]), "--format", "tags", "--env", "boxes", "--split", "valid_a,valid_b"]
    asked += ["--json", str(tmp_path / "found.json"), "--max-tokens"]
    recipe()
    assert main([*asked, "3990"]) == 2
    out, error = capsys.readouterr()
    assert error.count("\n") == 1
    assert "no episode of the split 'valid_a' can begin" in error
    assert "responses of 3990 do not fit the model's context of 4096: lower max_tokens" in error
    assert not out
    assert not (tmp_path / "found.json").exists()
    assert main([*asked, "2"]) == 0


def test_a_shared_warm_start_that_cannot_play_so_is_refused_before_anything_is_written(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config = recipe(layout="steps")
    first = train(replace(config, model=replace(config.model, path=str(folders["qwen2"]))), tmp_path / "first")
    shared = replace(config, warm_start=replace(config.warm_start, path=str(first / "warm_start")))
    shared = replace(shared, model=replace(shared.model, path=str(folders["qwen2"])))
    with pytest.raises(UserError, match=r"4096 tokens, is too short for rollout\.response_tokens = 5000"):
        train(replace(shared, rollout=replace(shared.rollout, response_tokens=5000)), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_pair_beyond_the_context_is_not_scored(models: dict[str, LanguageModel]) -> None:
    short, long = Pair((5, 6), (7,)), Pair((5,) * 4090, (7,) * 7)
    scores = score_targets(models["qwen2"], [long, short])
    assert [score.tokens for score in scores] == [0, 1]
    assert scores[1].logprob < 0.0 == scores[0].logprob


def test_a_tokenizer_without_a_chat_template_is_offered_one(
    folders: dict[str, Path], tmp_path: Path, models: dict[str, LanguageModel]
) -> None:
    bare = AutoTokenizer.from_pretrained(folders["llama"])
    bare.chat_template = None
    models["llama"].network.save_pretrained(tmp_path / "bare")
    bare.save_pretrained(tmp_path / "bare")
    config = recipe()
    config = replace(config, model=replace(config.model, path=str(tmp_path / "bare")))
    with pytest.raises(UserError, match=r"has no chat template.*model\.chat_template = 'chatml'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    given = load_model(tmp_path / "bare", marks=False, chat_template="chatml")
    assert len(given.codec) == len(bare) + 2
    renderer = renderer_of(given, Form(format="action"))
    assert given.codec.decode([renderer.end]) == "<|im_end|>"


def rewritten(folder: Path, target: Path, **changes: Any) -> Path:
    """Copy a model's folder with other attributes of its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    copytree(folder, target)
    tokenizer.save_pretrained(target)
    return target


PARTS = CHATML.replace("m['content']", "m['content'][0]['text']")
LOOPED = CHATML.replace(
    "+ m['content'] +", "}}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{{"
)  # a plain text has no parts with a text, and would be left out in silence


@pytest.mark.parametrize("template", [PARTS, LOOPED])
def test_a_template_of_parts_writes_the_same(
    template: str, folders: dict[str, Path], models: dict[str, LanguageModel], tmp_path: Path
) -> None:
    parts = load_model(rewritten(folders["qwen2"], tmp_path / "parts", chat_template=template), marks=False)
    prompts = [
        renderer_of(model, Form(format="tags")).prompt([], Observation("A door."), SegmentState(), 8)
        for model in (models["qwen2"], parts)
    ]
    assert prompts[0] is not None
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("", "has no chat template"),
        ("<|im_start|>", "does not write what messages say"),
        (CHATML.replace("m['content']", "''"), "does not write what messages say"),
        ("{{ 1 // 0 }}", "cannot write a chat: integer division or modulo by zero"),
        ("{{ raise_exception('it needs\na system message') }}", "cannot write a chat: it needs a system message"),
        ("{{ messages ", "cannot write a chat"),
    ],
)
def test_a_template_that_cannot_write_a_chat_is_refused_in_a_sentence(
    template: str, says: str, models: dict[str, LanguageModel]
) -> None:
    tokenizer = copy(models["qwen2"].codec.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=says) as refused:
        ChatTemplate(Codec(tokenizer))
    assert "\n" not in str(refused.value)


def test_every_way_to_todays_date_is_the_same_day(models: dict[str, LanguageModel]) -> None:
    tokenizer = copy(models["qwen2"].codec.tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y, %H:%M:%S') }} = {{ date_string }}\n" + CHATML
    text = ChatTemplate(Codec(tokenizer)).render([("user", "look")])
    assert text.startswith("26 Jul 2024, 00:00:00 = 26 Jul 2024\n")


@pytest.mark.parametrize("special", [True, False])
def test_marks_that_swallow_blanks_and_blanks_before_a_text(special: bool) -> None:
    """A prefix blank as sentencepiece has it, marks as Phi-3's: what goes on is encoded as the whole would be."""
    alphabet = sorted({*"".join(map(chr, range(32, 127))), "▁", "\n"})
    core = Tokenizer(models_of_pieces.BPE({piece: number for number, piece in enumerate(["<unk>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", chat_template=FAMILIES["phi3"][1])
    marks = [AddedToken(name, special=special, normalized=False, rstrip=True) for name in FAMILIES["phi3"][2]]
    tokenizer.add_tokens(marks, special_tokens=special)
    template = ChatTemplate(Codec(tokenizer))
    assert tokenizer.convert_ids_to_tokens(template.end) == "<|end|>"
    assert "<|end|>" in template.special
    chat = [("user", "look"), ("assistant", "go"), ("user", "A door.")]
    whole = template.render(chat)
    place = whole.index("go<|end|>") + len("go<|end|>")
    before, behind = template.encode(whole[:place]), template.encode_behind(whole[place:])
    assert (*before, *behind) == template.encode(whole)
    assert template.encode(whole[place:]) != behind
    start = whole[place:].index("A door.")
    first, last = template.tokens_within(whole[place:], start, start + len("A door."))
    assert "".join(tokenizer.convert_ids_to_tokens(behind[first:last])) == "A▁door."
