"""How much memory a run takes, part by part and phase by phase, from the model's shape alone; nothing is allocated.

What a layer keeps for its backward pass is counted tensor by tensor as `transformers` computes it (RMSNorm in fp32,
SwiGLU), with our attention and convolution; what is needed for a moment only is a few such tensors, taken from measured
peaks. tests/test_memory.py compares both with what a pass really allocates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from envrl.costs.shape import Shape

GIB = 2**30
FULL, HALF = 4, 2
"""Bytes of an fp32 and of a bf16 number."""
LOGITS_CHUNK = 1 << 27
"""Most logits at once, as in `envrl.models.scores`, which computes them twice where there are more than an eighth."""
ATTENDED, TOGETHER = 16, 64
"""Widths of a head that a token may see for its attention's weights to be kept, and tokens whose weights are made at
once, up to the last one's: as in `envrl.models.attention`."""
WIDE = 16
"""Tokens of a chunk from which on a CPU attends slot by slot, as in `envrl.models.forward`."""
BLOCK = 128
"""Positions by which the sampler's cache grows, as in `envrl.models.slots`."""
PROCESS = {"cpu": 600 * 2**20, "cuda": 600 * 2**20}
"""What a process takes before any model: Python and torch's code; on a GPU its context, kernels and workspaces."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a run asks of memory: its batch in tokens, and how it is trained.

    `scored` tokens of a micro-batch have a loss, and a token sees `sees` on average. `slots` episodes are played at
    once, with at most `positions` tokens each. The first pass of the sampler runs `fed` tokens, `chunk` of an episode,
    and a later one `later` tokens of them all. `copies` is the number of further models (a reference, best weights).
    """

    micro_batch: int
    scored: int
    slots: int
    positions: int
    chunk: int
    fed: int
    later: int
    bf16: bool = False
    checkpointing: bool = False
    lora_rank: int = 0
    copies: int = 0
    sampling_bf16: bool = False
    """Whether the sampler has weights and a cache of its own in bf16."""
    cuda: bool = False
    sees: int = 0
    processes: int = 0
    """Over how many processes weights, gradients and moments are sharded; 0: not at all."""
    ahead: int = 0
    """How many updates are played ahead, while another is learned from."""
    frozen: bool = False
    """True if no optimiser step is taken."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes by part in each phase; a part that a phase does not hold is absent."""

    phases: Mapping[str, Mapping[str, int]]

    def total(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def largest(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """The most that tensors take at once, bytes; `PROCESS` comes on top."""
        return self.total(self.largest)


def footprint(shape: Shape, load: Load, evaluation: Load | None = None) -> Footprint:
    """Return what a run's phases hold: a rollout, a micro-batch's two passes, the optimiser's step, an evaluation.

    The warm start takes no more than an update does. In shards, each process has the whole weights to play and to be
    evaluated with; it puts them away while it learns.
    """
    trained = trainable(shape, load.lora_rank)
    adapters = trained if load.lora_rank else 0
    weights = FULL * (shape.parameters + adapters)

    sampled = HALF if load.sampling_bf16 else FULL
    copies = load.ahead or int(load.sampling_bf16)  # the sampler's, and those that wait for their turn to play

    def share(size: int) -> int:
        return ceil(size / max(load.processes, 1))

    whole = {"weights": weights}
    resident = ({} if load.processes else whole) | {
        "a shard of them": share(weights) if load.processes else 0,
        "Adam's moments": 0 if load.frozen else share(2 * FULL * trained),
        "a second model": share(FULL * shape.parameters * load.copies),
        "weights to sample": sampled * (shape.parameters + adapters) * copies,
    }
    gradients = {"gradients": share(FULL * trained)}

    def playing(load: Load) -> dict[str, int]:
        return {"keys and values": cache_bytes(shape, load), "sampling": sampling_bytes(shape, load)}

    beside = playing(load) if load.ahead else {}
    step = {"temporary": 0 if load.cuda else share(FULL * trained)}
    learning: dict[str, Mapping[str, int]] = {
        "update": resident | gradients | gathered_parts(shape, load) | pass_parts(shape, load) | beside,
        "optimiser step": resident | gradients | step | beside,
    }
    phases: dict[str, Mapping[str, int]] = {
        "rollout": whole | resident | playing(load),
        **({} if load.frozen else learning),
        **({"evaluation": whole | resident | playing(evaluation)} if evaluation else {}),
    }
    return Footprint({name: {part: size for part, size in parts.items() if size} for name, parts in phases.items()})


def trainable(shape: Shape, lora_rank: int) -> int:
    """Return the number of weights that are trained: all, or adapters of this rank beside every matrix of the layers.

    An adapter of a matrix (m, n) has r · (m + n) weights.
    """
    if not lora_rank:
        return shape.parameters
    width, attention, key = shape.width, shape.attention_width, shape.key_width
    per_attention = 2 * (width + attention) + 2 * (width + key)
    per_convolution = (width + 3 * width) + 2 * width
    per_layer = 3 * (width + shape.inner)
    return lora_rank * (
        shape.attention_layers * per_attention + shape.convolutions * per_convolution + shape.layers * per_layer
    )


def gathered_parts(shape: Shape, load: Load) -> dict[str, int]:
    """Return what of the shards is whole during a pass: embedding and output throughout, and two layers at a time.

    Gradients are whole, and once more as the copy that is summed over the processes, until the others have come so far:
    those of embedding and output once (besides what `pass_parts` counts), and of three layers. A process that is ahead
    of the others holds that much; one that waits for none holds less.
    """
    if not load.processes:
        return {}
    ends = shape.embedding_count * (1 if shape.tied else 2)
    layer = ceil((shape.parameters - ends) / shape.layers)
    gradients = 0 if load.lora_rank else ends + 3 * layer
    return {"whole for a pass": FULL * (ends + 2 * layer + gradients)}


# --- the update ------------------------------------------------------------------------------------------------------


def pass_parts(shape: Shape, load: Load) -> dict[str, int]:
    """Return what a micro-batch's passes take beside weights and gradients, at the worst moment.

    At the loss there are the activations that all layers keep, and logits. In a layer's backward pass there are
    temporaries in place of logits, and with checkpointing all that this layer has made again. Where the last layer has
    little to do, its temporaries are those of norms, and the one before it has the others. At the very end there are
    only the gradients of embedding and head, until they are added up; in shards also the copies that are summed.
    """
    copied = shape.matrix_count // (shape.layers if load.checkpointing else 1)
    copies = {"bf16 copies": HALF * copied if load.bf16 else 0}
    kept, again = saved_bytes(shape, load)
    gone = _last_layer_bytes(shape, load) if spared_bytes(shape, load) else 0
    embedding = 0 if load.lora_rank else FULL * shape.embedding_count
    held = embedding if shape.tied or load.processes else 0
    last = 3 if shape.tied else 4 if load.processes else 1
    moments = (
        {"activations": kept, "logits": logits_bytes(shape, load)},
        {"activations": kept, "temporary": load.micro_batch * 4 * FULL * shape.width * bool(gone) + held},
        {"activations": kept - gone + again, "temporary": temporary_bytes(shape, load) + held},
        {"temporary": embedding * last},
    )
    return copies | max(moments, key=lambda parts: sum(parts.values()))


def layer_bytes(shape: Shape, bf16: bool, cuda: bool = False, sees: int = 0) -> tuple[int, int]:
    """Return what an attention and a convolution layer keep of a token, bytes.

    Of each norm its input, the normed value, their scale, and its output; of attention q, k, v, and the result; of
    SwiGLU four values of the inner width. Under autocast the matrices' inputs are bf16 copies, one for each matrix.
    Padded rows have a log-sum a head besides. In a tree the result is kept twice (head by head, and as it goes on), and
    a weight for each token that is seen, if these are few; on CUDA all of it is made again.
    """
    width, inner = shape.width, shape.inner
    rotated = shape.attention_width + shape.key_width
    attended, heads = 2 * rotated, FULL * shape.heads
    if not shape.padded and cuda:
        heads = 0
    elif not shape.padded:
        attended += shape.attention_width
        seen = sees + TOGETHER // 2 if sees <= ATTENDED * shape.head_size else 0
        heads = (HALF if bf16 else FULL) * shape.heads * seen
    if shape.query_norms:
        heads += (HALF + FULL if bf16 else 2 * FULL) * rotated + FULL * (shape.heads + shape.key_heads)
    if bf16:
        norms = FULL * (4 * width + 2)
        attention = HALF * (3 * width + attended) + heads
        convolution = HALF * (width + 8 * width)
        feed_forward = HALF * (2 * width + 4 * inner)
    else:
        norms = FULL * (6 * width + 2)
        attention = FULL * attended + heads
        convolution = FULL * 8 * width
        feed_forward = FULL * 4 * inner
    return norms + attention + feed_forward, norms + convolution + feed_forward


def saved_bytes(shape: Shape, load: Load) -> tuple[int, int]:
    """Return what all layers keep of a micro-batch, and what one makes again: with checkpointing its all, else nothing.

    An adapter adds its inner value for each matrix; that frozen norms keep less is left out.
    """
    attention, convolution = layer_bytes(shape, load.bf16, load.cuda, load.sees)
    ends = FULL * (2 * shape.width + 1) + 8 + (0 if shape.padded else 2 * FULL * shape.head_size)
    adapter = 7 * load.lora_rank * (HALF if load.bf16 else FULL)
    if load.checkpointing:
        others = shape.attention_layers - bool(spared_bytes(shape, load))
        whole = max(attention if others else 0, convolution if shape.convolutions else 0) + adapter
        return load.micro_batch * (shape.layers * FULL * shape.width + ends), load.micro_batch * whole
    layers = shape.attention_layers * attention + shape.convolutions * convolution + shape.layers * adapter
    return load.micro_batch * (layers + ends) - spared_bytes(shape, load), 0


def _last_layer_bytes(shape: Shape, load: Load) -> int:
    """Return what is kept of the last layer, of which `spared_bytes` is left out."""
    if load.checkpointing:
        return load.micro_batch * FULL * shape.width
    attention, _ = layer_bytes(shape, load.bf16, load.cuda, load.sees)
    return load.micro_batch * attention - spared_bytes(shape, load)


def spared_bytes(shape: Shape, load: Load) -> int:
    """Return what the last layer need not keep of tokens without a loss: what it computes for each token by itself.

    That is the feed-forward part with what enters it, and what enters the products of queries and of the result.
    """
    if shape.padded or 2 * load.scored >= load.micro_batch:
        return 0
    width, inner, attention = shape.width, shape.inner, shape.attention_width
    if load.bf16:
        of_a_token = HALF * (2 * width + 4 * inner + width + attention)
    else:
        of_a_token = FULL * (width + 4 * inner + attention)
    return (load.micro_batch - load.scored) * of_a_token


def temporary_bytes(shape: Shape, load: Load) -> int:
    """Return what the backward pass of one layer takes for a moment: two gradients of the inner width, or of norms.

    With checkpointing norms come when most of their layer is gone.
    """
    inner = 2 * (HALF if load.bf16 else FULL) * shape.inner
    if load.checkpointing:
        return load.micro_batch * max(inner - 2 * FULL * shape.width, 0)
    norms = (5 if shape.padded else 4) * FULL * shape.width
    return load.micro_batch * max(inner - FULL * shape.width, norms)


def logits_bytes(shape: Shape, load: Load) -> int:
    """Return what log-probs and entropies take: 5 tensors of all logits, or 8 of a chunk's beside the head's gradient.

    One more byte a logit is a mask.
    """
    logits = load.scored * shape.vocabulary
    head = FULL * shape.embedding_count
    if logits <= LOGITS_CHUNK // 8 and not (load.bf16 and load.cuda):
        return logits * (5 * FULL + 1)
    chunk = min(load.scored, max(1, LOGITS_CHUNK // shape.vocabulary)) * shape.vocabulary
    gradient = 0 if load.lora_rank else head
    rounded = head // 2 if load.bf16 and load.cuda else 0
    return rounded + max(chunk * (8 * FULL + 1) + gradient, chunk * FULL + 2 * gradient)


# --- the rollout -----------------------------------------------------------------------------------------------------


def cache_bytes(shape: Shape, load: Load) -> int:
    """Return the sampler's keys and values, and what growing or copying one layer's takes for a moment."""
    layer = load.slots * cache_positions(load) * 2 * (HALF if load.sampling_bf16 else FULL) * shape.key_width
    return layer * (shape.attention_layers + 1)


def cache_positions(load: Load) -> int:
    """Return the positions that a slot of the cache has in the end: it begins with a chunk and grows by half."""
    capacity = -(-load.chunk // BLOCK) * BLOCK
    while capacity < load.positions:
        capacity = -(-max(capacity + 1, 3 * capacity // 2) // BLOCK) * BLOCK
    return capacity


def sampling_bytes(shape: Shape, load: Load) -> int:
    """Return what a pass of the sampler takes for a moment, the first or a later one, or drawing from all logits.

    In attention the mask exists once, and once more for each query head that shares a key head, or twice the scores of
    one slot where wide chunks are gone through slot by slot; in the feed-forward part there are three values of the
    inner width. Drawing takes log-probs, and their running sum in double precision.
    """
    groups = shape.heads // shape.key_heads
    width, attention, key = shape.width, shape.attention_width, shape.key_width

    def one_pass(tokens: int, seen: int) -> int:
        chunk = ceil(tokens / load.slots)
        by_slot = chunk >= WIDE and not load.cuda
        masks = 1 + groups if groups > 1 and not by_slot else 1
        attending = 3 * width + 4 * attention + 3 * key // 2 + masks * seen
        scores = 2 * shape.heads * chunk * seen if by_slot else 0
        most = max(tokens * attending + scores, tokens * (5 * width + 3 * shape.inner + seen))
        return (HALF if load.sampling_bf16 else FULL) * most

    drawing = load.slots * shape.vocabulary * 34
    return max(one_pass(load.fed, load.chunk), one_pass(load.later, load.positions), drawing)
