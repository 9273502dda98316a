"""Every key that a recipe can set, with its type, range and default. Settings are defined only here.

The comment behind a key is its documentation; `docs/recipes.md` is generated from this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from msgspec import Meta

from envrl.ranges import AboveZero, Count, Fraction, NonNegative, Positive, Rate, Weight
from envrl.registry import KINDS, find, in_order

Precision = Literal["fp32", "bf16", "auto"]
Table = dict[str, bool | int | float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvConfig:
    name: str = "household"  # the world
    data: str = ""  # folder of downloaded data; empty: the world's environment variable, else its default folder
    split: str = "train"  # the split that RL and demonstrations draw tasks from
    max_steps: Positive = 30  # steps after which an episode is cut off, lost
    distractors: Annotated[int, Meta(ge=0, le=40)] = 0  # irrelevant lines behind every observation
    hide_admissible: bool = False  # the world does not say which commands it would accept
    failing_actions: Annotated[float, Meta(ge=0.0, le=0.9)] = 0.0  # chance that an action does nothing
    step_cost: NonNegative = 0.0  # taken from the reward of every step
    subgoal_reward: NonNegative = 0.0  # paid once for each sub-goal, in worlds that name them
    workers: Annotated[int, Meta(ge=-1, le=1024)] = -1  # processes that play it; 0: none; -1: a core each if it is slow
    timeout: AboveZero = 60.0  # seconds after which a worker process that does not answer is replaced
    place: Literal["local", "ray"] = "local"  # where worker processes are: here, or spread over a Ray cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    path: str = ""  # a folder, a name of `envrl models list`, or an id of the hub; empty: build `preset` from scratch
    revision: str = ""  # with `path`: commit, tag or branch of the hub; a run keeps the commit that it began with
    chat_template: Literal["", "chatml"] = ""  # for chat formats: the tokenizer's own | a built-in one in its place
    template_arguments: Table = field(default_factory=dict)  # what its chat template takes: { enable_thinking = false }
    preset: str = "tiny"  # a network and tokenizer built from scratch on the world's training texts
    hidden_size: Positive = 128  # preset only: width
    layers: Annotated[int, Meta(ge=2, le=1024)] = 4  # preset only: the first is a short convolution, the others attend
    heads: Positive = 4  # preset only: attention heads
    key_heads: Positive = 2  # preset only: heads of keys and values, shared by the attention heads
    vocabulary: Annotated[int, Meta(ge=300)] = 1500  # preset only: the tokenizer's largest size
    context: Positive = 2048  # preset only: longest sequence, tokens
    lora_rank: Count = 0  # with `path`: train an adapter of this rank, the model's own weights stay; 0: train them all
    lora_alpha: AboveZero = 32.0  # the adapter's part is multiplied by this over lora_rank
    phrases: bool = True  # preset only: tokens of several words, in a world that numbers its things


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartConfig:
    path: str = ""  # share the warm start of another run: its folder `warm_start`
    demonstrations: Count = 1500  # episodes imitated; 0 skips the stage
    method: str = "imitation"  # what else is learned from: rounds of the policy's own episodes, with an expert's labels
    demonstrator: Literal["expert", "walkthrough"] = "expert"  # who plays them
    epochs: Positive = 3  # passes over the demonstrations
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the hidden layers' matrices, AdamW for the rest
    learning_rate: Rate = 3e-3  # AdamW's peak; linear warm-up, then cosine to a tenth
    matrix_learning_rate: Rate = 0.02  # Muon's peak
    batch: Positive = 12  # demonstrations an optimiser step
    noise: Fraction = 0.0  # chance that a random command takes the place of the expert's, shown but not imitated
    held_out: Count = 64  # further demonstrations, of other training games, that are only measured
    patience: Count = 2  # stop after this many epochs in which the held-out loss did not fall; 0 never stops early
    every: Positive = 100  # optimiser steps between two saved states of this stage


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    tasks: Positive = 16  # tasks an update
    group_size: Positive = 8  # episodes of each
    slots: Count = 0  # episodes played at a time, the next one taking the slot of one that ends; 0: all of an update
    max_steps: Count = 0  # steps after which a training episode is cut off; 0: env.max_steps, as in evaluation
    temperature: Annotated[float, Meta(ge=0.01)] = 1.0  # of sampling
    top_k: Count = 0  # sampling is narrowed to the most likely tokens, this many; 0: off
    top_p: Rate = 1.0  # and of these to the fewest that hold this share of their probability; 1: off
    sampler: str = "own"  # what draws the tokens
    ahead: Count = 0  # updates played ahead, beside learning, with the weights of that many updates before; 0: off
    format: str = "marks"  # our marks | chats (docs/prompts.md): tags, action, react, json, plan, subgoal
    layout: Literal["concat", "steps"] = "concat"  # the whole episode is one sequence | every step is its own
    history: Count = 2  # steps layout: earlier turns in the prompt
    summary: bool = False  # steps layout of a chat: the model sums up for its own later turns what is not shown
    system_message: str = ""  # of a chat: said before everything else; empty: the template's own, if it has one
    prompt_tokens: Count = 0  # of a chat: longest prompt, beyond which its oldest turns are cut; 0: the context
    actions: Literal["admissible", "free"] = "admissible"  # sampling restricted to the admissible commands | any text
    show_admissible: bool = False  # put the admissible commands in the prompt
    repeat_task: bool = False  # concat layout: put the task's sentence behind every observation
    precision: Precision = "fp32"  # of the weights that play samples with; bf16: a copy; auto: what is faster here
    response_tokens: Positive = 24  # longest response; restricted sampling ends with its command
    reward: Literal["world", "success"] = "world"  # training learns from the world's rewards | from 1 for a win alone
    reward_scale: AboveZero = 1.0  # these are multiplied by this
    invalid_penalty: NonNegative = 0.0  # taken from an invalid step
    invalid: Literal["command", "form"] = "command"  # one whose command is not accepted | whose response is malformed

    @property
    def is_chat(self) -> bool:
        """True if the model's chat template writes the prompts; False for the format `marks`."""
        return self.format != "marks"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    estimator: str = "grpo"  # advantage estimator
    loss: str = "ppo"  # policy loss
    policy_weight: Weight = 1.0  # of the policy loss; 0: learn from teachers and auxiliary objectives alone
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "sequence_mean"  # of the policy loss
    constant: Count = 0  # with aggregation = "constant": tokens that each row counts as; 0: the most that it can have
    idle_rows: Literal["skip", "count"] = "skip"  # without advantage: left out | in the denominator, KL and entropy
    importance_cap: NonNegative = 0.0  # tokens weigh trainer's over sampler's probability, at most this; 0: off
    importance_mask: NonNegative = 0.0  # tokens whose probability changed by more than this factor do not learn; 0: off
    kl_weight: Weight = 0.0  # KL to the policy that RL started from; 0: off
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"  # of the KL (docs/algorithms/kl.md)
    kl_in: Literal["loss", "reward"] = "loss"  # it is a loss of every token (k2, k3) | taken from the reward (k1)
    entropy_weight: Weight = 0.0  # of the entropy bonus; 0: off


@dataclass(frozen=True, slots=True, kw_only=True)
class AuxiliaryConfig:
    """The settings of every auxiliary objective, in `[auxiliary.NAME]` and `[warm_start.auxiliary.NAME]`.

    For the warm start, "updates" are its optimiser steps.
    """

    weight: Weight = 0.0  # of its loss; 0: off
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # of the weight, over the updates
    schedule_updates: Count = 0  # updates after which the weight has fallen to its floor; 0: all of the run
    floor: Weight = 0.0  # the weight falls to this
    every: Positive = 1  # it takes part in one update of so many
    select: Literal["all", "failures", "novel", "uncertain"] = "all"  # transitions (docs/algorithms/selection.md)
    fraction: Fraction = 1.0  # share of its examples that make rows; in the policy's own rows: of the episodes
    reservoir: Count = 0  # rows are drawn from a sample of so many examples of all updates; 0: from the update's own
    deduplicate: bool = True  # equal examples of an update make one row
    tokens: Literal["target", "all"] = "target"  # that have a loss: the target's | the question's, too
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"  # every token weighs the same | every row
    placebo: bool = False  # targets are exchanged among examples (docs/algorithms/envrl.md)


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """An auxiliary objective with a weight: the common settings, and its own."""

    name: str
    common: AuxiliaryConfig
    settings: dict[str, Any]

    @property
    def in_pass(self) -> bool:
        """True if it predicts tokens of the policy's own rows; an objective may leave that to its settings."""
        of_it = find("auxiliary", self.name).traits.get("in_pass", False)
        return bool(of_it(self.settings) if callable(of_it) else of_it)

    @property
    def asks(self) -> str:
        """What it is about, if that is one of the probe's questions: "state", "inverse"."""
        return str(find("auxiliary", self.name).traits.get("asks", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """The settings of every reward beside the world's, in `[reward.NAME]`."""

    weight: Weight = 0.0  # it is multiplied by this, and added to each step's; 0: off
    schedule: Literal["cosine", "linear", "constant"] = "constant"  # of the weight, over the updates
    schedule_updates: Count = 0  # updates after which the weight has fallen to its floor; 0: all of the run
    floor: Weight = 0.0  # the weight falls to this


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward beside the world's with a weight: the common settings, and its own."""

    name: str
    common: RewardConfig
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegularizerConfig:
    """The settings of every regularizer, in `[regularizer.NAME]`."""

    weight: Weight = 0.0  # of its loss; 0: off
    schedule: Literal["cosine", "linear", "rise", "constant"] = "constant"  # of the weight; rise: a cosine upwards
    schedule_updates: Count = 0  # updates that the schedule takes; 0: all of the run
    floor: Weight = 0.0  # the weight falls to this, or rises from it


@dataclass(frozen=True, slots=True)
class Regularizer:
    """A regularizer with a weight: the common settings, and its own."""

    name: str
    common: RegularizerConfig
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """The settings of every teacher, in `[teacher.NAME]`."""

    weight: Weight = 0.0  # of its loss; 0: off
    schedule: Literal["cosine", "linear", "constant"] = "constant"  # of the weight, over the updates
    schedule_updates: Count = 0  # updates after which the weight has fallen to its floor; 0: all of the run
    floor: Weight = 0.0  # the weight falls to this


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher with a weight: the common settings, and its own."""

    name: str
    common: TeacherConfig
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """The setting that names the folder of its model; empty if the policy itself is the teacher."""
        return str(find("teacher", self.name).traits.get("model", ""))

    @property
    def model(self) -> str:
        """The folder or name of its model; empty if the policy itself is the teacher."""
        return str(self.settings[self.key]) if self.key else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumConfig:
    name: str = "shuffle"  # what decides which tasks an update plays


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    name: str = "none"  # what decides which old episodes an update learns from, too
    start: str = ""  # a run with the same replay: begin with the episodes that it keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    name: str = "none"  # what helps a failed attempt that is tried again
    most: Positive = 1  # attempts of a group that are tried again, the first ones
    weight: Weight = 1.0  # of the loss of second attempts, beside the policy's
    gamma: AboveZero = 0.1  # γ: the loss of their tokens is − A · p / (p + γ)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    name: str = "none"  # what is kept of past episodes, and told to new ones
    share: Rate = 1.0  # of a group's episodes that are told something; the others show what it is worth
    tokens: Positive = 512  # that an episode is told, at most
    start: str = ""  # a run with the same memory: begin with what it keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    updates: Count = 60  # RL updates; 0: warm start and evaluation only
    token_budget: Count = 0  # tokens learned from, in warm start and RL, with which the run ends; 0: updates alone say
    learning_rate: Rate = 3e-4  # constant
    head_learning_rate: Fraction = 0.0  # of heads, such as a value head; 0: as learning_rate
    weight_decay: Fraction = 0.0  # of AdamW
    epochs: Positive = 1  # passes over a batch
    minibatches: Positive = 1  # optimiser steps a pass
    minibatch_rows: Count = 0  # policy rows an optimiser step, in place of minibatches; 0: by their number
    max_grad_norm: AboveZero = 1.0  # longer gradients are scaled down to this norm
    precision: Precision = "fp32"  # of forward and backward passes; master weights are fp32; auto: what is faster here
    micro_batch_tokens: Positive = 4096  # token budget of a forward and backward pass; a GPU wants more
    checkpointing: bool = False  # layers are run again in the backward pass: a third more time, far less memory
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0  # torch threads; 0: two where they are faster, else one
    device: str = "cpu"  # cpu, cuda or cuda:N
    engine: str = "local"  # where optimiser steps are taken
    trajectories: Count = 4  # groups of an update written to trajectories/
    trajectories_every: Positive = 10  # updates between two that are written


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    every: Count = 20  # updates between evaluations; 0: only before and after RL
    split: tuple[str, ...] = ("valid_seen", "valid_unseen")  # splits, in this order
    protocol: Literal["whole", "published"] = "whole"  # every task of a split once | drawn, as the papers did
    draws: Positive = 128  # published protocol: episodes drawn from a split, with repeats
    repeats: Positive = 1  # published protocol: so many times, each with draws of its own
    episodes: Count = 0  # of each split, spread over it, in evaluations between first and last; 0: the whole split
    final: Count = 0  # of each split, spread over it, in the first and the last evaluation; 0: the whole split
    temperature: Annotated[float, Meta(ge=0.0)] = 0.4  # 0: the most likely token
    free_episodes: Count = 64  # of a whole split (of a part: fewer), played again unrestricted
    probe_episodes: Count = 32  # of a whole split (of a part: fewer), scripted, for the state and inverse losses
    seed: int = 0  # of the evaluation's sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    every: Positive = 10  # updates between two checkpoints
    minutes: AboveZero = 15.0  # the most between two, of the warm start, too
    keep: Positive = 2  # checkpoints kept, the latest ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    seed: Count = 0
    plugins: tuple[str, ...] = ()  # Python files that register further things (docs/extend.md); a run keeps their hash
    quick: bool = False  # made by --quick: a run that shows that everything works, with figures that mean nothing
    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    owned: dict[str, Any] = field(default_factory=dict)
    """Non-default settings of registered things by dotted key, such as `objective.gigpo.gamma`."""

    @property
    def row_tokens(self) -> int:
        """The tokens that a policy row counts as with the aggregation "constant": by default the most it can have."""
        rollout = self.rollout
        steps = (rollout.max_steps or self.env.max_steps) if rollout.layout == "concat" else 1
        return self.objective.constant or rollout.response_tokens * steps

    @property
    def learns(self) -> bool:
        """False if the engine takes no optimiser steps."""
        return bool(find("engine", self.train.engine).traits.get("learns", True))

    def settings(self, kind: str) -> dict[str, Any]:
        """Return all settings of the chosen thing of a kind; raise `UserError` if there is no such thing."""
        choice = KINDS[kind]
        section, _, key = choice.key.partition(".")
        name = getattr(getattr(self, section), key)
        return {
            setting.name: self.owned.get(f"{section}.{name}.{setting.name}", setting.default)
            for setting in find(kind, name).settings.values()
        }

    def auxiliaries(self, stage: str = "") -> list[Auxiliary]:
        """Return the auxiliary objectives with a weight, of RL or of a stage ("warm_start"), built-in ones first."""
        prefix = f"{stage}.auxiliary." if stage else "auxiliary."
        return [
            Auxiliary(name, AuxiliaryConfig(**find("auxiliary", name).traits.get("defaults", {}) | shared), own)
            for name, shared, own in self._weighed("auxiliary", prefix, AuxiliaryConfig)
        ]

    def rewards(self) -> list[Reward]:
        """Return the rewards beside the world's that have a weight, built-in ones first."""
        weighed = self._weighed("reward", "reward.", RewardConfig)
        return [Reward(name, RewardConfig(**shared), own) for name, shared, own in weighed]

    def regularizers(self) -> list[Regularizer]:
        """Return the regularizers with a weight, built-in ones first."""
        weighed = self._weighed("regularizer", "regularizer.", RegularizerConfig)
        return [Regularizer(name, RegularizerConfig(**shared), own) for name, shared, own in weighed]

    def teachers(self) -> list[Teacher]:
        """Return the teachers with a weight, built-in ones first."""
        weighed = self._weighed("teacher", "teacher.", TeacherConfig)
        return [Teacher(name, TeacherConfig(**shared), own) for name, shared, own in weighed]

    def _weighed(self, kind: str, prefix: str, common: type) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Return name, given shared settings and all own settings of those things of a kind that have a weight."""
        shared = {setting.name for setting in fields(common)}
        tables: dict[str, dict[str, Any]] = {}
        for key, value in self.owned.items():
            if key.startswith(prefix):
                name, _, setting = key.removeprefix(prefix).partition(".")
                tables.setdefault(name, {})[setting] = value
        return [
            (
                name,
                {key: value for key, value in tables[name].items() if key in shared},
                {s.name: tables[name].get(s.name, s.default) for s in find(kind, name).settings.values()},
            )
            for name in in_order(kind, tables)
            if tables[name].get("weight")
        ]

    def auxiliary(self, name: str) -> dict[str, Any]:
        """Return an auxiliary objective's own settings, of RL or else of the warm start, even if it has no weight."""
        prefixes = ("auxiliary", "warm_start.auxiliary")
        return {
            s.name: next((v for p in prefixes if (v := self.owned.get(f"{p}.{name}.{s.name}")) is not None), s.default)
            for s in find("auxiliary", name).settings.values()
        }
