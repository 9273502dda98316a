"""The sampler `vllm`: vLLM's engine in the trainer's own process, which takes new weights from memory.

Facts of vLLM 0.33: `LLM`, its `llm_engine` (`add_request`, `step`, `abort_request`), `apply_model`, `SamplingParams`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from envrl.errors import UserError
from envrl.models.copies import copy_weights
from envrl.models.load import LanguageModel, save_model
from envrl.randomness import key_of
from envrl.rollout.sampler import Request
from envrl.serving.exact import Answer, check_whole, checked, compare
from envrl.types import Completion

WHERE = "vLLM"


class VllmSampler:
    """Plays with vLLM's engine: continuous batching, paged keys and values, prefixes kept; see `Sampler`."""

    def __init__(self, model: LanguageModel, precision: str, memory: float, eager: bool) -> None:
        check_whole(model, "vllm")
        # With its engine in this process a function can be run on the model, which hands weights over as they are.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._model, self._vllm = model, import_module("vllm")
        with tempfile.TemporaryDirectory() as folder:
            save_model(model, Path(folder))
            try:
                self._llm = self._vllm.LLM(
                    model=folder,
                    dtype="bfloat16" if precision == "bf16" else "float32",
                    max_model_len=model.context,
                    gpu_memory_utilization=memory,
                    enforce_eager=eager,
                    enable_prefix_caching=True,
                    logprobs_mode="processed_logprobs",
                    seed=0,
                )
            except Exception as error:  # whatever its kernels, drivers and settings raise
                raise UserError(f"vLLM cannot be started ({type(error).__name__}: {str(error)[:300]})") from error
        self._asked: dict[int, Request] = {}
        self._ready: dict[int, Completion | None] = {}
        self._compared = False
        self.version = 0

    def submit(self, request: Request) -> None:
        if len(request.prompt) + 1 > self._model.context:
            self._ready[request.episode] = None
            return
        settings = request.settings
        how = self._vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=key_of(request.key, request.turn) % 2**31,
            max_tokens=settings.max_tokens,
            stop_token_ids=sorted(settings.stops),
            logprobs=0,
            detokenize=False,
        )
        self._asked[request.episode] = request
        prompt = {"prompt_token_ids": list(request.prompt)}
        self._llm.llm_engine.add_request(_name(request), prompt, how)

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        done, self._ready = self._ready, {}
        wanted = len(self._asked) + len(done) if enough is None else enough
        while self._asked and len(done) < wanted:
            for output in self._llm.llm_engine.step():
                episode = int(str(output.request_id).partition("/")[0])
                request = self._asked.get(episode)
                if output.finished and request is not None and output.request_id == _name(request):
                    del self._asked[episode]
                    done[episode] = self._completion(request, output)
        return done

    def release(self, episode: int) -> None:
        self._ready.pop(episode, None)
        if (request := self._asked.pop(episode, None)) is not None:
            self._llm.llm_engine.abort_request([_name(request)])

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Hand the weights over; what was kept of prefixes under the old ones is dropped."""
        copy_weights(weights, self._model)
        self.version, self._compared = version, False
        handed = [(name, weight.data) for name, weight in self._model.named_parameters()]
        self._llm.apply_model(lambda theirs: theirs.load_weights(handed) and None)
        self._llm.reset_prefix_cache()

    def _completion(self, request: Request, output: Any) -> Completion:
        (drawn,) = output.outputs
        tokens = tuple(drawn.token_ids)
        if drawn.logprobs is None:
            raise UserError("vLLM gives no log-probs")
        logprobs = tuple(float(each[token].logprob) for token, each in zip(tokens, drawn.logprobs, strict=True))
        answer = checked(request, Answer(tokens, logprobs, drawn.finish_reason == "stop"), WHERE)
        if not self._compared:
            compare(self._model, request, answer, WHERE, "please report it, with vLLM's version")
            self._compared = True
        return answer.completion


def _name(request: Request) -> str:
    """Return the engine's name of a request: an episode has many, one after the other."""
    return f"{request.episode}/{request.key}/{request.turn}"
