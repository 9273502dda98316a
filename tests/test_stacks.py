"""The auxiliary losses in other people's stacks: rows and losses equal ours, in TRL's trainer too."""

from __future__ import annotations

import asyncio
import copy
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from boxes import Boxes, grouped, tiny
from chat_models import save_chat_model
from envrl.batches.auxiliary import make_rows
from envrl.build import form_of, renderer_of
from envrl.config.schema import Config
from envrl.engine.local import loss_settings
from envrl.engine.update import Totals, accumulate, micro_loss
from envrl.errors import UserError
from envrl.models.load import LanguageModel, load_model
from envrl.rollout.scripts import play_script, random_script
from envrl.samples.packing import denominators
from envrl.stacks import Episode, Objective, auxiliary_rows
from envrl.stacks.loss import auxiliary_loss, collate, predicted
from envrl.types import Row, Trajectory

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
torch.set_num_threads(1)
WEIGHTS = {"state": 0.2, "inverse": 0.05}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_model(save_chat_model("qwen2", tmp_path_factory.mktemp("chat")), marks=False)


def recipe(**settings: Any) -> Config:
    config = tiny(auxiliary={name: {"weight": weight} | settings for name, weight in WEIGHTS.items()})
    shown = {"layout": "steps", "history": 2, "format": "action", "show_admissible": True}
    return replace(config, rollout=replace(config.rollout, **shown))


def played(count: int = 4) -> list[Trajectory]:
    """Random play: episodes of one to three turns."""
    return [play_script(Boxes(), task, random_script(n), 3) for n, task in enumerate(Boxes().tasks("train")[:count])]


def as_text(trajectory: Trajectory) -> Episode:
    steps = trajectory.transitions
    return Episode(
        tuple((step.observation.text, step.action.text) for step in steps),
        steps[-1].next_observation.text,
        tuple(step.observation.admissible or () for step in steps),
    )


def our_rows(model: LanguageModel, config: Config, episodes: list[Trajectory]) -> dict[str, list[Row]]:
    """Return the rows of our own update on the recorded episodes."""
    made = make_rows(config.auxiliaries(), grouped(episodes, 1), renderer_of(model, form_of(config)), (0,)).rows
    return {name: [row for row in made if row.terms[0].component == name] for name in WEIGHTS}


@pytest.mark.parametrize("settings", [{}, {"deduplicate": False, "tokens": "all"}, {"placebo": True}])
def test_rows_and_losses_of_plain_texts_are_those_of_our_own_update(
    model: LanguageModel, settings: dict[str, Any]
) -> None:
    config, episodes = recipe(**settings), played(12)
    ours = our_rows(model, config, episodes)
    for name in WEIGHTS:
        texts = [as_text(each) for each in episodes]
        rows = auxiliary_rows(name, texts, model.codec.tokenizer, show_admissible=True, longest=4096, **settings)
        assert [row.token_ids for row in rows] == [tuple(row.token_ids.tolist()) for row in ours[name]]
        for row, own in zip(rows, ours[name], strict=True):
            assert [place for place, each in enumerate(row.loss_mask) if each] == own.terms[0].positions_T.tolist()
        assert predicted(rows) == denominators(ours[name])[name]
        batch = collate(rows)
        with torch.no_grad():
            logits = model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            alone = replace(loss_settings(config, {}), weights={name: 1.0})
            own = micro_loss(model, ours[name], Totals(), denominators(ours[name]), alone)
        torch.testing.assert_close(auxiliary_loss(logits, batch), own, rtol=1e-6, atol=1e-6)
        parts = [collate(rows[::2]), collate(rows[1::2])]
        whole = sum(
            auxiliary_loss(model.network(input_ids=p.input_ids, attention_mask=p.attention_mask).logits, p, len_)
            for p, len_ in ((part, predicted(rows)) for part in parts)
        )
        torch.testing.assert_close(whole, own, rtol=1e-6, atol=1e-6)


def test_the_loss_by_hand() -> None:
    """Of three ids with logits (0, log 2, log 5): p = 1/8, 2/8, 5/8; the second row weighs half."""
    from envrl.stacks import AuxiliaryRow

    rows = [AuxiliaryRow("state", (0, 2, 1), (0, 1, 1)), AuxiliaryRow("state", (1, 0), (0, 1), 0.5)]
    logits = torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64).log().clamp(min=0.0).expand(2, 3, 3)
    expected = (-torch.log(torch.tensor([5 / 8, 2 / 8, 1 / 8])) * torch.tensor([1, 1, 0.5])).sum() / 3
    assert float(auxiliary_loss(logits, collate(rows))) == pytest.approx(float(expected), rel=1e-6)
    assert float(auxiliary_loss(logits, collate(rows), 6)) == pytest.approx(float(expected) / 2, rel=1e-6)


def test_an_episode_without_its_end_has_one_row_less(model: LanguageModel) -> None:
    episode = as_text(next(each for each in played(12) if len(each.transitions) == 3))
    tokenizer = model.codec.tokenizer
    whole = auxiliary_rows("inverse", [episode], tokenizer, longest=4096)
    assert auxiliary_rows("inverse", [replace(episode, end=None)], tokenizer, longest=4096) == whole[:2]
    lengths = sorted(len(row.token_ids) for row in whole)
    assert len(auxiliary_rows("inverse", [episode], tokenizer, longest=lengths[1])) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sate"}, "did you mean 'state'"),
        ({"name": "echo"}, "has no rows of its own"),
        ({"name": "state", "questoin": "?"}, "has no setting 'questoin'; did you mean 'question'"),
        ({"name": "state", "episodes": [Episode((("a", "b"),), "c", ((), ()))]}, "1 turns has commands for 2"),
    ],
)
def test_mistakes_are_sentences(model: LanguageModel, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        auxiliary_rows(**{"episodes": [], "tokenizer": model.codec.tokenizer} | arguments)


# --- the page --------------------------------------------------------------------------------------------------------


PAGE = (Path(__file__).parents[1] / "docs" / "other-stacks.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- file: (\w+)_example.py -->\n```python\n(.*?)```", PAGE, re.S))


@pytest.fixture
def example_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_chat_model("qwen2", tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(name: str) -> dict[str, Any]:
    names = {"__name__": name}
    exec(compile(EXAMPLES[name], f"the example {name}", "exec"), names)
    return names


@pytest.mark.parametrize("name", ["rows", "trl"])
def test_examples_run(name: str, example_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "trl":
        pytest.importorskip("trl", reason="needs TRL: pip install 'envrl[trl]'")
    run_example(name)
    said = capsys.readouterr().out
    for objective in ("state", "inverse"):
        assert re.search(rf"{objective}\W+(\d+\.\d+)", said), said


def test_the_plug_in_of_verl_plays_and_installs_its_loss(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("verl", reason="verl is not installed (docs/other-stacks.md says how it is on a CPU)")
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    monkeypatch.setattr(RayPPOTrainer, "_update_actor", before := RayPPOTrainer._update_actor)  # restored afterwards
    monkeypatch.setattr(core_algos, "POLICY_LOSS_REGISTRY", dict(core_algos.POLICY_LOSS_REGISTRY))
    names = run_example("verl")
    assert "envrl" in core_algos.POLICY_LOSS_REGISTRY
    assert RayPPOTrainer._update_actor is not before
    loop = object.__new__(names["HouseholdLoop"])
    loop.tokenizer = model.codec.tokenizer

    class Server:
        async def generate(self, **asked: Any) -> Any:
            return SimpleNamespace(token_ids=loop.tokenizer.encode("look\n", add_special_tokens=False))

    loop.server_manager = Server()
    output = asyncio.run(loop.run({"temperature": 1.0}, task=3, raw_prompt=[]))
    assert len(output.response_mask) == len(output.response_ids)
    rows = auxiliary_rows("state", [output.extra_fields["episode"]], loop.tokenizer, deduplicate=False, longest=4096)
    assert len(rows) == 10


# --- TRL -------------------------------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """What TRL's trainer logged of each step, its gradients by parameter, and the trainer."""

    logs: list[dict[str, float]]
    gradients: list[dict[str, torch.Tensor]]
    trainer: Any


def trl_steps(
    model: LanguageModel, episodes: list[Trajectory], folder: Path, micro: int, generations: int = 1
) -> Steps:
    """Take two steps in float64 on recorded episodes, each of them twice, all with one reward: no advantage is left.

    With `generations` 2 a generation is for two optimiser steps.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig

    from envrl.stacks.trl import AuxiliaryGRPOTrainer

    network, tokenizer = copy.deepcopy(model.network).double(), model.codec.tokenizer
    shown: list[dict[str, float]] = []
    gradients: list[dict[str, torch.Tensor]] = []

    class Watching(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            shown.append(dict(logs))

    def play(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        told = tokenizer.encode("look", add_special_tokens=False)
        ids = {"prompt_ids": [told] * len(prompts), "completion_ids": [told] * len(prompts)}
        said = [as_text(episodes[int(prompt)]) for prompt in prompts]
        return {**ids, "logprobs": [[0.0] * len(told)] * len(prompts), "episode": said}

    rows = {"show_admissible": True, "longest": 4096}
    passes = 2 * len(episodes) // micro
    trainer = AuxiliaryGRPOTrainer(
        model=network,
        processing_class=tokenizer,
        reward_funcs=lambda prompts, **_: [1.0 for _ in prompts],
        rollout_func=play,
        train_dataset=Dataset.from_list([{"prompt": str(n)} for n in range(len(episodes))]),
        callbacks=[Watching()],
        auxiliary={name: Objective(weight=weight, rows=rows) for name, weight in WEIGHTS.items()},
        args=GRPOConfig(
            output_dir=str(folder),
            max_steps=2,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=passes // generations,
            steps_per_generation=passes,
            num_generations=2,
            beta=0.0,
            learning_rate=0.0,
            max_grad_norm=1e9,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    return Steps([each for each in shown if "weight/state" in each], gradients, trainer)


@pytest.mark.parametrize("micro", [2, 4])
def test_a_step_of_trl_is_ours(model: LanguageModel, micro: int, tmp_path: Path) -> None:
    """Losses, weights and gradient of a whole step, however it is accumulated; equal rows count once."""
    pytest.importorskip("trl", reason="needs TRL: pip install 'envrl[trl]'")
    config, episodes = recipe(), played(4)
    ours = our_rows(model, config, episodes)
    steps = trl_steps(model, episodes, tmp_path, micro)
    own = LanguageModel(copy.deepcopy(model.network).double(), model.codec)
    for name in WEIGHTS:
        alone = replace(loss_settings(config, {}), weights={name: 1.0})
        with torch.no_grad():
            expected = float(micro_loss(own, ours[name], Totals(), denominators(ours[name]), alone))
        assert steps.logs[0][f"loss/{name}"] == pytest.approx(expected, rel=1e-6)
        weights = [WEIGHTS[name], WEIGHTS[name] / 2]  # the cosine's, of two updates
        assert [each[f"weight/{name}"] for each in steps.logs] == pytest.approx(weights)
    accumulate(own, [*ours["state"], *ours["inverse"]], replace(loss_settings(config, {}), weights=WEIGHTS))
    for name, parameter in own.network.named_parameters():
        torch.testing.assert_close(steps.gradients[0][name], parameter.grad, rtol=1e-5, atol=1e-8)


def test_two_steps_of_trl_on_one_generation_share_its_rows(model: LanguageModel, tmp_path: Path) -> None:
    """Each step's loss is the mean over the tokens of its own rows."""
    pytest.importorskip("trl", reason="needs TRL: pip install 'envrl[trl]'")
    steps = trl_steps(model, played(4), tmp_path, 2, generations=2)
    dealt = steps.trainer._rows
    assert len(dealt) == 4
    network = copy.deepcopy(model.network).double()
    for number, parts in enumerate((dealt[:2], dealt[2:])):
        for name in WEIGHTS:
            batch = collate([row for part in parts for row in part[name]])
            logits = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            expected = float(auxiliary_loss(logits, batch))
            assert steps.logs[number][f"loss/{name}"] == pytest.approx(expected, rel=1e-6)


# --- verl ------------------------------------------------------------------------------------------------------------


def own_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """A policy loss with the signature of verl 0.9.1, core_algos.PolicyLossFn: the ratio times the advantage."""
    losses = -(log_prob - old_log_prob).exp() * advantages
    return (losses * response_mask).sum() / config.global_batch_info["batch_num_tokens"], {"actor/ppo_kl": 0.0}


def verl_batch(samples: int = 4, prompt: int = 5, response: int = 6) -> dict[str, torch.Tensor]:
    """A padded batch as verl's trainer has it before it updates the actor."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (samples, prompt + response), generator=generator)
    present = torch.ones(samples, prompt + response, dtype=torch.long)
    for number in range(samples):
        present[number, : number % 3] = 0
        present[number, prompt + response - number % 2 :] = 0
    return {
        "prompts": ids[:, :prompt],
        "responses": ids[:, prompt:],
        "input_ids": ids,
        "attention_mask": present,
        "position_ids": (present.cumsum(1) - 1).clamp(min=0),
        "response_mask": present[:, prompt:],
        "old_log_probs": -torch.rand(samples, response, generator=generator),
        "advantages": torch.randn(samples, response, generator=generator) * present[:, prompt:],
        "token_level_scores": torch.zeros(samples, response),
    }


def response_logprobs(network: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return log-probs of the response tokens, as verl's engine hands them to a loss."""
    logits = network(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=batch["position_ids"]
    ).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return logprobs[:, -batch["responses"].shape[1] :]


@pytest.mark.parametrize("steps", [1, 2])
def test_verls_loss_gets_ours_added_and_is_otherwise_what_it_was(model: LanguageModel, steps: int) -> None:
    """With marked rows among its samples: base loss + Σ λ L, in parts by sample; two ranks count twice."""
    from envrl.stacks.verl import policy_loss, with_rows

    texts, network = [as_text(each) for each in played(4)], model.network
    made = {name: auxiliary_rows(name, texts, model.codec.tokenizer, longest=4096) for name in WEIGHTS}
    plain = verl_batch()
    batch = with_rows(plain, made, WEIGHTS, 0, multiple=8, steps=steps)
    count = len(batch["responses"])
    assert count % 8 == 0
    assert count >= 4 + sum(map(len, made.values()))
    assert {len(value) for value in batch.values()} == {count}
    assert batch["response_mask"].sum() == plain["response_mask"].sum()
    config = SimpleNamespace(global_batch_info={"dp_size": 1, "batch_num_tokens": int(plain["response_mask"].sum())})

    def loss_of(some: Mapping[str, torch.Tensor], loss: Any) -> torch.Tensor:
        given = {"old_log_prob": some["old_log_probs"], "log_prob": response_logprobs(network, some)}
        given |= {name: some[name] for name in ("advantages", "response_mask")}
        return loss(**given, config=config)[0]

    base = loss_of(plain, own_loss)
    expected = base
    for name, rows in made.items():
        rows_batch = collate(rows)
        logits = network(input_ids=rows_batch.input_ids, attention_mask=rows_batch.attention_mask).logits
        expected = expected + steps * WEIGHTS[name] * auxiliary_loss(logits, rows_batch)
    ours = partial(policy_loss, base=own_loss)
    torch.testing.assert_close(loss_of(batch, ours), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss_of(plain, ours), base)
    halves = [{name: value[part::2] for name, value in batch.items()} for part in (0, 1)]
    torch.testing.assert_close(sum(loss_of(half, ours) for half in halves), expected, rtol=1e-5, atol=1e-6)
    config.global_batch_info["dp_size"] = 2
    torch.testing.assert_close(loss_of(batch, ours) - base, 2 * (expected - base), rtol=1e-5, atol=1e-6)


def test_an_update_of_verls_own_trainer(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """`RayPPOTrainer._update_actor` and `ppo_loss` themselves; only the workers are ours, one on the CPU."""
    pytest.importorskip("verl", reason="verl is not installed (docs/other-stacks.md says how it is on a CPU)")
    from omegaconf import OmegaConf
    from verl.protocol import DataProto
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer
    from verl.utils import tensordict_utils as tu
    from verl.workers.config import FSDPActorConfig, PolicyLossConfig
    from verl.workers.utils.losses import ppo_loss

    from envrl.stacks.verl import install

    network, found = model.network, list[float]()
    monkeypatch.setattr(RayPPOTrainer, "_update_actor", RayPPOTrainer._update_actor)  # restored afterwards
    monkeypatch.setattr(core_algos, "POLICY_LOSS_REGISTRY", dict(core_algos.POLICY_LOSS_REGISTRY))

    class Workers:
        world_size = 2

        def update_actor(self, data: Any) -> Any:
            assert len(data) == tu.get(data, "mini_batch_size"), "one optimiser step"
            logprobs = []
            for ids in data["input_ids"].unbind():
                logits = network(input_ids=ids[None]).logits[0]
                logprobs.append(logits.log_softmax(-1).gather(-1, ids.roll(-1)[:, None])[:, 0])
            tokens = int(data["loss_mask"].sum())
            tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=tokens)
            actor = {"strategy": "fsdp", "rollout_n": 2, "ppo_micro_batch_size_per_gpu": 1}
            config = FSDPActorConfig(**actor, policy_loss=PolicyLossConfig(loss_mode=loss_mode))
            loss, metrics = ppo_loss(
                config, {"log_probs": torch.nested.as_nested_tensor(logprobs, layout=torch.jagged)}, data
            )
            found.append(float(loss))
            assert ("actor/auxiliary" in metrics) == (loss_mode == "envrl")
            return tu.get_tensordict({}, {"metrics": {"loss": float(loss), "mfu": 0.0}})

    actor = {
        "ppo_mini_batch_size": 2,
        "calculate_entropy": False,
        "entropy_coeff": 0.0,
        "ppo_epochs": 1,
        "shuffle": False,
    }
    actor |= {"data_loader_seed": 1, "loss_agg_mode": "token-mean", "policy_loss": {"loss_mode": "envrl"}}
    rollout = {"multi_turn": {"enable": True}, "temperature": 1.0, "n": 2}
    trainer = SimpleNamespace(
        config=OmegaConf.create({"actor_rollout_ref": {"actor": actor, "rollout": rollout}}),
        actor_rollout_wg=Workers(),
        tokenizer=model.codec.tokenizer,
        global_steps=1,
        total_training_steps=2,
    )
    texts, plain = [as_text(each) for each in played(4)], verl_batch()
    episodes = np.empty(4, dtype=object)
    episodes[:] = texts
    loss_mode = "vanilla"
    RayPPOTrainer._update_actor(trainer, DataProto.from_dict(plain, {"episode": episodes}))
    loss_mode = "envrl"
    install({name: Objective(weight=weight, rows={"longest": 4096}) for name, weight in WEIGHTS.items()})
    RayPPOTrainer._update_actor(trainer, DataProto.from_dict(plain, {"episode": episodes}))
    expected = found[0]
    for name, weight in WEIGHTS.items():
        batch = collate(auxiliary_rows(name, texts, model.codec.tokenizer, longest=4096))
        logits = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        expected += weight * float(auxiliary_loss(logits, batch))
    assert found[1] == pytest.approx(expected, rel=1e-5)
    assert trainer.config.actor_rollout_ref.actor.ppo_mini_batch_size == 2
    for key, value, message in (
        ("loss_agg_mode", "seq-mean-token-mean", "take token-mean"),
        ("policy_loss", {"loss_mode": "vanilla"}, "loss_mode=envrl"),
    ):
        trainer.config.actor_rollout_ref.actor[key] = value
        with pytest.raises(UserError, match=message):
            RayPPOTrainer._update_actor(trainer, DataProto.from_dict(plain, {"episode": episodes}))
