"""The part of the loss of tokens that a teacher scored, and the models of teachers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from envrl.config.schema import Config
from envrl.engine.loss_settings import Totals
from envrl.engine.policy_part import stream
from envrl.errors import UserError
from envrl.models.find import model_folder
from envrl.models.load import LanguageModel, load_policy
from envrl.models.scores import TokenScores
from envrl.models.tokenizer import Codec
from envrl.objective.teachers.lesson import reverse_kl
from envrl.types import Row

TEACHER = "teacher_logprobs"
"""The stream of a term whose tokens a teacher scored."""


def is_taught(rows: Sequence[Row], component: str) -> bool:
    """Return whether a teacher scored the tokens of this component."""
    return any(TEACHER in term.streams for row in rows for term in row.terms if term.component == component)


def taught_part(rows: Sequence[Row], component: str, scores: TokenScores, weights_N: Tensor, totals: Totals) -> Tensor:
    """Return Σ w · `reverse_kl` of the component's tokens; log its mean, the KL to the teacher."""
    device = scores.logprobs.device
    teacher, sampled = (stream(rows, component, name, device) for name in (TEACHER, "sampled_logprobs"))
    losses = reverse_kl(scores.logprobs, teacher, sampled)
    totals.add(f"loss/{component}", losses)
    return (weights_N * losses).sum()


def load_teachers(config: Config, codec: Codec, context: int) -> dict[str, LanguageModel]:
    """Return the models of the recipe's teachers by name, of those that are not the policy itself.

    Raises `UserError` for one whose tokens are not the policy's (`codec`), or whose context is shorter.
    """
    found = {}
    for each in config.teachers():
        if not each.model:
            continue
        teacher = load_policy(model_folder(each.model), config)
        said = f"the teacher in '{each.model}' (teacher.{each.name}.{each.key})"
        if teacher.codec.tokenizer.get_vocab() != codec.tokenizer.get_vocab():
            raise UserError(
                f"{said} has another vocabulary than the policy ({len(teacher.codec):,} and {len(codec):,} tokens), so "
                "it cannot score its tokens: take a teacher of the same tokenizer, or share its run's start "
                "(warm_start.path)"
            )
        if teacher.context < context:
            raise UserError(
                f"{said} reads at most {teacher.context} tokens, and the policy {context}: take another teacher"
            )
        found[each.name] = teacher
    return found
