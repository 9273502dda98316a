"""Heads beside the network: one that predicts the return trains, saves, resumes, is copied and counted with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from boxes import Boxes, tiny
from envrl.build import form_of, play_settings, renderer_of
from envrl.engine.guard import Guard
from envrl.engine.optimizer import adamw, muon
from envrl.engine.protocol import local
from envrl.engine.update import LossSettings
from envrl.errors import UserError
from envrl.models.forward import state_width
from envrl.models.heads import FILE, load_heads, new_head, values_of
from envrl.models.load import LanguageModel, build_model, load_model
from envrl.models.rows import states_of_rows
from envrl.rollout.own_sampler import OwnSampler
from envrl.samples.rows import counted_term
from envrl.trainer.state import RunState, read_state, write_state
from envrl.types import Row
from playing import play_model

SETTINGS = LossSettings({"policy": 1.0, "value": 0.5})


def model() -> LanguageModel:
    """Return a model with a head, and the text of the boxes in its tokenizer."""
    made = build_model(tiny().model, ["Open box 1. You see 1, 2, 3, 4. It is empty. You find the key."], seed=0)
    made.heads["value"] = new_head(state_width(made.network), made.device)
    return made


def rows_of(policy: LanguageModel) -> list[Row]:
    """Return a row an episode, with the return to be predicted behind every prompt."""
    config, tasks = tiny(), [task for task in Boxes().tasks("train")[:4] for _ in range(4)]
    played = play_model(
        *(policy, renderer_of(policy, form_of(config)), Boxes, tasks, list(range(4)) * 4, play_settings(config, 1.0)),
        seed=0,
    )
    rows = []
    for number, episode in enumerate(played):
        starts = [span.start for span in episode.segments[0].spans]
        returns = np.full(len(starts), episode.total_reward, dtype=np.float32)
        term = counted_term("value", starts, streams={"returns": returns})
        rows.append(Row(episode.segments[0].token_ids, (term,), str(number)))
    return rows


def guard(policy: LanguageModel, folder: Path, rate: float = 1e-2) -> Guard:
    return Guard(policy, adamw(policy, rate), 1.0, folder, lambda _: None)


def test_a_head_learns_the_return(tmp_path: Path) -> None:
    """A head of zeros has the mean of R² as its loss; the gradient reaches the network, too, and the loss falls."""
    policy = model()
    rows = rows_of(policy)
    returns = np.concatenate([row.terms[0].streams["returns"] for row in rows])
    assert 0 < returns.mean() < 1
    before = [parameter.clone() for parameter in policy.network.parameters()]
    trainer = guard(policy, tmp_path)
    losses = [trainer.step(str(n), rows, SETTINGS).figures["loss/value"] for n in range(30)]
    assert losses[0] == pytest.approx(float((returns**2).mean()), rel=1e-6)
    assert losses[-1] < 0.75 * float(returns.var())
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.network.parameters(), strict=True))


def test_its_values_are_those_of_the_states_before_the_tokens(tmp_path: Path) -> None:
    """The loss is that of the head on a plain forward pass of the network, row by row."""
    policy = model()
    torch.manual_seed(0)
    torch.nn.init.normal_(policy.heads["value"].weight)  # type: ignore[arg-type]
    rows = rows_of(policy)[:5]
    found = guard(policy, tmp_path, 0.0).step("a", rows, SETTINGS).figures["loss/value"]
    errors = []
    for row in rows:
        hidden = policy.network(torch.from_numpy(row.token_ids[None].astype(np.int64)), output_hidden_states=True)
        values = values_of(policy.heads["value"], hidden.hidden_states[-1][0])
        term = row.terms[0]
        errors += [(values[p - 1] - r) ** 2 for p, r in zip(term.positions_T, term.streams["returns"], strict=True)]
    assert found == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


def test_an_engine_tells_its_values(tmp_path: Path) -> None:
    """The mean of (value − return)² over what it tells is the loss that a step then reports."""
    policy, config = model(), tiny(train={"learning_rate": 0.0})
    torch.manual_seed(0)
    torch.nn.init.normal_(policy.heads["value"].weight)  # type: ignore[arg-type]
    rows = rows_of(policy)
    engine = local(config, policy, adamw(policy, 0.0), tmp_path, lambda: None, lambda _: None)
    told = engine.values(rows, "value")
    returns = np.concatenate([row.terms[0].streams["returns"] for row in rows])
    expected = float(((np.concatenate([told[row.origin] for row in rows]) - returns) ** 2).mean())
    assert engine.step(rows, {"value": 1.0}, 1)["loss/value"] == pytest.approx(expected, rel=1e-5)


def test_it_is_saved_loaded_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    config, one = tiny(train={"learning_rate": 1e-2}), model()
    rows = rows_of(one)
    state = RunState(one, adamw(one, 1e-2))
    trainer = Guard(one, state.optimizer, 1.0, tmp_path, lambda _: None)
    trainer.step("a", rows, SETTINGS)
    saved = write_state(tmp_path / "checkpoints", state, 1)
    assert (saved / FILE).is_file()
    assert FILE in json.loads((saved / "manifest.json").read_text())["files"]
    again = read_state(saved, config)
    assert sorted(again.model.heads) == ["value"]
    for each in (trainer, Guard(again.model, again.optimizer, 1.0, tmp_path, lambda _: None)):
        each.step("b", rows, SETTINGS)
    for mine, theirs in zip(one.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_it_is_copied_refreshed_and_counted(tmp_path: Path) -> None:
    policy = model()
    width = state_width(policy.network)
    assert policy.size == sum(p.numel() for p in policy.network.parameters()) + width + 1
    sampler = OwnSampler(policy, "bf16")
    copied = sampler.model
    guard(policy, tmp_path).step("a", rows_of(policy), SETTINGS)
    assert not torch.equal(copied.heads["value"].weight.float(), policy.heads["value"].weight)  # type: ignore[union-attr]
    sampler.load(policy.named_parameters(), 1)
    assert torch.equal(copied.heads["value"].weight, policy.heads["value"].weight.bfloat16())  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [lambda m: adamw(m, 0.1), lambda m: muon(m, 0.1, 0.1)], ids=["adamw", "muon"])
def test_an_optimizer_has_it_once(make: Any) -> None:
    policy = model()
    held = [id(p) for part in make(policy)._parts for group in part.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in policy.parameters() if p.requires_grad)


def test_a_file_that_holds_no_head_is_refused(tmp_path: Path) -> None:
    save_file({"value.weight": torch.zeros(1, 4)}, tmp_path / FILE)
    with pytest.raises(UserError, match="holds no head 'value' of a weight and a bias"):
        load_heads(tmp_path, torch.device("cpu"))


def test_without_a_head_nothing_is_written(tmp_path: Path) -> None:
    from envrl.models.load import save_model

    policy = build_model(tiny().model, ["Open box 1."], seed=0)
    save_model(policy, tmp_path)
    assert not (tmp_path / FILE).exists()
    assert len(load_model(tmp_path).heads) == 0


def test_states_are_wide_enough(tmp_path: Path) -> None:
    policy = model()
    states = states_of_rows(policy.network, [np.array([1, 2, 3], dtype=np.int32)], policy.codec.pad)
    asked = states.at(torch.tensor([0, 0]), torch.tensor([0, 2]))
    assert values_of(policy.heads["value"], asked).tolist() == [0.0, 0.0]
