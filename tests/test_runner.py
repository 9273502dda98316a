"""Playing: what is recorded is what was fed and sampled, in both layouts, with the right reason for every end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from envrl.build import renderer_of
from envrl.config.schema import ModelConfig
from envrl.errors import UserError
from envrl.models.load import LanguageModel, build_model
from envrl.rendering.formats import action_ids, observation_ids, steps_prompt, task_text, trim
from envrl.rendering.renderer import Form
from envrl.rollout.scheduler import PlaySettings, RolloutStats
from envrl.rollout.scripts import make_script, play_script
from envrl.types import Completion, Observation, Step, Task, Trajectory
from playing import play_model

MOVES = ("climb down", "climb up", "climb up two", "wait")


class Ladder:
    """Climb to the top of a ladder; a task's seed is how many rungs it has. Answers are of unlike lengths."""

    def __init__(self, commands: tuple[str, ...] | None = MOVES) -> None:
        self.commands = commands

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}/{height}", split, height, "climb") for height in (1, 2, 3, 50)]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.height, self.rung = seed, 0
        return self._observe(f"You stand below a ladder of {seed} rungs.\n\nYour task is to: climb {seed} rungs up")

    def _observe(self, text: str) -> Observation:
        return Observation(text, self.commands)

    def step(self, action: str) -> Step:
        change = {"climb down": -1, "climb up": 1, "climb up two": 2}.get(action, 0)
        self.rung = min(self.height, max(0, self.rung + change))
        won = self.rung == self.height
        seen = "".join(f" Below you is rung {rung}." for rung in range(self.rung % 4))
        text = f"You stand on rung {self.rung}.{seen}" if change else "Nothing happens."
        return Step(self._observe(text), 1.0 if won else 0.0, won, won)


TEXTS = [f"You stand on rung {rung}. Below you is rung {rung}. climb up two" for rung in range(9)] * 9 + [*MOVES] * 9


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    shape = ModelConfig(hidden_size=32, layers=3, heads=2, vocabulary=330, context=400)
    return build_model(shape, [*TEXTS, "You stand below a ladder of 3 rungs.\n\nYour task is to: climb"], seed=2)


SETTINGS = PlaySettings(max_steps=8, temperature=1.3, response_tokens=6)
FORMS = {
    "concat": Form(),
    "concat, list shown": Form(show_admissible=True),
    "concat, task repeated": Form(repeat_task=True),
    "steps": Form("steps"),
    "steps, list shown": Form("steps", show_admissible=True, history=1),
    "steps without history": Form("steps", history=0),
    "free": Form(),
    "free steps": Form("steps"),
}


def settings_of(name: str) -> PlaySettings:
    return replace(SETTINGS, actions="free" if "free" in name else "admissible")


def plain(model: LanguageModel, *arguments: Any, **options: Any) -> list[Trajectory]:
    """Play in the layout `concat`."""
    return play_model(model, renderer_of(model, Form()), *arguments, **options)


def play(model: LanguageModel, name: str, *, seed: int = 0, members: int = 3) -> list[Trajectory]:
    tasks, renderer = (
        [task for task in Ladder().tasks("train") for _ in range(members)],
        renderer_of(model, FORMS[name]),
    )
    played = [*range(members)] * (len(tasks) // members)
    stats = RolloutStats()
    found = play_model(model, renderer, Ladder, tasks, played, settings_of(name), seed=seed, stats=stats)
    assert stats.mismatches == 0
    return found


@pytest.fixture(scope="module")
def played(model: LanguageModel) -> dict[str, list[Trajectory]]:
    return {name: play(model, name) for name in FORMS}


@pytest.mark.parametrize("name", FORMS)
def test_the_model_over_a_segment_gives_the_logprobs_that_were_recorded(
    name: str, model: LanguageModel, played: dict[str, list[Trajectory]]
) -> None:
    worst, seen = 0.0, 0
    for trajectory in played[name]:
        for segment in trajectory.segments:
            with torch.no_grad():
                logits = model.network(input_ids=torch.from_numpy(segment.token_ids).long()[None]).logits[0].double()
            for span in segment.spans:
                action = trajectory.transitions[span.step].action
                for place, allowed in enumerate(action.allowed):
                    position = span.start + place
                    row = logits[position - 1] / SETTINGS.temperature
                    among = row if allowed is None else row[list(allowed)]
                    logprob = float(row[int(segment.token_ids[position])] - among.logsumexp(-1))
                    worst, seen = max(worst, abs(logprob - action.logprobs[place])), seen + 1
    assert seen > 60
    assert worst < 1e-4


@pytest.mark.parametrize("name", FORMS)
def test_what_was_sampled_is_what_is_trained_on(
    name: str, model: LanguageModel, played: dict[str, list[Trajectory]]
) -> None:
    for trajectory in played[name]:
        spans = [(segment, span) for segment in trajectory.segments for span in segment.spans]
        assert [span.step for _, span in spans] == list(range(len(trajectory.transitions)))
        for segment, span in spans:
            action = trajectory.transitions[span.step].action
            assert segment.token_ids[span.start : span.stop].tolist() == list(action.token_ids)
            assert len(action.token_ids) == len(action.logprobs) == len(action.allowed) == span.stop - span.start
            assert renderer_of(model, FORMS[name]).read(completion_of(action.token_ids)).text == action.text
        for segment in trajectory.segments:
            assert len(segment.token_ids) == segment.spans[-1].stop, "nothing is fed behind the last response"


@pytest.mark.parametrize("name", ["concat", "concat, list shown", "concat, task repeated", "free"])
def test_concat_is_one_segment_of_observations_and_responses_in_turn(
    name: str, model: LanguageModel, played: dict[str, list[Trajectory]]
) -> None:
    for trajectory in played[name]:
        expected: list[int] = []
        task = f"climb {trajectory.task.seed} rungs up" if FORMS[name].repeat_task else ""
        for step in trajectory.transitions:
            expected += observation_ids(model.codec, step.observation, FORMS[name].show_admissible, task)
            expected += step.action.token_ids
        assert len(trajectory.segments) == 1
        assert trajectory.segments[0].token_ids.tolist() == expected


@pytest.mark.parametrize("name", ["steps", "steps, list shown", "steps without history", "free steps"])
def test_steps_is_a_segment_a_step_with_the_task_and_the_last_turns(
    name: str, model: LanguageModel, played: dict[str, list[Trajectory]]
) -> None:
    settings = FORMS[name]
    for trajectory in played[name]:
        steps = trajectory.transitions
        assert [len(segment.spans) for segment in trajectory.segments] == [1] * len(steps)
        for number, (step, segment) in enumerate(zip(steps, trajectory.segments, strict=True)):
            past = [(s.observation, s.action.text) for s in steps[max(0, number - settings.history) : number]]
            task = f"climb {trajectory.task.seed} rungs up"
            prompt = steps_prompt(model.codec, task, past, step.observation, settings.show_admissible)
            assert segment.token_ids.tolist() == [*prompt, *step.action.token_ids]


def test_the_policys_prompt_by_hand(model: LanguageModel) -> None:
    codec, marks = model.codec, model.codec.marks
    seen, text = Observation("It is dark.", ("a", "b")), codec.encode("It is dark.")
    commands, task = (marks["commands"], *codec.encode("a\nb")), (marks["task"], *codec.encode("see"))
    first, last = marks["observation"], marks["action"]
    assert observation_ids(codec, seen) == (first, *text, last)
    assert observation_ids(codec, seen, True) == (first, *text, *commands, last)
    assert observation_ids(codec, seen, False, "see") == (first, *text, *task, last)
    assert observation_ids(codec, seen, True, "see") == (first, *text, *commands, *task, last)


def test_the_steps_prompt_by_hand(model: LanguageModel) -> None:
    codec, marks = model.codec, model.codec.marks
    before, now = Observation("It is dark.", ("a", "b")), Observation("It is light.", ("c", "d"))
    assert steps_prompt(codec, "see", [(before, "b")], now, True) == (
        *(marks["task"], *codec.encode("see")),
        *(marks["observation"], *codec.encode("It is dark."), marks["action"], *codec.encode("b"), marks["end"]),
        *(marks["observation"], *codec.encode("It is light."), marks["commands"], *codec.encode("c\nd")),
        marks["action"],
    )


@pytest.mark.parametrize("name", FORMS)
def test_episodes_end_for_the_right_reason(name: str, played: dict[str, list[Trajectory]]) -> None:
    for trajectory in played[name]:
        steps = trajectory.transitions
        assert all(not step.done for step in steps[:-1])
        assert trajectory.stop_reason == ("done" if steps[-1].done else "max_steps")
        assert (trajectory.stop_reason == "max_steps") == (len(steps) == 8 and not steps[-1].done)
        assert trajectory.success == steps[-1].done
        assert all(a.next_observation is b.observation for a, b in pairwise(steps))
        if trajectory.task.seed == 50:
            assert trajectory.stop_reason == "max_steps"
    if not name.startswith("free"):
        assert {t.stop_reason for t in played[name]} == {"done", "max_steps"}


def test_the_answers_are_those_of_the_world_to_the_recorded_commands(played: dict[str, list[Trajectory]]) -> None:
    for trajectory in played["concat"] + played["free"]:
        env = Ladder()
        assert env.reset(trajectory.task, seed=trajectory.task.seed) == trajectory.transitions[0].observation
        for step in trajectory.transitions:
            answer = env.step(step.action.text)
            assert (answer.observation, answer.reward, answer.done) == (step.next_observation, step.reward, step.done)


def test_results_come_in_the_order_of_the_tasks(played: dict[str, list[Trajectory]]) -> None:
    order = [(task.id, member) for task in Ladder().tasks("train") for member in range(3)]
    assert [(t.task.id, t.member) for t in played["concat"]] == order


def commands(trajectories: Sequence[Trajectory]) -> list[tuple[str, ...]]:
    return [tuple(step.action.text for step in t.transitions) for t in trajectories]


@pytest.mark.parametrize("name", ["concat", "steps", "free"])
def test_episodes_do_not_depend_on_their_order_or_company(
    name: str, model: LanguageModel, played: dict[str, list[Trajectory]]
) -> None:
    chosen = [11, 0, 5, 7]
    tasks = [played[name][i].task for i in chosen]
    members = [played[name][i].member for i in chosen]
    again = play_model(model, renderer_of(model, FORMS[name]), Ladder, tasks, members, settings_of(name), seed=0)
    assert commands(again) == commands([played[name][i] for i in chosen])


def test_seed_and_update_change_what_is_drawn_and_nothing_else_does(model: LanguageModel) -> None:
    first, tasks = commands(play(model, "concat")), Ladder().tasks("train")
    assert commands(play(model, "concat")) == first
    assert commands(play(model, "concat", seed=1)) != first
    updates = [plain(model, Ladder, tasks, [0] * 4, SETTINGS, seed=0, update=u) for u in (0, 1)]
    assert commands(updates[0]) == first[::3]
    assert commands(updates[1]) != commands(updates[0])


@pytest.mark.parametrize("layout", ["concat", "steps"])
@pytest.mark.parametrize("actions", ["admissible", "free"])
def test_a_full_context_ends_an_episode_before_it_overflows(layout: str, actions: str) -> None:
    shape = ModelConfig(hidden_size=32, layers=2, heads=2, vocabulary=330, context=90)
    small = build_model(shape, TEXTS, seed=2)
    settings = replace(SETTINGS, max_steps=40, actions=actions)
    renderer = renderer_of(small, Form(layout, show_admissible=layout == "steps"))
    task = Ladder().tasks("train")[3]
    for trajectory in play_model(small, renderer, Ladder, [task] * 4, range(4), settings, seed=0):
        longest = max((len(segment.token_ids) for segment in trajectory.segments), default=0)
        assert longest <= 90
        if trajectory.stop_reason == "context":
            step = trajectory.transitions[-1]
            past = [(s.observation, s.action.text) for s in trajectory.transitions[-2:]]
            fed = list(observation_ids(small.codec, step.next_observation))
            if layout == "steps":
                fed = list(steps_prompt(small.codec, "climb 50 rungs up", past, step.next_observation, True))
            assert (longest if layout == "concat" else 0) + len(fed) + 6 > 90, "there really was no room"
        else:
            assert layout == "steps"
            assert len(trajectory.transitions) == 40


def test_an_episode_whose_first_prompt_does_not_fit_is_empty() -> None:
    shape = ModelConfig(hidden_size=32, layers=2, heads=2, vocabulary=330, context=16)
    small = build_model(shape, TEXTS, seed=2)
    (trajectory,) = play_model(
        small, renderer_of(small, Form()), Ladder, Ladder().tasks("train")[:1], [0], SETTINGS, seed=0
    )
    assert (trajectory.stop_reason, trajectory.transitions, trajectory.segments) == ("context", (), ())
    assert not trajectory.success


@pytest.mark.parametrize("response_tokens", [1, 30])
def test_an_episode_goes_on_while_prompt_and_longest_response_just_fit(response_tokens: int) -> None:
    def ends(context: int) -> tuple[str, int, int]:
        shape = ModelConfig(hidden_size=32, layers=2, heads=2, vocabulary=330, context=context)
        settings = replace(SETTINGS, max_steps=2, response_tokens=response_tokens)
        small = build_model(shape, TEXTS, seed=2)
        (played,) = play_model(
            small, renderer_of(small, Form()), lambda: Ladder(("wait a while",)), [task], [0], settings, seed=0
        )
        command = len(played.transitions[0].action.token_ids)
        return played.stop_reason, len(played.transitions), len(played.segments[0].token_ids) - command

    task = Ladder().tasks("train")[3]
    reason, steps, fed = ends(400)
    assert (reason, steps) == ("max_steps", 2)
    command = len(action_ids(build_model(ModelConfig(hidden_size=32, heads=2), TEXTS, seed=2).codec, "wait a while"))
    assert 1 < command < 30
    just = fed + max(response_tokens, command)  # the longest of what could be drawn, even if it is not
    assert ends(just)[:2] == ("max_steps", 2)
    assert ends(just - 1)[:2] == ("context", 1)


def test_a_world_that_lists_no_commands_is_played_freely(model: LanguageModel) -> None:
    listless = play_model(
        model, renderer_of(model, Form()), lambda: Ladder(None), Ladder().tasks("train"), [0] * 4, SETTINGS, seed=0
    )
    free = play_model(
        model, renderer_of(model, Form()), Ladder, Ladder().tasks("train"), [0] * 4, settings_of("free"), seed=0
    )
    assert commands(listless) == commands(free)
    assert all(allowed is None for t in listless for s in t.transitions for allowed in s.action.allowed)
    assert all(step.admissible for t in listless for step in t.transitions), "where none is listed, none is wrong"


def test_restricted_play_is_admissible_and_free_play_mostly_is_not(played: dict[str, list[Trajectory]]) -> None:
    for name in ("concat", "steps"):
        steps = [step for t in played[name] for step in t.transitions]
        assert all(step.admissible and step.action.well_formed and not step.action.imagined for step in steps)
    wild = [step for t in played["free"] for step in t.transitions]
    assert sum(step.admissible for step in wild) < len(wild) / 2


def test_rewards_are_scaled(model: LanguageModel) -> None:
    tasks = list(Ladder().tasks("train"))[:1]
    plain, scaled = (
        play_model(
            model,
            renderer_of(model, Form()),
            Ladder,
            tasks * 4,
            range(4),
            replace(SETTINGS, reward_scale=scale),
            seed=0,
        )
        for scale in (1.0, 10.0)
    )
    assert sum(t.total_reward for t in plain) > 0
    assert [t.total_reward for t in scaled] == [10 * t.total_reward for t in plain]


def test_every_turn_can_be_interrupted_and_the_worlds_time_is_told_apart(model: LanguageModel) -> None:
    calls: list[None] = []
    stats = RolloutStats()
    trajectories = plain(
        model, Ladder, Ladder().tasks("train"), [0] * 4, SETTINGS, seed=0, stats=stats, poll=lambda: calls.append(None)
    )
    assert len(calls) == max(len(t.transitions) for t in trajectories)
    assert stats.env > 0.0


def completion_of(ids: Sequence[int]) -> Completion:
    return Completion(tuple(ids), (0.0,) * len(ids), (None,) * len(ids))


RESPONSES = {
    "a command": (["go up", "end"], "go up", True, False),
    "no closing mark": (["go up"], "go up", False, False),
    "nothing": (["end"], "", True, False),
    "not even a mark": ([], "", False, False),
    "another mark inside": (["go up", "action", "go down", "end"], "go up", False, False),
    "an observation by its mark": (["go up", "observation", "It is dark", "end"], "go up", False, True),
    "an answer by its mark": (["go up", "next", "It is dark"], "go up", False, True),
    "an observation on the next line": (["go up\nThe door is open.", "end"], "go up\nThe door is open.", True, True),
    "only a line's end": (["go up\n", "end"], "go up\n", True, False),
    "an observation in the same line": (["go up You arrive at", "end"], "go up You arrive at", True, True),
    "an observation and no command": (["You see a cup", "end"], "You see a cup", True, True),
    "a word like it": (["ask Young You", "end"], "ask Young You", True, False),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_what_a_response_is_taken_for(name: str, model: LanguageModel) -> None:
    parts, text, well_formed, imagined = RESPONSES[name]
    codec, reader = model.codec, renderer_of(model, Form())
    ids = [i for part in parts for i in ([codec.marks[part]] if part in codec.marks else codec.encode(part))]
    action = reader.read(completion_of(ids))
    assert (action.text, action.well_formed, action.imagined) == (text, well_formed, imagined)
    assert action.token_ids == tuple(ids)
    listed = reader.read(replace(completion_of(ids), allowed=tuple((i, 0) for i in ids), free=False))
    assert not listed.imagined, "a command drawn from the world's own list imagines nothing"


def test_scripts_play_by_the_same_rules() -> None:
    short, long = Ladder().tasks("train")[1], Ladder().tasks("train")[3]
    won = play_script(Ladder(), short, lambda observation: "climb up", 8)
    assert (won.stop_reason, won.success, len(won.transitions), won.total_reward) == ("done", True, 2, 1.0)
    lost = play_script(Ladder(), long, lambda observation: "climb up", 8)
    assert (lost.stop_reason, lost.success, len(lost.transitions)) == ("max_steps", False, 8)
    assert lost.segments == ()
    assert lost.transitions[0].action.token_ids == ()


def test_random_play_is_admissible_and_a_function_of_task_and_seed() -> None:
    def play(task: Task, seed: int) -> list[str]:
        trajectory = play_script(Ladder(), task, make_script("random", Ladder(), task, seed), 30)
        assert all(step.admissible for step in trajectory.transitions)
        return [step.action.text for step in trajectory.transitions]

    long, other = Ladder().tasks("train")[3], Task("another", "train", 50)
    assert play(long, 1) == play(long, 1)
    assert play(long, 1) != play(long, 2)
    assert play(long, 1) != play(other, 1)
    assert set(play(long, 1)) == set(MOVES)
    silent = play_script(Ladder(None), long, make_script("random", Ladder(None), long, 1), 2)
    assert [step.action.text for step in silent.transitions] == ["look", "look"]


def test_scripts_that_a_world_lacks_are_refused_in_one_sentence() -> None:
    task = Ladder().tasks("train")[0]
    for name, words in (
        ("expert", "this world has no scripted expert"),
        ("walkthrough", "this world has no walkthroughs"),
        ("radnom", "unknown script 'radnom'; did you mean 'random'?"),
    ):
        with pytest.raises(UserError) as error:
            make_script(name, Ladder(), task, 0)
        assert words in str(error.value)


def test_task_and_banner() -> None:
    first = Observation("-= Welcome to TextWorld, ALFRED! =-\n\nYou are here.\n\nYour task is to: put a cup on a desk.")
    assert task_text(first) == "put a cup on a desk."
    assert trim(first.text).startswith("You are here.")
    assert task_text(Observation("Find the way out.")) == "Find the way out."


def test_segments_hold_arrays_of_32_bit_ids(played: dict[str, list[Trajectory]]) -> None:
    assert {segment.token_ids.dtype for t in played["concat"] for segment in t.segments} == {np.dtype(np.int32)}
