"""The sharded engine beside the local one: real processes over gloo, the same rows, in float64."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from envrl.costs.memory import Load, footprint
from envrl.costs.shape import shape_of
from sharded_worker import CASES, WARM, config_of, model_of
from warm import together

FEW = ("few", "heads")
STEPS_OF = {"warm dagger": 11, "warm rejection": 10, "warm early_experience": 10}
"""Optimiser steps of warm starts with several rounds; the others take six."""
FOUND = {"warm rejection": "gathered/kept", "warm self_reflection": "gathered/reflections", "warm writes": "rows/aawm"}
"""What must not be 0."""
LATER = {1: ["again"], 4: ["warm"]}
"""By number of processes, what else they do."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local engine and 1, 2 and 4 processes wrote down of every case."""
    folder = tmp_path_factory.mktemp("sharded")
    everything = (*CASES, *WARM, "again")
    begun = [together(1, "sharded_worker.py", "local", folder, *everything)]
    begun += [together(2, "sharded_worker.py", "sharded", folder, *everything)]
    begun += [together(count, "sharded_worker.py", "sharded", folder, *FEW, *again) for count, again in LATER.items()]
    assert [done.returncode for done in begun] == [0] * 4, [done.stderr[-3000:] for done in begun]
    return folder


def figures(folder: Path, case: str, count: int) -> dict[str, Any]:
    """Return what the first of so many processes (0: the local engine) wrote down."""
    found = json.loads((folder / f"{case}-{count}.json").read_text())
    return {**found, "arrays": dict(np.load(folder / f"{case}-{count}.npz"))}


@pytest.mark.parametrize(("case", "count"), [*((case, 2) for case in CASES), *product(FEW, (1, 4))])
def test_three_updates_are_those_of_the_local_engine(case: str, count: int, folder: Path) -> None:
    """Every metric, log-probs and values, and the weights and moments that come of it, in float64 to 1e-9."""
    found, expected = figures(folder, case, count), figures(folder, case, 0)
    assert len(expected["updates"]) == 3
    assert all(line["skipped"] == 0.0 and line["grad_norm"] > 0.0 for line in expected["updates"])
    assert found["updates"] == [pytest.approx(line, rel=1e-9, abs=1e-12) for line in expected["updates"]]
    assert found["tables"].keys() == expected["tables"].keys()
    for name, table in expected["tables"].items():
        assert found["tables"][name] == {origin: pytest.approx(values, abs=1e-6) for origin, values in table.items()}
    assert found["arrays"].keys() == expected["arrays"].keys()
    for name, array in expected["arrays"].items():
        assert np.abs(found["arrays"][name] - array).max() < 1e-9, name


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_loss_that_is_not_finite_is_left_out_in_all_processes(count: int, folder: Path) -> None:
    """Of three rows one has an infinite loss, so that of several processes one meets it; two optimiser steps each."""
    assert figures(folder, "few", count)["skipped"] == [[1.0, 2.0, 0.0]] * max(count, 1)


@pytest.mark.parametrize(("case", "count"), [("few", 1), ("few", 2), ("few", 4), ("untied", 2)])
def test_a_process_holds_its_share_of_weights_and_moments(case: str, count: int, folder: Path) -> None:
    """All of them together hold each number once; one holds more by what a vector does not divide evenly."""
    held, ((weights, moments),) = figures(folder, case, count)["held"], figures(folder, case, 0)["held"]
    assert moments == 2 * weights
    assert [sum(part) for part in zip(*held, strict=True)] == [weights, moments]
    assert max(part for part, _ in held) <= 1.05 * weights / count


@pytest.mark.parametrize(("case", "count"), [("few", 2), ("few", 4), ("untied", 2)])
def test_the_doctor_predicts_what_a_process_holds(case: str, count: int, folder: Path) -> None:
    """The test's numbers have 8 bytes, those of a run 4."""
    network = model_of(case, config_of(case)).network
    load = Load(micro_batch=100, scored=50, slots=4, positions=100, chunk=20, fed=80, later=8, processes=count)
    predicted = footprint(shape_of(network.config.to_dict()), load).phases["update"]
    for weights, moments in figures(folder, case, count)["held"]:
        assert predicted["a shard of them"] == pytest.approx(weights / 2, rel=0.05)
        assert predicted["Adam's moments"] == pytest.approx(moments / 2, rel=0.05)


def test_a_process_takes_at_most_the_predicted_memory(tmp_path: Path) -> None:
    """In two processes and five cases, by counted allocations: at most 6 % above, near it if activations weigh most.

    What is summed over the processes lies in memory until the others have come so far: so much depends on their pace.
    """
    done = together(2, "sharded_memory.py", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "memory.json").read_text())
    assert len(found) == 2
    for each in found:
        assert len(each) == 5
        for case, (counted, predicted) in each.items():
            least = 0.92 if case.startswith("activations") else 0.7
            assert least * predicted < counted < 1.06 * predicted, (case, counted / predicted)


def warm_files(folder: Path) -> dict[str, np.ndarray]:
    """Return all numbers that a warm start has saved, by file and name."""
    files = [*folder.glob("warm_start/*.safetensors"), *folder.glob("warm_start.partial/step-*/*.safetensors")]
    return {
        f"{file.relative_to(folder)} {name}": array for file in files for name, array in load_file(str(file)).items()
    }


def warm_lines(folder: Path) -> list[dict[str, Any]]:
    parsed = map(json.loads, (folder / "warm_start.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in parsed]


@pytest.mark.parametrize(("case", "count"), [*((case, 2) for case in WARM), ("warm", 4)])
def test_a_warm_start_in_shards_is_that_of_one_process(case: str, count: int, folder: Path) -> None:
    """Its lines, weights, moments and best weights so far, in float64 to 1e-9; for Muon, too, which rounds to bf16.

    What the policy plays between two rounds, or writes for a step, is the same in every number of processes.
    """
    found, expected = (warm_lines(folder / f"{case}-{number}") for number in (count, 1))
    assert len(expected) == STEPS_OF.get(case, 6)
    assert [sorted(line) for line in found] == [sorted(line) for line in expected]
    assert any("held_out/imitation" in line for line in expected)
    assert expected[-1].get(FOUND.get(case, ""), 1) > 0
    assert found == [pytest.approx(line, rel=1e-9, abs=1e-12) for line in expected]
    saved, wanted = (warm_files(folder / f"{case}-{number}") for number in (count, 1))
    assert saved.keys() == wanted.keys()
    assert any("best." in name for name in wanted)
    assert any("momentum_buffer" in name for name in wanted) == (case == "warm muon")
    for name, array in wanted.items():
        assert array.dtype == np.float64 or array.ndim == 0
        assert np.abs(saved[name] - array).max() < 1e-9, name


@pytest.mark.parametrize(("case", "count"), [("warm", 2), ("warm", 4), ("warm muon", 2)])
def test_a_process_holds_its_share_of_a_warm_start(case: str, count: int, folder: Path) -> None:
    """Of weights, moments and the best weights so far: together once, each one its share up to vectors' remainders."""
    held, (whole,) = (json.loads((folder / f"{case}-{number}.json").read_text()) for number in (count, 1))
    assert [sum(part) for part in zip(*held, strict=True)] == whole
    for each in held:
        assert all(part <= 1.05 * all_of_it / count for part, all_of_it in zip(each, whole, strict=True))


def test_an_interrupted_warm_start_goes_on_in_any_number_of_processes(folder: Path) -> None:
    """One process asks for the break, all stop; in two it goes on bit for bit, in one to rounding."""
    whole, cut = (warm_files(folder / f"{name}-2") for name in ("whole", "cut"))
    assert warm_lines(folder / "cut-2") == warm_lines(folder / "whole-2")
    assert whole.keys() == cut.keys()
    assert all(cut[name].tobytes() == array.tobytes() for name, array in whole.items())
    found, expected = warm_lines(folder / "cut-1"), warm_lines(folder / "whole-1")
    assert found[:4] == warm_lines(folder / "whole-2")[:4]
    assert found == [pytest.approx(line, rel=1e-3) for line in expected]
