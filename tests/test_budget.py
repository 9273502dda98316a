"""A budget of tokens: what is counted, where a run ends by it, and that it resumes."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boxes import tiny
from envrl.config.schema import Config
from envrl.engine.guard import Guard
from envrl.errors import Interrupted, UserError
from envrl.progress import Reporter
from envrl.report.read import load_run
from envrl.trainer import loop
from envrl.trainer.loop import train
from envrl.trainer.record import progress_figures
from moments import essence


def config_of(budget: int, **more: Any) -> Config:
    short = {"split": ("valid_b",), "every": 0, "free_episodes": 0, "probe_episodes": 0}
    train = {"updates": 40, "token_budget": budget, "epochs": 2, **more}
    return tiny(auxiliary={"state": {"weight": 0.1, "schedule": "constant"}}, train=train, eval=short)


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config, list[int]]:
    """A run that ended by its budget, and the tokens that each of its optimiser steps ran, in both stages."""
    run, ran, step = tmp_path_factory.mktemp("budget") / "run", list[int](), Guard.step
    config = config_of(20_000)

    def counted(self: Guard, *given: Any, **more: Any) -> Any:
        outcome = step(self, *given, **more)
        ran.append(outcome.tokens)
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "step", counted)
        train(config, run, reporter=Reporter(silent=True))
    return run, config, ran


def test_a_run_ends_with_the_update_that_spends_its_budget(spent: tuple[Path, Config, list[int]]) -> None:
    run, config, ran = spent
    metrics = lines(run, "metrics")
    *before, last = (record["learned_tokens"] for record in metrics)
    assert 2 < len(metrics) < 40
    assert max(before) < config.train.token_budget <= last
    assert last == sum(ran)  # both stages, each pass over the rows
    assert lines(run, "warm_start")[-1]["tokens"] < before[0]
    assert metrics[-1]["budget_spent"] == last / 20_000
    assert progress_figures(metrics[-1])["of the budget"] == last / 20_000
    assert [record["update"] for record in lines(run, "eval")] == [0, len(metrics)]
    assert lines(run, "eval")[-1]["episodes"] == 7  # the whole split, as at any end


def test_such_a_run_is_finished(spent: tuple[Path, Config, list[int]], capsys: pytest.CaptureFixture[str]) -> None:
    run, config, _ = spent
    kept = essence(run)
    found = load_run(run)
    assert found.finished
    assert found.updates_planned == found.updates == len(found.metrics)
    train(config, run, resume=True)
    assert f"is finished: {found.updates} updates" in capsys.readouterr().err
    assert essence(run) == kept


def test_it_resumes_bit_for_bit(spent: tuple[Path, Config, list[int]], tmp_path: Path) -> None:
    run, config, _ = spent
    update, done = loop._update, 0

    def stopped(run: Any, state: Any) -> Any:
        nonlocal done
        done += 1
        if done == 3:
            raise Interrupted
        return update(run, state)

    with pytest.MonkeyPatch.context() as patch, suppress(Interrupted):
        patch.setattr(loop, "_update", stopped)
        train(config, tmp_path / "cut", reporter=Reporter(silent=True))
    assert len(lines(tmp_path / "cut", "metrics")) == 2
    train(config, tmp_path / "cut", resume=True, reporter=Reporter(silent=True))
    assert essence(tmp_path / "cut") == essence(run)


def test_a_warm_start_that_spends_it_is_all_that_the_run_learns_from(tmp_path: Path) -> None:
    train(config_of(10), tmp_path / "run", reporter=Reporter(silent=True))
    assert lines(tmp_path / "run", "metrics") == []
    assert load_run(tmp_path / "run").finished


def test_a_shared_warm_start_counts_by_the_log_of_its_run(
    spent: tuple[Path, Config, list[int]], tmp_path: Path
) -> None:
    run, config, _ = spent
    warm = lines(run, "warm_start")[-1]["tokens"]
    shared = replace(config, warm_start=replace(config.warm_start, path=str(run / "warm_start")))
    shared = replace(shared, train=replace(shared.train, token_budget=warm + 1))
    train(shared, tmp_path / "run", reporter=Reporter(silent=True))
    (record,) = lines(tmp_path / "run", "metrics")
    assert record["learned_tokens"] == lines(run, "metrics")[0]["learned_tokens"]
    smaller = replace(shared, train=replace(shared.train, token_budget=warm))
    with pytest.raises(UserError, match=f"leaves nothing for RL: .* has learned from {warm} tokens"):
        train(smaller, tmp_path / "none", reporter=Reporter(silent=True))
    alone = tmp_path / "moved" / "warm_start"
    shutil.copytree(run / "warm_start", alone)
    lost = replace(shared, warm_start=replace(config.warm_start, path=str(alone)))
    with pytest.raises(UserError, match=r"beside .* lies no run that says it"):
        train(lost, tmp_path / "none", reporter=Reporter(silent=True))

    assert not (tmp_path / "none").exists()
