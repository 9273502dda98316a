"""A run's files and checkpoints under kills, damage and a full disk."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envrl.engine.checkpoint import (
    Due,
    checkpoints,
    clean_checkpoints,
    latest_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
    verify_checkpoint,
)
from envrl.errors import RunError, UserError
from envrl.files import JsonLines, create_run, lock_run, write_json, write_text


def fill(value: str):
    """A checkpoint's content: every file tells which checkpoint it belongs to, and by which writer."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(value.encode() * 2000)
        (folder / "trainer.json").write_text(json.dumps(value))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocab.txt").write_text(value)

    return write


def content(path: Path) -> str:
    """Return the value of `fill`, having seen that all three files agree on it."""
    value = json.loads((path / "trainer.json").read_text())
    assert (path / "model.safetensors").read_bytes() == value.encode() * 2000
    assert (path / "tokenizer" / "vocab.txt").read_text() == value
    return value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_one_is_due_by_steps_or_by_the_clock() -> None:
    """Every third step, or ten minutes after the last time, whichever it was by; the clock's times are seconds."""
    at = 0.0
    due = Due(3, 10.0, lambda: at)
    found = []
    for step, now in enumerate([60, 599, 600, 1100, 1200, 1201, 1800, 1801, 1802], 1):
        at = float(now)
        found.append((step, due(step)))
    assert [step for step, so in found if so] == [3, 5, 6, 8, 9]


def test_the_newest_are_kept_and_latest_points_to_the_last(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        saved = save_checkpoint(tmp_path, f"step-{step:06d}", fill(str(step)), keep=2)
    assert names(tmp_path) == ["latest", "step-000010", "step-000015"]
    assert latest_checkpoint(tmp_path) == saved == tmp_path / "step-000015"
    assert os.readlink(tmp_path / "latest") == "step-000015"
    verify_checkpoint(tmp_path / "latest")


def test_newest_is_by_number_not_by_text(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, f"step-{step:06d}", fill(str(step)), keep=5)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-999999", "step-1000000"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None
    with pytest.raises(UserError, match="there is no checkpoint at"):
        verify_checkpoint(tmp_path / "step-000001")


def test_manifest_holds_the_hash_that_sha256sum_prints(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, "step-000001", lambda folder: write_text(folder / "a.txt", "abc"), keep=1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    # FIPS 180-2, appendix B.1: SHA-256 of "abc".
    assert files == {
        "a.txt": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    }


def test_an_existing_name_is_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "step-000010", fill("first"), keep=2)
    path = save_checkpoint(tmp_path, "step-000010", fill("second"), keep=2)
    verify_checkpoint(path)
    assert content(path) == "second"
    assert names(tmp_path) == ["latest", "step-000010"]


def test_leftovers_of_a_killed_writer_are_ignored_then_removed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "step-000010", fill("ten"), keep=2)
    (tmp_path / ".tmp-step-000020").mkdir()
    (tmp_path / ".tmp-step-000020" / "model.safetensors").write_text("half")
    (tmp_path / ".tmp-latest").symlink_to("step-000020")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000010"
    assert ".tmp-step-000020" in names(tmp_path), "reading must not touch what a living writer may be writing"
    save_checkpoint(tmp_path, "step-000020", fill("twenty"), keep=2)
    assert names(tmp_path) == ["latest", "step-000010", "step-000020"]


def test_one_caught_while_it_was_replaced_is_found_and_put_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, "step-000010", fill("ten"), keep=2)
    path.rename(tmp_path / ".old-step-000010")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert content(found) == "ten"
    clean_checkpoints(tmp_path)
    assert latest_checkpoint(tmp_path) == path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "trainer.json").unlink(), "trainer.json is missing"),
        (lambda path: (path / "tokenizer" / "vocab.txt").unlink(), "tokenizer/vocab.txt is missing"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "manifest.json").write_text('{"files": '), "manifest.json is not readable"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is not readable"),
        (
            lambda path: os.truncate(path / "model.safetensors", 3999),
            "model.safetensors has 3999 bytes instead of 4000",
        ),
        (
            lambda path: (path / "model.safetensors").write_bytes(b"xx" * 2000),
            "content of model.safetensors was altered",
        ),
    ],
)
def test_a_damaged_newest_is_refused_and_the_one_before_offered(tmp_path: Path, damage, message: str) -> None:
    for step in ("10", "20"):
        save_checkpoint(tmp_path, f"step-0000{step}", fill(step), keep=2)
    damage(tmp_path / "step-000020")
    with pytest.raises(UserError) as caught:
        latest_checkpoint(tmp_path)
    text = str(caught.value)
    assert f"{tmp_path / 'step-000020'} is damaged: {message}" in text.replace("the content", "content")
    assert text.endswith(f"remove {tmp_path / 'step-000020'} and run again with --resume to go on from step-000010")


def test_the_one_offered_is_itself_whole(tmp_path: Path) -> None:
    for step in ("10", "20", "30"):
        save_checkpoint(tmp_path, f"step-0000{step}", fill(step), keep=3)
    (tmp_path / "step-000020" / "trainer.json").unlink()
    (tmp_path / "step-000030" / "trainer.json").unlink()
    with pytest.raises(UserError, match=r"step-000030 and .*step-000020 and run again with --resume .* step-000010$"):
        latest_checkpoint(tmp_path)
    (tmp_path / "step-000010" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no earlier one is whole"):
        latest_checkpoint(tmp_path)


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "step-000010", fill("ten"), keep=1)

    def interrupted(folder: Path) -> None:
        fill("half")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, "step-000020", interrupted, keep=1)
    assert names(tmp_path) == ["latest", "step-000010"]


# --- really killed ---------------------------------------------------------------------------------------------------

WRITER = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoint import fill
from envrl.engine.checkpoint import checkpoints, clean_checkpoints, save_checkpoint
folder, same = Path({folder!r}), {same}
clean_checkpoints(folder)
start = max([int(path.name[5:]) for path in checkpoints(folder)], default=0)
print("ready", flush=True)
for step in itertools.count(start + 1):
    save_checkpoint(folder, "step-000007" if same else f"step-{{step:06d}}", fill(f"value {{step}}"), keep=2)
    print(step, flush=True)
"""


@pytest.mark.parametrize("same", [False, True], ids=["new names", "one name replaced"])
def test_killed_at_random_moments_the_newest_is_always_whole(tmp_path: Path, same: bool) -> None:
    chance = random.Random(20)
    folder = tmp_path / "checkpoints"
    code = WRITER.format(tests=str(Path(__file__).parent), folder=str(folder), same=same)
    caught_midway = 0
    for _ in range(12):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.08))
            child.send_signal(signal.SIGKILL)
            reported = [int(line) for line in child.stdout.read().splitlines()]
        found = latest_checkpoint(folder)
        if found is None:
            assert not reported
            continue
        step = int(content(found).removeprefix("value "))
        assert step >= (reported or [0])[-1], "what was reported as saved is there"
        replacing = found.name.startswith(".old-")  # killed between the two renames: `latest` points to neither
        assert (folder / "latest").exists() or replacing or not reported
        for path in checkpoints(folder):
            verify_checkpoint(path)
        caught_midway += any(name.startswith(".") for name in names(folder))
    assert caught_midway >= 3, "the kills should have hit writers at work"
    clean_checkpoints(folder)
    assert not [name for name in names(folder) if name.startswith(".")]


KILLED_AT = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoint import content, fill, latest_checkpoint, names
from envrl.engine.checkpoint import checkpoints, clean_checkpoints, save_checkpoint, verify_checkpoint

os.fsync = lambda file: None  # it guards against power failures, which are not tested, and takes most of the time
left = None
def hook(event, arguments):
    global left
    if left is not None and event.split(".")[0] in ("os", "shutil", "open"):
        left -= 1
        if left < 0:
            left = None  # the kill is an event too
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)

base = Path({folder!r})
for old, new in (("step-000002", "step-000003"), ("step-000002", "step-000002")):
    for step in ("1", "2"):
        save_checkpoint(base / new, f"step-00000{{step}}", fill("old " + step), keep=2)
    for moment in range(10_000):
        folder = base / f"{{new}}-{{moment}}"
        shutil.copytree(base / new, folder, symlinks=True)
        child = os.fork()
        if child == 0:
            left = moment
            save_checkpoint(folder, new, fill("new"), keep=2)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        found = latest_checkpoint(folder)
        assert (found.name.removeprefix(".old-"), content(found)) in ((old, "old 2"), (new, "new")), (moment, found)
        assert (folder / "latest").exists() or (new == old and found.name.startswith(".old-")), moment
        for path in checkpoints(folder):
            verify_checkpoint(path)
        save_checkpoint(folder, "step-000004", fill("after"), keep=1)
        assert names(folder) == ["latest", "step-000004"], (moment, names(folder))
        if status == 0:
            break
    print(moment)
"""


def test_killed_before_each_single_system_call(tmp_path: Path) -> None:
    code = KILLED_AT.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moments = [int(line) for line in done.stdout.split()]
    assert min(moments) > 30


# --- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, "step-000010", fill("ten"), keep=1)

    def full(path: Path) -> None:
        fill("half")(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError) as caught:
        save_checkpoint(folder, "step-000020", full, keep=1)
    assert str(caught.value) == (
        f"disk full while writing {folder / 'step-000020'}; the last good checkpoint is {folder / 'step-000010'}: "
        "free space and go on with --resume"
    )
    assert names(folder) == ["latest", "step-000010"]
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert content(latest) == "ten"


def test_a_full_disk_that_only_rust_saw(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(
        RunError, match=r"^disk full while writing .*; there is no checkpoint yet: free space and start"
    ):
        save_checkpoint(tmp_path, "step-000001", full, keep=1)


def test_a_real_write_that_fails(tmp_path: Path) -> None:
    """With a limit on file sizes the system itself refuses: safetensors (Rust), Python's files and appended lines."""
    code = f"""
import resource, sys, torch
from pathlib import Path
from envrl.errors import RunError
from envrl.engine.checkpoint import save_checkpoint, save_state, latest_checkpoint
from envrl.files import JsonLines, write_text
run = Path({str(tmp_path)!r})
def state(count):
    return lambda folder: save_state(folder / "trainer", {{"x": torch.zeros(count)}}, {{}})
lines = JsonLines(run / "metrics.jsonl")
lines.append({{"update": 1}})
write_text(run / "report.html", "old")
save_checkpoint(run / "checkpoints", "step-000001", state(10), keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for attempt in (
    lambda: save_checkpoint(run / "checkpoints", "step-000002", state(10_000), keep=1),
    lambda: lines.append({{"text": "x" * 30_000}}),
    lambda: write_text(run / "report.html", "x" * 30_000),
):
    try:
        attempt()
        sys.exit("no error")
    except RunError as error:
        print(error)
lines.append({{"update": 2}})
assert latest_checkpoint(run / "checkpoints").name == "step-000001"
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY, "needs to lower the limit"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    good = tmp_path / "checkpoints" / "step-000001"
    written = ["checkpoints/step-000002", "metrics.jsonl", "report.html"]
    for line, name in zip(done.stdout.splitlines(), written, strict=True):
        assert line.startswith("largest allowed file size reached while writing ")
        assert name in line
        assert line.endswith(f"the last good checkpoint is {good}: free space and go on with --resume")
    assert names(tmp_path) == ["checkpoints", "metrics.jsonl", "report.html"]
    assert names(tmp_path / "checkpoints") == ["latest", "step-000001"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n{"update": 2}\n'
    assert (tmp_path / "report.html").read_text() == "old"


# --- state -----------------------------------------------------------------------------------------------------------


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 7, generator=generator)
    tensors = {
        "weight": weight,
        "tied": weight,
        "part": weight[1:3],
        "turned": weight.t(),
        "half": torch.tensor([1.1, -0.0, float("nan")], dtype=torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0),
        "generator": generator.get_state(),
    }
    meta = {"update": 12, "rate": 0.1 + 0.2, "pcg64": 2**127 + 1, "text": 'ä "\u2028', "best": None, "offsets": [1, 2]}
    save_state(tmp_path / "trainer", tensors, meta)
    assert names(tmp_path) == ["trainer.json", "trainer.safetensors"]
    loaded, loaded_meta = load_state(tmp_path / "trainer")
    assert loaded_meta == meta
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        as_bytes = [t.contiguous().flatten().view(torch.uint8) if t.numel() else t for t in (loaded[name], tensor)]
        assert torch.equal(*as_bytes)
    with pytest.raises(UserError, match=r"absent\.safetensors is missing"):
        load_state(tmp_path / "absent")


# --- lines and files -------------------------------------------------------------------------------------------------


def test_lines_are_cut_back_to_an_offset(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"update": 1, "text": "ä"}, sync=True)
    assert lines.offset == len('{"update": 1, "text": "ä"}\n'.encode())
    offset = lines.offset
    lines.append({"update": 2})
    lines.close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"update": 3, "te')
    again = JsonLines(tmp_path / "metrics.jsonl")
    again.truncate(offset)
    again.append({"update": 2})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == ['{"update": 1, "text": "ä"}', '{"update": 2}']
    with pytest.raises(UserError, match="lines were removed"):
        again.truncate(offset * 10)
    again.close()


def test_lines_hold_json_whatever_the_numbers(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append(
        {"a": float("nan"), "b": [float("-inf"), 1.5], "c": numpy.float32(0.5), "d": numpy.arange(2), "e": True}
    )
    lines.append({"lone surrogate": "\ud800"})
    lines.close()
    first, second = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == {"a": None, "b": [None, 1.5], "c": 0.5, "d": [0, 1], "e": True}
    assert json.loads(second) == {"lone surrogate": "\ud800"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(), st.floats(allow_nan=False)))))
def test_every_line_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, records: list[dict]) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    lines = JsonLines(path)
    for record in records:
        lines.append(record)
    lines.close()
    read = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    finite = [{k: None if v in (float("inf"), float("-inf")) else v for k, v in r.items()} for r in records]
    assert read == finite


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "state.json", {"a": 0.1})
    assert json.loads((tmp_path / "state.json").read_text()) == {"a": 0.1}
    write_json(tmp_path / "text.json", "half a pair: \ud800")
    assert json.loads((tmp_path / "text.json").read_text()) == "half a pair: \ud800"
    (tmp_path / "text.json").unlink()

    def refuse(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match="disk full"):
        write_text(tmp_path / "state.json", "new")
    assert names(tmp_path) == ["state.json"]
    assert json.loads((tmp_path / "state.json").read_text()) == {"a": 0.1}


def test_a_run_appears_whole(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "demo"
    create_run(run, "seed = 1\n")
    assert names(run) == ["config.toml"]
    assert names(run.parent) == ["demo"]
    assert (run / "config.toml").read_text() == "seed = 1\n"
    with pytest.raises(UserError, match="demo exists: add --resume"):
        create_run(run, "seed = 2\n")
    with pytest.raises(UserError, match="runs exists and is not a run"):
        create_run(run.parent, "seed = 2\n")
    assert (run / "config.toml").read_text() == "seed = 1\n"


def test_a_run_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="cannot make the run directory"):
        create_run(tmp_path / "runs" / "demo", "")
    assert names(tmp_path) == ["runs"]


def test_a_run_is_held_by_one_process(tmp_path: Path) -> None:
    create_run(tmp_path / "run", "")
    with lock_run(tmp_path / "run"), pytest.raises(UserError, match="another process is training"):
        lock_run(tmp_path / "run").__enter__()
    with lock_run(tmp_path / "run"):
        pass
    assert names(tmp_path / "run") == ["config.toml"]
