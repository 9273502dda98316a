"""How many tokens an update plays and learns from: what a recipe says, and what is known of a world's texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from envrl.config.schema import Config
from envrl.costs.memory import Load
from envrl.costs.shape import Shape

CHARACTERS = {"preset": 5.4, "model": 4.0}
"""Of a token: the preset's tokenizer is made for its world; a pretrained one's on English."""
TURNS = 0.6
"""Mean length of an episode as a share of the longest; ours, from runs that win half of their games."""
WRITTEN = 0.5
"""Mean length of a free response as a share of `rollout.response_tokens`; ours."""
LONGEST_WRITTEN = 0.8
"""The longest free response of a turn's batch as a share of that limit; ours."""
CHOSEN = 0.4
"""The share of a restricted command's tokens that are not forced (docs/rollout.md)."""
LONGEST = 1.6
"""The longest prompt of a batch over the mean one."""
INSTRUCTIONS = 600
"""Characters of a chat's prompt that are neither the task nor the world's; ours."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Mean characters of a world's texts: the first observation, a later one, all admissible commands, one of them."""

    first: int
    later: int
    admissible: int
    command: int


_TEXTS = {
    "household": Texts(380, 110, 360, 16),
    "alfworld": Texts(510, 90, 550, 17),
    "webshop": Texts(210, 1060, 250, 27),
}
"""Measured over 24 training tasks each, half an expert's play and half random play."""
_COMPACT_SHOP = Texts(165, 175, 230, 27)
_OTHER = Texts(500, 250, 400, 20)


@dataclass(frozen=True, slots=True)
class Workload:
    """An update's batch in tokens, means except where a name says otherwise.

    `prompt` opens an episode (concat) or every turn (steps); `added` is what a later turn adds to the former. A turn
    takes the sampler so many `passes`: as many as its longest response has tokens that are not forced.
    """

    episodes: int
    turns: float
    longest_turns: int
    steps: bool
    prompt: float
    added: float
    response: float
    longest_response: int
    passes: float
    auxiliary_rows: float
    auxiliary_tokens: float
    prompt_limit: int = 0
    """`rollout.prompt_tokens`, of the longest prompt alone; 0: the context."""

    @property
    def sequence(self) -> float:
        """Tokens of a row: an episode, or a turn."""
        if self.steps:
            return self.prompt + self.response
        return self.prompt + self.response + (self.turns - 1) * (self.added + self.response)

    @property
    def rows(self) -> float:
        return self.episodes * (self.turns if self.steps else 1.0)

    @property
    def fed(self) -> float:
        """Tokens that the sampler runs, prompts and responses."""
        return self.rows * self.sequence

    @property
    def trained(self) -> float:
        """Tokens that an epoch of the update runs."""
        return self.fed + self.auxiliary_rows * self.auxiliary_tokens

    @property
    def sampled(self) -> float:
        """Tokens that the policy draws."""
        return self.episodes * self.turns * self.response

    def longest(self, context: int) -> tuple[int, int]:
        """Return the tokens of the longest sequence, and of its longest prompt, within a context."""
        prompt = min(int(LONGEST * self.prompt), self.prompt_limit or context)
        if self.steps:
            return min(context, prompt + self.longest_response), min(context, prompt)
        whole = prompt + self.longest_response + (self.longest_turns - 1) * (self.added + self.response)
        return min(context, int(whole)), min(context, prompt)


def workload(config: Config) -> Workload:
    """Return what an update of a recipe is expected to play and to learn from."""
    rollout, texts = config.rollout, _texts(config)
    characters = CHARACTERS["model" if config.model.path else "preset"]
    steps = rollout.layout == "steps"
    turn = texts.later + (texts.admissible if rollout.show_admissible else 0)
    command = texts.command / characters + 1
    free = rollout.actions == "free"
    response = max(command, WRITTEN * rollout.response_tokens) if free else command
    limit = max(rollout.response_tokens, int(command) if free else 0)
    earlier = rollout.history * (texts.later + texts.command) if steps else 0
    instructions = INSTRUCTIONS if rollout.is_chat else 0
    task = 80 if rollout.repeat_task or steps else 0
    prompt = ((turn if steps else texts.first) + earlier + instructions + task) / characters
    most = rollout.max_steps or config.env.max_steps
    turns = max(1.0, TURNS * most)
    episodes = rollout.tasks * rollout.group_size
    told = config.memory.tokens if config.memory.name != "none" else 0
    pair = prompt if steps else (texts.later + 80) / characters
    return Workload(
        episodes=episodes,
        turns=turns,
        longest_turns=most,
        steps=steps,
        prompt=prompt + told,
        added=(turn + task) / characters,
        response=response,
        longest_response=limit,
        passes=max(response, LONGEST_WRITTEN * rollout.response_tokens) if free else 1 + CHOSEN * command,
        prompt_limit=rollout.prompt_tokens,
        auxiliary_rows=episodes * turns * _auxiliary_share(config),
        auxiliary_tokens=pair + (texts.later + texts.command) / characters,
    )


def _auxiliary_share(config: Config) -> float:
    """Return how many rows of their own the auxiliary objectives make of a transition: one each, it is taken."""
    return sum(each.common.fraction for each in config.auxiliaries() if not each.in_pass)


def _texts(config: Config) -> Texts:
    if config.env.name == "webshop" and config.settings("env")["compact"]:
        return _COMPACT_SHOP
    return _TEXTS.get(config.env.name.removesuffix("-textworld"), _OTHER)


def memory_load(config: Config, work: Workload, shape: Shape, cuda: bool | None = None) -> Load:
    """Return what a recipe with that workload asks of memory, at its worst: full micro-batches of the longest rows.

    The warm start holds the best weights so far where the updates hold the reference of the KL term.
    """
    context = min(shape.context, config.model.context) if not config.model.path else shape.context
    longest, prompt = work.longest(context)
    micro_batch = max(config.train.micro_batch_tokens, longest)
    scored = min(micro_batch, int(micro_batch * work.response * (1 if work.steps else work.turns) / work.sequence))
    if any(each.in_pass for each in config.auxiliaries()):
        scored = micro_batch
    slots = min(config.rollout.slots or work.episodes, work.episodes)
    fresh = slots if work.steps else min(slots, config.rollout.tasks)
    load = Load(
        micro_batch=micro_batch,
        scored=scored,
        slots=slots,
        positions=longest,
        chunk=prompt,
        fed=prompt * fresh,
        later=slots * (1 if work.steps else min(context, int(LONGEST * work.added) + 1)),
        cuda=config.train.device.startswith("cuda") if cuda is None else cuda,
        sees=int(work.sequence / 2),
        **trained_how(config),
    )
    warm = config.warm_start
    imitates = warm.demonstrations > 0 and not warm.path
    stores_best = imitates and not config.model.lora_rank
    return replace(load, copies=max(load.copies, int(stores_best)), frozen=load.frozen and not imitates)


def trained_how(config: Config) -> dict[str, Any]:
    """Return the fields of a `Load` that are a recipe's own settings."""
    rank = config.model.lora_rank
    return {
        "bf16": config.train.precision == "bf16",
        "checkpointing": config.train.checkpointing,
        "lora_rank": rank,
        "copies": int(config.objective.kl_weight > 0 and not rank),
        "sampling_bf16": config.rollout.precision == "bf16",
        "ahead": config.rollout.ahead,
        "frozen": not config.learns,
    }
