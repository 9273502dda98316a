"""An inference server for tests, with a real model behind it: it says what vLLM 0.33 or SGLang 0.5.23 say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from server import running


@dataclass
class InferenceServer:
    """Holds the model that it was last told to load; `faults` are the paths or fields that it does wrong."""

    address: str = ""
    model: Any = None
    faults: set[str] = field(default_factory=set)
    loads: int = 0
    calls: list[str] = field(default_factory=list)
    failing: int = 0
    """Requests that it still answers with status 503."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, folder: str) -> None:
        self.loads += 1
        if "never loads" not in self.faults or self.loads == 1:
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def draw(
        self, prompt: list[int], most: int, temperature: float, seed: int, stops: list[int]
    ) -> tuple[list[int], list[float], bool]:
        """Return tokens, their log-probs under the tempered distribution, and whether a stop token ended them."""
        dice = torch.Generator().manual_seed(seed)
        ids, logprobs = list(prompt), []
        for _ in range(most):
            with self.lock:
                logits = self.model(torch.tensor([ids])).logits[0, -1].double()
            logp = torch.log_softmax(logits / max(temperature, 1e-6), -1)
            token = int(torch.multinomial(logp.exp(), 1, generator=dice))
            raw = torch.log_softmax(logits, -1) if "raw log-probs" in self.faults else logp
            ids.append(token)
            logprobs.append(float(raw[token]))
            if token in stops:
                return ids[len(prompt) :], logprobs, True
        return ids[len(prompt) :], logprobs, False

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.load(body["kwargs"]["weights_path"])
            return 200, {"results": [None]}
        if path == "/update_weights_from_disk":
            self.load(body["model_path"])
            return 200, {"success": True, "message": "", "num_paused_requests": 0}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == "/v1/completions":
            return self.completion(body)
        if path == "/generate":
            return self.generation(body)
        return 404, {"detail": "Not Found"}

    def completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        prompt, stops = body["prompt"], body["stop_token_ids"]
        if "context" in self.faults:
            return 400, {"error": {"message": "This model's maximum context length is 8 tokens"}}
        ids, logprobs, stopped = self.draw(prompt, body["max_tokens"], body["temperature"], body["seed"], stops)
        if "own stop" in self.faults:
            stopped = True
        choice: dict[str, Any] = {
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": ids[-1] if stopped else None,
            "logprobs": {"token_logprobs": logprobs, "tokens": [""] * len(ids)},
            "token_ids": ids,
            "prompt_token_ids": [0, *prompt] if "prompt" in self.faults else prompt,
        }
        for name in ("token_ids", "logprobs"):
            if name in self.faults:
                del choice[name]
        return 200, {"choices": [choice]}

    def generation(self, body: dict[str, Any]) -> tuple[int, Any]:
        how = body["sampling_params"]
        ids, logprobs, stopped = self.draw(
            body["input_ids"], how["max_new_tokens"], how["temperature"], how["sampling_seed"], how["stop_token_ids"]
        )
        reason = {"type": "stop", "matched": ids[-1]} if stopped else {"type": "length", "length": len(ids)}
        drawn = [[logprob, token, None] for logprob, token in zip(logprobs, ids, strict=True)]
        return 200, {"text": "", "meta_info": {"finish_reason": reason, "output_token_logprobs": drawn}}


class Handler(BaseHTTPRequestHandler):
    server_of: InferenceServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": "served"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        here = self.server_of
        here.calls.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with here.lock:
            here.failing -= 1
            failing = here.failing >= 0
        self.send(*((503, {"error": "busy"}) if failing else here.answer(self.path, body)))

    def send(self, status: int, content: Any) -> None:
        text = json.dumps(content).encode()
        with suppress(ConnectionError):  # whoever asked may have given up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def inference_server(folder: Path | None = None, *faults: str) -> Iterator[InferenceServer]:
    here = InferenceServer(faults=set(faults))
    if folder is not None:
        here.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"server_of": here}))
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that gives up is nobody's fault
    here.address = f"http://127.0.0.1:{http.server_address[1]}"
    with running(http, threading.Event()):
        yield here
