"""What is said to inference servers over HTTP: token ids in, token ids and log-probs out, and where new weights lie.

Facts of vLLM 0.33 (`POST /v1/completions` with `return_token_ids`; with VLLM_SERVER_DEV_MODE=1 `POST /collective_rpc`
and `/reset_prefix_cache`) and of SGLang 0.5.23 (`POST /generate` with `return_logprob`, `/update_weights_from_disk`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from envrl.rollout.sampler import Request
from envrl.serving.exact import Answer

Call = tuple[str, dict[str, Any]]
"""A path of the server, and the JSON to post there."""


class Missing(Exception):
    """The server's answer lacks something, which the message names."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a server is asked for a response, how its answer is read, and which calls have it read weights anew."""

    ask: Callable[[Request, int, str], Call]
    read: Callable[[Mapping[str, Any]], Answer]
    reload: Callable[[str], tuple[Call, ...]]
    start: str
    """What starts it so that it can be used, for the sentence where something is missing."""


def _ask_vllm(request: Request, seed: int, model: str) -> Call:
    settings = request.settings
    return "/v1/completions", {
        "model": model,
        "prompt": list(request.prompt),
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "seed": seed,
        "stop_token_ids": sorted(settings.stops),
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
    }


def _read_vllm(answer: Mapping[str, Any]) -> Answer:
    choice = _of(answer, "choices")[0]
    ids = _of(choice, "token_ids", "token ids (return_token_ids, vLLM 0.10.2 or newer)")
    logprobs = _of(_of(choice, "logprobs", "log-probs"), "token_logprobs", "log-probs")
    prompt = choice.get("prompt_token_ids")
    return Answer(tuple(ids), tuple(logprobs), choice.get("finish_reason") == "stop", prompt and tuple(prompt))


def _reload_vllm(folder: str) -> tuple[Call, ...]:
    reload = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
    return ("/collective_rpc", reload), ("/reset_prefix_cache", {})


def _ask_sglang(request: Request, seed: int, model: str) -> Call:
    settings = request.settings
    return "/generate", {
        "input_ids": list(request.prompt),
        "return_logprob": True,
        "sampling_params": {
            "max_new_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k or -1,
            "sampling_seed": seed,
            "stop_token_ids": sorted(settings.stops),
            "skip_special_tokens": False,
        },
    }


def _read_sglang(answer: Mapping[str, Any]) -> Answer:
    meta = _of(answer, "meta_info")
    drawn = _of(meta, "output_token_logprobs", "token ids and log-probs (return_logprob)")
    reason = meta.get("finish_reason") or {}
    return Answer(
        tuple(int(token) for _, token, *_ in drawn),
        tuple(float(logprob) for logprob, *_ in drawn),
        reason.get("type") == "stop",
    )


def _reload_sglang(folder: str) -> tuple[Call, ...]:
    return (("/update_weights_from_disk", {"model_path": folder}),)


def _of(answer: Mapping[str, Any], name: str, what: str = "") -> Any:
    found = answer.get(name) if isinstance(answer, Mapping) else None
    if found is None or found == []:
        raise Missing(what or f"'{name}'")
    return found


PROTOCOLS = {
    "vllm": Protocol(
        _ask_vllm,
        _read_vllm,
        _reload_vllm,
        "VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --logprobs-mode processed_logprobs",
    ),
    "sglang": Protocol(_ask_sglang, _read_sglang, _reload_sglang, "python -m sglang.launch_server --model-path FOLDER"),
}
