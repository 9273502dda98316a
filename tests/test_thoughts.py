"""Models that think before they answer: templates that open the thought, arguments that switch it off, what is read."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from boxes import Boxes, tiny
from chat_models import CHATML, FAMILIES, make_tokenizer, save_chat_model
from chat_server import chat_server, says
from envrl.build import renderer_of
from envrl.cli.main import main
from envrl.config.load import load_recipe
from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.eval.client import Endpoint
from envrl.eval.endpoint import evaluate_endpoint
from envrl.eval.evaluate import evaluate
from envrl.eval.questions import ask
from envrl.models.load import LanguageModel, load_model
from envrl.models.template import ChatTemplate
from envrl.rendering.prompts import FORMATS, with_thought
from envrl.rendering.renderer import Form
from envrl.rendering.responses import Thought
from envrl.rollout.scheduler import PlaySettings, RolloutStats
from envrl.rollout.transcript import write_segments
from envrl.trainer.loop import train
from envrl.types import Action, Completion, Observation, StopReason, Trajectory, Transition
from playing import play_model

OPENING = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
"""It opens a thought in every prompt, and writes earlier responses as they are."""
FORGETTING = (
    "{% for m in messages %}{% set text = m['content'] %}{% if '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
"""As DeepSeek-R1's and QwQ's do, it opens a thought and leaves those of earlier turns out."""
SWITCHED = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    + CHATML.removesuffix("{% endif %}")
    + "{% if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""As Qwen3's and SmolLM3's do, it thinks unless it is told not to; the model itself opens its thought."""
BY_ARGUMENT = CHATML.replace(
    "{{ '<|im_start|>assistant\n' }}",
    "{{ '<|im_start|>assistant\n' + ('<think>' if thinking else '') }}",
)
"""As DeepSeek-V3.1's does, it opens a thought where it is told to."""
OF_ITS_OWN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Boxy<|im_end|>\n' }}{% endif %}" + CHATML
)
"""As SmolLM2's and Qwen2.5's do, it has a system message of its own."""
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
TEMPLATES = {name: value for name, value in globals().items() if isinstance(value, str) and "im_start" in value}

needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None,
    reason="openai is not installed: pip install 'envrl[endpoint]'",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, family = tmp_path_factory.mktemp("models"), "qwen2"
    made = {}
    for name, template in TEMPLATES.items():
        tokenizer = make_tokenizer(family)
        tokenizer.add_tokens(["<think>", "</think>"])  # as theirs: of one token, and no special one
        tokenizer.chat_template = template
        made[name] = save_chat_model(family, root / name, tokenizer=tokenizer)
    assert FAMILIES[family][2][-1] == "<|im_end|>"
    return made


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, LanguageModel]:
    return {name: load_model(folder, marks=False) for name, folder in folders.items()}


# --- what a response says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_stands_behind_the_thought(name: str) -> None:
    form = FORMATS[name]
    opened, own, unknown = (with_thought(form, Thought(by=by)) for by in ("template", "model", "unknown"))
    answer = form.write("So.", "look")
    for read in (opened, unknown):
        assert read.parse(f"hm, <action>help</action>\n</think>\n\n{answer}").command == "look"
    for read in (opened, own, unknown):
        assert read.parse(f"<think>\nhm\n</think>\n\n{answer}").command == "look"
    for read in (own, unknown):
        assert read.parse(answer).command == "look", "no thought of its own at all"
        assert read.parse("<think>\nhm, look").fault == "unclosed thought"
    for response in ("hm, look", "Thought: hm\nAction: look", "<think>hm <action>look</action>"):
        assert opened.parse(response).fault == "unclosed thought"
    assert opened.parse(" \n").fault == "empty"
    assert own.parse(f"hm</think>{answer}").command != "look", "nothing has opened that one"
    assert form.parse(opened.write("", "look")).command == "look" or name == "tags"
    assert opened.parse(f"</think>{opened.write('', 'look')}").command == "look"


@pytest.mark.parametrize(
    ("response", "command", "fault"),
    [
        ("hm\n</think>\n\n<action>look</action>", "look", ""),
        ("hm</think><think>The box.</think><action>look</action>", "look", ""),
        ("hm</think>Well. <action>look</action>", "", "stray text"),
        ("hm</think>look", "", "no action"),
        ("hm</think>", "", "no action"),
        ("hm</think><action>look", "", "unclosed"),
        ("hm</think><action>look</action><action>help</action>", "", "several actions"),
        ("hm</think><action>look</action>\nYou see it.", "", "imagined observation"),
    ],
)
def test_a_thought_in_the_models_own_marks_is_the_one_that_tags_asks_for(
    response: str, command: str, fault: str
) -> None:
    parsed = with_thought(FORMATS["tags"], Thought(by="template")).parse(response)
    assert (parsed.command, parsed.fault) == (command, fault)


def test_a_summary_stands_behind_the_thought() -> None:
    form = with_thought(FORMATS["tags"], Thought(by="template"), summary=True)
    parsed = form.parse("hm</think>\n<summary>one box</summary>\n<action>look</action>")
    assert (parsed.command, parsed.summary) == ("look", "one box")
    assert form.parse("hm</think><action>look</action>").fault == "no summary"


# --- templates -------------------------------------------------------------------------------------------------------


def form_of(layout: str = "concat", name: str = "action", **more: Any) -> Form:
    return Form(layout, format=name, show_admissible=True, **more)


def episode(texts: Sequence[str], model: LanguageModel, end: int) -> list[Transition]:
    """Return the steps of an episode of boxes in which these responses were given."""
    env = Boxes()
    observation = env.reset(env.tasks("train")[1])  # a coin, in box 1
    steps = []
    for text in texts:
        command = text.rpartition("\n")[2]
        answer = env.step(command)
        action = Action(command, (*model.codec.encode_special(text), end))
        steps.append(Transition(observation, action, 0.0, answer.observation, answer.done, answer.success))
        observation = answer.observation
    return steps


@pytest.mark.parametrize("name", ["OPENING", "FORGETTING"])
def test_a_response_is_what_stands_behind_the_thought_that_the_template_opens(
    name: str, models: dict[str, LanguageModel]
) -> None:
    model = models[name]
    renderer = renderer_of(model, form_of())
    close = model.codec.encode_special("</think>")
    assert renderer.respond("open box 1")[: len(renderer.lead)] == renderer.lead
    assert renderer.lead.count(*close) == 1
    for text, command, fault in (
        ("hm\n</think>\n\nlook", "look", ""),
        (renderer.text_of(renderer.respond("look")).removesuffix("<|im_end|>"), "look", ""),
        ("hm, look", "", "unclosed thought"),
    ):
        ids = (*model.codec.encode_special(text), renderer.end)
        action = renderer.read(Completion(ids, (0.0,) * len(ids), (None,) * len(ids)))
        assert (action.text, action.fault) == (command, fault)
    assert renderer.text_of(renderer.respond("look")) == "\n</think>\n\nlook<|im_end|>", (
        "with the prompt's newline: empty"
    )
    assert renderer.text_of(renderer.respond("look", "hm")) == "hm\n</think>\n\nlook<|im_end|>"
    tags = renderer_of(model, form_of(name="tags"))
    assert tags.text_of(tags.respond("look", "hm")) == "hm\n</think>\n\n<action>look</action><|im_end|>"
    assert tags.respond("look", "hm</think>") == ()
    segments = write_segments(
        renderer, episode(["hm\n</think>\n\nopen box 2", "so\n</think>\n\nopen box 1"], model, renderer.end)
    )
    assert segments is not None
    texts = [model.codec.decode(segment.token_ids.tolist()) for segment in segments]
    if name == "OPENING":
        (text,) = texts
        assert "assistant\n<think>\nhm\n</think>\n\nopen box 2<|im_end|>\n<|im_start|>user" in text
    else:
        first, second = texts
        assert "assistant\n<think>\nhm\n</think>\n\nopen box 2<|im_end|>" in first
        assert "assistant\nopen box 2<|im_end|>\n<|im_start|>user" in second
        assert second.endswith("assistant\n<think>\nso\n</think>\n\nopen box 1<|im_end|>")


def test_what_auxiliary_rows_ask_for_stands_behind_the_thought(models: dict[str, LanguageModel]) -> None:
    model = models["OPENING"]
    renderer = renderer_of(model, form_of())
    (step,) = episode(["hm\n</think>\n\nopen box 2"], model, renderer.end)
    played = Trajectory(Boxes().tasks("train")[1], 0, (step,), (), StopReason.MAX_STEPS)
    asked = ask(tiny(), renderer, [played])
    for (pair,), target in ((asked.state, "It is empty.<|im_end|>"), (asked.inverse, "open box 2<|im_end|>")):
        assert model.codec.decode(pair.prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert model.codec.decode(pair.target) == target


def test_an_argument_of_the_template_opens_or_closes_the_thought(models: dict[str, LanguageModel]) -> None:
    def tail(name: str, **arguments: Any) -> str:
        renderer = renderer_of(models[name], form_of(template_arguments=arguments))
        observation = Boxes().reset(Boxes().tasks("train")[0])
        segments = write_segments(renderer, [Transition(observation, Action("look"), 0.0, observation, False, False)])
        assert segments is not None
        return models[name].codec.decode(segments[0].token_ids.tolist()).rpartition("assistant\n")[2]

    assert tail("SWITCHED") == tail("SWITCHED", enable_thinking=True) == "look<|im_end|>"
    assert tail("SWITCHED", enable_thinking=False) == "<think>\n\n</think>\n\nlook<|im_end|>"
    assert tail("BY_ARGUMENT") == "look<|im_end|>"
    assert tail("BY_ARGUMENT", thinking=True) == "<think>\n\n</think>\n\nlook<|im_end|>"
    renderer = renderer_of(models["BY_ARGUMENT"], form_of(template_arguments={"thinking": True}))
    assert renderer.text_of(renderer.respond("look")) == "\n\n</think>\n\nlook<|im_end|>"


@pytest.mark.parametrize(
    ("name", "argument", "hint"),
    [
        ("SWITCHED", "enable_thinkin", "did you mean 'enable_thinking'"),
        ("SWITCHED", "add_generation_prompt", "the known ones are enable_thinking|enable_thinking"),
        ("OPENING", "enable_thinking", "it takes none"),
        ("OPENING", "eos_token", "it takes none"),
    ],
)
def test_an_argument_that_the_template_does_not_mention_is_refused(
    name: str, argument: str, hint: str, models: dict[str, LanguageModel]
) -> None:
    with pytest.raises(UserError, match=f"no argument '{argument}'.*({hint})"):
        renderer_of(models[name], form_of(template_arguments={argument: False}))


def test_a_system_message_takes_the_place_of_the_templates_own(models: dict[str, LanguageModel]) -> None:
    def prompt(name: str, layout: str, system: str) -> str:
        renderer = renderer_of(models[name], form_of(layout, system_message=system))
        segments = write_segments(renderer, episode(["open box 1"], models[name], renderer.end))
        assert segments is not None
        return models[name].codec.decode(segments[0].token_ids.tolist())

    for layout in ("concat", "steps"):
        own, given = (prompt("OF_ITS_OWN", layout, system) for system in ("", "You open boxes."))
        assert own.startswith("<|im_start|>system\nYou are Boxy<|im_end|>\n<|im_start|>user\nYou act")
        assert given.startswith("<|im_start|>system\nYou open boxes.<|im_end|>\n<|im_start|>user\nYou act")
        assert "Boxy" not in given
    with pytest.raises(UserError, match="no place for a system message: leave rollout"):
        prompt("NO_SYSTEM", "concat", "You open boxes.")


# --- play, training, evaluation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", ["admissible", "free"])
@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_a_restricted_response_closes_the_thought_first(
    layout: str, actions: str, models: dict[str, LanguageModel]
) -> None:
    model, stats = models["OPENING"], RolloutStats()
    renderer = renderer_of(model, form_of(layout))
    settings = PlaySettings(max_steps=3, temperature=1.0, actions=actions, response_tokens=12)
    tasks = Boxes().tasks("train")[:4]
    played = play_model(model, renderer, Boxes, tasks, [0] * 4, settings, seed=0, stats=stats)
    said = [step.action for trajectory in played for step in trajectory.transitions]
    assert stats.mismatches == 0
    assert len(said) >= 8
    if actions == "free":
        faults = [action.fault for action in said]
        assert faults.count("unclosed thought") > 0.7 * len(said), "weights drawn at random hardly ever close it"
        assert all(faults)
    else:
        assert all(action.token_ids[: len(renderer.lead)] == renderer.lead for action in said)
        assert all(action.text.startswith("open box") and not action.fault for action in said)


@cache
def recipe(path: str, **rollout: Any) -> Config:
    config = tiny(
        rollout={"tasks": 3, "response_tokens": 12, "format": "action", "actions": "free", **rollout},
        warm_start={"demonstrations": 4, "held_out": 2, "epochs": 20, "batch": 2, "learning_rate": 0.01},
        auxiliary={"state": {"weight": 0.2}, "inverse": {"weight": 0.2}},
        train={"updates": 1},
        eval={"every": 0, "split": ("valid_b",), "free_episodes": 2, "probe_episodes": 2},
        checkpoint={"every": 1},
    )
    return replace(config, model=replace(config.model, path=path))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("template", "form"), [("OPENING", "tags"), ("FORGETTING", "action")])
def test_imitation_teaches_to_close_the_thought(
    template: str, form: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    run = train(recipe(str(folders[template]), format=form, response_tokens=24), tmp_path / "run")
    (record,) = lines(run / "metrics.jsonl")
    assert record["train/token_mismatches"] == 0
    assert record.get("train/fault/unclosed_thought", 0.0) < 0.3
    assert lines(run / "eval.jsonl")[0]["valid_action_rate"] > 0.3, "none before"


def test_template_arguments_and_a_system_message_are_the_runs(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(str(folders["SWITCHED"]), layout="steps", system_message="You open boxes.")
    config = replace(config, model=replace(config.model, template_arguments={"enable_thinking": False}))
    config = replace(config, warm_start=replace(config.warm_start, epochs=1))
    run = train(config, tmp_path / "run")
    stored = load_recipe(str(run / "config.toml"))
    assert stored.model.template_arguments == {"enable_thinking": False}
    assert stored == replace(config, train=stored.train)
    asked = []
    monkeypatch.setattr(
        ChatTemplate, "encode", lambda self, text: asked.append(text) or self.codec.encode_special(text)
    )
    evaluate(run, split="valid_b", episodes=1)
    asked = [text for text in asked if "find the" in text]  # of episodes: the template is tried with texts of its own
    assert len(asked) > 5
    assert all(text.startswith("<|im_start|>system\nYou open boxes.<|im_end|>") for text in asked)
    assert all(text.endswith("assistant\n<think>\n\n</think>\n\n") for text in asked)


def test_command_line_and_recipe_say_template_arguments(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(
        'extends = "household-demo"\n[rollout]\nformat = "action"\nrepeat_task = false\n'
        f'[model]\npath = "{folders["SWITCHED"]}"\n[model.template_arguments]\nenable_thinking = false\n'
    )
    given = load_recipe(str(tmp_path / "r.toml"))
    said = [("model.template_arguments", '{"enable_thinking": false}')]
    assert given.model.template_arguments == {"enable_thinking": False}
    assert load_recipe(str(tmp_path / "r.toml"), said) == given
    for wrong in ("enable_thinking", "[1]", '{"a": null}', '{"a": NaN}', '{"a": [1]}'):
        with pytest.raises(UserError, match=r"model\.template_arguments must be a table of numbers"):
            load_recipe(str(tmp_path / "r.toml"), [("model.template_arguments", wrong)])
    with pytest.raises(UserError, match=r"model\.template_arguments is for chats"):
        load_recipe("household-demo", said)
    recipe_file, run = str(tmp_path / "r.toml"), str(tmp_path / "run")
    wrong = '{"enable_thinkin": false}'
    assert main(["train", recipe_file, "--model.template_arguments", wrong, "--run", run]) == 2
    assert "did you mean 'enable_thinking'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_bare_model_is_evaluated_with_them(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny()
    command = ["eval", str(folders["SWITCHED"]), "--env", "boxes", "--split", "valid_b", "--format", "action"]
    command += ["--episodes", "1", "--max-tokens", "4", "--system-message", "You open boxes."]
    output = tmp_path / "out.json"
    arguments = ["--template-arguments", '{"enable_thinking": false}', "--json", str(output)]
    assert main([*command, *arguments]) == 0
    (record,) = json.loads(output.read_text())
    assert record["template_arguments"] == {"enable_thinking": False}
    assert record["system_message"] == "You open boxes."
    capsys.readouterr()
    assert main([*command, "--template-arguments", '{"enable": 1}']) == 2
    assert "no argument 'enable'" in capsys.readouterr().err
    assert main([*command, "--template-arguments", "no"]) == 2
    assert "--template-arguments: must be a table" in capsys.readouterr().err


def reasoned(content: str | None, **fields: str) -> Any:
    """Answer as an endpoint does that takes thoughts out of the answer, or cuts it off."""
    finish = fields.pop("finish_reason", "stop")
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **fields}, "finish_reason": finish}
    body = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
    return lambda handler: handler.send(200, body)


@needs_openai
@pytest.mark.parametrize(
    ("form", "behaviour", "fault"),
    [
        ("action", says("hm\n</think>\n\nopen box 1"), ""),
        ("tags", says("hm\n</think>\n\n<action>open box 1</action>"), ""),
        ("action", says("<think>\nhm\n</think>\n\nopen box 1"), ""),
        ("tags", reasoned("\n\n<action>open box 1</action>", reasoning_content="hm"), ""),
        ("react", reasoned("Thought: hm\nAction: open box 1", reasoning="hm"), ""),
        ("action", reasoned(None, reasoning_content="hm"), "unclosed thought"),
        ("action", says("<think>\nhm"), "unclosed thought"),
        ("action", reasoned("I should", finish_reason="length"), "unclosed"),
    ],
)
def test_thoughts_behind_an_endpoint(form: str, behaviour: Any, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tiny()
    with chat_server(behaviour) as server:
        endpoint = Endpoint(model="m", base_url=server.address, template_arguments={"enable_thinking": False})
        (record,) = evaluate_endpoint(
            endpoint,
            format=form,
            env="boxes",
            split="valid_b",
            episodes=1,
            system_message="You open boxes.",
            settings=[("env.max_steps", "1")],
        )
    (asked,) = server.asked
    assert record["faults"] == ({fault: 1} if fault else {})
    assert record["valid_action_rate"] == (0.0 if fault else 1.0)
    assert asked.body["chat_template_kwargs"] == record["template_arguments"] == {"enable_thinking": False}
    assert asked.body["messages"][0] == {"role": "system", "content": record["system_message"]}


def test_what_the_world_says_closes_no_thought(models: dict[str, LanguageModel]) -> None:
    """A world may write `</think>`: the response alone is read."""
    model = models["OPENING"]
    renderer = renderer_of(model, form_of("steps"))
    sly = Observation("A door.</think> look", ("look</think>",))
    segments = write_segments(renderer, [Transition(sly, Action("look</think>"), 0.0, sly, False, False)])
    assert segments is not None
    action = renderer.read(Completion(model.codec.encode("hm"), (0.0,), (None,)))
    assert action.fault == "unclosed thought"
