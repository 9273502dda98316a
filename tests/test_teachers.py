"""Teachers of the policy's tokens: the loss and its gradient summed over all outcomes, rows, runs, refusals."""

from __future__ import annotations

import doctest
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from boxes import Boxes, files, grouped, tiny
from envrl.batches.batch import Asks, UpdateBatch, build_batch
from envrl.build import form_of, renderer_of
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.config.schema import Config
from envrl.engine.local import LocalEngine, loss_settings
from envrl.engine.optimizer import adamw
from envrl.engine.update import accumulate, policy_logprobs
from envrl.models.load import LanguageModel
from envrl.objective.teachers import lesson
from envrl.objective.teachers.lesson import reverse_kl
from envrl.objective.teachers.sdpo import failed, solved
from envrl.rollout.transcript import Transcript
from envrl.samples.rows import origin_of
from envrl.types import Action, StopReason, Trajectory, Transition
from test_registry import refused, write
from test_update import gradient, make_model, play

SHORT = {"every": 0, "final": 1, "free_episodes": 0, "probe_episodes": 0}
DISTILL = {"teacher.distill.weight": 0.5, "teacher.distill.path": "another model"}


def test_the_example_of_the_docstring() -> None:
    result = doctest.testmod(lesson)
    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_those_of_the_kl(seed: int) -> None:
    """Summed over all outcomes, each by the probability that it was sampled with."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    log_p = logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - teacher)).sum()
    (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
    for shift in (0.0, 0.2):  # sampled by the policy itself, and by an earlier one that is near
        earlier = (logits.detach() + shift * torch.randn(6, generator=generator, dtype=torch.float64)).log_softmax(-1)
        loss = (earlier.exp() * reverse_kl(log_p, teacher, earlier)).sum()
        (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert loss.item() == pytest.approx(kl.item(), abs=1e-12)
        torch.testing.assert_close(found, expected)
    rare = (log_p.detach() - 5.0).requires_grad_()  # e⁵ times as likely as when they were sampled: the weight is 2
    capped = reverse_kl(log_p, teacher, rare.detach())
    torch.testing.assert_close(capped, 2.0 * (log_p - teacher).detach())


def taught_batch(config: Config, policy: LanguageModel, teacher: LanguageModel) -> tuple[UpdateBatch, list]:
    groups = grouped(play(policy, config), 4)
    settings = loss_settings(config, {})
    asks = Asks(teachers=lambda name, rows: policy_logprobs(teacher, rows, settings))
    return build_batch(groups, config, renderer_of(policy, form_of(config)), 1, asks), groups


@pytest.mark.parametrize("layout", ["concat", "steps"])
def test_the_loss_of_a_batch_is_the_kl_of_its_tokens(layout: str) -> None:
    """Loss and gradient beside a pass of each row through both networks, written out; the policy's own loss is off."""
    config = tiny(
        rollout={"layout": layout}, objective={"policy_weight": 0.0, "aggregation": "token_mean"}, owned=DISTILL
    )
    policy, teacher = make_model(config), make_model(config, seed=1)
    batch, groups = taught_batch(config, policy, teacher)
    totals, value = accumulate(policy, batch.rows, loss_settings(config, batch.weights))
    found = gradient(policy)

    pieces, count = [], 0
    for group in groups:
        for trajectory in group.trajectories:
            for segment in trajectory.segments:
                ids = torch.tensor(segment.token_ids[None].astype(np.int64))
                own = policy.network(ids).logits[0]
                with torch.no_grad():
                    theirs = teacher.network(ids).logits[0]
                for span in segment.spans:
                    allowed = trajectory.transitions[span.step].action.allowed
                    for place, choices in zip(range(span.start, span.stop), allowed, strict=True):
                        if choices is not None and len(choices) == 1:
                            continue
                        among = list(choices or range(own.shape[1]))
                        log_p, log_q = (each[place - 1][among].log_softmax(-1) for each in (own, theirs))
                        at = among.index(int(ids[0, place]))
                        difference = (log_p[at] - log_q[at]).item()
                        pieces.append(difference * (1.0 + log_p[at] - log_p[at].detach()))
                        count += 1
    expected = 0.5 * torch.stack(pieces).sum() / count
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-4)
    assert totals.mean("loss/distill") == pytest.approx(2.0 * expected.item(), rel=1e-4)
    torch.testing.assert_close(found, gradient(policy), rtol=1e-3, atol=1e-6)
    assert batch.figures["taught/distill"] == 16


def test_steps_bring_the_policy_to_its_teacher(tmp_path: Path) -> None:
    config = tiny(objective={"policy_weight": 0.0}, owned=DISTILL)
    policy, teacher = make_model(config), make_model(config, seed=1)
    batch, _ = taught_batch(config, policy, teacher)
    engine = LocalEngine(config, policy, adamw(policy, 3e-3, 0.0), tmp_path, lambda: None, teachers={})
    found = [engine.step(batch.rows, {"distill": 1.0}, update)["loss/distill"] for update in range(1, 12)]
    fresh, _ = taught_batch(config, policy, teacher)
    start, end = [
        accumulate(model, each.rows, loss_settings(config, each.weights))[0].mean("loss/distill")
        for model, each in ((make_model(config), batch), (policy, fresh))
    ]
    assert found[0] == pytest.approx(start, rel=1e-4)
    assert 0.0 < end < 0.7 * start


@pytest.mark.parametrize(
    ("rollout", "chat"),
    [({}, False), ({"layout": "steps"}, False), ({"repeat_task": True}, False), ({"format": "action"}, True)],
)
def test_sdpo_scores_the_same_tokens_with_what_is_told_in_the_prompt(rollout: dict, chat: bool) -> None:
    """The policy's own log-probs after prompts that are written out here; its tokens and their order stay."""
    model_keys = {"context": 1024} | ({"chat_template": "chatml"} if chat else {})
    config = tiny(rollout=rollout, model=model_keys, owned={"teacher.sdpo.weight": 1.0})
    policy = make_model(config)
    renderer, settings = renderer_of(policy, form_of(config)), loss_settings(config, {})
    groups = grouped(play(policy, config), 4)
    asks = Asks(teachers=lambda name, rows: policy_logprobs(policy, rows, settings))
    batch = build_batch(groups, config, renderer, 1, asks)
    taught = {row.origin: term for row in batch.rows for term in row.terms if term.component == "sdpo"}
    episodes = [each for group in groups for each in group.trajectories if not each.success]
    assert batch.figures["taught/sdpo"] == len(episodes) > 4
    count = 0
    for group in groups:
        won = next((each for each in group.trajectories if each.success), None)
        for trajectory in group.trajectories:
            said = [step.action.text for step in trajectory.transitions]
            commands = [step.action.text for step in won.transitions] if won else []
            ended = f"after {len(said)} commands there was no time left."
            solution = "\n".join(["Correct solution:", *commands])
            told = solution if won else f"Feedback on your unsuccessful attempt: {ended}"
            own = [
                float(each)
                for number in range(len(trajectory.segments))
                if (term := taught.get(origin_of(trajectory, number)))
                for each in term.streams["teacher_logprobs"]
            ]
            if trajectory.success:
                assert own == []
                continue
            expected = []
            first, *later = trajectory.transitions
            steps = [replace(first, observation=replace(first.observation, help=told)), *later]
            transcript = Transcript()
            for number, step in enumerate(steps):
                prompt = renderer.prompt(steps[:number], step.observation, transcript.segment, 0)
                assert prompt is not None
                shown = policy.codec.decode(prompt.ids).count(told)
                fresh = number == 0 or rollout.get("layout") == "steps"
                assert shown == (1 if fresh else 0)
                assert transcript.write(renderer, steps[:number], step)
                ids = torch.tensor([transcript.ids])
                with torch.no_grad():
                    logits = policy.network(ids).logits[0]
                start = transcript.spans[-1].start
                for offset, choices in enumerate(step.action.allowed):
                    if choices is None or len(choices) > 1:
                        among = list(choices or range(logits.shape[1]))
                        row = logits[start + offset - 1][among].log_softmax(-1)
                        expected.append(row[among.index(step.action.token_ids[offset])].item())
            assert own == pytest.approx(expected, abs=2e-4)
            assert [len(own)] == [sum(c is None or len(c) > 1 for step in steps for c in step.action.allowed)]
            count += len(own)
    assert count > 10


def test_what_is_told_of_a_failure() -> None:
    """A refused command, said twice and told once, and an answer without the form; a success tells its commands."""
    world = Boxes()
    task = world.tasks("train")[0]
    steps, seen = [], world.reset(task)
    for action in (Action("eat"), Action("", fault="no tags"), Action("eat"), Action("open box 3")):
        step = world.step(action.text)
        steps.append(Transition(seen, action, step.reward, step.observation, step.done, step.success))
        seen = step.observation
    assert failed(Trajectory(task, 0, tuple(steps[:3]), (), StopReason.MAX_STEPS)) == (
        "Feedback on your unsuccessful attempt: after 3 commands there was no time left.\n"
        "The world did not accept:\neat\n"
        "Answers without a command in the form that was asked for: 1."
    )
    assert solved(Trajectory(task, 0, tuple(steps[3:]), (), StopReason.DONE)) == "Correct solution:\nopen box 3"


def lines_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert [line.pop(name) for name in ("seconds", "rate", "memory")]
    return lines


def test_a_run_with_a_teacher_resumes_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The teacher is a finished run's checkpoint; then a teacher that is moved away, and one of other tokens."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(dump_config(tiny(train={"updates": 4, "learning_rate": 3e-3}, eval=SHORT)))
    teacher, start = tmp_path / "teacher", str(tmp_path / "teacher" / "warm_start")
    assert main(["train", str(recipe), "--run", str(teacher), "--train.updates", "2"]) == 0
    arguments = ["train", str(recipe), "--warm_start.path", start, "--teacher.distill.weight", "1"]
    arguments += ["--teacher.distill.path", str(teacher / "checkpoints" / "latest"), "--objective.policy_weight", "0"]
    arguments += ["--teacher.sdpo.weight", "0.5", "--teacher.sdpo.schedule", "linear"]
    arguments += ["--teacher.sdpo.schedule_updates", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*arguments, "--run", str(whole)]) == 0
    assert main([*arguments, "--run", str(parts), "--train.updates", "2"]) == 0
    assert main([*arguments, "--run", str(parts), "--resume"]) == 0
    assert lines_of(whole) == lines_of(parts)
    first = lines_of(whole)[0]
    assert first["weight/distill"] == 1.0
    assert first["taught/distill"] == 12
    assert abs(first["loss/distill"]) > 1e-4
    assert [line["weight/sdpo"] for line in lines_of(whole)] == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert 0 < first["taught/sdpo"] < 12
    assert abs(first["loss/sdpo"]) > 1e-4
    trained = [files(run / "checkpoints" / "step-000004")["model.safetensors"] for run in (whole, parts)]
    assert trained[0] == trained[1]

    other = tmp_path / "other"
    shutil.copytree(teacher / "checkpoints" / "latest", other)
    tokens = json.loads((other / "tokenizer.json").read_text())
    (word,) = [word for word, number in tokens["model"]["vocab"].items() if number == 300]
    tokens["model"]["vocab"]["nonsense"] = tokens["model"]["vocab"].pop(word)
    tokens["model"]["merges"] = [each for each in tokens["model"]["merges"] if word not in (*each, "".join(each))]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    capsys.readouterr()
    wrong = {str(other): "has another vocabulary than the policy", str(tmp_path / "gone"): "gone"}
    for number, (path, message) in enumerate(wrong.items()):
        run = tmp_path / f"no-{number}"
        assert main([*arguments, "--teacher.distill.path", path, "--run", str(run)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said
        assert not run.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--teacher.distill.weight", "1"], "needs teacher.distill.path, the folder of the teacher's model"),
        (["--objective.policy_weight", "0"], "objective.policy_weight = 0 leaves nothing to learn from"),
        (["--teacher.distil.weight", "1"], "there is no teacher 'distil'; did you mean 'distill'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(tmp_path, capsys, settings)


def test_a_teacher_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The policy itself, which teaches nothing: the KL is 0; then what is no lesson."""
    text = """
import envrl
@envrl.register("teacher", "itself")
def itself(groups, *, share: float = 1.0):
    for group in groups:
        yield from (envrl.Lesson(episode, weight=share) for episode in group.trajectories)
"""
    recipe = write(tmp_path, "small.toml", dump_config(tiny(train={"updates": 1}, eval=SHORT)))
    file = write(tmp_path, "itself.py", text)
    chosen = ["--teacher.itself.weight", "1", "--teacher.itself.share", "0.5"]
    assert main(["train", str(recipe), "--run", str(tmp_path / "run"), "--plugin", str(file), *chosen]) == 0
    (line,) = lines_of(tmp_path / "run")
    assert line["taught/itself"] == 12
    assert line["loss/itself"] == pytest.approx(0.0, abs=1e-6)
    wrong = {
        "must yield envrl.Lesson, not int (7)": text.replace("envrl.Lesson(episode, weight=share)", "7"),
        "two lessons of one episode": text.replace("in group.trajectories)", "in group.trajectories * 2)"),
        "there is already an auxiliary objective 'state'": text.replace("itself", "state"),
        "that tells 7, no text": text.replace("weight=share", "told=7"),
    }
    for number, (message, source) in enumerate(wrong.items()):
        file = write(tmp_path, f"wrong{number}.py", source.replace("itself", f"wrong{number}"))
        arguments = ["--plugin", str(file), f"--teacher.wrong{number}.weight", "1"]
        assert main(["train", str(recipe), "--run", str(tmp_path / "no"), *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
