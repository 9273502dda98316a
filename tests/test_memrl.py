"""MemRL: similarity and utility by worked numbers, a run's memory by an account of its own, resumes, refusals."""

from __future__ import annotations

import doctest
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import envrl
from boxes import Boxes, files, grouped, tiny
from boxes import register as register_worlds
from envrl.batches.batch import Asks, build_batch
from envrl.build import form_of, play_settings, renderer_of
from envrl.cli.main import main
from envrl.config.load import load_recipe
from envrl.config.schema import Config
from envrl.costs.estimate import estimate
from envrl.costs.shape import preset_shape
from envrl.costs.speed import Accelerator
from envrl.curriculum import Plan
from envrl.engine.local import loss_settings
from envrl.engine.update import policy_logprobs
from envrl.errors import UserError
from envrl.memories import memrl, similarity
from envrl.memories.file import read_memory, write_memory
from envrl.memories.memrl import MemRL, two_phase
from envrl.memories.remembering import Asked, Remembering
from envrl.memories.similarity import Texts
from envrl.memory import Experience, Query
from envrl.rendering.marks import MarksRenderer
from envrl.rendering.renderer import Form, SegmentState
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.samples.store import from_json, to_json
from envrl.types import Observation, Task
from episodes import episode
from moments import essence
from test_replays import SMALL
from test_update import make_model

PLAN = Plan(seed=0, tasks=2, group_size=3, max_steps=3, updates=20)
KEY, COIN, RING, PEN = Boxes().tasks("train")[:4]
SHORT = {"every": 0, "final": 4, "free_episodes": 0, "probe_episodes": 0}


@pytest.mark.parametrize("module", [memrl, similarity])
def test_the_examples_of_the_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 2
    assert result.failed == 0


def asks(task: Task, text: str, key: int = 0, *, learning: bool = True) -> Query:
    return Query(task, text, Observation(text), key, learning)


def lived(task: Task, text: str, score: float, *told: int, member: int = 0, steps: int = 2) -> Experience:
    return Experience(episode(task, score, member=member, steps=steps), text, told, score)


# Similarity


def test_similarity_is_the_cosine_of_trigram_counts() -> None:
    """Beside a cosine of dense vectors, over texts with repeats, numbers and no Latin letters."""
    texts = ["put a clean mug in the shelf", "put a  CLEAN mug in the shelf", "mug mug mug", "找到 钥匙", "#_P_#", ""]

    def counts(text: str) -> Counter[str]:
        plain = " " + " ".join(text.split()).lower() + " "
        return Counter(a + b + c for a, b, c in zip(plain, plain[1:], plain[2:], strict=False))

    index = Texts(texts)
    for text in texts:
        mine = counts(text)
        for other, found in zip(texts, index.similarities(text), strict=True):
            theirs = counts(other)
            dot = sum(mine[gram] * theirs[gram] for gram in mine)
            lengths = sqrt(sum(n * n for n in mine.values())) * sqrt(sum(n * n for n in theirs.values()))
            assert found == pytest.approx(dot / lengths if lengths else 0.0)
    assert index.similarities("put a clean mug in the shelf")[:2].tolist() == [1.0, 1.0]
    assert index.similarities("钥匙 找到")[3] == pytest.approx(0.8)  # four of five
    assert Texts([]).similarities("a key").tolist() == []


# Two phases


@pytest.mark.parametrize(("balance", "order"), [(0.0, [0, 1, 2]), (0.5, [1, 0, 2]), (1.0, [1, 2, 0])])
def test_the_second_phase_weighs_similarity_and_utility(balance: float, order: list[int]) -> None:
    """ẑ of the similarities 1.07, 0.27, −1.34 and of the utilities −1.22, 1.22, 0; the last is not similar enough."""
    similarities, utilities = np.array([0.9, 0.8, 0.6, 0.3]), np.array([0.1, 0.9, 0.5, 1.0])
    found = two_phase(similarities, utilities, candidates=3, threshold=0.5, balance=balance)
    assert found.tolist() == order


def test_the_first_phase_keeps_the_most_similar_then_the_useful_then_the_latest() -> None:
    similarities, utilities = np.array([0.7, 0.7, 0.7, 0.9, 0.2]), np.array([0.5, 0.5, 0.8, 0.0, 1.0])
    near = {
        count: two_phase(similarities, utilities, candidates=count, threshold=0.5, balance=0.0).tolist()
        for count in (1, 2, 3, 9)
    }
    assert near == {1: [3], 2: [3, 2], 3: [3, 2, 1], 9: [3, 2, 1, 0]}
    assert two_phase(similarities, utilities, candidates=9, threshold=0.95, balance=0.5).tolist() == []


# The memory


def test_utilities_follow_the_returns_of_the_episodes_that_were_told() -> None:
    """0.5 → 0.5 + 0.3 · 0.5 = 0.65 → 0.65 − 0.3 · 0.65 = 0.455; another one stays."""
    memory = MemRL(PLAN, explore=0.0)
    memory.observe([lived(KEY, "find the key", 1.0), lived(COIN, "find the coin", 0.0, steps=3)], 1)
    first, second = memory.state()
    assert (first["number"], first["commands"], first["success"]) == (1, ["open box 1", "open box 1"], True)
    assert (second["number"], second["success"], second["utility"], second["told"]) == (2, False, 0.5, 0)
    memory.observe([lived(RING, "find the key", 1.0, 1), lived(PEN, "find the key", 0.0, 1)], 2)
    assert [entry["utility"] for entry in memory.state()] == pytest.approx([0.455, 0.5])
    assert [entry["told"] for entry in memory.state()] == [2, 0]
    assert memory.figures() == pytest.approx({"entries": 2, "utility": 0.4775, "used": 0.5, "won": 0.5})


def test_an_episode_is_told_of_the_similar_and_useful_ones() -> None:
    memory = MemRL(PLAN, explore=0.0, told=2, initial=0.0, learning_rate=1.0)
    texts = ["find the key in the hall", "find the key in the bath", "find the key in the yard", "sell a horse"]
    tasks = Boxes().tasks("train")[:4]
    memory.observe(
        [lived(task, text, 1.0, steps=n + 1) for n, (task, text) in enumerate(zip(tasks, texts, strict=True))], 1
    )
    memory.observe([lived(RING, texts[1], 1.0, 2), lived(RING, texts[1], 0.5, 3)], 2)
    query = asks(Boxes().tasks("train")[9], "find the key in the hall")
    assert [each.entry for each in memory.recall(query)] == [2, 1]  # ẑ: 1.41 − 1.22, −0.71 + 1.22, −0.71 + 0
    (_, told) = memory.recall(query)
    assert told.text == "An earlier attempt at: find the key in the hall\nIt succeeded by:\nopen box 1"
    greedy = MemRL(PLAN, explore=0.0, told=1, balance=1.0)
    greedy.load(memory.state())
    assert [each.entry for each in greedy.recall(asks(KEY, texts[2]))] == [2]
    assert memory.recall(asks(KEY, "drink water")) == []


def test_what_is_kept_is_the_best_episode_of_each_task_once() -> None:
    memory = MemRL(PLAN, failures=False)
    played = [lived(KEY, "find the key", 0.0), lived(KEY, "find the key", 1.0, member=1, steps=3)]
    played += [lived(KEY, "find the key", 1.0, member=2, steps=2), lived(KEY, "find the key", 1.0, member=3, steps=2)]
    memory.observe([*played, lived(COIN, "find the coin", 0.0)], 1)
    assert [entry["commands"] for entry in memory.state()] == [["open box 3", "open box 3"]]
    memory.observe([lived(RING, "find the key", 1.0, member=2)], 2)  # the same was done in an equal task
    assert len(memory.state()) == 1
    memory.observe([lived(RING, "find the key", 1.0, member=2, steps=1)], 3)
    assert [entry["update"] for entry in memory.state()] == [1, 3]


def test_a_full_memory_loses_the_least_useful_then_the_oldest() -> None:
    memory = MemRL(PLAN, size=2, learning_rate=0.5)
    memory.observe([lived(KEY, "find the key", 1.0), lived(COIN, "find the coin", 1.0)], 1)
    memory.observe([lived(RING, "find the ring", 1.0, 1)], 2)
    assert [entry["number"] for entry in memory.state()] == [1, 3]  # 0.75, and of 0.5 the later
    memory.observe([lived(PEN, "find the pen", 1.0, 1, 1, 1)], 3)
    assert [entry["text"] for entry in memory.state()] == ["find the key", "find the pen"]


def test_a_placebo_tells_of_as_many_entries_that_are_not_alike() -> None:
    texts = ["find the key", "find the keys", *(f"{word} it" for word in ("sell", "wash", "burn", "lend"))]
    told: Counter[int] = Counter()
    for placebo in (False, True):
        memory = MemRL(PLAN, explore=0.0, told=2, placebo=placebo)
        memory.observe([lived(task, text, 1.0) for task, text in zip(Boxes().tasks("train"), texts, strict=False)], 1)
        recalled = [memory.recall(asks(KEY, "find the key", key)) for key in range(60)]
        assert {len({each.entry for each in some}) for some in recalled} == {2}
        assert memory.recall(asks(KEY, "drink water")) == []
        assert memory.recall(asks(KEY, "find the key", 7)) == memory.recall(asks(KEY, "find the key", 7))
        told = Counter(each.entry for some in recalled for each in some)
        assert set(told) == ({1, 2, 3, 4, 5, 6} if placebo else {1, 2})
    assert max(told.values()) < 40  # 20 each in the mean


def test_exploring_draws_among_the_candidates_and_only_in_training() -> None:
    memory = MemRL(PLAN, explore=1.0, told=1)
    texts = ["find the key", "find the keys", "find the keyhole", "drink water"]
    memory.observe([lived(task, text, 1.0) for task, text in zip(Boxes().tasks("train"), texts, strict=False)], 1)
    for learning, drawn in ((True, {1, 2, 3}), (False, {1})):
        queries = (asks(KEY, "find the key", key, learning=learning) for key in range(40))
        assert {memory.recall(query)[0].entry for query in queries} == drawn
    apart = MemRL(PLAN, explore=0.0, same_task=False)
    apart.load(memory.state())
    assert [each.entry for each in apart.recall(asks(KEY, "find the key"))] == [2, 3]


def test_the_entries_survive_a_checkpoint() -> None:
    one, other = MemRL(PLAN), MemRL(PLAN)
    one.observe([lived(KEY, "find the key", 1 / 3), lived(COIN, "find the coin", 0.0, member=1)], 1)
    one.observe([lived(RING, "find the ring", 0.1, 1, 2)], 2)
    other.load(from_json(json.loads(json.dumps(to_json(one.state())))))
    assert other.state() == one.state()
    for memory in (one, other):
        memory.observe([lived(PEN, "find the pen", 0.7, 1, 3)], 3)
    assert other.state() == one.state()


@pytest.mark.parametrize("text", ["one\u2028line\x85more\x0c", "half \ud83d of a pair", "two\nlines"])
def test_any_text_survives_the_file(text: str, tmp_path: Path) -> None:
    state = {"format": 1, "memory": "memrl", "env": "boxes", "entries": [{"text": text}, {"text": "plain"}]}
    write_memory(tmp_path, state)
    assert read_memory(tmp_path) == state
    assert (tmp_path / "memory.jsonl").read_bytes().count(b"\n") == 3
    (tmp_path / "memory.jsonl").write_text("")
    with pytest.raises(UserError, match="is of another version of envrl"):
        read_memory(tmp_path)


# What an episode is told, and what is learned from it


def small(**settings: Any) -> Config:
    settings = {"memory": {"name": "memrl"}, "model": {"context": 1024}, "eval": SHORT} | settings
    return tiny(**settings)


@pytest.mark.parametrize(("repeat_task", "layout"), [(False, "concat"), (True, "concat"), (False, "steps")])
def test_rows_hold_what_was_told_and_auxiliary_rows_do_not(repeat_task: bool, layout: str) -> None:
    """Once a segment; the log-probs of the rows are those that were sampled: the prompt is the one that was played."""
    config = small(
        rollout={"layout": layout, "repeat_task": repeat_task},
        auxiliary={"state": {"weight": 0.1}, "inverse": {"weight": 0.1}},
        owned={"memory.memrl.explore": 0.0},
    )
    config = replace(config, owned=config.owned | {"memory.memrl.explore": 0.0})
    model, memory = make_model(config), Remembering(config)
    renderer = renderer_of(model, form_of(config))
    tasks = list(Boxes().tasks("train")[:8])
    memory.made.observe([lived(task, f"find the {task.kind}", 1.0) for task in tasks[4:]], 1)
    played = play_episodes(
        Policy(renderer, OwnSampler(model, "fp32"), model.codec),
        Boxes,
        [task for task in tasks[:4] for _ in range(2)],
        [0, 1] * 4,
        play_settings(config, 1.0),
        tell=memory.teller(renderer, Asked(0, 1)),
        seed=0,
        update=1,
    )
    for each in played:
        assert each.transitions[0].observation.help.startswith(f"An earlier attempt at: find the {each.task.kind}\n")
        for segment in each.segments:
            assert model.codec.decode(segment.token_ids.tolist()).count("An earlier attempt at") in (1, 2)
    batch = build_batch(grouped(played, 2), config, renderer, 1)
    texts = {
        kind: [model.codec.decode(row.token_ids.tolist()) for row in batch.rows if has(row, kind)]
        for kind in ("policy", "state", "inverse")
    }
    assert texts["policy"]
    assert all("An earlier attempt at" in text for text in texts["policy"])
    assert not any("An earlier" in text for kind in ("state", "inverse") for text in texts[kind])
    assert texts["state"]
    for row in (row for row in batch.rows if has(row, "policy")):
        (term,) = (each for each in row.terms if each.component == "policy")
        logits = model.network(torch.tensor(row.token_ids[None].astype("int64"))).logits[0]
        for n, place in enumerate(term.positions_T):
            assert term.allowed is not None
            among = term.allowed.values[term.allowed.offsets[n] : term.allowed.offsets[n + 1]].tolist()
            logprob = logits[place - 1][among].log_softmax(-1)[among.index(int(row.token_ids[place]))]
            assert logprob.item() == pytest.approx(float(term.streams["sampled_logprobs"][n]), abs=1e-4)


def test_a_teacher_reads_what_the_policy_was_told_and_what_it_is_told_itself() -> None:
    config = replace(small(), owned={"teacher.sdpo.weight": 1.0, "memory.memrl.explore": 0.0})
    model, memory = make_model(config), Remembering(config)
    renderer = renderer_of(model, form_of(config))
    memory.made.observe([lived(RING, "find the key", 1.0)], 1)
    played = play_episodes(
        Policy(renderer, OwnSampler(model, "fp32"), model.codec),
        Boxes,
        [KEY] * 6,
        range(6),
        play_settings(config, 1.0),
        tell=memory.teller(renderer, Asked(0, 1)),
        seed=0,
        update=1,
    )
    failed, read = [each for each in played if not each.success], list[str]()

    def scores(name: str, rows: Any) -> Any:
        read.extend(model.codec.decode(row.token_ids.tolist()) for row in rows)
        return policy_logprobs(model, rows, loss_settings(config, {}))

    build_batch(grouped(played, 6), config, renderer, 1, Asks(teachers=scores))
    assert len(read) == len(failed) > 0
    assert all(re.search(r"An earlier attempt at: find the key\n.*\n\n(Correct|Feedback)", each, re.S) for each in read)


def has(row: Any, component: str) -> bool:
    return any(term.component == component for term in row.terms)


def test_what_has_no_room_is_not_told() -> None:
    """Entries give way, the last first, to `memory.tokens` and to the context; an episode can always begin."""
    config = small()
    model = make_model(config)
    first = Boxes().reset(KEY)
    told = []
    for tokens, context in ((512, 1024), (60, 1024), (5, 1024), (512, 130)):
        of = replace(config, memory=replace(config.memory, tokens=tokens))
        memory, renderer = Remembering(of), MarksRenderer(model.codec, Form("concat"), context)
        memory.made.observe([lived(task, "find the key", 1.0, steps=n + 1) for n, task in enumerate((RING, PEN))], 1)
        text = memory.teller(renderer, Asked(0, 1))(KEY, 0, first)
        prompt = renderer.prompt((), replace(first, help=text), SegmentState(), of.rollout.response_tokens)
        assert prompt is not None
        told.append(text.count("An earlier attempt"))
    assert told == [2, 1, 0, 1]


def test_a_share_of_a_group_is_told_nothing_in_training_alone() -> None:
    config = small(memory={"name": "memrl", "share": 0.5})
    model, memory = make_model(config), Remembering(config)
    renderer, first = renderer_of(model, form_of(config)), Boxes().reset(KEY)
    memory.made.observe([lived(RING, "find the key", 1.0)], 1)
    for learning, expected in ((True, [False, True] * 3), (False, [True] * 6)):
        tell = memory.teller(renderer, Asked(0, 1, learning))
        assert [bool(tell(KEY, member, first)) for member in range(6)] == expected


def test_a_memory_that_recalls_otherwise_when_asked_again_is_refused() -> None:
    config = small()
    model, memory = make_model(config), Remembering(config)
    renderer = renderer_of(model, form_of(config))
    memory.made.observe([lived(RING, "find the key", 1.0)], 1)
    played = episode(KEY, 1.0)
    steps = (
        replace(played.transitions[0], observation=replace(Boxes().reset(KEY), help="else")),
        *played.transitions[1:],
    )
    with pytest.raises(UserError, match="the memory 'memrl' recalled something else when it was asked the same again"):
        memory.observe(renderer, grouped([replace(played, transitions=steps)], 1), Asked(0, 1))


# Runs

RUN = {"memory.name": "memrl", "model.context": 1024, "train.trajectories": 9, "train.trajectories_every": 1}


def trained(recipe: str, run: Path, settings: dict[str, Any], *more: str) -> int:
    register_worlds()
    arguments = [part for key, value in (SMALL | RUN | settings).items() for part in (f"--{key}", str(value))]
    return main(["train", recipe, "--run", str(run), *arguments, *more])


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


FROZEN = {
    "auxiliary.state.weight": 0,
    "auxiliary.inverse.weight": 0,
    "objective.kl_weight": 0,
    "train.engine": "frozen",
    "train.updates": 5,
    "memory.memrl.explore": 0,
    "memory.memrl.told": 1,
    "memory.memrl.size": 6,
    "memory.share": 0.7,
    "eval.final": 4,
}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("frozen") / "run"
    assert trained("alfworld-envrl", run, FROZEN) == 0
    return run


def test_a_run_that_learns_its_memory_alone_leaves_the_weights(frozen: Path) -> None:
    metrics = lines_of(frozen / "metrics.jsonl")
    assert len(metrics) == 5
    for line in metrics:
        assert not any(key.startswith(("loss/", "rows/", "grad", "entropy", "kl")) for key in line)
    weights = {
        (frozen / place / "model.safetensors").read_bytes()
        for place in ("warm_start", "checkpoints/step-000001", "checkpoints/step-000005")
    }
    assert len(weights) == 1
    state = (frozen / "checkpoints" / "latest" / "state.safetensors").stat().st_size
    assert state < 200  # no moments


def test_a_run_s_memory_is_what_an_account_of_its_episodes_says(frozen: Path) -> None:
    """Entries, utilities and what each episode was told, worked out again from the episodes that were written down."""
    kept: list[dict[str, Any]] = []
    count = 0
    for update in range(1, 6):
        episodes = lines_of(frozen / "trajectories" / f"update-{update:06d}.jsonl")
        assert len(episodes) == 12
        told = [told_by(kept, each) for each in episodes]
        assert [each["steps"][0].get("told", "") for each in episodes] == [text for text, _ in told]
        (line,) = (each for each in lines_of(frozen / "metrics.jsonl") if each["update"] == update)
        shares = [bool(text) for text, _ in told]
        assert line["memory/told"] == pytest.approx(sum(shares) / 12)
        won = [each["success"] for each, was in zip(episodes, shares, strict=True) if was]
        count += sum(shares)
        assert line.get("memory/told_success") == (pytest.approx(sum(won) / len(won)) if won else None)
        for each, (_, entry) in zip(episodes, told, strict=True):
            if entry is not None:
                entry["utility"] += 0.3 * (each["return"] - entry["utility"])
                entry["told"] += 1
        for task in dict.fromkeys(each["task"] for each in episodes):
            some = [each for each in episodes if each["task"] == task]
            best = max(some, key=lambda each: (each["return"], -len(each["steps"])))
            done = [step["action"] for step in best["steps"]]
            if not any(entry["text"] == text_of(best) and entry["commands"] == done for entry in kept):
                number = max([0, *(entry["number"] for entry in kept)]) + 1
                kept.append(
                    {
                        "number": number,
                        "task": task,
                        "text": text_of(best),
                        "commands": done,
                        "success": best["success"],
                        "score": best["return"],
                        "update": update,
                        "utility": 0.5,
                        "told": 0,
                    }
                )
        while len(kept) > 6:
            kept.remove(min(kept, key=lambda entry: (entry["utility"], entry["number"])))
        assert line["memory/entries"] == len(kept)
        assert line["memory/utility"] == pytest.approx(sum(entry["utility"] for entry in kept) / len(kept))
        about, *written = lines_of(frozen / "checkpoints" / f"step-{update:06d}" / "memory.jsonl")
        assert about == {"format": 1, "memory": "memrl", "env": "boxes"}
        assert written == kept
    assert count > 20


def text_of(record: dict[str, Any]) -> str:
    return record["steps"][0]["observation"].partition("Your task is to: ")[2]


def told_by(kept: list[dict[str, Any]], record: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """What an episode is told by the rules: of equal similarity the utility decides, then the later; one of them."""
    member = record["member"]
    if not int((member + 1) * 0.7) > int(member * 0.7):
        return "", None
    near = [
        (similarity, entry)
        for entry in kept
        if (similarity := Texts([entry["text"]]).similarities(text_of(record))[0]) >= 0.5
    ]
    near = sorted(near, key=lambda each: (-each[0], -each[1]["utility"], -each[1]["number"]))[:10]
    if not near:
        return "", None

    def standardized(values: list[float]) -> list[float]:
        mean = sum(values) / len(values)
        spread = sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        return [(value - mean) / spread if spread > 1e-9 else 0.0 for value in values]

    similar = standardized([similarity for similarity, _ in near])
    useful = standardized([entry["utility"] for _, entry in near])
    scores = [0.5 * s + 0.5 * u for s, u in zip(similar, useful, strict=True)]
    entry = near[int(np.argmax(np.round(scores, 9)))][1]
    how = "It succeeded by:" if entry["success"] else "It failed by:"
    return "\n".join([f"An earlier attempt at: {entry['text']}", how, *entry["commands"]]), entry


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("alfworld-envrl", FROZEN),
        ("alfworld-envrl-gigpo", {"train.updates": 4}),
        ("alfworld-envrl-spear", {"replay.spear.size": 3, "train.updates": 4}),
    ],
)
def test_a_run_goes_on_bit_for_bit(recipe: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """The memory alone, and beside EnvRL's losses and a replay, by recipe."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert trained(recipe, whole, settings) == 0
    shutil.copytree(whole, cut, symlinks=True)
    for update in range(3, settings["train.updates"] + 1):
        shutil.rmtree(cut / "checkpoints" / f"step-{update:06d}")
    assert trained(recipe, cut, settings, "--resume") == 0
    assert essence(cut) == essence(whole)
    lines = lines_of(whole / "metrics.jsonl")
    assert lines[0]["memory/told"] == 0.0
    assert all(line["memory/told"] > 0.0 for line in lines[2:])
    if "train.engine" not in settings:
        assert all(line["rows/state"] > 0 and line["rows/inverse"] > 0 for line in lines)
        assert all(line["sampler_mismatch"] < 1e-4 for line in lines if not line.get("replay/imitated"))


def test_an_evaluation_tells_what_the_checkpoint_keeps_and_writes_nothing(frozen: Path, tmp_path: Path) -> None:
    before = files(frozen / "checkpoints")
    (record,) = envrl.evaluate(frozen, split="valid_a", episodes_to=tmp_path / "told.jsonl", probe=0, free=0)
    last = lines_of(frozen / "eval.jsonl")[-1]
    assert record["memory"] == "memrl"
    assert record["memory/told"] == 1.0
    assert last["memory/told"] == 1.0
    assert lines_of(frozen / "eval.jsonl")[0]["memory/told"] == 0.0  # before the first update
    _, *played = lines_of(tmp_path / "told.jsonl")
    entries = {
        "\n".join(entry["commands"]) for entry in (read_memory(frozen / "checkpoints" / "latest") or {})["entries"]
    }
    for each in played:
        told = each["steps"][0]["told"]
        assert re.match(r"An earlier attempt at: find the \w+\nIt (succeeded|failed) by:\n", told)
        assert told.partition("by:\n")[2] in entries
    assert files(frozen / "checkpoints") == before
    # What was kept is not played again, and the record is the same.
    (again,) = envrl.evaluate(frozen, split="valid_a", episodes_to=tmp_path / "told.jsonl", probe=0, free=0)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in record.items() if k != "seconds"}
    (bare,) = envrl.evaluate(frozen, split="valid_a", memory=False, probe=0, free=0)
    assert not any(key.startswith("memory") for key in bare)
    with pytest.raises(UserError, match="other values of memory"):
        envrl.evaluate(frozen, split="valid_a", memory=False, episodes_to=tmp_path / "told.jsonl", probe=0, free=0)
    with pytest.raises(UserError, match="'expert' has no memory to be left out"):
        envrl.evaluate("expert", env="boxes", split="valid_a", memory=False)


def test_a_run_can_begin_with_the_memory_of_another_also_with_another_model(frozen: Path, tmp_path: Path) -> None:
    settings = FROZEN | {"memory.start": frozen, "model.vocabulary": 330, "train.updates": 1}
    assert trained("alfworld-envrl", tmp_path / "run", settings) == 0
    begun = tmp_path / "run" / "checkpoints" / "step-000000" / "memory.jsonl"
    assert begun.read_bytes() == (frozen / "checkpoints" / "latest" / "memory.jsonl").read_bytes()
    assert lines_of(tmp_path / "run" / "eval.jsonl")[0]["memory/told"] == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memory.name": "memr"}, "unknown memory 'memr'; did you mean 'memrl'?"),
        ({"memory.memrl.k": 3}, "the memory 'memrl' has no setting 'k'"),
        ({"memory.memrl.threshold": 1.5}, "memory.memrl.threshold must be a number from 0 to 1"),
        ({"retry.name": "hint"}, "memory.name = 'memrl' with retry.name = 'hint'"),
        ({"rollout.ahead": 1}, "would be told from the memory of an earlier update"),
        ({"memory.name": "none", "train.engine": "frozen"}, "such a run would learn nothing"),
        ({"memory.start": "/nowhere"}, "memory.start = '/nowhere' is no run"),
        ({"memory.start": "RUN", "env.name": "halves"}, "played the world 'boxes', and this run plays 'halves'"),
        ({"memory.start": "RUN", "env.distractors": 2}, "could not have played (other values of env.distractors)"),
        ({"memory.start": "RUN", "memory.name": "none"}, "has no effect, since the memory 'none' keeps nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(
    settings: dict[str, Any], said: str, frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {key: frozen if value == "RUN" else value for key, value in settings.items()}
    assert trained("alfworld-envrl", tmp_path / "no", {"train.updates": 1} | settings) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_memory_of_another_version_is_refused(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("envrl.memories.file.FORMAT", 2)
    assert trained("alfworld-envrl", tmp_path / "no", FROZEN | {"memory.start": frozen}) == 2
    assert "is of another version of envrl (format 1 in place of 2)" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_losses_of_a_run_whose_weights_stay_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"train.engine": "frozen", "train.updates": 1, "eval.final": 1}
    assert trained("alfworld-envrl", tmp_path / "run", settings) == 0
    assert "takes no optimiser step, so auxiliary.state.weight, auxiliary.inverse.weight" in capsys.readouterr().err


def test_the_doctor_counts_no_learning_where_there_is_none() -> None:
    """Weights, cache and sampling are what is left of the memory; the hours are those of play."""
    device = Accelerator("any", 80.0, 1e14, 5e13, 2e12)
    plays, learns = (
        estimate(load_recipe("alfworld-grpo", settings), shape, device, cuda=True)
        for shape in [preset_shape(Config().model)]
        for settings in (
            [("train.engine", "frozen"), ("memory.name", "memrl"), ("warm_start.demonstrations", "0")],
            [("warm_start.demonstrations", "0")],
        )
    )
    assert list(plays.memory.phases) == ["rollout", "evaluation"]
    assert set(learns.memory.phases["rollout"]) - set(plays.memory.phases["rollout"]) == {"Adam's moments"}
    assert plays.work.prompt == learns.work.prompt + 512  # what may be told
    assert plays.times.update == 0.0 < learns.times.update
    assert plays.hours["updates"] == pytest.approx(100 * plays.times.rollout / 3600)
