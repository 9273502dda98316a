"""Arms over their seeds: intervals, pairs by seed and by game, warnings, files; figures worked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from envrl.cli.main import main

Make = Callable[..., str]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A function that writes a run NAME-SEED: games won before RL, half-way and after it, as letters a game."""
    monkeypatch.chdir(tmp_path)

    def write(
        name: str,
        seed: int,
        won: Sequence[str] = ("0000", "1000", "1100"),
        updates: int = 4,
        keys: str = "",
        games: Sequence[str] = "abcd",
        data: str = "",
    ) -> str:
        folder = tmp_path / f"{name}-{seed}"
        (folder / "eval").mkdir(parents=True)
        (folder / "config.toml").write_text(
            f'seed = {seed}\n[env]\nname = "household"\n{keys}[train]\nupdates = {updates}\n'
        )
        if data:
            (folder / "data.json").write_text(json.dumps({"env": "household", "splits": {"valid": data}}))
        evals = []
        for update, outcomes in zip((0, updates // 2, updates), won, strict=True):
            rate, about = outcomes.count("1") / len(outcomes), {"split": "valid", "actions": "admissible", "member": 0}
            evals.append({"update": update, "split": "valid", "episodes": len(outcomes), "success_rate": rate})
            lines = [{**about, "task": t, "success": o == "1"} for t, o in zip(games, outcomes, strict=True)]
            text = "".join(json.dumps(line) + "\n" for line in [{"evaluation": {}}, *lines])
            (folder / "eval" / f"{update:06d}-valid.jsonl").write_text(text)
        metrics = [{"update": u, "env_steps": 100 * u, "loss/policy": u / 10 + seed} for u in range(1, updates + 1)]
        for file, records in (("eval", evals), ("metrics", metrics)):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder.name

    return write


STATE = "[auxiliary.state]\nweight = 0.1\n"
PLACEBO = f"{STATE}placebo = true\n"


def tables(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, dict[str, str]]]:
    """The printed tables by title: cells by row and column."""
    found, parts = {}, capsys.readouterr().out.split("\n\n")
    for title, table in zip(parts[::2], parts[1::2], strict=True):
        head, _, *rows = [line.strip("| \n").split(" | ") for line in table.splitlines()]
        found[title.strip("*")] = {row[0]: dict(zip(head[1:], row[1:], strict=False)) for row in rows}
    return found


def five(make_run: Make, name: str, ends: Sequence[str], keys: str = "") -> list[str]:
    return [make_run(name, seed, ("0000", "1000", end), keys=keys) for seed, end in enumerate(ends)]


def test_arms_over_five_seeds(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """State wins 50, 50, 50, 75, 100 %: mean 65, of the middle three 58.3. Half-way it is 25 %, so on the way the mean
    is that of (0 + 25) / 2 and (25 + 65) / 2, 28.75. Two of five reach 55 %, where GRPO ends: fewer than half."""
    runs = five(make_run, "grpo", ["1100", "1100", "1100", "1100", "1110"])
    runs += five(make_run, "state", ["1100", "1100", "1100", "1110", "1111"], STATE)
    assert main(["compare", *runs]) == 0
    found = tables(capsys)
    assert found["What differs between the arms"] == {"auxiliary.state.weight": {"grpo": "–", "state": "0.1"}}
    arms = found["success_rate of valid, after 4 updates; 95 % intervals over seeds"]
    assert list(arms) == ["grpo", "state"]
    state = arms["state"]
    assert (state["seeds"], state["before RL"]) == ("5", "0.0")
    assert state["after RL: mean"] == "65.0 (50.0 to 85.0)"
    assert state["interquartile mean"].startswith("58.3 (50.0 to ")
    assert float(state["mean on the way"].split()[0]) == pytest.approx(28.75, abs=0.06)
    assert state["updates to 55.0"] == "– (2 of 5)"
    assert state["by seed"] == "0: 50.0, 1: 50.0, 2: 50.0, 3: 75.0, 4: 100.0"


def test_pairs_by_seed_and_by_game(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Differences 0, 0, 0, 25, 25 points: mean 10, s = 13.69, t(0.975, 4) = 2.776, so 10 ± 17.0. Alone won: 3 and 1
    (the last seed has another two games). Signs: of 32 only those with both pairs alike are as far, a half of them."""
    runs = five(make_run, "grpo", ["1100", "1100", "1100", "1100", "1010"])
    runs += five(make_run, "state", ["1100", "1100", "1100", "1110", "1101"], STATE)
    assert main(["compare", *runs, "--level", "0.5"]) == 0
    found = tables(capsys)
    pair = found["Differences in success_rate of valid, points; 95 % intervals"]["state − grpo"]
    assert pair["pairs"] == "5"
    assert pair["by seed"] == "+10.0 (-7.0 to +27.0)"
    assert pair["p"] == "0.5"
    assert pair["games won alone"] == "3, 1"
    assert pair["McNemar p"] == "0.62"
    assert pair["other seeds and games"].startswith("+10.0 (-")
    assert pair["P(improvement)"].startswith("0.70 (")  # of 25 pairs 10 are won, 15 tied
    assert pair["detectable"] == "23.0"  # 13.69 x 1.68, of the non-central t with 4 degrees of freedom
    arms = found["success_rate of valid, after 4 updates; 95 % intervals over seeds"]
    assert (arms["state"]["updates to 50.0"], arms["state"]["env steps to it"]) == ("4", "400")


def test_every_arm_is_compared_with_its_placebo_too(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run("grpo", 0), make_run("state", 0, keys=STATE), make_run("sham", 0, keys=PLACEBO)]
    assert main(["compare", *runs, "--against", "state"]) == 0
    pairs = tables(capsys)["Differences in success_rate of valid, points; 95 % intervals"]
    assert list(pairs) == ["grpo − state", "sham − state", "state − sham"]


def test_what_makes_arms_less_comparable_is_said(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        make_run("grpo", 0, data="abc"),
        make_run("long", 0, updates=8, keys="[rollout]\ntasks = 4\n", data="abd", games="abce"),
        make_run("warm", 1, keys="[eval]\ntemperature = 1.0\n"),
    ]
    with Path("grpo-0", "metrics.jsonl").open("a") as file:
        file.write('{"update": 5, "env_')
    evals = Path("warm-1", "eval.jsonl")
    evals.write_text("".join(evals.read_text().splitlines(keepends=True)[:2]))
    assert main(["compare", *runs]) == 0
    warned = capsys.readouterr().err
    for sentence in (
        "the last line of grpo-0/metrics.jsonl is not whole, and is left out",
        "warm-1 is not finished: it is used up to update 4 of 4",
        "budgets differ: updates are 4 (grpo), 8 (long), 4 (warm)",
        "budgets differ: rollout.tasks is 16 (warm-1), 4 (long-0)",
        "evaluations differ: eval.temperature is 0.4 (long-0), 1.0 (warm-1)",
        "the data of valid differs: grpo-0, long-0 played other games",
        "seeds without a pair in every arm: grpo 0, long 0, warm 1; a difference is over the seeds that both arms have",
        "one seed says nothing of how seeds differ, so there is no interval: grpo, long, warm",
        "by game: not known for long and grpo, since the evaluations are of different games",
    ):
        assert f"envrl: warning: {sentence}\n" in warned


def test_all_splits_together_each_count_the_same(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """50 and 75 % of four games on one split, 20 and 60 % of ten on the other: 35 and 67.5 %. Games are pooled."""
    runs = [make_run("grpo", seed) for seed in (0, 1)] + [
        make_run("state", seed, ("0000", "1000", "1110"), keys=STATE) for seed in (0, 1)
    ]
    for run, won in zip(runs, ("1100000000", "1100000000", "1111110000", "1111110000"), strict=True):
        with Path(run, "eval.jsonl").open("a") as file:
            for update, rate in ((0, 0.0), (4, won.count("1") / 10)):
                line = {"update": update, "split": "other", "episodes": 10, "success_rate": rate}
                file.write(json.dumps(line) + "\n")
        lines = [
            {"split": "other", "actions": "admissible", "member": 0, "task": f"t{i}", "success": letter == "1"}
            for i, letter in enumerate(won)
        ]
        text = "".join(json.dumps(line) + "\n" for line in [{"evaluation": {}}, *lines])
        Path(run, "eval", "000004-other.jsonl").write_text(text)
    assert main(["compare", *runs]) == 0
    found = tables(capsys)
    together = found["success_rate of all splits, each counting the same, after 4 updates; 95 % intervals over seeds"]
    assert [together[arm]["by seed"] for arm in ("grpo", "state")] == ["0: 35.0, 1: 35.0", "0: 67.5, 1: 67.5"]
    pair = found["Differences in success_rate of all splits, each counting the same, points; 95 % intervals"]
    assert pair["state − grpo"]["games won alone"] == "10, 0"
    assert pair["state − grpo"]["by seed"] == "+32.5 (+32.5 to +32.5)"
    assert pair["state − grpo"]["other seeds and games"].startswith("+32.5 (+")
    assert main(["compare", *runs, "--split", "other"]) == 0
    assert not any("all splits" in title for title in tables(capsys))


def test_a_run_without_a_line_is_left_out(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run, empty = make_run("grpo", 0), make_run("grpo", 1)
    for name in ("eval", "metrics"):
        Path(empty, f"{name}.jsonl").unlink()
    assert main(["compare", run, empty]) == 0
    out, err = capsys.readouterr()
    assert "0: 50.0 |" in out
    assert (
        "envrl: warning: grpo-1 has nothing to report yet: no metrics, no evaluation and no warm start are in it; "
        in err
    )
    assert main(["compare", empty]) == 2
    assert "grpo-1 has nothing to report yet" in capsys.readouterr().err


def test_a_metric_of_updates_is_the_mean_of_its_last_tenth(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20 updates the last two: (1.9 + 2.0) / 2, a seed's number more."""
    runs = [make_run("grpo", seed, updates=20) for seed in (0, 1)]
    assert main(["compare", *runs, "--metric", "loss/policy"]) == 0
    found = tables(capsys)["loss/policy of updates, after 20 updates; 95 % intervals over seeds"]
    assert found["grpo"]["by seed"] == "0: 1.95, 1: 2.95"
    assert "updates to 2.45" in found["grpo"]


def test_runs_of_an_earlier_version_are_the_same_arm(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the committed records, seed 0 was made by a version that had fewer keys than that of seed 1."""
    files = [str(ROOT / "results" / f"smollm2-alfworld-grpo-lr2e-5-8x4-start50-seed{seed}.json") for seed in (0, 1)]
    assert main(["compare", *files]) == 0
    found = tables(capsys)["success_rate of valid_seen, after 20 updates; 95 % intervals over seeds"]
    assert found["GRPO"]["by seed"] == "0: 54.3, 1: 36.4"


def test_tables_figures_and_json_are_written(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal comparisons are equal files; LaTeX has its special characters escaped; figures are what they are named."""
    runs = five(make_run, "grpo", ["1100"] * 5) + five(make_run, "a_b", ["1110"] * 5, STATE)
    for folder in ("one", "two"):
        assert main(["compare", *runs, "--out", folder, "--format", "latex"]) == 0
    out, err = capsys.readouterr()
    assert "a\\_b $-$ grpo & 5 & +25.0 (+25.0 to +25.0) & 0.062 &" in out
    assert err == ""
    one, two = ({file.name: file.read_bytes() for file in Path(folder).iterdir()} for folder in ("one", "two"))
    assert one == two
    figures = {
        f"{name}.{form}" for name in ("curves", "ends", "differences", "profiles") for form in ("pdf", "svg", "png")
    }
    assert set(one) == {"comparison.md", "comparison.tex", "comparison.json", *figures}
    for name in figures:
        starts = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
        assert one[name].startswith(starts[name[-3:]])
    words = " ".join(ElementTree.fromstring(one["curves.svg"]).itertext())
    assert "success rate, %" in words
    assert "a_b" in words
    record = json.loads(one["comparison.json"])
    assert record["splits"]["valid"]["pairs"][0]["difference"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert record["splits"]["valid"]["pairs"][0]["mcnemar"] == {"gained": 5, "lost": 0, "p": 0.0625}
    assert record["arms"][1] == {
        "name": "a_b",
        "runs": [f"a_b-{seed}" for seed in range(5)],
        "settings": {"auxiliary.state.weight": 0.1},
    }
    profile = record["splits"]["valid"]["profiles"]
    assert [share for level, share in zip(profile["levels"], profile["a_b"], strict=True) if level < 0.7][-1] == 1.0


def test_a_terminal_too_narrow_for_a_table_has_a_block_an_arm(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run("grpo", 0), make_run("state", 0, keys=STATE)]
    for columns, lines in (("80", ["state", "  seeds               1"]), ("400", ["arm    seeds  before RL"])):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["compare", *runs, "--format", "terminal"]) == 0
        out = capsys.readouterr().out
        assert all(f"\n{line}" in out for line in lines)
        assert "key                     grpo  state" in out


def test_without_matplotlib_nothing_is_written(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "envrl.report.drawing.find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    run = make_run("grpo", 0)
    for option in ("--out", "--picture=x.svg"):
        assert main(["compare", run, option, *(["there"] if option == "--out" else [])]) == 2
        assert "draws with matplotlib, which is not installed: pip install 'envrl[plots]'" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["grpo-0"]
    assert main(["compare", run, "--format", "terminal"]) == 0
