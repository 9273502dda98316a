"""What is asked of every engine that plays beside the trainer: tokens and log-probs that can be learned from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from envrl.errors import UserError
from envrl.models.adapters import has_adapter
from envrl.models.load import LanguageModel
from envrl.rollout.sampler import Request
from envrl.types import Completion

AGREE = 0.2
"""Largest mean difference (nats a token) between the engine's log-probs and the trainer's.

bf16 beside fp32 is far below it, another model or another temperature far above.
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response in tokens; `stopped`: it ended by itself, with its last token. `prompt`: as the engine took it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    prompt: tuple[int, ...] | None = None

    @property
    def completion(self) -> Completion:
        return Completion(self.token_ids, self.logprobs, (None,) * len(self.token_ids))


def check_whole(model: LanguageModel, sampler: str) -> None:
    """Raise `UserError` where a model has an adapter, which an engine of its own cannot be handed yet."""
    if has_adapter(model.network):
        raise UserError(
            f"rollout.sampler = '{sampler}' takes whole weights, and no adapter yet: set model.lora_rank = 0"
        )


def checked(request: Request, answer: Answer, where: str) -> Answer:
    """Return an answer that says of each token what is needed; raise `UserError` for any other."""
    if len(answer.token_ids) != len(answer.logprobs) or not all(isinstance(x, float) for x in answer.logprobs):
        raise UserError(f"{where} gives {len(answer.token_ids)} tokens and {len(answer.logprobs)} log-probs")
    if answer.prompt is not None and answer.prompt != tuple(request.prompt):
        raise UserError(f"{where} changes the prompt's tokens, so what it answers cannot be learned from")
    if answer.stopped and answer.token_ids[-1] not in request.settings.stops:
        raise UserError(
            f"{where} ended a response with token {answer.token_ids[-1]}, which is no end of a response for the prompt "
            "format: it has stop tokens of its own (generation_config.json)"
        )
    return answer


@torch.no_grad()
def compare(model: LanguageModel, request: Request, answer: Answer, where: str, remedy: str) -> None:
    """Raise `UserError` where an answer's log-probs are not those of the model; `remedy` ends the sentence."""
    temperature = request.settings.temperature
    if temperature == 0 or request.settings.top_k or request.settings.top_p < 1.0:
        return  # the most likely tokens are for evaluation; or the distribution is narrowed
    ids = torch.tensor([[*request.prompt, *answer.token_ids]], device=model.device)
    asked = len(answer.token_ids) + 1
    logits = model.network(input_ids=ids, use_cache=False, logits_to_keep=asked).logits[0, :-1].float()
    ours = torch.log_softmax(logits / temperature, -1)
    drawn = torch.tensor(answer.token_ids, device=ours.device)
    theirs = torch.tensor(answer.logprobs, device=ours.device)
    off = float((ours[torch.arange(len(drawn)), drawn] - theirs).abs().mean())
    if off > AGREE:
        raise UserError(
            f"{where} gives other log-probs than the trained model has ({off:.2g} nats a token apart at temperature "
            f"{temperature:g}): it holds another model, did not read the new weights, or answers with log-probs of "
            f"another distribution; {remedy}"
        )
