"""Perplexity of ordinary English, to measure what training did to a pretrained model's language."""

from __future__ import annotations

import math
from importlib.resources import files

from envrl.config.schema import Config
from envrl.eval.probe import score_targets
from envrl.models.load import LanguageModel
from envrl.progress import Reporter
from envrl.rendering.renderer import Pair


def passage() -> str:
    """Return a page of English prose that was written for this measurement, so no model was trained on it."""
    return (files("envrl.eval") / "passage.txt").read_text(encoding="utf-8").strip()


def text_figures(model: LanguageModel) -> dict[str, float]:
    """Return `text_nll` of the passage, − Σ log p(token) / tokens in nats, and `text_perplexity`, its exponential.

    The passage is encoded as ordinary text and cut at the model's context; its first token is not predicted. Do not
    compare the figures of models with different tokenizers.
    """
    ids = tuple(model.codec.tokenizer.encode(passage()))[: model.context]
    (score,) = score_targets(model, [Pair(ids[:1], ids[1:])])
    nll = -score.logprob / score.tokens
    return {"text_nll": nll, "text_perplexity": math.exp(min(nll, 700.0))}


def figures_of_english(model: LanguageModel, config: Config, reporter: Reporter) -> dict[str, float]:
    """Return `text_figures` of a pretrained model (`model.path`), and nothing for a model built from scratch."""
    if not config.model.path:
        return {}
    with reporter.phase("perplexity of English"):
        return text_figures(model)
