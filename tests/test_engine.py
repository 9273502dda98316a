"""The household engine on a game written by hand, and beside a plain one in random play."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envrl.envs.household.engine import NOTHING_HAPPENS, Play
from envrl.envs.household.game import Game, bits, listing
from envrl.envs.household.generator import generate_problem
from envrl.envs.household.problem import HELP, Goal, Problem, base_name, names_of
from plain_household import PlainPlay

FETCH_KNIFE = ["go to drawer 2", "open drawer 2", "take butterknife 1 from drawer 2"]
TAKE_EGG = ["go to countertop 1", "take egg 1 from countertop 1"]
TAKE_APPLE = ["go to countertop 1", "take apple 2 from countertop 1"]


def play(problem: Problem, *commands: str) -> Play:
    """Return the episode after commands that must all be admissible."""
    episode = Play(Game(problem))
    for command in commands:
        assert command in episode.answer().admissible, command
        episode.step(command)
    return episode


def said(problem: Problem, *commands: str) -> str:
    return play(problem, *commands).answer().text


def test_names_count_down_in_sorted_order(kitchen: Problem) -> None:
    names = names_of(kitchen)
    assert [names[f"drawer_bar_{n}"] for n in (1, 2)] == ["drawer 2", "drawer 1"]
    assert names["sink_bar_1_bar_sinkbasin"] == "sinkbasin 1"
    assert names["sink_bar_1"] == "sink 1"
    assert base_name("bathtub_bar__minus_03_bar_bathtubbasin") == "bathtubbasin"


def test_ids_out_of_order_are_refused(kitchen: Problem) -> None:
    with pytest.raises(ValueError, match="sorted order"):
        replace(kitchen, items=kitchen.items[::-1])


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "nothing"),
        (["cd 1"], "a cd 1"),
        (["cd 2", "cd 1"], "a cd 2, and a cd 1"),
        (["cd 2", "egg 1", "cd 1"], "a cd 2, a egg 1, and a cd 1"),
    ],
)
def test_lists(names: list[str], text: str) -> None:
    assert listing(names) == text


@given(st.sets(st.integers(0, 90)))
def test_bits_are_read_upwards(numbers: set[int]) -> None:
    assert list(bits(sum(1 << n for n in numbers))) == sorted(numbers)


def test_first_observation(kitchen: Problem) -> None:
    answer = Play(Game(kitchen)).answer()
    assert answer.text == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see a "
        "countertop 1, a desk 1, a drawer 2, a drawer 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\n"
        "Your task is to: put two apple in fridge."
    )
    assert answer.admissible == (
        "go to countertop 1",
        "go to desk 1",
        "go to drawer 1",
        "go to drawer 2",
        "go to fridge 1",
        "go to microwave 1",
        "go to sinkbasin 1",
        "help",
        "inventory",
        "look",
    )


def test_before_the_first_move(kitchen: Problem) -> None:
    assert said(kitchen, "look") == "You are in the middle of a room. Looking quickly around you, you see nothing."
    assert said(kitchen, "inventory") == "You are not carrying anything."
    assert said(kitchen, "help") == HELP
    assert HELP.startswith("Available commands:\n")
    assert HELP.endswith("using a sharp object\n")


def test_one_way_reaches_all_receptacles_of_a_place(kitchen: Problem) -> None:
    episode = play(kitchen, "go to drawer 2")
    assert episode.answer().text == "You arrive at drawer 2. The drawer 2 is closed."
    assert episode.answer().admissible == (
        "examine countertop 1",
        "examine drawer 2",
        "go to desk 1",
        "go to drawer 1",
        "go to fridge 1",
        "go to microwave 1",
        "go to sinkbasin 1",
        "help",
        "inventory",
        "look",
        "open drawer 2",
        "take apple 2 from countertop 1",
        "take egg 1 from countertop 1",
        "take mug 1 from countertop 1",
    )
    assert episode.step("look").text == "You are facing the countertop 1, and drawer 2. Next to it, you see nothing."
    assert episode.step("examine countertop 1").text == "On the countertop 1, you see a apple 2, a egg 1, and a mug 1."
    assert (
        episode.step("open drawer 2").text
        == "You open the drawer 2. The drawer 2 is open. In it, you see a butterknife 1, and a mug 1."
    )
    assert episode.step("close drawer 2").text == "You close the drawer 2."


def test_what_lay_in_two_receptacles_is_taken_from_one(kitchen: Problem) -> None:
    episode = play(kitchen, "go to drawer 2", "open drawer 2", "take mug 1 from countertop 1")
    assert episode.answer().text == "You pick up the mug 1 from the countertop 1."
    assert episode.step("examine drawer 2").text.endswith("In it, you see a butterknife 1, and a mug 1.")
    assert episode.step("inventory").text == "You are carrying: a mug 1."
    assert episode.step("look").text.endswith("Next to it, you see nothing.")


def test_beside_a_receptacle_is_what_was_taken_from_it_and_lies_there(kitchen: Problem) -> None:
    """A knife goes from the drawer to the countertop in the same place: it is listed once for the drawer."""
    episode = play(kitchen, *FETCH_KNIFE, "move butterknife 1 to countertop 1")
    assert episode.answer().text == "You move the butterknife 1 to the countertop 1."
    assert episode.step("look").text.endswith("Next to it, you see a butterknife 1.")
    episode.step("take butterknife 1 from countertop 1")
    assert episode.step("look").text.endswith("Next to it, you see nothing.")
    episode.step("move butterknife 1 to drawer 2")
    assert episode.step("look").text.endswith("Next to it, you see a butterknife 1.")
    episode.step("take butterknife 1 from drawer 2")
    episode.step("move butterknife 1 to countertop 1")
    episode.step("go to desk 1")
    episode.step("go to countertop 1")
    assert episode.step("look").text.endswith("Next to it, you see a butterknife 1.")


def test_beside_two_receptacles_is_listed_twice(kitchen: Problem) -> None:
    facts = kitchen.in_receptacle | {("butterknife_bar_1", "countertop_bar_1")}
    shelf = replace(
        kitchen.receptacles[0], id="countertop_bar_2", location="loc_a"
    )  # countertop_bar_1 is countertop 2 now
    receptacles = tuple(sorted([*kitchen.receptacles, shelf], key=lambda r: r.id))
    problem = replace(kitchen, receptacles=receptacles, in_receptacle=facts)
    episode = play(
        problem,
        *FETCH_KNIFE,
        "move butterknife 1 to countertop 1",
        "take butterknife 1 from countertop 2",
        "move butterknife 1 to countertop 1",
    )
    assert episode.step("look").text == (
        "You are facing the countertop 2, countertop 1, and drawer 2. "
        "Next to it, you see a butterknife 1, and a butterknife 1."
    )


@pytest.mark.parametrize(
    ("treatments", "description"),
    [
        ([], "There's nothing special about apple 2."),
        (["heat"], "This is a hot apple 2."),
        (["cool"], "This is a cold apple 2."),
        (["clean"], "This is a clean apple 2."),
        (["slice"], "This is a sliced apple 2."),
        (["heat", "clean"], "This is a hot and clean apple 2."),
        (["clean", "cool"], "This is a cool and clean apple 2."),
        (["slice", "heat"], "This is a hot sliced apple 2."),
        (["slice", "cool"], "This is a cool sliced apple 2."),
        (["slice", "clean"], "This is a clean sliced apple 2."),
        (["slice", "clean", "heat"], "This is a hot and clean sliced apple 2."),
        (["slice", "cool", "clean"], "This is a cool and clean sliced apple 2."),
        (["cool", "heat"], "This is a hot apple 2."),
        (["heat", "cool"], "This is a cold apple 2."),
    ],
)
def test_examine_shows_the_treatments(kitchen: Problem, treatments: list[str], description: str) -> None:
    """Fridge and microwave stay closed; slicing needs the apple not in hand."""
    where = {"heat": "microwave 1", "cool": "fridge 1", "clean": "sinkbasin 1"}
    commands = []
    if "slice" in treatments:
        commands += [*FETCH_KNIFE, "slice apple 2 with butterknife 1", "move butterknife 1 to countertop 1"]
        commands += ["take apple 2 from countertop 1"]
    else:
        commands += TAKE_APPLE
    for verb in treatments:
        if verb != "slice":
            commands += [f"go to {where[verb]}", f"{verb} apple 2 with {where[verb]}"]
    assert said(kitchen, *commands, "examine apple 2") == description


def test_answers_to_treatments(kitchen: Problem) -> None:
    assert said(kitchen, *TAKE_APPLE, "go to microwave 1", "heat apple 2 with microwave 1") == (
        "You heat the apple 2 using the microwave 1."
    )
    assert (
        said(kitchen, *FETCH_KNIFE, "slice egg 1 with butterknife 1") == "You sliced the egg 1 with the butterknife 1."
    )
    assert said(kitchen, *TAKE_EGG, "examine egg 1") == "This is a cold egg 1."


def test_slicing_reaches_into_what_is_closed(kitchen: Problem) -> None:
    episode = play(kitchen, *FETCH_KNIFE, "go to fridge 1")
    assert episode.step("slice apple 1 with butterknife 1").text == "You sliced the apple 1 with the butterknife 1."
    assert episode.step("examine fridge 1").text == "The fridge 1 is closed."


def test_a_container_shows_its_first_contents_without_itself(kitchen: Problem) -> None:
    taken = ["go to desk 1", "take pen 1 from desk 1", "move pen 1 to desk 1"]
    commands = [*taken, "go to countertop 1", "take mug 1 from countertop 1", "go to microwave 1"]
    commands += ["heat mug 1 with microwave 1", "examine mug 1"]
    assert said(kitchen, *commands) == "This is a normal mug 1. In it, you see a pen 1."


def test_lamps(kitchen: Problem) -> None:
    episode = play(kitchen, "go to desk 1", "use desklamp 1")
    assert episode.answer().text == "You turn on the desklamp 1."
    assert episode.step("use desklamp 1").text == "You turn on the desklamp 1."
    assert episode.step("take desklamp 1 from desk 1").text == "You pick up the desklamp 1 from the desk 1."
    assert episode.step("examine desklamp 1").text == "This desklamp 1 is on."
    assert episode.step("use desklamp 1").text == NOTHING_HAPPENS
    assert said(kitchen, "go to desk 1", "take desklamp 1 from desk 1", "examine desklamp 1") == (
        "There's nothing special about desklamp 1."
    )


OUT_OF_REACH = ["open countertop 1", "close drawer 2", "take butterknife 1 from drawer 2", "take statue 1 from desk 1"]
NOT_NOW = ["go to countertop 1", "move egg 1 to countertop 1", "examine egg 1", "use desklamp 1"]
ODD = ["", " ", "Look", "look around", "go to  desk 1", "go to countertop 2", "go to", "examine", "look\x00", "\ud800"]


@pytest.mark.parametrize("command", [*OUT_OF_REACH, *NOT_NOW, *ODD, pytest.param("help" * 250_000, id="1 MB")])
def test_anything_else_changes_nothing(kitchen: Problem, command: str) -> None:
    episode = play(kitchen, "go to countertop 1")
    before = episode.save()
    answer = episode.step(command)
    assert answer.text == NOTHING_HAPPENS
    assert episode.save() == before._replace(text=NOTHING_HAPPENS)


def test_outer_spaces_are_stripped(kitchen: Problem) -> None:
    assert Play(Game(kitchen)).step(" \t\u00a0look\n").text.startswith("You are in the middle")


WITH_EGG = [*TAKE_EGG, "go to microwave 1", "open microwave 1"]


@pytest.mark.parametrize(
    ("goal", "commands"),
    [
        (Goal("pick_and_place_simple", "egg", "microwave"), [*WITH_EGG, "move egg 1 to microwave 1"]),
        (Goal("pick_cool_then_place_in_recep", "egg", "microwave"), [*WITH_EGG, "move egg 1 to microwave 1"]),
        (
            Goal("pick_heat_then_place_in_recep", "egg", "microwave"),
            [*WITH_EGG, "heat egg 1 with microwave 1", "move egg 1 to microwave 1"],
        ),
        (
            Goal("pick_clean_then_place_in_recep", "apple", "sinkbasin"),
            [*TAKE_APPLE, "go to sinkbasin 1", "clean apple 2 with sinkbasin 1", "move apple 2 to sinkbasin 1"],
        ),
        (
            Goal("pick_two_obj_and_place", "apple", "fridge"),
            [*TAKE_APPLE, "go to fridge 1", "open fridge 1", "move apple 2 to fridge 1"],
        ),
        (Goal("look_at_obj_in_light", "egg", "desklamp"), [*TAKE_EGG, "go to desk 1", "use desklamp 1"]),
        (Goal("look_at_obj_in_light", "pen", "desklamp"), ["go to desk 1", "use desklamp 1", "take pen 1 from desk 1"]),
        (
            Goal("look_at_obj_in_light", "egg", "desklamp"),
            ["go to desk 1", "use desklamp 1", *TAKE_EGG, "go to desk 1"],
        ),
    ],
)
def test_goals_hold_at_the_last_step_and_no_earlier(kitchen: Problem, goal: Goal, commands: list[str]) -> None:
    episode = Play(Game(replace(kitchen, goal=goal)))
    done = []
    for command in commands:
        assert command in episode.answer().admissible, command
        done.append(episode.step(command).done)
    assert done == [False] * (len(commands) - 1) + [True]


def test_a_goal_of_coolness_asks_for_something_that_can_be_cooled(kitchen: Problem) -> None:
    """The goal names the predicate `coolable` beside `isCool`, and an egg may be cool without being coolable."""
    items = tuple(replace(i, flags=i.flags - {"coolable"}) if i.type == "egg" else i for i in kitchen.items)
    problem = replace(kitchen, items=items, goal=Goal("pick_cool_then_place_in_recep", "egg", "microwave"))
    assert not play(problem, *WITH_EGG, "move egg 1 to microwave 1").answer().done


def test_after_the_end_every_step_repeats_the_last_answer(kitchen: Problem) -> None:
    episode = play(replace(kitchen, goal=Goal("pick_and_place_simple", "egg", "microwave")), *WITH_EGG)
    last = episode.step("move egg 1 to microwave 1")
    assert last.done
    assert [episode.step(command) for command in ("look", "", "take egg 1 from microwave 1")] == [last] * 3


def test_a_goal_that_holds_at_the_start_ends_the_first_step(kitchen: Problem) -> None:
    episode = Play(Game(replace(kitchen, goal=Goal("pick_and_place_simple", "egg", "countertop"))))
    assert not episode.answer().done
    assert episode.step("no such command").done


def games() -> list[Problem]:
    return [generate_problem(split, index) for split in ("train", "valid_unseen") for index in range(20)]


def lively(offered: tuple[str, ...], generator: random.Random) -> str:
    """Return a random command, half of the time one that is not just moving or looking."""
    rare = [command for command in offered if not command.startswith(("go", "examine", "help", "look", "inventory"))]
    return generator.choice(rare if rare and generator.random() < 0.5 else offered)


def test_equal_to_the_plain_engine_in_random_play(kitchen: Problem) -> None:
    generator = random.Random(0)
    for problem in [*[kitchen] * 20, *games()]:
        fast, plain = Play(Game(problem)), PlainPlay(problem)
        for _ in range(80):
            answer = fast.answer()
            assert (answer.text, list(answer.admissible)) == (plain.text, plain.admissible())
            command = lively(answer.admissible, generator)
            fast.step(command)
            plain.step(command)
            assert fast.answer().done == plain.done, command


def test_admissible_is_exactly_what_does_not_answer_nothing_happens(kitchen: Problem) -> None:
    """Every command that can be made of the game's names is tried in every state met."""
    game, generator = Game(kitchen), random.Random(1)
    things = [*game.item_names, *game.receptacle_names]
    commands = ["look", "help", "inventory"]
    commands += [f"{verb} {name}" for verb in ("go to", "open", "close", "examine", "use") for name in things]
    commands += [f"{verb} {a} {word} {b}" for verb, word in PAIRS for a in things for b in things]
    for _ in range(6):
        episode = Play(game)
        for _ in range(25):
            state, offered = episode.save(), episode.answer().admissible
            for command in commands:
                accepted = episode.step(command).text != NOTHING_HAPPENS
                assert accepted == (command in offered), command
                if accepted:
                    episode.load(state)
            episode.load(state)
            if episode.step(lively(offered, generator)).done:
                break


PAIRS = [("take", "from"), ("move", "to"), ("heat", "with"), ("cool", "with"), ("clean", "with"), ("slice", "with")]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), at=st.integers(0, 40), index=st.integers(0, 50))
def test_save_and_load_are_exact(seed: int, at: int, index: int) -> None:
    generator, game = random.Random(seed), Game(generate_problem("train", index))
    episode = Play(game)
    for _ in range(at):
        episode.step(lively(episode.answer().admissible, generator))
    state = episode.save()
    saved = pickle.loads(pickle.dumps(state))
    commands, answers = [], []
    for _ in range(20):
        commands.append(lively(episode.answer().admissible, generator))
        answers.append(episode.step(commands[-1]))
    assert state == saved
    for other in (episode, Play(game), Play(Game(game.problem))):
        other.load(saved)
        assert [other.step(command) for command in commands] == answers


def test_episodes_of_one_game_do_not_touch_each_other(kitchen: Problem) -> None:
    game = Game(kitchen)
    generators = [random.Random(seed) for seed in range(4)]
    alone = []
    for seed in range(4):
        episode, generator = Play(game), random.Random(seed)
        alone.append([episode.step(lively(episode.answer().admissible, generator)) for _ in range(60)])
    together, episodes = [[] for _ in range(4)], [Play(game) for _ in range(4)]
    for _ in range(60):
        for log, episode, generator in zip(together, episodes, generators, strict=True):
            log.append(episode.step(lively(episode.answer().admissible, generator)))
    assert together == alone
