"""A run that memory runs out in: the same gradient in smaller pieces, the same episodes in smaller crowds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from boxes import Boxes, tiny
from envrl.config.schema import Config
from envrl.engine import update
from envrl.engine.local import LocalEngine
from envrl.engine.optimizer import adamw
from envrl.errors import RunError
from envrl.models.load import LanguageModel
from envrl.models.out_of_memory import OutOfMemory, counted_memory, is_out_of_memory
from envrl.rollout.policy import Policy
from envrl.rollout.splitter import BatchSplitter
from envrl.samples.packing import pack, tokens_run
from envrl.trainer import rollouts
from envrl.trainer.loop import train
from envrl.types import Row, Trajectory
from test_update import AUXILIARY, make_model, make_rows

BUDGET = 200
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


def device_of(tokens: int, error: Callable[[], BaseException]) -> Callable[..., Any]:
    """Return `micro_loss` on a device that holds micro-batches of so many tokens, what rows share counted once."""
    whole = update.micro_loss

    def limited(model: LanguageModel, rows: list[Row], *rest: Any) -> torch.Tensor:
        loss = whole(model, rows, *rest)
        if tokens_run(rows, padded=False) > tokens:
            raise error()
        return loss

    return limited


def weights_of(model: LanguageModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def stepped(config: Config, folder: Path, said: list[str]) -> tuple[LocalEngine, torch.Tensor]:
    """Return the optimisation and the weights after two updates on the same rows."""
    model = make_model(config)
    rows = make_rows(model, config)
    steps = LocalEngine(config, model, adamw(model, 1e-3), folder, lambda: None, said.append)
    for number in (1, 2):
        assert steps.step(rows, {"state": 0.2, "inverse": 0.1}, number)["skipped"] == 0.0
    return steps, weights_of(model)


def budgeted(tokens: int, **train_settings: Any) -> Config:
    return tiny(auxiliary=AUXILIARY, train={"micro_batch_tokens": tokens, **train_settings})


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("error", [lambda: torch.OutOfMemoryError(CUDA), lambda: RuntimeError(CPU), MemoryError])
def test_a_halved_budget_gives_the_weights_of_a_run_that_had_it(
    error: Callable[[], BaseException], epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit those of the halved budget from the start, and to rounding those of the whole one."""
    said: list[str] = []
    _, whole = stepped(budgeted(BUDGET, epochs=epochs), tmp_path, said)
    _, half = stepped(budgeted(BUDGET // 2, epochs=epochs), tmp_path, said)
    assert not said
    monkeypatch.setattr(update, "micro_loss", device_of(BUDGET // 2, error))
    steps, found = stepped(budgeted(BUDGET, epochs=epochs), tmp_path, said)
    assert torch.equal(found, half)
    assert float((found - whole).abs().max()) < 1e-5
    assert steps.guard.budget.limit == BUDGET // 2
    assert len(said) == 1, "the lower budget stays"
    assert f"train.micro_batch_tokens = {BUDGET // 2}" in said[0]
    assert said[0].startswith("update-000001")


def test_memory_that_runs_out_in_the_middle_leaves_nothing_of_the_failed_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third micro-batch fails once, after two have left their gradients."""
    said: list[str] = []
    config = budgeted(BUDGET)
    assert len(pack(make_rows(make_model(config), config), BUDGET, padded=False)) > 3
    _, half = stepped(budgeted(BUDGET // 2), tmp_path, said)
    whole, calls = update.micro_loss, iter(range(1, 10**6))

    def fails_once(*arguments: Any) -> torch.Tensor:
        if next(calls) == 3:
            raise torch.OutOfMemoryError(CUDA)
        return whole(*arguments)

    monkeypatch.setattr(update, "micro_loss", fails_once)
    _, found = stepped(config, tmp_path, said)
    assert torch.equal(found, half)
    assert len(said) == 1


def test_a_single_row_that_does_not_fit_ends_the_run_and_says_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = budgeted(BUDGET)
    model = make_model(config)
    rows = make_rows(model, config)
    longest = max(len(row.token_ids) for row in rows)
    before = weights_of(model)
    steps = LocalEngine(config, model, adamw(model, 1e-3), tmp_path, lambda: None)
    monkeypatch.setattr(update, "micro_loss", device_of(longest - 1, lambda: torch.OutOfMemoryError(CUDA)))
    with pytest.raises(RunError, match=rf"a single row of {longest} tokens.*lower rollout\.response_tokens"):
        steps.step(rows, {"state": 0.2, "inverse": 0.1}, 1)
    assert torch.equal(weights_of(model), before)
    assert all(p.grad is None for p in model.network.parameters())


def test_the_log_probs_of_the_reference_survive_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = budgeted(BUDGET, epochs=2)
    whole, calls, said = update.states_of_rows, iter(range(1, 10**6)), []

    def fails_once(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError(CUDA)
        return whole(*arguments, **options)

    _, half = stepped(budgeted(BUDGET // 2, epochs=2), tmp_path, said)
    monkeypatch.setattr(update, "states_of_rows", fails_once)
    _, found = stepped(config, tmp_path, said)
    assert torch.equal(found, half)
    assert len(said) == 1


def test_memory_that_runs_out_in_the_optimiser_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = budgeted(BUDGET)
    model = make_model(config)
    steps = LocalEngine(config, model, adamw(model, 1e-3), tmp_path, lambda: None)

    def fails() -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(steps.guard.optimizer, "step", fails)
    with pytest.raises(RunError, match="while the optimiser changed the weights; the last checkpoint is kept"):
        steps.step(make_rows(model, config), {}, 1)


def test_other_errors_are_not_taken_for_memory() -> None:
    assert is_out_of_memory(RuntimeError(CPU))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))
    with pytest.raises(RuntimeError, match="must match"), counted_memory(2, 3):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")
    with pytest.raises(OutOfMemory, match="2 parts of at most 3 tokens"), counted_memory(2, 3):
        raise MemoryError


# --- episodes --------------------------------------------------------------------------------------------------------


def test_a_crowd_is_halved_until_it_fits_and_stays_so() -> None:
    said: list[str] = []
    splitter, sizes = BatchSplitter(said.append), []

    def play(part: range) -> list[Any]:
        sizes.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError(CUDA)
        return [*part]

    assert splitter.play(13, play) == list(range(13))
    assert sizes == [13, 6, 3, 3, 3, 3, 1]
    assert splitter.play(5, play) == list(range(5))
    assert sizes[7:] == [3, 2]
    assert splitter.play(4, play, at_once=2) == list(range(4))
    assert sizes[9:] == [2, 2]
    assert len(said) == 2
    assert "13 episodes were played at once; they are played again, 6 at a time" in said[0]
    assert splitter.play(0, play) == []


def test_an_episode_that_does_not_fit_alone_ends_the_run() -> None:
    def play(part: range) -> list[Trajectory]:
        raise MemoryError

    with pytest.raises(RunError, match=r"a single episode was played.*lower rollout\.response_tokens"):
        BatchSplitter().play(2, play)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_survives_and_plays_the_same_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 episodes an update on a device that holds 4, micro-batches of 100 tokens: the run is the same to rounding."""
    config = tiny(auxiliary=AUXILIARY, train={"micro_batch_tokens": BUDGET, "updates": 2})
    quiet = replace(config, eval=replace(config.eval, every=0, split=("valid_b",), free_episodes=0, probe_episodes=0))
    plain = train(quiet, tmp_path / "plain")
    whole = rollouts.play_episodes

    def small(policy: Policy, make_env: Any, tasks: Any, *rest: Any, **options: Any) -> Any:
        if len(tasks) > 4:
            raise torch.OutOfMemoryError(CUDA)
        return whole(policy, make_env, tasks, *rest, **options)

    monkeypatch.setattr(rollouts, "play_episodes", small)
    monkeypatch.setattr(update, "micro_loss", device_of(BUDGET // 2, lambda: torch.OutOfMemoryError(CUDA)))
    run = train(quiet, tmp_path / "run")
    for ours, theirs in zip(metrics(run), metrics(plain), strict=True):
        for key in ("tokens", "train/steps", "train/return", "rows/policy"):
            assert ours[key] == theirs[key]
        assert ours["loss/state"] == pytest.approx(theirs["loss/state"], abs=1e-4)
        assert ours["memory"]["episodes_at_once"] == 3
        assert ours["memory"]["micro_batch_tokens"] == BUDGET // 2
        assert theirs["memory"]["episodes_at_once"] == len(Boxes().tasks("train")[:12]) == 12
        assert theirs["memory"]["micro_batch_tokens"] == BUDGET
        assert theirs["memory"]["peak"] > 10**7
        assert theirs["memory"]["predicted"] > 600 * 2**20, "the process's own"
