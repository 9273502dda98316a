"""A stand-in for vLLM 0.33's offline engine: its names and signatures, with a model of transformers behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


@dataclass(kw_only=True)
class SamplingParams:
    """The fields that are given; any other is a TypeError."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    logprobs: int | None = None
    detokenize: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class Sequence_:
    """A request under way."""

    ids: list[int]
    params: SamplingParams
    dice: torch.Generator
    drawn: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)


class Engine:
    """Draws a token of each request in a step, as continuous batching does."""

    def __init__(self, network: Any) -> None:
        self.network, self.requests = network, dict[str, Sequence_]()

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: SamplingParams) -> str:
        assert isinstance(request_id, str)
        assert request_id not in self.requests
        dice = torch.Generator().manual_seed(params.seed or 0)
        self.requests[request_id] = Sequence_(list(prompt["prompt_token_ids"]), params, dice)
        return request_id

    def abort_request(self, request_ids: list[str]) -> None:
        for each in request_ids:
            self.requests.pop(each)

    @torch.no_grad()
    def step(self) -> list[RequestOutput]:
        found = []
        for name, each in list(self.requests.items()):
            logits = self.network(torch.tensor([[*each.ids, *each.drawn]])).logits[0, -1].double()
            logp = torch.log_softmax(logits / max(each.params.temperature, 1e-6), -1)
            token = int(torch.multinomial(logp.exp(), 1, generator=each.dice))
            each.drawn.append(token)
            each.logprobs.append({token: Logprob(float(logp[token]))})
            stopped = token in (each.params.stop_token_ids or ())
            over = stopped or len(each.drawn) == each.params.max_tokens
            reason = "stop" if stopped else "length" if over else None
            given = each.logprobs if each.params.logprobs is not None else None
            output = CompletionOutput(0, "", tuple(each.drawn), None, given, reason)
            found.append(RequestOutput(name, each.ids, [output], over))
            if over:
                del self.requests[name]
        return found


class LLM:
    made: ClassVar[list[LLM]] = []
    deaf = False
    """Whether new weights are not taken."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        max_model_len: int,
        gpu_memory_utilization: float,
        enforce_eager: bool,
        enable_prefix_caching: bool,
        logprobs_mode: str,
        seed: int,
    ) -> None:
        assert (dtype, logprobs_mode, enable_prefix_caching) == ("float32", "processed_logprobs", True)
        if gpu_memory_utilization > 0.9:
            raise ValueError("Free memory on device is less than desired GPU memory utilization")
        assert (Path(model) / "config.json").is_file()
        self.network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.llm_engine = Engine(self.network)
        self.loads = self.resets = 0
        self.made.append(self)

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        return [func(SimpleNamespace(load_weights=self._load_weights))]

    def _load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        self.loads += 1
        mine = dict(self.network.named_parameters())
        names = set()
        for name, weight in weights:
            names.add(name)
            if not self.deaf:
                mine[name].data.copy_(weight)
        assert names == mine.keys()
        return names

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True
