"""The update beside TRL's GRPO trainer: the same model, episodes, advantages and loss, in turns, in one process.

    python benchmarks/beside_trl.py [RECIPE] [--section.key value …] [--shape NAME] [--returns dealt|world]
        [--repeats N] [--json FILE]

`make bench-trl` installs TRL and runs it at two sizes. TRL gets each recorded episode through its own `rollout_func`
(prompt: up to the first action; completion: the rest; `env_mask`: the tokens that are trained) and each advantage as a
reward that it does not scale. Both take the clipped loss, a mean over sequences, on the whole batch in one AdamW step,
in fp32 on one thread of the CPU; both run with the micro-batch that is fastest for them; the learning rate is 0, so
that every step is the same, and their gradients' norms must agree. Seconds are the process's.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from envrl.batches.batch import build_batch, step_advantages
from envrl.bench.flops import batch_flops, row_flops
from envrl.bench.measure import Bench, deal_returns, spread
from envrl.bench.train import arms
from envrl.build import form_of, renderer_of
from envrl.cli.arguments import Parser, check_output, split_overrides, whole_number
from envrl.config.keys import KEYS
from envrl.config.load import load_recipe
from envrl.config.schema import Config
from envrl.engine.local import loss_settings
from envrl.engine.optimizer import BETAS, adamw
from envrl.engine.update import accumulate, clip_gradient, micro_batches
from envrl.errors import UserError
from envrl.files import write_json
from envrl.models.load import LanguageModel
from envrl.models.runtime import with_precision
from envrl.samples.packing import tokens_run
from envrl.types import LossTerm, Row, TrajectoryGroup, episodes_of

BUDGETS = (1024, 2048, 4096, 8192)
"""Micro-batches to try for ours, tokens."""
SIZES = (1, 2, 4, 8, 16)
"""Micro-batches to try for TRL, sequences; such as divide the batch."""
TOLERANCE = 1e-3
"""By how much two gradients' norms may differ, as a share."""


def comparable(config: Config) -> Config:
    """Return the recipe with nothing in its loss but the policy's term, which is all that TRL has, on one thread."""
    config = arms(config)["none"]
    objective = replace(config.objective, entropy_weight=0.0, kl_weight=0.0, aggregation="sequence_mean", loss="ppo")
    train = replace(config.train, threads=1, device="cpu", precision="fp32", epochs=1, minibatches=1, minibatch_rows=0)
    return replace(config, objective=objective, train=train)


def unrestricted(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with every token scored among the whole vocabulary, since TRL knows no restriction."""
    return [replace(row, terms=tuple(replace(term, allowed=None) for term in row.terms)) for row in rows]


def recorded(rows: Sequence[Row], advantages: Sequence[float]) -> list[dict[str, Any]]:
    """Return what TRL is told of each row: ids of prompt and completion, which of those are trained, the advantage."""
    told = []
    for row, advantage in zip(rows, advantages, strict=True):
        (term,) = row.terms
        ids, first = row.token_ids.tolist(), int(term.positions_T[0])
        mask = np.zeros(len(ids), dtype=int)
        mask[term.positions_T] = 1
        told.append(
            {
                "prompt_ids": ids[:first],
                "completion_ids": ids[first:],
                "logprobs": [0.0] * (len(ids) - first),
                "env_mask": mask[first:].tolist(),
                "advantage": advantage,
            }
        )
    return told


class Ours:
    """Our update on a model of its own."""

    def __init__(self, model: LanguageModel, config: Config) -> None:
        self.model = LanguageModel(copy.deepcopy(model.network), model.codec)
        self.config, self.optimizer = config, adamw(self.model, 0.0)

    def rows(self, groups: Sequence[TrajectoryGroup]) -> list[Row]:
        """Return the rows of the episodes that have an advantage."""
        return unrestricted(build_batch(groups, self.config, renderer_of(self.model, form_of(self.config)), 1).rows)

    def batches(self, groups: Sequence[TrajectoryGroup], budget: int) -> list[list[Row]]:
        """Return the micro-batches of a step on these episodes."""
        settings = replace(loss_settings(self.config, {}), micro_batch_tokens=budget)
        return micro_batches(self.model, self.rows(groups), settings)

    def step(self, groups: Sequence[TrajectoryGroup], budget: int) -> tuple[float, float]:
        """Make rows of the episodes and take a step on them; return its seconds and the gradient's norm."""
        began = time.process_time()
        rows = self.rows(groups)
        settings = replace(loss_settings(self.config, {}), micro_batch_tokens=budget)
        accumulate(self.model, rows, settings)
        norm = clip_gradient(list(self.model.network.parameters()), self.config.train.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - began, norm


class Theirs:
    """TRL's trainer on a model of its own, which it is given episodes for in place of generating any."""

    def __init__(self, model: LanguageModel, config: Config, told: Sequence[Mapping[str, Any]]) -> None:
        self.network, self.tokenizer = copy.deepcopy(model.network), model.codec.tokenizer
        self.config, self.told, self.size = config, told, config.rollout.group_size

    def steps(self, micro: int, count: int, between: Callable[[], None] = lambda: None) -> list[dict[str, float]]:
        """Take steps; return of each the seconds in all and of those to make the batch, and the gradient's norm.

        `between` is called before each step.
        """
        from transformers import PrinterCallback, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        found: list[dict[str, float]] = []
        began, batch = [0.0], [0.0]

        class Timed(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                between()
                began[0], batch[0] = time.process_time(), 0.0

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                found.append({"seconds": time.process_time() - began[0], "batch": batch[0]})

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
                if "grad_norm" in logs:
                    found[-1]["norm"] = float(logs["grad_norm"])

        class Trainer(GRPOTrainer):
            def _generate_and_score_completions(self, inputs: Any) -> Any:
                start = time.process_time()
                result = super()._generate_and_score_completions(inputs)
                batch[0] += time.process_time() - start
                return result

        rollout = self.config.rollout
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                model=self.network,
                processing_class=self.tokenizer,
                reward_funcs=lambda advantage, **_: advantage,
                rollout_func=self._play,
                train_dataset=_named(len(self.told) // self.size),
                callbacks=[Timed()],
                args=GRPOConfig(
                    output_dir=folder,
                    max_steps=count,
                    per_device_train_batch_size=micro,
                    gradient_accumulation_steps=len(self.told) // micro,
                    num_generations=self.size,
                    temperature=rollout.temperature,
                    loss_type="grpo",
                    beta=0.0,
                    epsilon=self.config.settings("loss")["clip_low"],
                    epsilon_high=self.config.settings("loss")["clip_high"],
                    scale_rewards="none",
                    learning_rate=0.0,
                    adam_beta1=BETAS[0],
                    adam_beta2=BETAS[1],
                    max_grad_norm=self.config.train.max_grad_norm,
                    gradient_checkpointing=False,
                    bf16=False,
                    use_cpu=True,
                    save_strategy="no",
                    report_to="none",
                    logging_steps=1,
                    disable_tqdm=True,
                ),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return found

    def _play(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[Any]]:
        """Return the recorded episodes of these tasks, each named as often as it has episodes."""
        members: dict[str, Iterator[Mapping[str, Any]]] = {
            prompt: iter(self.told[int(prompt) * self.size : (int(prompt) + 1) * self.size]) for prompt in set(prompts)
        }
        episodes = [next(members[prompt]) for prompt in prompts]
        return {name: [episode[name] for episode in episodes] for name in episodes[0]}


def _named(tasks: int) -> Any:
    """Return TRL's data set of so many prompts, which say a task's number and no more."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    # A fingerprint of its own, since datasets 5.2 cannot make one with pyarrow 26.
    return Dataset(InMemoryTable.from_pydict({"prompt": [str(n) for n in range(tasks)]}), fingerprint="recorded")


def compare(config: Config, shape: str, repeats: int, returns: str) -> dict[str, Any]:
    """Return seconds, samples a second and gradients' norms of both, and the ratio in samples a second.

    `returns` "dealt": every second episode of a group counts as won, so that all rows have an advantage; "world": as
    they came, and we leave out the rows without one, which cannot change the gradient.
    """
    config = comparable(config)
    bench = Bench(config, shape)
    played = bench.play(config)
    dealt = deal_returns(played, config.rollout.reward_scale)
    groups = dealt if returns == "dealt" else played
    ours = Ours(bench.model, config)
    rows = ours.rows(dealt)
    if len(rows) != len(episodes_of(played)):
        raise UserError("TRL takes one sequence an episode: set rollout.layout = 'concat', and a longer context")
    advantages = [float(steps[0]) for steps in step_advantages(groups, config)]
    if not any(advantages):
        raise UserError("no group has unequal returns: name a trained model (--model.path), or leave --returns out")
    told = recorded(rows, advantages)
    theirs = Theirs(bench.model, config, told)
    ours.step(groups, BUDGETS[0])
    budget = min(BUDGETS, key=lambda tokens: ours.step(groups, tokens)[0])
    sizes = [size for size in SIZES if len(rows) % size == 0]
    theirs.steps(sizes[-1], 1)
    micro = min(sizes, key=lambda size: theirs.steps(size, 1)[0]["seconds"])
    found: list[tuple[float, float]] = []
    other = theirs.steps(micro, repeats, lambda: found.append(ours.step(groups, budget)))
    batches = ours.batches(groups, budget)
    used = [row for row, advantage in zip(rows, advantages, strict=True) if advantage]
    share = len(used) / len(rows)  # our mean is over rows with an advantage, TRL's over all
    gap = max(abs(lap["norm"] / (share * norm) - 1) for lap, (_, norm) in zip(other, found, strict=True))
    if not gap < TOLERANCE:
        raise UserError(f"the gradients' norms differ by {gap:.1e} of themselves, so this compares different updates")
    return {
        "model": bench.model.network.config.model_type,
        "parameters": bench.model.parameters(),
        "returns": returns,
        "episodes": len(rows),
        "with_advantage": len(used),
        "tokens": _tokens(rows, used, batches, told),
        "gflop": batch_flops(ours.model.network, batches, padded=False).both / 1e9,
        "trl_gflop": row_flops(bench.model.network, [_padded(told)] * len(told)).both / 1e9,
        "gradient_norms_differ_by": gap,
        "envrl": {"micro_batch_tokens": budget, **_speed([seconds for seconds, _ in found], len(rows))},
        "trl": {
            "micro_batch_rows": micro,
            **_speed([lap["seconds"] for lap in other], len(rows)),
            "seconds_to_make_the_batch": median(lap["batch"] for lap in other),
        },
        "ratio": spread([lap["seconds"] / seconds for lap, (seconds, _) in zip(other, found, strict=True)]),
    }


def _tokens(
    rows: Sequence[Row], used: Sequence[Row], batches: Sequence[Sequence[Row]], told: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    return {
        "in_rows": sum(len(row.token_ids) for row in rows),
        "with_advantage": sum(len(row.token_ids) for row in used),
        "run": sum(tokens_run(batch, padded=False) for batch in batches),
        "trained": sum(len(row.terms[0].positions_T) for row in used),
        "with_trl_padding": len(told)
        * sum(max(len(each[name]) for each in told) for name in ("prompt_ids", "completion_ids")),
    }


def _padded(told: Sequence[Mapping[str, Any]]) -> Row:
    """Return a row as TRL runs them all on a CPU: with the longest prompt and completion, every token scored."""
    length = sum(max(len(each[name]) for each in told) for name in ("prompt_ids", "completion_ids"))
    places = np.arange(length, dtype=np.int32)
    return Row(places, (LossTerm("policy", places, np.ones(length, dtype=np.float32), 1.0),))


def _speed(seconds: Sequence[float], samples: int) -> dict[str, float]:
    return {"seconds": median(seconds), "samples_per_second": samples / median(seconds)}


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as lines of text."""
    tokens, own, trl, ratio = (figures[name] for name in ("tokens", "envrl", "trl", "ratio"))
    return "\n".join(
        [
            f"model  {figures['model']}, {figures['parameters']:,} parameters, fp32, one thread",
            f"batch  {figures['episodes']} episodes, {figures['with_advantage']} of them with an advantage, "
            f"{tokens['with_advantage']:,} tokens of {tokens['in_rows']:,}, {tokens['run']:,} of them run "
            f"({tokens['with_trl_padding']:,} as TRL pads them), {tokens['trained']:,} trained; "
            f"{figures['gflop']:,.0f} GFLOP ({figures['trl_gflop']:,.0f} with TRL's padding and scores)",
            f"envrl  {own['seconds']:.2f} s, {own['samples_per_second']:.2f} samples a second, micro-batches of "
            f"{own['micro_batch_tokens']:,} tokens",
            f"TRL    {trl['seconds']:.2f} s, {trl['samples_per_second']:.2f} samples a second, micro-batches of "
            f"{trl['micro_batch_rows']} rows; {trl['seconds_to_make_the_batch']:.2f} s of it to make the batch",
            f"ratio  {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}); gradients' norms agree to "
            f"{figures['gradient_norms_differ_by']:.0e}",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Compare as the command line says; print a table."""
    parser = Parser("beside_trl", "Time our update beside TRL's GRPO trainer.")
    parser.add_argument("recipe", nargs="?", default="household-demo", metavar="RECIPE", help="what to play")
    parser.add_argument("--shape", default="", metavar="NAME", help="a random model of this shape, such as qwen2-100m")
    parser.add_argument("--returns", choices=("dealt", "world"), default="dealt", help="who wins (default: dealt)")
    parser.add_argument("--repeats", type=whole_number, default=5, metavar="N", help="how often (default: 5)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there, too")
    overrides, rest = split_overrides(arguments, KEYS)
    values = parser.parse(rest)
    if values.json is not None:
        check_output(values.json, "--json", ".json")
    figures = compare(
        with_precision(load_recipe(values.recipe, overrides)), values.shape, max(values.repeats, 1), values.returns
    )
    if values.json is not None:
        write_json(values.json, figures)
    print(table(figures))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    torch.set_num_threads(1)
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"beside_trl: {error}", file=sys.stderr)
        sys.exit(2)
