"""Runs beside each other: seeds of one configuration together, figures worked by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from envrl.cli.main import main
from envrl.report.compare import Arm, differing_keys
from envrl.report.read import RunData, title
from envrl.report.results import read_result
from envrl.report.summary import method

Make = Callable[..., str]


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """A function that writes a run of two updates with given success before and after on 100 games."""

    def write(
        name: str,
        before: float,
        after: float,
        seed: int = 0,
        world: str = "boxes",
        state: float = 0.0,
        **objective: object,
    ) -> str:
        folder = tmp_path / name
        folder.mkdir()
        aims = "".join(f"{key} = {json.dumps(value)}\n" for key, value in {"estimator": "grpo", **objective}.items())
        tables = f"[auxiliary.state]\nweight = {state}\n" * bool(state)
        (folder / "config.toml").write_text(
            f'seed = {seed}\n[env]\nname = "{world}"\n[warm_start]\ndemonstrations = 1500\npath = "/at/{name}"\n'
            f"[objective]\n{aims}{tables}[train]\nupdates = 2\n"
        )
        evals = [
            {
                "stage": "rl",
                "update": u,
                "split": "valid",
                "episodes": 100,
                "success_rate": rate,
                "seconds": {"total": 4},
            }
            for u, rate in ((0, before), (2, after))
        ]
        seconds = {"rollout": 1.0, "env": 0.25, "update": 2.0 + seed, "total": 4.0}
        metrics = [{"update": u, "train/success_rate": 0.5, "seconds": seconds} for u in (1, 2)]
        for file, records in (("eval", evals), ("metrics", metrics)):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(folder)

    return write


def cells(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The cells of the table of what was before and after RL."""
    (table,) = [part for part in capsys.readouterr().out.split("\n\n") if "| demonstrations |" in part]
    return [line.strip("| \n").split(" | ") for line in table.splitlines()]


def test_seeds_make_one_line_with_their_mean(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Wilson over 200 episodes: 100 of 200 is 43.1 to 56.9, 140 of 200 is 63.3 to 75.9."""
    runs = [
        make_run("a", 0.45, 0.68),
        make_run("b", 0.55, 0.72, seed=1),
        make_run("c", 0.4, 0.6, state=0.2),
    ]
    assert main(["compare", *runs]) == 0
    _, _, grpo, envrl = cells(capsys)
    assert grpo[:5] == ["GRPO", "1,500", "50.0 % (43.1 to 56.9): 45.0, 55.0", "70.0 % (63.3 to 75.9): 68.0, 72.0", "2"]
    assert grpo[5:] == ["16 s", "1.00, 0.25, 2.50"]  # two evaluations and two updates of 4 s each
    assert envrl[0] == "GRPO + state prediction 0.2"
    assert envrl[2:4] == ["40.0 % (30.9 to 49.8)", "60.0 % (50.2 to 69.1)"]


def test_what_training_did_to_the_language_has_a_column(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Means over seeds, of one split: 20 and 24 are 22 before RL, 30 and 41 are 35.5 after; the other run has none."""
    runs = [make_run("a", 0.2, 0.3), make_run("b", 0.2, 0.5, seed=1), make_run("c", 0.4, 0.6, state=0.2)]
    for run, figures in zip(runs, ((20.0, 30.0), (24.0, 41.0)), strict=False):
        records = [json.loads(line) for line in (Path(run) / "eval.jsonl").read_text().splitlines()]
        shown = [record | {"text_perplexity": figure} for record, figure in zip(records, figures, strict=True)]
        (Path(run) / "eval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in shown))
    assert main(["compare", *runs]) == 0
    head, _, grpo, envrl = cells(capsys)
    column = head.index("perplexity of English before RL, after")
    assert (grpo[column + 1], envrl[column + 1]) == ("22.0, 35.5", "\N{EN DASH}")
    assert main(["compare", runs[2]]) == 0
    assert "perplexity" not in capsys.readouterr().out


def test_scores_come_beside_success_where_they_say_more(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Means 0.5 and 0.7 of 100 games each with s = 0.2 and 0.4: the mean is 0.6; the sum of squares is 99 (0.04 + 0.16)
    + 200 x 0.1^2 = 21.8, so s = sqrt(21.8 / 199) = 0.33098, and the half-width 1.96 s / sqrt(200) = 0.04587."""
    runs = [make_run("a", 0.2, 0.3), make_run("b", 0.2, 0.5, seed=1)]
    for run, score, spread in zip(runs, (0.5, 0.7), (0.2, 0.4), strict=True):
        records = [json.loads(line) for line in (Path(run) / "eval.jsonl").read_text().splitlines()]
        shown = [record | {"score": score, "score_sd": spread} for record in records]
        (Path(run) / "eval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in shown))
    assert main(["compare", *runs]) == 0
    head, _, line = cells(capsys)
    assert head[1:5] == ["valid before RL", "valid after RL", "valid, score before RL", "valid, score after RL"]
    assert line[3] == "40.0 % (33.5 to 46.9): 30.0, 50.0"
    assert line[5] == "0.600 (0.554 to 0.646): 0.500, 0.700"


def test_demonstrations_are_those_of_the_run_that_made_the_warm_start(
    make_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, old, new in (("a", "= 1500", "= 60"), ("b", "/at/b", "{a}/warm_start"), ("c", "/at/c", "{b}/warm_start")):
        file = Path(make_run(name, 0.4, 0.5)) / "config.toml"
        folders = {other: str(file.parent.parent / other) for other in "ab"}
        file.write_text(file.read_text().replace(old, new.format(**folders)))
    assert main(["compare", str(file.parent)]) == 0
    assert cells(capsys)[2][1] == "60"


def test_configurations_that_differ_in_more_than_the_name_stay_apart(
    make_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", make_run("slow", 0.4, 0.5, clip_low=0.1), make_run("fast", 0.4, 0.6)]) == 0
    assert [line[0] for line in cells(capsys)[2:]] == ["GRPO, slow", "GRPO, fast"]


def test_after_is_the_last_update_that_all_seeds_were_evaluated_at(
    make_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run("a", 0.4, 0.6), make_run("b", 0.4, 0.7, seed=1)]
    with open(Path(runs[1], "eval.jsonl"), "a") as file:
        file.write(
            json.dumps({"stage": "rl", "update": 4, "split": "valid", "episodes": 50, "success_rate": 0.9}) + "\n"
        )
    assert main(["compare", *runs]) == 0
    assert cells(capsys)[2][3] == "65.0 % (58.2 to 71.3): 60.0, 70.0"


def test_the_one_evaluation_before_rl_of_a_shared_warm_start_counts_once(
    make_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", make_run("a", 0.4, 0.6), make_run("b", 0.4, 0.6, seed=1)]) == 0
    assert cells(capsys)[2][2:4] == ["40.0 % (30.9 to 49.8)", "60.0 % (53.1 to 66.5): 60.0, 60.0"]


def test_where_a_run_was_made_is_no_part_of_its_configuration(
    make_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run("a", 0.4, 0.6), make_run("b", 0.4, 0.7, seed=1)]
    config = Path(runs[1], "config.toml")
    config.write_text(config.read_text() + 'threads = 7\ndevice = "cuda"\n')
    assert main(["compare", *runs]) == 0
    assert len(cells(capsys)) == 3


def test_a_run_that_is_still_going_shows_a_dash(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(make_run("a", 0.4, 0.5))
    evals = (run / "eval.jsonl").read_text().splitlines(keepends=True)
    (run / "eval.jsonl").write_text(evals[0])
    assert main(["compare", str(run)]) == 0
    assert cells(capsys)[2][2:4] == ["40.0 % (30.9 to 49.8)", "\N{EN DASH}"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "a"], "is given twice"),
        (["a", "twin"], "are of one configuration and one seed"),
        (["a", "other"], "runs of different worlds"),
        (["a", "nothing"], "there is no such directory"),
        ([], "RUN"),
        (["a", "--picture", "no/where.svg"], "the folder of --picture no/where.svg does not exist"),
        (["a", "--picture", "where.jpg"], "name a file that ends with one of .svg, .pdf, .png"),
        (["a", "--out", "no/where"], "the folder of --out no/where does not exist"),
        (["a", "--metric", "sucess_rate"], "none of the runs logged 'sucess_rate'; did you mean 'success_rate'?"),
        (["a", "--split", "valdi"], "none of the runs was evaluated on 'valdi'; did you mean 'valid'?"),
        (["a", "--against", "GRP"], "there is no arm 'GRP' among the runs; did you mean 'GRPO'?"),
    ],
)
def test_mistakes(
    arguments: list[str], said: str, make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("a", 0.4, 0.5)
    make_run("twin", 0.4, 0.5)
    make_run("other", 0.4, 0.5, world="ladder")
    given = [str(tmp_path / name) if name in ("a", "twin", "other", "nothing") else name for name in arguments]
    assert main(["compare", *given]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.out == ""
    assert len(output.err.strip().splitlines()) == 1


def test_files_of_results_make_the_same_table_wherever_they_lie(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        make_run("a", 0.45, 0.68),
        make_run("b", 0.55, 0.72, seed=1),
        make_run("c", 0.4, 0.6, state=0.2),
    ]
    assert main(["compare", *runs]) == 0
    table, files = capsys.readouterr().out, []
    for run in runs:
        files.append(str(tmp_path / f"{Path(run).name}.json"))
        assert main(["report", run, "--results", files[-1]]) == 0
        assert str(tmp_path) not in Path(files[-1]).read_text()
    for run in runs:
        shutil.rmtree(run)
    capsys.readouterr()
    assert main(["compare", *files]) == 0
    assert capsys.readouterr().out == table
    hashes = [json.loads(Path(file).read_text())["config_sha256"] for file in files]
    assert len(set(hashes)) == 3


def test_results_name_what_a_shared_start_was_made_with(make_run: Make, tmp_path: Path) -> None:
    run, start = Path(make_run("arm", 0.4, 0.6)), Path(make_run("start", 0.4, 0.4))
    made = (start / "config.toml").read_text().replace("1500", "40").replace("/at/start", "")
    (start / "config.toml").write_text(made)
    (run / "config.toml").write_text((run / "config.toml").read_text().replace("/at/arm", f"{start}/warm_start"))
    assert main(["report", str(run), "--results", str(tmp_path / "arm.json")]) == 0
    assert json.loads((tmp_path / "arm.json").read_text())["config"]["warm_start"] == {"demonstrations": 40}


@pytest.mark.parametrize("text", ["", "[]", '{"evals": {}}'])
def test_what_holds_no_results_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some.json").write_text(text)
    assert main(["compare", str(tmp_path / "some.json")]) == 2
    assert "does not hold the results of a run" in capsys.readouterr().err


def test_results_are_of_finished_runs(make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(make_run("a", 0.4, 0.6))
    (run / "eval.jsonl").write_text((run / "eval.jsonl").read_text().splitlines(keepends=True)[0])
    assert main(["report", str(run), "--results", str(tmp_path / "a.json")]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_an_arm_is_named_by_what_it_was_set_to() -> None:
    """The titles of estimators and objectives, and what an objective was set to beside its weight."""
    results = Path(__file__).parent.parent / "results"
    names = {
        name: method(read_result(results / f"smollm2-alfworld-{name}-lr2e-5-8x4-start50-seed0.json"))
        for name in ("grpo", "all-tokens", "choices", "placebo")
    }
    assert names == {
        "grpo": "GRPO",
        "all-tokens": "GRPO + state prediction 0.1 (all tokens) + inverse dynamics 0.1 (all tokens)",
        "choices": "GRPO + state prediction 0.1 + inverse dynamics 0.1 (choices)",
        "placebo": "GRPO + state prediction 0.1 + inverse dynamics 0.1 + placebo: exchanged targets",
    }
    assert [title("estimator", name) for name in ("gigpo", "stratified", "mine")] == [
        "GiGPO",
        "Stratified GRPO",
        "mine",
    ]


def test_settings_of_what_was_chosen_differ_between_arms_that_chose_it() -> None:
    """Two of GiGPO and one of GRPO: γ is named, and that GRPO has none of it is no difference."""
    chosen = [
        {"objective": {"estimator": "gigpo", "gigpo": {"gamma": 0.9, "std": True}}},
        {"objective": {"estimator": "gigpo", "gigpo": {"gamma": 0.95, "std": True}}},
        {"objective": {"estimator": "grpo", "grpo": {"std": True}}},
    ]
    arms = [Arm(str(n), (RunData(Path(str(n)), config, "", (), (), {}),)) for n, config in enumerate(chosen)]
    assert differing_keys(arms) == {
        "objective.estimator": ["gigpo", "gigpo", "grpo"],
        "objective.gigpo.gamma": [0.9, 0.95, None],
    }
