"""Figures of a run in trackers, read back by each one's own reader."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from envrl.cli.main import main
from envrl.cli.tracking import TRACKERS, entry, flat
from view_runs import evaluation, metric, write_lines, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo")


def test_every_figure_has_a_name() -> None:
    record: dict[str, Any] = {
        "update": 3,
        "entropy": 0.5,
        "seconds": {"total": 2},
        "ci95": [0, 1],
        "split": "a",
        "ok": True,
    }
    assert flat(record) == {"update": 3.0, "entropy": 0.5, "seconds/total": 2.0}
    assert entry("metrics", record) == ({"entropy": 0.5, "seconds/total": 2.0}, 3)
    figures, update = entry("eval", evaluation(20, "valid_seen", 0.75, [0.7, 0.8]))
    assert update == 20
    assert figures["eval/valid_seen/success_rate"] == 0.75
    assert figures["eval/valid_seen/by_task/pick_and_place/success_rate"] == 0.75
    assert entry("warm_start", {"step": 8, "loss/imitation": 0.25}) == ({"warm_start/loss/imitation": 0.25}, 8)


def test_tensorboard_reads_what_the_run_logged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: make stacks")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a second time it is written anew, and no figure stands there twice
        assert main(["tail", str(run), "--lines", "1", "--to", "tensorboard"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"look at them by: tensorboard --logdir {run / 'tensorboard'}"
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    state = [(event.step, event.value) for event in events.Scalars("loss/state")]
    assert state == [(update, pytest.approx(1 / update)) for update in range(1, 21)]
    seen = events.Scalars("eval/valid_seen/success_rate")
    assert [(event.step, event.value) for event in seen] == [(0, pytest.approx(0.4)), (20, pytest.approx(0.75))]
    assert len(events.Scalars("warm_start/loss/imitation")) == 8


def wandb_records(log: bytes) -> Iterator[bytes]:
    """The records of W&B's file: after seven bytes LevelDB's log format, in blocks of 32 KiB.

    A chunk has a checksum (4 bytes), its length (2) and its kind (1): 1 whole, 2 the first of a record, 3, 4 the last.
    """
    place, parts = 7, b""
    while place + 7 <= len(log):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", log, place + 4)
        parts = (b"" if kind in (1, 2) else parts) + log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts


def test_wandb_keeps_an_offline_run(run: Path) -> None:
    """In a process of its own: W&B's service writes the last of the file when that ends."""
    pytest.importorskip("wandb", reason="wandb is not installed: make stacks")
    from wandb.proto import wandb_internal_pb2

    write_lines(run / "metrics.jsonl", [metric(update) for update in range(1, 21)])
    command = [sys.executable, "-m", "envrl", "tail", str(run), "--lines", "1", "--to", "wandb"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    place = Path(said.splitlines()[-1].removeprefix("look at them by: wandb sync "))
    (file,) = place.glob("*.wandb")
    found: list[dict[str, Any]] = []
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = record.history.item
        found.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    losses = [(each["step"], each["loss/state"]) for each in found if "loss/state" in each]
    assert losses == [(update, pytest.approx(1 / update)) for update in range(1, 21)]


KEPT_BY_TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
(kept,) = [each for each in trackio.Api().runs("envrl") if each.name == "demo"]
logs = [each for each in SQLiteStorage.get_logs("envrl", "demo") if "loss/state" in each]
print(json.dumps([kept.config["seed"], [(each["step"], each["loss/state"]) for each in logs]]))
"""


def test_trackio_keeps_a_run(run: Path, tmp_path: Path) -> None:
    """In processes of their own: it reads its folder's name when it is imported, which other libraries do, too."""
    if find_spec("trackio") is None:
        pytest.skip("trackio is not installed: make stacks")

    def told(*arguments: str) -> str:
        variables = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
        done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=variables)
        return done.stdout

    told("-m", "envrl", "tail", str(run), "--lines", "1", "--to", "trackio")
    seed, kept = json.loads(told("-c", KEPT_BY_TRACKIO).splitlines()[-1])
    assert seed == 3
    assert kept == [[update, pytest.approx(1 / update)] for update in range(1, 21)]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tensorbord", "did you mean 'tensorboard'?"),
        ("wandb", "--to wandb needs the package wandb: pip install 'envrl[wandb]'"),
    ],
)
def test_a_tracker_that_is_not_there(
    run: Path, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("envrl.cli.tracking.find_spec", lambda _: None)
    assert name in TRACKERS or "did you mean" in sentence
    assert main(["tail", str(run), "--to", name]) == 2
    assert sentence in capsys.readouterr().err
    assert not (run / name).exists()
