"""A process of tests/test_sharded.py: the most memory that an update takes in it, counted by torch's allocator.

sharded_memory.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from boxes import tiny
from envrl import ranks
from envrl.costs.memory import FULL, Load, gathered_parts, pass_parts
from envrl.costs.shape import Shape, shape_of
from envrl.engine.optimizer import adamw
from envrl.engine.sharded import ShardedEngine
from test_memory import CASES, LOAD, make_rows, network

ASKED = {
    ("activations", "fp32", False, True),
    ("wide feed-forward", "fp32", True, True),
    ("logits", "bf16", True, False),
    ("embedding", "fp32", False, False),
    ("many layers", "bf16", False, True),
}
"""Case, precision, whether layers are run again, whether embedding and output are one."""


def peak(work: Callable[[], object], file: Path) -> int:
    """Return the most bytes that are allocated at once while this is done, beside those of before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    seen.export_chrome_trace(str(file))
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


def measure(case: str, precision: str, checkpointing: bool, tied: bool, folder: Path) -> tuple[int, int]:
    """Return the counted and the predicted bytes of an update of two micro-batches.

    The whole weights are there before and after it, and no less is counted.
    """
    extra, rows, length, scored = CASES[case]
    torch.manual_seed(0)
    model = network("qwen2", **extra, tie_word_embeddings=tied)
    train = {"precision": precision, "micro_batch_tokens": rows * length, "checkpointing": checkpointing, "threads": 1}
    engine = ShardedEngine(tiny(train=train), model, adamw(model, 1e-3), folder, lambda: None, print)
    batch = make_rows(2 * rows * ranks.count(), length, scored)
    engine.step(batch[: ranks.count()], {}, 1)
    weights = sum(weight.nbytes for weight in model.parameters())
    file = folder / f"trace-{ranks.number()}.json"
    peak(engine._gather, file)  # the profiler sees that memory is freed where it saw that it was allocated
    found = peak(lambda: engine.step(batch, {}, 2), file) + weights
    load = replace(LOAD, micro_batch=rows * length, scored=rows * scored, sees=length // 2, processes=ranks.count())
    load = replace(load, bf16=precision == "bf16", checkpointing=checkpointing)
    return found, max(predicted(shape_of(model.network.config.to_dict()), load), weights)


def predicted(shape: Shape, load: Load) -> int:
    parts = [*gathered_parts(shape, load).values(), *pass_parts(shape, load).values()]
    return FULL * shape.parameters // load.processes + sum(parts)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with ranks.joined("cpu", alone=True):
        found = {" ".join(map(str, asked)): measure(*asked, folder) for asked in sorted(ASKED)}
        all_found = ranks.gather(found)
        if ranks.is_first():
            (folder / "memory.json").write_text(json.dumps(all_found))
