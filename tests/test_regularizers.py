"""Regularizers of the policy's tokens: EPO's band by hand, in steps, in a run and a resumed one; a user's own."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from boxes import files, tiny
from envrl.cli.main import main
from envrl.config.check import check_together
from envrl.config.load import dump_config
from envrl.engine.local import LocalEngine
from envrl.engine.optimizer import adamw
from envrl.errors import UserError
from envrl.objective.regularizers import epo
from envrl.objective.regularizers.epo import Epo
from envrl.objective.regularizers.tokens import PolicyTokens
from envrl.objective.schedule import weight_at
from envrl.trainer.regularizing import Regularizers
from test_registry import write
from test_update import _without_advantage, make_model, make_rows


def penalty(band: Epo, entropies: list[float], rows: list[int]) -> tuple[list[float], list[float]]:
    """Return the penalty of each token, and the gradient of their sum."""
    entropies_N = torch.tensor(entropies, dtype=torch.float64, requires_grad=True)
    losses_N = band(PolicyTokens(-entropies_N, entropies_N, torch.tensor(rows)))
    (gradient_N,) = torch.autograd.grad(losses_N.sum(), entropies_N)
    return losses_N.tolist(), gradient_N.tolist()


def test_the_example_of_the_docstring() -> None:
    result = doctest.testmod(epo)
    assert result.attempted >= 4
    assert result.failed == 0


def test_the_band_by_hand() -> None:
    """Past entropies 1 and 3: the mean is 2, the band [1, 3]. Rows of means 0.5, 2, 5, each of two tokens."""
    band = Epo(lower=0.5, upper=1.5)
    entropies, rows = [0.2, 0.8, 1.1, 2.9, 4.0, 6.0], [0, 0, 1, 1, 2, 2]
    assert penalty(band, entropies, rows) == ([0.0] * 6, [0.0] * 6)
    band.observe({"entropy": 1.0})
    band.observe({"grad_norm": 0.0})  # an update that learned from no token
    band.observe({"entropy": 3.0})
    assert band.band == (1.0, 3.0)
    losses, gradient = penalty(band, entropies, rows)
    assert losses == pytest.approx([0.5, 0.5, 0.0, 0.0, 2.0, 2.0])
    assert gradient == pytest.approx([-1.0, -1.0, 0.0, 0.0, 1.0, 1.0])  # each of two tokens has half of the row's mean
    by_token = Epo(lower=0.5, upper=1.5, level="token")
    by_token.load([1.0, 3.0])
    losses, gradient = penalty(by_token, entropies, rows)
    assert losses == pytest.approx([0.8, 0.2, 0.0, 0.0, 1.0, 3.0])
    assert gradient == [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0]


def test_the_past_is_that_of_the_window() -> None:
    bands = [Epo(window=window) for window in (0, 1, 2)]
    for band in bands:
        for entropy in (1.0, 2.0, 6.0):
            band.observe({"entropy": entropy})
    assert [band.figures() for band in bands] == [
        pytest.approx({"low": 0.8 * mean, "high": 1.2 * mean}) for mean in (3.0, 6.0, 4.0)
    ]
    again = Epo(window=2)
    again.load(json.loads(json.dumps(bands[2].state())))
    assert again.band == bands[2].band


def test_a_weight_that_rises() -> None:
    assert [weight_at(t, 1.0, "rise", 4, 0.2) for t in range(6)] == pytest.approx(
        [0.2, 0.2 + 0.8 * (0.5 - 0.5 * 2**-0.5), 0.6, 0.2 + 0.8 * (0.5 + 0.5 * 2**-0.5), 1.0, 1.0]
    )


@pytest.mark.parametrize(("lower", "upper", "grows"), [(3.0, 4.0, True), (0.1, 0.2, False)])
def test_entropy_is_pulled_into_the_band(lower: float, upper: float, grows: bool, tmp_path: Path) -> None:
    config = tiny(owned={"regularizer.epo.weight": 1.0, "regularizer.epo.lower": lower, "regularizer.epo.upper": upper})
    model, regularizers = make_model(config), Regularizers(config)
    rows = [_without_advantage(row) for row in make_rows(model, config)]
    engine = LocalEngine(config, model, adamw(model, 3e-3, 0.0), tmp_path, lambda: None, regularizers=regularizers)
    first = engine.step(rows, {"epo": 1.0}, 1)
    assert first["loss/epo"] == 0.0
    regularizers.load({"epo": [0.4]})
    found = [engine.step(rows, {"epo": 1.0}, update) for update in range(2, 12)]
    assert found[0]["loss/epo"] > 0.1
    assert found[-1]["loss/epo"] < 0.9 * found[0]["loss/epo"]
    change = found[-1]["entropy"] - first["entropy"]
    assert change > 0.05 if grows else change < -0.05


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Four updates at once, and two and two: the band is that of the whole past."""
    recipe = tmp_path / "small.toml"
    banded = {"regularizer.epo.weight": 0.5, "regularizer.epo.lower": 0.99, "regularizer.epo.upper": 1.01}
    recipe.write_text(dump_config(tiny(owned=banded, train={"updates": 4}, eval={"every": 0})))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", str(recipe), "--run", str(whole)]) == 0
    assert main(["train", str(recipe), "--run", str(parts), "--train.updates", "2"]) == 0
    assert main(["train", str(recipe), "--run", str(parts), "--resume"]) == 0
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, parts)]
    for line in (each for run in lines for each in run):
        assert [line.pop(name) for name in ("seconds", "rate", "memory")]
    assert lines[0] == lines[1]
    first, *later = lines[0]
    assert first["weight/epo"] == 0.5
    assert first["loss/epo"] == 0.0
    assert "epo/low" not in first
    assert all(line["loss/epo"] > 0.0 for line in later)
    entropies = [line["entropy"] for line in lines[0]]
    for number, line in enumerate(later, 1):
        assert line["epo/low"] == pytest.approx(0.99 * sum(entropies[:number]) / number)
    trained = [files(run / "checkpoints" / "step-000004")["model.safetensors"] for run in (whole, parts)]
    assert trained[0] == trained[1]


def test_a_regularizer_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A function with a setting of its own; refused: a wrong shape, a name that an auxiliary objective has."""
    text = """
import envrl
@envrl.register("regularizer", "floor")
def floor(tokens, *, nats: float = 0.2):
    return (nats - tokens.entropies_N).clamp(min=0.0)
"""
    recipe = write(tmp_path, "small.toml", dump_config(tiny(train={"updates": 1})))
    file = write(tmp_path, "floor.py", text)
    chosen = ["--regularizer.floor.weight", "0.1", "--regularizer.floor.nats", "9"]
    assert main(["train", str(recipe), "--run", str(tmp_path / "run"), "--plugin", str(file), *chosen]) == 0
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["loss/floor"] == pytest.approx(9.0 - line["entropy"], abs=1e-5)
    wrong: dict[str, str] = {
        "must return one loss a token, 2 in all": text.replace("clamp(min=0.0)", "sum()").replace("floor", "summed"),
        "there is already an auxiliary objective 'state'": text.replace("floor", "state"),
        "no regularizer can be named 'entropy'": text.replace("floor", "entropy"),
    }
    for number, (message, source) in enumerate(wrong.items()):
        file = write(tmp_path, f"wrong{number}.py", source)
        arguments = ["--plugin", str(file), "--regularizer.summed.weight", "0.1"]
        assert main(["train", str(recipe), "--run", str(tmp_path / "no"), *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularizer.epo.floor": 0.5}, "regularizer.epo.floor = 0.5 is above regularizer.epo.weight = 0.1"),
        ({"regularizer.epo.floor": 0.05}, "needs a schedule that falls"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_together(tiny(owned={"regularizer.epo.weight": 0.1, **settings}))
    with pytest.raises(UserError, match="lower = 2 must be below"):
        Epo(lower=2.0, upper=1.0)
