"""Predict an update's memory from its actual batch, to log beside the measured memory."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.config.schema import Config
from envrl.costs.memory import PROCESS, Load, footprint
from envrl.costs.shape import shape_of
from envrl.costs.workload import trained_how
from envrl.models.load import LanguageModel
from envrl.samples.packing import pack, tokens_run
from envrl.types import Row, Trajectory


def predicted_memory(
    config: Config, model: LanguageModel, played: Sequence[Trajectory], rows: Sequence[Row], budget: int, at_once: int
) -> int:
    """Return the predicted peak memory of an update in bytes: of tensors on a CUDA device, else of the process."""
    shape = shape_of(model.network.config.to_dict())
    segments = [segment for episode in played for segment in episode.segments]
    batches = pack(rows, budget, padded=shape.padded)
    first = max((segment.spans[0].start for segment in segments), default=1)
    longest = max((len(segment.token_ids) for segment in segments), default=1)
    later = max((b.start - a.stop for s in segments for a, b in zip(s.spans, s.spans[1:], strict=False)), default=0)
    starts = at_once if config.rollout.layout == "steps" else config.rollout.tasks
    cuda = model.device.type == "cuda"
    load = Load(
        micro_batch=max((tokens_run(batch, padded=shape.padded) for batch in batches), default=0),
        scored=max((sum(len(t.positions_T) for row in batch for t in row.terms) for batch in batches), default=0),
        slots=at_once,
        positions=longest,
        chunk=first,
        fed=first * min(starts, at_once),
        later=at_once * (later + 1),
        cuda=cuda,
        sees=sum(len(row.token_ids) ** 2 for row in rows) // (2 * sum(len(row.token_ids) for row in rows) or 1),
        **trained_how(config),
    )
    return footprint(shape, load).peak + (0 if cuda else PROCESS["cpu"])
