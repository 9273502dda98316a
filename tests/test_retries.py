"""Second attempts with help: the shaped loss, rows without the help, a run that resumes, refusals."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import torch

from boxes import Boxes, files, grouped, tiny
from envrl.batches.batch import build_batch
from envrl.batches.retried import joined, second_attempts
from envrl.build import form_of, play_settings, renderer_of
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.engine.local import loss_settings
from envrl.engine.update import accumulate
from envrl.objective.retries import attempt
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.transcript import retold
from envrl.types import episodes_of
from test_registry import refused
from test_update import gradient, make_model, play

SHORT = {"every": 0, "final": 1, "free_episodes": 0, "probe_episodes": 0}


def test_the_example_of_the_docstring() -> None:
    result = doctest.testmod(attempt)
    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_a_second_attempt_is_learned_from_without_its_help(layout: str) -> None:
    """It was drawn after a prompt with the help; its row has none. Its loss and gradient, by a pass of that row."""
    config = tiny(rollout={"layout": layout}, retry={"name": "critique", "weight": 0.7, "most": 2})
    config = tiny(
        rollout={"layout": layout},
        model={"context": 1024},
        objective={"policy_weight": 0.0, "aggregation": "token_mean"},
        auxiliary={"state": {"weight": 1e-9}},
        retry={"name": "critique", "weight": 0.7, "most": 2, "gamma": 0.2},
    )
    policy = make_model(config)
    renderer = renderer_of(policy, form_of(config))
    groups = grouped(play(policy, config), 4)
    again = second_attempts(groups, config, Boxes)
    failed = [[not each.success for each in group.trajectories] for group in groups]
    assert [number for number, _ in again] == [n for n, each in enumerate(failed) for _ in range(min(2, sum(each)))]
    assert all(each.help.startswith("Your attempt:\nopen box") for _, each in again)
    tried = play_episodes(
        Policy(renderer, OwnSampler(policy, "fp32"), policy.codec),
        Boxes,
        [each.task for _, each in again],
        [9 + n for n in range(len(again))],
        play_settings(config, 1.0),
        assignments=[each for _, each in again],
        seed=0,
        update=1,
    )
    for (_, assigned), episode in zip(again, tried, strict=True):
        shown = [policy.codec.decode(each.token_ids.tolist()).count(assigned.help) for each in episode.segments]
        assert shown == [1] * len(episode.segments)
    numbers = [number for number, _ in again]
    of_each = {number: [e for n, e in zip(numbers, tried, strict=True) if n == number] for number in numbers}
    parts = [grouped(each, len(each))[0] for each in of_each.values()]
    learned, figures = joined(groups, numbers, parts)
    assert figures["retry/tried"] == len(again)
    batch = build_batch(learned, config, renderer, 1)
    rows = [row for row in batch.rows if any(term.component == "retry" for term in row.terms)]
    assert len(rows) == batch.figures["rows/retry"] > 2
    assert not any("Your attempt" in policy.codec.decode(row.token_ids.tolist()) for row in batch.rows)

    weights = {**batch.weights, "state": 0.0}
    totals, value = accumulate(policy, batch.rows, loss_settings(config, weights))
    found, pieces = gradient(policy), []
    for row in rows:
        (term,) = (each for each in row.terms if each.component == "retry")
        logits = policy.network(torch.tensor(row.token_ids[None].astype("int64"))).logits[0]
        for n, (place, advantage) in enumerate(zip(term.positions_T, term.streams["advantages"], strict=True)):
            assert term.allowed is not None
            among = term.allowed.values[term.allowed.offsets[n] : term.allowed.offsets[n + 1]].tolist()
            chance = logits[place - 1][among].softmax(-1)[among.index(int(row.token_ids[place]))]
            pieces.append(-float(advantage) * chance / (chance + 0.2))
    expected = 0.7 * torch.stack(pieces).mean()
    expected.backward()
    assert value == pytest.approx(expected.item(), abs=1e-6)
    assert totals.mean("loss/retry") == pytest.approx(expected.item() / 0.7, abs=1e-6)
    torch.testing.assert_close(found, gradient(policy), rtol=1e-3, atol=1e-6)
    back = retold(renderer, retold(renderer, episodes_of(groups)[0], "help") or tried[0], "")
    assert back is not None
    assert [each.token_ids.tolist() for each in back.segments] == [
        each.token_ids.tolist() for each in episodes_of(groups)[0].segments
    ]


def lines_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert [line.pop(name) for name in ("seconds", "rate", "memory")]
    return lines


def test_a_run_with_hints_resumes_bit_for_bit(tmp_path: Path) -> None:
    """A walkthrough of one command, told whole to the groups that all failed; second attempts count as played."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        dump_config(tiny(train={"updates": 3}, env={"max_steps": 1}, eval=SHORT, retry={"name": "hint", "most": 3}))
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", str(recipe), "--run", str(whole)]) == 0
    assert main(["train", str(recipe), "--run", str(parts), "--train.updates", "1"]) == 0
    assert main(["train", str(recipe), "--run", str(parts), "--resume"]) == 0
    lines = lines_of(whole)
    assert lines == lines_of(parts)
    trained = [files(run / "checkpoints" / "step-000003")["model.safetensors"] for run in (whole, parts)]
    assert trained[0] == trained[1]
    tried = [int(line.get("retry/tried", 0)) for line in lines]
    assert sum(tried) > 0
    assert set(tried) <= {0, 3, 6, 9}
    assert lines[-1]["episodes"] == 3 * 12 + sum(tried) == lines[-1]["env_steps"]
    assert all(line["env/set_aside"] == 0 for line in lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--retry.name", "hnt"], "unknown retry 'hnt'; did you mean 'hint'?"),
        (["--retry.name", "hint", "--rollout.ahead", "1"], "what is played ahead is not tried again yet"),
        (["--retry.name", "hint", "--replay.name", "arpo"], "a replay would keep episodes that were played with help"),
        (
            [
                "--retry.name",
                "hint",
                "--objective.kl_weight",
                "1",
                "--objective.kl_in",
                "reward",
                "--objective.kl_estimator",
                "k1",
            ],
            "whose log-probs say nothing of the KL",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(tmp_path, capsys, settings)
