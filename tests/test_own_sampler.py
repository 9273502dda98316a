"""What the episode loop asks of a sampler: the built-in one beside a full pass, and what a user's may do wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from boxes import Boxes
from envrl.build import renderer_of
from envrl.config.schema import ModelConfig
from envrl.errors import RunError, UserError
from envrl.models.load import LanguageModel, build_model
from envrl.randomness import key_of
from envrl.registry import Entry
from envrl.rendering.renderer import Form
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.sampler import GuardedSampler, Request, SamplingSettings
from envrl.rollout.scheduler import PlaySettings, RolloutStats
from envrl.types import Completion
from test_graphs import qwen

SETTINGS = SamplingSettings(temperature=1.3, max_tokens=6, stops=frozenset({3}))
Prompt = tuple[int, ...]


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    """One whose cache keeps any beginning of a sequence; the other has states of convolutions: the whole or nothing."""
    texts = ["You open box 1 and find the key.", "go to drawer 12", "Nothing happens."] * 9
    shape = ModelConfig(hidden_size=32, layers=3, heads=2, vocabulary=300, context=256)
    return {"qwen2": qwen(), "lfm2": build_model(shape, texts, seed=1)}


class Talk:
    """Episodes that a sampler is asked about, each with all that it has said."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.sampler = model, OwnSampler(model)
        self.said: dict[int, Prompt] = {}
        self.turns: dict[int, int] = {}
        self.heard = 0

    def ask(self, episode: int, prompt: Prompt, restriction: Any = None) -> None:
        self.said[episode] = prompt
        turn = self.turns[episode] = self.turns.get(episode, -1) + 1
        self.sampler.submit(Request(episode, prompt, restriction, key_of(7, episode), turn, SETTINGS))

    def hear(self, enough: int | None = None) -> dict[int, Completion]:
        """Poll, and compare every log-prob with that of one pass over everything that the episode holds."""
        found = self.sampler.poll(enough)
        for episode, completion in found.items():
            assert completion is not None
            ids = torch.tensor([[*self.said[episode], *completion.token_ids]])
            with torch.no_grad():
                logits = self.model.network(input_ids=ids).logits[0].double() / SETTINGS.temperature
            first = len(self.said[episode]) - 1
            expected = [
                float(logits[first + place].log_softmax(-1)[token]) for place, token in enumerate(completion.token_ids)
            ]
            assert np.allclose(completion.logprobs, expected, atol=1e-4)
            self.said[episode] += completion.token_ids
            self.heard += 1
        return {episode: completion for episode, completion in found.items() if completion is not None}


@pytest.mark.parametrize("kind", ["qwen2", "lfm2"])
def test_whatever_is_asked_when_log_probs_are_those_of_the_whole_prompt(
    kind: str, models: dict[str, LanguageModel]
) -> None:
    """Prompts that go on, that are cut, that are others altogether; episodes that come late, and some that go."""
    talk, generator = Talk(models[kind]), np.random.default_rng(3)

    def words(count: int) -> Prompt:
        return tuple(generator.integers(20, 200, count).tolist())

    for episode in range(3):
        talk.ask(episode, words(9))
    talk.hear()
    talk.ask(0, talk.said[0] + words(4))  # goes on
    talk.ask(1, talk.said[1][:7] + words(3))  # begins as before
    talk.ask(2, words(5))  # begins anew
    talk.ask(9, words(12))  # more than there were slots for
    talk.ask(8, talk.said[1][:7] + words(1))
    first = talk.hear(2)
    assert 2 <= len(first) <= 5
    while len(first) < 5:
        first |= talk.hear(1)
    talk.sampler.release(9)
    talk.sampler.release(0)
    talk.ask(4, talk.said[2])
    talk.ask(2, talk.said[2] + words(2))
    talk.sampler.release(4)  # while its response is under way
    assert set(talk.hear()) == {2}
    talk.ask(5, words(3))
    talk.ask(2, talk.said[2] + words(2))
    talk.ask(1, talk.said[1])  # what was said last is asked about once more, and its last token run again
    assert set(talk.hear()) == {1, 2, 5}
    assert talk.heard == 12
    for episode in (1, 2, 5, 8, 77):
        talk.sampler.release(episode)
    assert talk.sampler._slots is None, "what it held is free"
    assert talk.sampler.poll() == {}


def test_what_is_drawn_does_not_depend_on_the_others(models: dict[str, LanguageModel]) -> None:
    together, alone = Talk(models["qwen2"]), Talk(models["qwen2"])
    prompts = {episode: tuple(range(30 + episode, 40 + 2 * episode)) for episode in range(6)}
    for episode, prompt in prompts.items():
        together.ask(episode, prompt)
    found = together.hear()
    alone.ask(4, prompts[4])
    assert alone.hear()[4].token_ids == found[4].token_ids


def test_a_prompt_that_goes_on_feeds_only_what_is_new(models: dict[str, LanguageModel]) -> None:
    for model in models.values():
        talk = Talk(model)
        talk.ask(0, tuple(range(30, 90)))
        talk.hear()
        before = talk.sampler.meter.fed
        talk.ask(0, (*talk.said[0], 40, 41))
        (heard,) = talk.hear().values()
        assert talk.sampler.meter.fed - before == 3 + len(heard.token_ids) - 1, "the last token of before, and two"


def test_episodes_that_are_sampled_together_share_their_settings(models: dict[str, LanguageModel]) -> None:
    sampler = OwnSampler(models["qwen2"])
    sampler.submit(Request(0, (30, 31), None, 1, 0, SETTINGS))
    sampler.submit(Request(1, (30, 31), None, 1, 0, replace(SETTINGS, temperature=0.5)))
    with pytest.raises(ValueError, match="one set of settings"):
        sampler.poll()


def test_what_played_is_forgotten_when_a_run_is_interrupted(models: dict[str, LanguageModel]) -> None:
    model = models["lfm2"]
    sampler = OwnSampler(model)
    policy = Policy(renderer_of(model, Form()), sampler, model.codec)

    def interrupt() -> None:
        if sampler._slots is not None:  # at the second turn
            raise KeyboardInterrupt

    tasks, settings = Boxes().tasks("train")[:3], PlaySettings(max_steps=3, temperature=1.0)
    with pytest.raises(KeyboardInterrupt):
        play_episodes(policy, Boxes, tasks, [0] * 3, settings, seed=0, poll=interrupt)
    assert sampler._slots is None
    assert len(play_episodes(policy, Boxes, tasks, [0] * 3, settings, seed=0)) == 3


class Faulty:
    """A sampler that does the one wrong thing that it is made with."""

    def __init__(self, poll: Callable[[list[int]], dict[int, Any]]) -> None:
        self._poll, self._asked = poll, list[int]()

    def submit(self, request: Request) -> None:
        self._asked.append(request.episode)

    def poll(self, enough: int | None = None) -> dict[int, Any]:
        return self._poll(self._asked)

    def release(self, episode: int) -> None: ...

    def load(self, weights: Iterable[Any], version: int) -> None: ...


@pytest.mark.parametrize(
    ("poll", "error", "words"),
    [
        (lambda asked: {}, RunError, "the sampler gave none of the 2 responses that it was asked for"),
        (lambda asked: {7: Completion()}, RunError, "a response for episode 7, which it was not asked for"),
        (lambda asked: {0: "look"}, RunError, "gave str for the response of episode 0, and no envrl.Completion"),
        (
            lambda asked: {0: Completion((1, 2), (0.0,), (None, None))},
            RunError,
            "2 tokens, 1 log-probs and 2 restrictions for one response",
        ),
        (lambda asked: 1 / 0, UserError, r"the sampler 'mine' failed .*ZeroDivisionError: division by zero"),
    ],
)
def test_a_users_mistake_is_a_sentence(
    poll: Callable[[list[int]], dict[int, Any]], error: type[Exception], words: str, models: dict[str, LanguageModel]
) -> None:
    model, stats = models["lfm2"], RolloutStats()
    sampler = GuardedSampler(Entry("sampler", "mine", Faulty), Faulty(poll), model)
    policy = Policy(renderer_of(model, Form()), sampler, model.codec)
    settings = PlaySettings(max_steps=3, temperature=1.0)
    with pytest.raises(error, match=words):
        play_episodes(policy, Boxes, Boxes().tasks("train")[:2], [0, 0], settings, seed=0, stats=stats)


def test_what_is_no_sampler_is_refused_at_once(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(UserError, match=r"the sampler 'mine' has no submit\(\): it gives a dict"):
        GuardedSampler(Entry("sampler", "mine", dict), {}, models["qwen2"])  # type: ignore[arg-type]
