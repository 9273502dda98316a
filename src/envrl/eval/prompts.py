"""How an agent is asked, by an example: two turns of a made-up episode, the same for every agent."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from envrl.build import form_of, renderer_of
from envrl.config.schema import Config
from envrl.eval.record import Prompts
from envrl.rendering.messages import MessageWriter
from envrl.rendering.renderer import SegmentState
from envrl.rollout.transcript import write_segments
from envrl.types import Action, Observation, Transition

if TYPE_CHECKING:
    from envrl.models.load import LanguageModel

_SEEN = (
    Observation("You are in a room with a box.\n\nYour task is to: open the box.", ("look", "open box 1")),
    Observation("A box 1 stands in front of you.", ("look", "open box 1")),
    Observation("The box 1 is open.", ("look", "close box 1")),
)
_EXAMPLE = tuple(
    Transition(_SEEN[turn], Action(command), float(turn), _SEEN[turn + 1], turn == 1, turn == 1)
    for turn, command in enumerate(("look", "open box 1"))
)


def model_prompts(model: LanguageModel, config: Config) -> Prompts:
    """Return the example as a model gets it, responses included: its text, and the hash of its token ids."""
    renderer = renderer_of(model, form_of(config))
    ids = [segment.token_ids.tolist() for segment in write_segments(renderer, _EXAMPLE) or ()]
    decode = model.codec.tokenizer.decode
    return Prompts("\n\n".join(str(decode(each, clean_up_tokenization_spaces=False)) for each in ids), _sha256(ids))


def endpoint_prompts(writer: MessageWriter) -> Prompts:
    """Return the example's chats as an endpoint gets them: as JSON, and the hash of that."""
    chats = [
        writer.prompt(_EXAMPLE[:turn], step.observation, SegmentState(), 0).messages
        for turn, step in enumerate(_EXAMPLE)
    ]
    said = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    return Prompts(json.dumps(said, ensure_ascii=False), _sha256(said))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
