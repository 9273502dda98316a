"""Panels: pinned sets of tasks, records that say all that is needed to have them again, and their comparison."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from boxes import THINGS, Boxes, register, tiny
from chat_models import save_chat_model
from chat_server import chat_server, opens_boxes
from envrl.cli.main import main
from envrl.config.schema import Config, EnvConfig
from envrl.eval.evaluate import evaluate
from envrl.eval.panel import on_panel, pinned
from envrl.panels import find_panel, panels, read_record
from envrl.rendering.prompts import FORMATS
from envrl.statistics import paired_interval, sign_test, wilson
from envrl.trainer.loop import train

PANEL = 'env = "boxes"\nsplits = ["valid_a", "valid_b"]\nmax_steps = 3\n'
SIZES = {"valid_a": 10, "valid_b": 7}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends with its warm start, and whose own settings of the world are others than the panel's."""
    config = tiny(
        env={"distractors": 2, "max_steps": 5},
        train={"updates": 0},
        eval={"episodes": 1, "final": 1, "free_episodes": 0, "probe_episodes": 0},
    )
    return train(config, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a panel of 17 tasks in three steps."""
    register()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "boxes.toml").write_text(PANEL)
    return tmp_path


def shows(*arguments: str | Path) -> dict[str, Any]:
    """Run `envrl panel` with these arguments and return the record that it wrote to a.json."""
    assert main(["panel", *map(str, arguments), "--json", "a.json"]) == 0
    return json.loads(Path("a.json").read_text())


def contents_by_hand() -> str:
    """The tasks of each split, then what they look like, since the world does not say what they are made of."""
    lines: list[Any] = []
    for split, size in SIZES.items():
        tasks = [(f"{split}/{n}", list(THINGS)[n % 4], n) for n in range(size)]
        lines.append([split, *map(list, tasks)])
        for task in Boxes().tasks(split):
            seen = Boxes().reset(task)
            lines.append([seen.text, list(seen.admissible or ())])
    written = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    return hashlib.sha256(written.encode()).hexdigest()


# --- a record --------------------------------------------------------------------------------------------------------


def test_a_record_is_the_evaluation_with_what_it_depends_on(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = shows(run, "boxes.toml")
    assert record["panel"]["sha256"] == contents_by_hand()
    assert "not pinned yet: write it as sha256" in capsys.readouterr().out
    model = here / "model"
    shutil.copytree(run / "checkpoints" / "latest", model)
    (model / "manifest.json").unlink()
    own = evaluate(model, env="boxes", split=("valid_a", "valid_b"), settings=[("env.max_steps", "3")], free=0, probe=0)
    for result, expected in zip(record["results"], own, strict=True):
        mine = [each for each in record["outcomes"] if each["split"] == result["split"]]
        won = sum(each["success"] for each in mine)
        assert (len(mine), won / len(mine)) == (expected["episodes"], expected["success_rate"])
        assert result["ci95"] == expected["ci95"] == list(wilson(won, len(mine)))
        assert result["by_task"] == expected["by_task"]
        assert result["turns"] == sum(each["steps"] for each in mine) / len(mine) == expected["turns"]
    assert "distractors" not in record["results"][0]
    assert record["asked"] == {"target": str(run)}
    weights = record["agent"]["weights_sha256"]
    assert len(weights) == 64
    assert {"envrl", "envrl source", "torch", "transformers", "tokenizers", "numpy"} == set(record["packages"])
    assert record["sampling"] == {
        "temperature": 0.4,
        "seed": 0,
        "precision": "fp32",
        "response_tokens": 12,
        "actions": "admissible",
    }
    assert (record["prompt"]["format"], record["prompt"]["layout"]) == ("marks", "concat")
    assert "Your task is to: open the box." in record["prompt"]["example"]
    assert record["machine"]["threads"] == 1


def test_a_pin_is_taken_and_other_tasks_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "pin.toml").write_text(f'{PANEL}tasks = 17\nsha256 = "{contents_by_hand()}"\n')
    assert shows("expert", "pin.toml")["panel"]["tasks"] == 17
    (here / "few.toml").write_text(f'{PANEL}tasks = 17\nepisodes = 2\nsha256 = "{contents_by_hand()}"\n')
    assert main(["panel", "expert", "few.toml"]) == 2
    said = capsys.readouterr().err
    assert "the data of 'boxes' here is not that of the panel 'few'" in said
    assert "4 in place of 17 tasks" in said
    assert not (here / "panel-few.json").exists()


def test_the_same_command_goes_on_and_plays_nothing_twice(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two episodes fewer kept: two are played; then none. A record without its episodes is left alone."""
    first = shows(run, "boxes.toml")
    kept = here / "a.episodes.jsonl"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:-2]))
    begun: list[str] = []
    monkeypatch.setattr(Boxes, "reset", _counted(begun, Boxes.reset))
    assert shows(run, "boxes.toml")["outcomes"] == first["outcomes"]
    two_more = len(begun)
    assert shows(run, "boxes.toml")["outcomes"] == first["outcomes"]
    assert two_more - 2 == len(begun) - two_more
    assert main(["panel", "random", "boxes.toml", "--json", "a.json"]) == 2
    assert "holds episodes of another evaluation" in capsys.readouterr().err
    kept.unlink()
    assert main(["panel", str(run), "boxes.toml", "--json", "a.json"]) == 2
    assert "a.json is there already, without a.episodes.jsonl" in capsys.readouterr().err


def _counted(told: list[str], reset: Callable[..., Any]) -> Callable[..., Any]:
    def counted(self: Boxes, task: Any, seed: int = 0) -> Any:
        told.append(task.id)
        return reset(self, task, seed)

    return counted


def test_nothing_of_the_agents_own_world_is_left() -> None:
    register()
    own = Config(env=EnvConfig(name="webshop", data="somewhere", distractors=3, max_steps=9, workers=2))
    own = replace(own, owned={"env.webshop.compact": 7, "objective.ppo.clip_low": 0.1})
    panel = replace(find_panel("webshop"), needs="")
    played = on_panel(own, panel, None)
    assert played.env == EnvConfig(name="webshop", data="somewhere", max_steps=15, workers=2)
    assert played.owned == {"env.webshop.goals": "synthetic", "objective.ppo.clip_low": 0.1}
    other = on_panel(own, find_panel("household"), None)
    assert other.env == EnvConfig(name="household", max_steps=30)
    assert (other.eval.split, other.eval.protocol) == (("valid_seen", "valid_unseen"), "whole")


# --- the panels that ship --------------------------------------------------------------------------------------------


def test_the_small_household_panel_is_what_it_was() -> None:
    panel = find_panel("household-small")
    assert pinned(panel, on_panel(Config(), panel, None)) == panel


@pytest.mark.parametrize(("name", "data"), [("alfworld", "alfworld_data"), ("webshop-compact", "webshop_data")])
def test_panels_on_data_are_what_they_were(name: str, data: str, request: pytest.FixtureRequest) -> None:
    panel = find_panel(name)
    folder = request.getfixturevalue(data)
    assert pinned(panel, on_panel(Config(), panel, str(folder))) == panel
    assert panels()["webshop"].sha256 == panels()["webshop-compact"].sha256


def test_a_games_hash_is_of_what_is_played_not_of_its_file(alfworld_data: Path, tmp_path: Path) -> None:
    """Other spaces in a game's file change nothing; another place of a thing does."""
    source = next((alfworld_data / "json_2.1.1" / "valid_seen").glob("*/*/game.tw-pddl"))
    target = tmp_path / "json_2.1.1" / source.relative_to(alfworld_data / "json_2.1.1")
    target.parent.mkdir(parents=True)
    panel = replace(find_panel("alfworld"), splits=("valid_seen",), sha256="")
    game = json.loads(source.read_text())
    found = []
    for indent, walkthrough in ((None, game["walkthrough"]), (3, game["walkthrough"]), (3, ["look"])):
        target.write_text(json.dumps(game | {"walkthrough": walkthrough}, indent=indent))
        found.append(pinned(panel, on_panel(Config(), panel, str(tmp_path))).sha256)
    assert found[0] == found[1] != found[2]


def test_they_are_listed_with_their_hashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["panel", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(panels())
    assert all(panel.sha256 in line for line, panel in zip(lines, panels().values(), strict=True))


# --- again -----------------------------------------------------------------------------------------------------------


def test_a_record_is_played_again_from_the_file_alone(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "actions.toml").write_text(PANEL)
    shows(run, "boxes.toml", "--actions", "free")
    (here / "boxes.toml").unlink()
    assert main(["panel", "--repeat", "a.json", "--json", "b.json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all 17 games end as they did; 17 by the same commands"
    was, now = read_record(here / "a.json"), read_record(here / "b.json")
    assert now.outcomes == was.outcomes
    assert now.prompt == was.prompt
    record = json.loads((here / "a.json").read_text())
    flipped = record["outcomes"][3]
    flipped["success"] = not flipped["success"]
    record["packages"]["torch"] = "1.0"
    (here / "c.json").write_text(json.dumps(record))
    assert main(["panel", "--repeat", "c.json"]) == 1
    said = capsys.readouterr().out
    assert "not as then: torch (1.0, now " in said
    assert "16 of 17 games end as they did" in said
    assert f"valid_a valid_a/3: {'won' if flipped['success'] else 'lost'}" in said


def test_a_model_that_moved_is_named_and_other_weights_are_refused(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, here / "run")
    shows("run", "boxes.toml")
    (here / "run").rename(here / "moved")
    assert main(["panel", "--repeat", "a.json"]) == 2
    assert "'run' is neither a run" in capsys.readouterr().err
    assert main(["panel", "moved", "--repeat", "a.json"]) == 0
    weights = here / "moved" / "other"
    shutil.copytree(here / "moved" / "checkpoints" / "latest", weights)
    (weights / "manifest.json").unlink()
    (weights / "note.json").write_text("{}")
    capsys.readouterr()
    assert main(["panel", str(weights), "--repeat", "a.json"]) == 2
    assert "holds other weights than the record's" in capsys.readouterr().err


def test_a_chat_model_is_asked_again_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_chat_model("qwen2", here / "chat")
    options = ("--format", "action", "--show-admissible", "no", "--history", "1", "--max-tokens", "6")
    record = shows("chat", "boxes.toml", *options, "--system-message", "Be brief.")
    prompt = record["prompt"]
    assert (prompt["format"], prompt["layout"], prompt["history"]) == ("action", "steps", 1)
    assert (prompt["show_admissible"], prompt["system_message"]) == (False, "Be brief.")
    assert "Be brief." in prompt["example"]
    assert "Your task: open the box." in prompt["example"]
    assert "open box 1\n" not in prompt["example"].partition("Command: look")[0]
    assert (record["sampling"]["actions"], record["sampling"]["response_tokens"]) == ("free", 6)
    assert main(["panel", "--repeat", "a.json", "--json", "b.json"]) == 0
    assert read_record(here / "b.json").prompt == read_record(here / "a.json").prompt
    assert "all 17 games end as they did; 17 by" in capsys.readouterr().out
    assert main(["panel", "chat", "boxes.toml", *options, "--json", "c.json"]) == 0
    assert json.loads((here / "c.json").read_text())["prompt"]["sha256"] != prompt["sha256"]


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
def test_a_model_behind_an_endpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It plays as the expert does, who finds all but the rings in three steps: two in valid_a, one in valid_b."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key-of-nobody")
    with chat_server(opens_boxes(FORMATS["json"].write)) as server:
        options = ("--base-url", server.address, "--format", "json", "--history", "3")
        record = shows("m", "boxes.toml", *options)
        asked = len(server.asked)
        assert main(["panel", "--repeat", "a.json"]) == 0
        assert len(server.asked) == 2 * asked
    assert "all 17 games end as they did" in capsys.readouterr().out
    lost = [(each["task"], each["kind"]) for each in record["outcomes"] if not each["success"]]
    assert lost == [("valid_a/2", "ring"), ("valid_a/6", "ring"), ("valid_b/2", "ring"), ("valid_b/6", "ring")]
    assert record["agent"] == {"kind": "endpoint", "model": "m", "base_url": server.address}
    assert record["prompt"]["format"] == "json"
    assert '"name": "act"' in json.loads(record["prompt"]["example"])[1][0]["content"]
    assert record["sampling"] == {"temperature": 0.4, "seed": 0, "max_tokens": 512, "actions": "free"}
    assert "sk-a-key" not in (here / "a.json").read_text()


# --- beside each other -----------------------------------------------------------------------------------------------


def test_two_records_game_by_game(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The walkthrough wins all; of valid_a's ten games the expert loses two, so p = 2 · (1/2)² = 0.5."""
    for agent in ("expert", "walkthrough"):
        assert main(["panel", agent, "boxes.toml", "--json", f"{agent}.json"]) == 0
    capsys.readouterr()
    assert main(["compare", "expert.json", "walkthrough.json"]) == 0
    said = capsys.readouterr().out
    low, high = wilson(8, 10)
    assert f"| expert | 80.0 % ({100 * low:.1f} to {100 * high:.1f}) | 71.4 % (" in said
    low, high = paired_interval(2, 0, 10)
    assert (
        "- valid_a, 10 games: both win 8, walkthrough alone 2, expert alone 0, neither 0; walkthrough +20.0 points "
        f"({100 * low:+.1f} to {100 * high:+.1f}), sign test p = 0.5" in said
    )


def test_pairs_by_hand() -> None:
    """Of ten that differ nine one way: 2 (1 + 10) / 2¹⁰; of 100 pairs, d = 0.08 ± 1.96 √(10 − 64/100) / 100."""
    assert sign_test(9, 1) == sign_test(1, 9) == pytest.approx(22 / 1024)
    assert (sign_test(0, 0), sign_test(3, 3), sign_test(2, 3)) == (1.0, 1.0, 1.0)
    assert paired_interval(9, 1, 100) == pytest.approx((0.08 - 0.059964, 0.08 + 0.059964), abs=1e-5)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name who is to play"),
        (("random", "houshold"), "unknown panel 'houshold'; did you mean 'household'?"),
        (("random", "gone.toml"), "there is no panel file 'gone.toml'"),
        (("random", "odd.toml"), "'odd.toml' is no panel: unknown key 'split'; did you mean 'splits'?"),
        (("random", "alfworld", "--data", "gone"), "the data folder 'gone' of the world 'alfworld' does not exist"),
        (("expret", "boxes.toml"), "did you mean 'expert'"),
        (("random", "boxes.toml", "--actions", "free"), "actions mean nothing to the script 'random'"),
        (("random", "boxes.toml", "--env.max_steps", "9"), "a panel is pinned, so --env.max_steps cannot be set"),
        (("random", "boxes.toml", "--temperature", "1"), "unknown option '--temperature'"),
        (("random", "boxes.toml", "--json", "a.txt"), "--json writes JSON"),
        (("m", "boxes.toml", "--format", "tags", "--timeout", "3"), "--timeout is for a model behind an endpoint"),
        (("--repeat", "gone.json"), "there is no file gone.json"),
        (("--repeat", "run.json"), "run.json does not hold the record of a panel"),
        (("household",), "'household' is a panel: name before it who is to play, envrl panel MODEL household"),
        (("random", "household", "--repeat", "a.json"), "a.json is a record of the panel 'boxes', not of 'household'"),
        (("--repeat", "a.json", "--actions", "free"), "--actions is said in a.json: leave it out of a repeat"),
        (("--repeat", "a.json", "--json", "a.json"), "a.json is the record that is repeated"),
        (("--repeat", "new.json"), "new.json is a record of form 99, and this version of envrl reads form 1"),
        (("--repeat", "old.json"), "is of the panel 'household' as envrl 0.0.1 had it, which differs"),
        (("--repeat", "tasks.json"), "the data of 'boxes' here is not that of the panel 'boxes'"),
        (("--repeat", "short.json"), "short.json does not hold the record of a panel (Object missing"),
    ],
)
def test_mistakes_are_sentences(
    arguments: tuple[str, ...], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = shows("random", "boxes.toml")
    written = {
        "run": {"evals": {}},
        "new": record | {"version": 99},
        "old": record | {"panel": asdict(find_panel("household")) | {"seed": 5}, "packages": {"envrl": "0.0.1"}},
        "tasks": record | {"panel": record["panel"] | {"sha256": 64 * "0"}},
        "short": {key: value for key, value in record.items() if key != "outcomes"},
    }
    for name, value in written.items():
        (here / f"{name}.json").write_text(json.dumps(value))
    (here / "odd.toml").write_text(PANEL.replace("splits", "split"))
    before = sorted(here.iterdir())
    capsys.readouterr()
    assert main(["panel", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_what_cannot_be_compared_is_a_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = shows("expert", "boxes.toml")
    (here / "five.toml").write_text(PANEL.replace("= 3", "= 5"))
    assert main(["panel", "expert", "five.toml", "--json", "b.json"]) == 0
    (here / "c.json").write_text(json.dumps(record | {"outcomes": record["outcomes"][1:]}))
    (here / "run.json").write_text("{}")
    for other, message in (
        ("b.json", "which differ in max_steps (3, 5)"),
        ("c.json", "a.json and c.json do not hold the same episodes"),
        ("run.json", "a.json is the record of a panel and run.json is none"),
        ("a.json", "the record a.json is given twice"),
    ):
        capsys.readouterr()
        assert main(["compare", "a.json", other]) == 2
        assert message in capsys.readouterr().err
