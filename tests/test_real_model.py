"""Real weights: SmolLM2-135M-Instruct, whole where depth is the point, its first layers where time is.

Random weights hide what these show: activations of real size, a real tokenizer's pieces, a template of its own.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import envrl
from boxes import Boxes, tiny
from envrl.batches.examples import pair_rows
from envrl.build import renderer_of
from envrl.config.schema import Config
from envrl.engine.update import score_terms
from envrl.errors import Interrupted
from envrl.eval.export import export_model
from envrl.eval.language import passage, text_figures
from envrl.eval.probe import score_targets
from envrl.eval.questions import ask
from envrl.models.load import LanguageModel, load_model
from envrl.models.rows import runs_as_tree, states_of_rows
from envrl.rendering.prompts import FORMATS
from envrl.rendering.renderer import Form
from envrl.rendering.responses import FAULTS
from envrl.rollout.scheduler import PlaySettings, RolloutStats
from envrl.samples.rows import policy_rows
from envrl.trainer.loop import train
from envrl.types import Pair, Row, Step, Trajectory
from moments import essence
from playing import play_model

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
FREE = PlaySettings(max_steps=2, temperature=1.0, actions="free", response_tokens=16)
RESTRICTED = replace(FREE, actions="admissible")

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="pip install 'envrl[lora]'")


@pytest.fixture(scope="module")
def whole(smollm2_folder: Path) -> LanguageModel:
    return load_model(smollm2_folder, marks=False)


@pytest.fixture(scope="module")
def shallow_folder(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first two layers, with the weights that they have in the whole."""
    folder = tmp_path_factory.mktemp("smollm") / "two-layers"
    AutoModelForCausalLM.from_pretrained(smollm2_folder, num_hidden_layers=2, dtype=torch.float32).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(smollm2_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained_folder(shallow_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the first 8,192 of its 49,152 tokens, which are those that were merged first: to train on.

    With all of them the rows of the vocabulary are 28 of 35 million weights, and most of the time of a run.
    """
    folder, most = tmp_path_factory.mktemp("smollm") / "fewer-tokens", 8192
    network = AutoModelForCausalLM.from_pretrained(shallow_folder, dtype=torch.float32)
    network.resize_token_embeddings(most)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(shallow_folder).save_pretrained(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    words = tokenizer["model"]
    words["vocab"] = {word: number for word, number in words["vocab"].items() if number < most}
    words["merges"] = [pair for pair in words["merges"] if "".join(pair) in words["vocab"]]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shallow(shallow_folder: Path) -> LanguageModel:
    return load_model(shallow_folder, marks=False)


def play(
    model: LanguageModel, form: Form, settings: PlaySettings = FREE, world: str = "", episodes: int = 2
) -> list[Trajectory]:
    """Play a group of episodes of the first training task, and check that what was fed is what was recorded."""
    make_env, stats = (lambda: envrl.make(world)) if world else Boxes, RolloutStats()
    tasks = [make_env().tasks("train")[0]] * episodes
    played = play_model(
        model, renderer_of(model, form), make_env, tasks, range(episodes), settings, seed=0, stats=stats
    )
    assert stats.mismatches == 0
    assert all(trajectory.transitions for trajectory in played)
    return played


def plain_logprobs(model: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    """Return log-probs (tokens, vocabulary) as transformers alone computes them: row t is of the token behind t."""
    with torch.no_grad():
        return model.network(input_ids=torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


def largest_gap(model: LanguageModel, rows: Sequence[Row], temperature: float = 1.0) -> float:
    """Return by how much the trainer's log-probs of policy tokens differ from the sampler's at most, nats."""
    with torch.no_grad():
        states = states_of_rows(model.network, [row.token_ids for row in rows], model.codec.pad)
        found = score_terms(model, rows, "policy", states, temperature, "fp32").logprobs
    terms = [term for row in rows for term in row.terms]
    sampled = np.concatenate([term.streams["sampled_logprobs"] for term in terms if "sampled_logprobs" in term.streams])
    return float(np.abs(found.double().numpy() - sampled).max())


# --- the whole model -------------------------------------------------------------------------------------------------


def test_it_is_the_model_that_it_says(whole: LanguageModel) -> None:
    """It knows English: its own chat template, and the answer that everybody knows."""
    network: Any = whole.network
    tokenizer: Any = whole.codec.tokenizer
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = network.generate(**ids, max_new_tokens=8, do_sample=False, tokenizer=tokenizer)
    assert "Paris" in str(tokenizer.decode(said[0, ids["input_ids"].shape[1] :]))


@pytest.mark.parametrize("name", FORMATS)
def test_zero_shot_every_response_is_a_command_or_a_fault(name: str, whole: LanguageModel) -> None:
    """Of a group in the household world: what it says is recorded and read, and nothing else happens."""
    settings = replace(FREE, max_steps=1, response_tokens=16)
    played = play(whole, Form("steps", format=name, history=0), settings, "household")
    actions = [step.action for trajectory in played for step in trajectory.transitions]
    assert len(actions) == 2
    for action in actions:
        assert len(action.token_ids) <= 16
        assert action.fault in FAULTS if action.fault else action.text
        assert all(logprob < 0.0 for logprob in action.logprobs)


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_own_sampler_beside_generate(layout: str, whole: LanguageModel) -> None:
    """The same tokens at temperature 0, and log-probs to 1e-4 relative, over two turns with the cache kept.

    Its logits reach 40: 2e-5 is the rounding of those, which certain tokens of log-prob near 0 show.
    """
    settings = replace(FREE, temperature=0.0, response_tokens=8)
    (trajectory,) = play(whole, Form(layout, format="action", history=1), settings, episodes=1)
    stops, network = renderer_of(whole, Form(format="action")).stops, cast(Any, whole.network)
    compared = 0
    for segment in trajectory.segments:
        for span in segment.spans:
            prompt = torch.from_numpy(segment.token_ids[: span.start]).long()[None]
            found = network.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=settings.response_tokens,
                do_sample=False,
                eos_token_id=sorted(stops),
                return_dict_in_generate=True,
                output_scores=True,
            )
            action = trajectory.transitions[span.step].action
            assert tuple(found.sequences[0, span.start :].tolist()) == action.token_ids
            # Not compute_transition_scores: its fp32 sum over the vocabulary is off by 2e-4 (0.7e-5 from float64 so).
            scores = torch.stack(found.scores, 1)[0].double().log_softmax(-1)
            expected = scores[range(len(action.token_ids)), list(action.token_ids)].tolist()
            assert action.logprobs == pytest.approx(expected, rel=1e-4, abs=2e-5)
            compared += len(action.token_ids)
    assert compared >= 6


def test_restricted_log_probs_are_those_of_its_choices(whole: LanguageModel) -> None:
    """Beside transformers' full pass of the whole episode, restricted by hand, at a temperature of its own."""
    settings = replace(RESTRICTED, temperature=0.7)
    played = play(whole, Form(format="action"), settings)
    spoken = 0
    for trajectory in played:
        (segment,) = trajectory.segments
        with torch.no_grad():
            logits = whole.network(input_ids=torch.from_numpy(segment.token_ids).long()[None]).logits[0].double() / 0.7
        for span in segment.spans:
            action = trajectory.transitions[span.step].action
            assert action.text in (trajectory.transitions[span.step].observation.admissible or ())
            for place, (token, choices) in enumerate(zip(action.token_ids, action.allowed, strict=True)):
                assert choices is not None
                allowed = logits[span.start + place - 1, list(choices)].log_softmax(-1)
                assert float(allowed[choices.index(token)]) == pytest.approx(action.logprobs[place], abs=1e-4)
                spoken += len(choices) > 1
        rows = policy_rows(trajectory, np.ones(len(trajectory.transitions)), "token_mean")
        assert largest_gap(whole, rows, 0.7) < 1e-4
    assert spoken >= 3


def test_state_and_inverse_targets_beside_transformers(whole: LanguageModel) -> None:
    """The probe's and the trainer's log-probs of targets are those that `transformers` has for them, row by row."""
    form = Form("steps", format="action", history=0)
    (trajectory,) = play(whole, form, replace(RESTRICTED, max_steps=1), episodes=1)
    renderer = renderer_of(whole, form)
    asked = ask(tiny(), renderer, [trajectory])
    pairs = [*asked.state, *asked.inverse]
    by_hand = [target_logprobs(whole, pair) for pair in pairs]
    assert [score.logprob for score in score_targets(whole, pairs)] == pytest.approx(list(map(sum, by_hand)), rel=1e-4)
    rows = pair_rows(pairs, "state")
    with torch.no_grad():
        states = states_of_rows(whole.network, [row.token_ids for row in rows], whole.codec.pad)
        found = score_terms(whole, rows, "state", states, 1.0, "fp32").logprobs
    assert found.tolist() == pytest.approx([each for row in by_hand for each in row], rel=1e-4, abs=1e-4)
    texts = [whole.codec.decode(pair.target) for pair in pairs]
    step = trajectory.transitions[0]
    assert texts == [f"{step.next_observation.text}<|im_end|>", f"{step.action.text}<|im_end|>"]


def target_logprobs(model: LanguageModel, pair: Pair) -> list[float]:
    logprobs = plain_logprobs(model, [*pair.prompt, *pair.target])[len(pair.prompt) - 1 : -1]
    return logprobs[range(len(pair.target)), list(pair.target)].tolist()


def test_ordinary_english_is_no_surprise_to_it(whole: LanguageModel, shallow: LanguageModel) -> None:
    """Its perplexity on a page that it has never read is a language model's; the figure is transformers' own loss."""
    found = text_figures(whole)
    assert 8.0 < found["text_perplexity"] < 40.0
    assert found["text_perplexity"] == pytest.approx(math.exp(found["text_nll"]))
    ids = torch.tensor([shallow.codec.tokenizer.encode(passage())])
    assert 500 < ids.shape[1] < 1000
    with torch.no_grad():
        loss = float(shallow.network(input_ids=ids, labels=ids).loss)
    assert text_figures(shallow)["text_nll"] == pytest.approx(loss, rel=1e-4)
    assert loss > 2 * found["text_nll"], "two of thirty layers know no English"


def test_rows_as_a_tree_are_the_rows(whole: LanguageModel) -> None:
    """A group shares its prompt: run once, states are those of each row alone, to the rounding of thirty layers."""
    rows = [
        segment.token_ids for t in play(whole, Form(format="action"), RESTRICTED, episodes=3) for segment in t.segments
    ]
    assert runs_as_tree(whole.network)
    with torch.no_grad():
        found = states_of_rows(whole.network, rows, whole.codec.pad)
        assert found.states.shape[0] < 0.7 * sum(map(len, rows)), "shared tokens are there once"
        for number, row in enumerate(rows):
            alone = whole.network.get_decoder()(input_ids=torch.from_numpy(row).long()[None]).last_hidden_state[0]
            states = found.at(torch.full((len(row),), number), torch.arange(len(row)))
            assert float((states - alone).abs().max() / alone.abs().max()) < 1e-5


# --- its first layers ------------------------------------------------------------------------------------------------


def test_its_own_system_message_stands_before_every_prompt(shallow: LanguageModel, shallow_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shallow_folder)
    (trajectory,) = play(shallow, Form("steps", format="tags", show_admissible=True, history=1), episodes=1)
    task = trajectory.transitions[0].observation.text.partition("to: ")[2]
    for number, (segment, step) in enumerate(zip(trajectory.segments, trajectory.transitions, strict=True)):
        past = [(s.observation, s.action.text) for s in trajectory.transitions[max(0, number - 1) : number]]
        (message,) = FORMATS["tags"].messages(task, past, step.observation, True)
        chat = [{"role": "user", "content": message.content}]
        expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        ids = segment.token_ids[: segment.spans[0].start].tolist()
        assert ids == expected
        assert tokenizer.decode(ids).startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nYou act in")


@pytest.mark.parametrize("actions", ["admissible", "free"])
@pytest.mark.parametrize(
    "form",
    [
        Form(format="action"),
        Form(format="action", prompt_tokens=140),
        Form("steps", format="action", history=2),
        Form("steps", format="action", history=0, summary=True),
    ],
    ids=["whole", "cut", "last two", "summary"],
)
def test_what_is_trained_on_is_what_was_sampled(form: Form, actions: str, shallow: LanguageModel) -> None:
    """In every history: recorded ids are the fed ones, and the trainer's log-probs of them the sampler's."""
    if form.summary and actions == "admissible":
        pytest.skip("a summary is free text")
    settings = replace(FREE, actions=actions, max_steps=4, response_tokens=10)
    played = play(shallow, form, settings)
    rows = [row for t in played for row in policy_rows(t, np.ones(len(t.transitions)), "sequence_mean")]
    assert largest_gap(shallow, rows) < 1e-4
    segments = [len(trajectory.segments) for trajectory in played]
    steps = [len(trajectory.transitions) for trajectory in played]
    if form.prompt_tokens:
        assert max(segments) > 1
    else:
        assert segments == (steps if form.layout == "steps" else [1, 1])


def recipe(folder: Path, **settings: Any) -> Config:
    """Return a recipe for the boxes that trains in seconds."""
    given: dict[str, Any] = {
        "warm_start": {"demonstrations": 4, "held_out": 2, "epochs": 2, "batch": 2, "learning_rate": 1e-3, "every": 99},
        "rollout": {"tasks": 2, "group_size": 3, "format": "action", "response_tokens": 8},
        "objective": {"kl_weight": 0.01},
        "auxiliary": {name: {"weight": 0.2, "schedule": "constant"} for name in ("state", "inverse")},
        "train": {"updates": 2, "micro_batch_tokens": 2048, "trajectories": 0},
        "eval": {"every": 0, "split": ("valid_b",), "free_episodes": 0, "probe_episodes": 1},
        "checkpoint": {"every": 1, "keep": 1},
    }
    config = tiny(**{name: {**given.get(name, {}), **settings.get(name, {})} for name in {*given, *settings}})
    return replace(config, model=replace(config.model, path=str(folder)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@needs_peft
def test_an_interrupted_run_is_the_same_bit_for_bit(
    trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA, restricted, with all losses: Ctrl-C in the middle of the second update's play, then resumed."""
    config = recipe(trained_folder, warm_start={"epochs": 1})
    config = replace(config, model=replace(config.model, lora_rank=4))
    one = train(config, tmp_path / "one")
    records = lines(one / "metrics.jsonl")
    assert [record["train/token_mismatches"] for record in records] == [0, 0]
    mismatches = [record["sampler_mismatch_max"] for record in records if "sampler_mismatch_max" in record]
    assert mismatches
    assert max(mismatches) < 1e-4
    assert min(record[f"rows/{name}"] for record in records for name in ("state", "inverse")) > 0

    other, act = tmp_path / "other", Boxes.step

    def interrupted(world: Boxes, action: str) -> Step:
        metrics = other / "metrics.jsonl"
        if metrics.is_file() and len(lines(metrics)) == 1:
            monkeypatch.setattr(Boxes, "step", act)
            os.kill(os.getpid(), signal.SIGINT)
        return act(world, action)

    monkeypatch.setattr(Boxes, "step", interrupted)
    with pytest.raises(Interrupted):
        train(config, other)
    assert len(lines(other / "metrics.jsonl")) == 1
    train(config, other, resume=True)
    ours, theirs = essence(one), essence(other)
    assert sum(name.startswith("checkpoints") and name.endswith(".safetensors") for name in ours) >= 2
    assert ours == theirs

    export_model(other, tmp_path / "merged")
    check_exported(tmp_path / "merged", load_model(other / "checkpoints" / "latest", marks=False))


def test_whole_weights_train_and_transformers_loads_them(trained_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "rollout": {"layout": "steps", "history": 1},
        "objective": {"kl_weight": 0.0},
        "train": {"updates": 1, "learning_rate": 1e-4},
        "warm_start": {"learning_rate": 3e-4},
    }
    run = train(recipe(trained_folder, **settings), tmp_path / "run")
    (record,) = lines(run / "metrics.jsonl")
    assert record["train/token_mismatches"] == 0
    assert record["rows/policy"] > 0
    assert record["sampler_mismatch_max"] < 1e-4
    evaluated = lines(run / "eval.jsonl")
    assert [record["update"] for record in evaluated] == [0, 1]
    assert all(record["text_perplexity"] == pytest.approx(math.exp(record["text_nll"])) for record in evaluated)
    assert evaluated[0]["text_nll"] != evaluated[1]["text_nll"]
    imitation = [line["loss/imitation"] for line in lines(run / "warm_start.jsonl")]
    assert imitation[-1] < imitation[0]
    export_model(run, tmp_path / "exported")
    model = load_model(run / "checkpoints" / "latest", marks=False)
    check_exported(tmp_path / "exported", model)


def check_exported(folder: Path, model: LanguageModel) -> None:
    """What plain `from_pretrained` loads has the tokenizer, the template and the log-probs of the run's model."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Where is the key? In box 3, I think."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids).startswith(f"<|im_start|>system\n{SYSTEM}")
    assert ids == model.codec.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        found = network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    assert float((found - plain_logprobs(model, ids)).abs().max()) < 1e-4
