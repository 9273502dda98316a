"""How well a model imitates demonstrations that it has not learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from envrl.config.schema import Config
from envrl.engine.placement import HERE, Placement
from envrl.imitation.demonstrations import imitation_rows
from envrl.imitation.method import Lesson
from envrl.models.forward import log_softmax_and_entropy
from envrl.models.load import LanguageModel
from envrl.models.rows import states_of_rows
from envrl.models.scores import logits_in_chunks
from envrl.progress import Reporter
from envrl.rendering.renderer import Renderer
from envrl.samples.packing import pack
from envrl.types import Row


@torch.no_grad()
def measure_imitation(
    model: LanguageModel,
    renderer: Renderer,
    demonstrations: Sequence[Lesson],
    config: Config,
    reporter: Reporter | None = None,
    place: Placement = HERE,
) -> dict[str, float]:
    """Return loss (nats per token), share of whole actions predicted right, and entropy (nats per token)."""
    rows: list[Row] = [row for d in demonstrations for row in imitation_rows(d)]
    batches = place.passes(rows, lambda some: pack(some, config.train.micro_batch_tokens))
    here = _Imitated()
    for batch in (reporter or Reporter()).over(batches, "held-out demonstrations", "passes"):
        counted = here if batch else _Imitated()  # where another process has more, this one runs a row with it
        place.run(partial(counted.add, model, batch or rows[:1], renderer.end))
    loss, entropy, tokens, right, actions = (sum(each) for each in zip(*place.together(here.sums()), strict=True))
    return {
        "held_out/imitation": loss / max(tokens, 1),
        "held_out/action_accuracy": right / max(actions, 1),
        "held_out/entropy": entropy / max(tokens, 1),
    }


@dataclass(slots=True)
class _Imitated:
    """Sums over rows: the loss and the entropy of their tokens, and how many tokens, right and all actions."""

    loss: float = 0.0
    entropy: float = 0.0
    tokens: int = 0
    right: int = 0
    actions: int = 0

    def sums(self) -> tuple[float, ...]:
        return self.loss, self.entropy, self.tokens, self.right, self.actions

    def add(self, model: LanguageModel, rows: Sequence[Row], end: int) -> None:
        states = states_of_rows(model.network, [row.token_ids for row in rows], model.codec.pad)
        for number, row in enumerate(rows):
            positions = torch.from_numpy(row.terms[0].positions_T.astype(np.int64)).to(model.device)
            targets = torch.from_numpy(row.token_ids[row.terms[0].positions_T].astype(np.int64)).to(model.device)
            hits: list[bool] = []
            places = states.at(states.starts.new_tensor(number), positions - 1)
            for part, logits in logits_in_chunks(model.network, places):
                logprobs, entropies = log_softmax_and_entropy(logits)
                self.loss -= float(logprobs.gather(1, targets[part, None]).sum())
                self.entropy += float(entropies.sum())
                hits += (logprobs.argmax(-1) == targets[part]).tolist()
            self.tokens += len(targets)
            start = 0
            for index, target in enumerate(targets.tolist()):
                if target == end:
                    self.actions += 1
                    self.right += all(hits[start : index + 1])
                    start = index + 1
