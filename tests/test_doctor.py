"""`envrl doctor`: what it finds, what it says of a recipe, and the operations and seconds behind its hours, by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from envrl.cli import installed, judged
from envrl.cli.installed import GIB, Finding, data_finding, extra_finding, extras, wrapped
from envrl.cli.main import main
from envrl.config.load import load_recipe
from envrl.config.schema import Config
from envrl.costs.estimate import estimate, recipe_shape, remedy
from envrl.costs.memory import Load
from envrl.costs.operations import Passes, forward_flops, update_flops
from envrl.costs.shape import Shape, published_shape
from envrl.costs.speed import Accelerator, accelerators, this_cpu, update_times
from envrl.costs.workload import Workload, workload
from envrl.errors import UserError
from envrl.models import runtime

Say = pytest.CaptureFixture[str]
SIMPLE = Workload(
    episodes=4,
    turns=10,
    longest_turns=20,
    steps=True,
    prompt=300,
    added=0,
    response=100,
    longest_response=128,
    passes=110,
    auxiliary_rows=20,
    auxiliary_tokens=50,
)
DEVICE = Accelerator("one", memory=80, bf16=1000, fp32=100, bandwidth=1000, price=2.0, layer_seconds=1e-3)


def qwen() -> Shape:
    shape = published_shape("qwen2.5-1.5b")
    assert shape is not None
    return shape


SETTINGS = (
    "--model.path models/Qwen2.5-1.5B-Instruct --rollout.layout steps --rollout.actions free --train.precision bf16 "
    "--rollout.show_admissible true --rollout.response_tokens 512 --env.max_steps 50 --train.updates 150 "
    "--objective.kl_weight 0.01 --train.micro_batch_tokens 16384 --warm_start.demonstrations 0 --rollout.tasks 16 "
    "--rollout.repeat_task false --rollout.max_steps 0 --auxiliary.echo.weight 0 --auxiliary.state.weight 0.1 "
    "--auxiliary.state.fraction 0.2 --warm_start.auxiliary.echo.weight 0"
)
PUBLISHED = SETTINGS.split()


def published() -> Config:
    pairs = zip(PUBLISHED[::2], PUBLISHED[1::2], strict=True)
    return load_recipe("household-demo", [(key.removeprefix("--"), value) for key, value in pairs])


# --- operations and seconds, by hand ---------------------------------------------------------------------------------


def test_a_forward_pass_costs_two_operations_a_weight_and_attention() -> None:
    """1.31 billion matrix weights; 28 layers of width 1,536 see 200 of 400 positions on the mean."""
    matrices = 28 * (2 * 1536 * (1536 + 256) + 3 * 1536 * 8960)
    assert forward_flops(qwen(), 1, 400) == 2 * matrices + 28 * 4 * 1536 * 200
    assert forward_flops(qwen(), 10, 400) == 10 * forward_flops(qwen(), 1, 400)


def test_a_batch_has_so_many_tokens() -> None:
    """4 episodes × 10 turns × (300 + 100), and 20 rows of 50."""
    assert (SIMPLE.rows, SIMPLE.sequence, SIMPLE.fed) == (40, 400, 16_000)
    assert SIMPLE.trained == 17_000
    concat = replace(SIMPLE, steps=False, added=30)
    assert concat.sequence == 300 + 100 + 9 * 130
    assert concat.longest(10_000)[0] == 480 + 128 + 19 * 130
    assert SIMPLE.longest(10_000) == (480 + 128, 480)
    assert SIMPLE.longest(500) == (500, 480)
    assert replace(SIMPLE, prompt_limit=400).longest(10_000) == (528, 400)


def test_both_passes_cost_three_forward_passes() -> None:
    layers, head = forward_flops(qwen(), 17_000, 400), 2 * 4000 * 151936 * 1536
    assert update_flops(qwen(), SIMPLE, Passes(0, 1), 4000) == 3 * layers + 4 * head
    assert update_flops(qwen(), SIMPLE, Passes(1, 2), 4000) == 7 * layers + 9 * head
    assert update_flops(qwen(), SIMPLE, Passes(0, 1, again=True), 4000) == 4 * layers + 4 * head


def test_an_update_takes_so_long() -> None:
    """Operations at 40 % of 1,000 TFLOP/s, 36 bytes a weight at 1 TB/s, 3 × 28 ms for each of 4.25 micro-batches.

    The rollout: prompts at 25 % of 100 TFLOP/s; 20 × 110 passes, each of 28 ms and of what is read at 1 TB/s: the
    weights and half of 4 slots × 640 positions; twice as many where 2 episodes are played at once.
    """
    shape, load = qwen(), Load(4000, 1000, slots=4, positions=528, chunk=300, fed=12_000, later=40, bf16=True)
    times = update_times(shape, SIMPLE, load, Passes(0, 1), 4000, DEVICE)
    operations = update_flops(shape, SIMPLE, Passes(0, 1), 4000)
    assert times.update == pytest.approx(operations / 4e14 + 36 * shape.parameters / 1e12 + 4.25 * 3 * 0.028)
    read = 4 * (shape.parameters + 4 * 640 * 28 * 256) / 1e12
    prompts = forward_flops(shape, 16_000, 400) / 2.5e13
    assert times.rollout == pytest.approx(prompts + 2200 * (read + 0.028))
    three = update_times(shape, SIMPLE, load, Passes(0, 1, steps=3), 4000, DEVICE)
    assert three.update - times.update == pytest.approx(2 * 36 * shape.parameters / 1e12)
    halves = update_times(shape, SIMPLE, replace(load, slots=2), Passes(0, 1), 4000, DEVICE)
    assert halves.rollout > prompts + 4400 * 0.028


def test_a_processor_is_measured() -> None:
    found = this_cpu(8.0, {"fp32": 9e10, "bf16": 2e11})
    assert (found.memory, found.flops(bf16=False), found.flops(bf16=True)) == (8.0, 9e10, 2e11)


@pytest.mark.parametrize(
    ("cores", "seconds", "expected"), [(2, 0.55, 2), (2, 0.9, 1), (2, 3.0, 1), (1, 0.55, 1), (8, 0.55, 2)]
)
def test_two_threads_are_taken_where_they_are_faster(
    cores: int, seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(runtime, "_product_seconds", lambda threads: 1.0 if threads == 1 else seconds)
    runtime.usable_threads.cache_clear()
    assert runtime.usable_threads() == expected
    runtime.usable_threads.cache_clear()


@pytest.mark.parametrize(("bf16", "best"), [(1.2e11, "bf16"), (1.1e11, "fp32"), (1e9, "fp32")])
def test_what_is_faster_here_is_measured(bf16: float, best: str, monkeypatch: pytest.MonkeyPatch, capsys: Say) -> None:
    monkeypatch.setattr(runtime, "product_speeds", lambda: {"fp32": 9e10, "bf16": bf16})
    runtime.faster_precision.cache_clear()
    config = load_recipe("household-demo", [("train.precision", "auto")])
    assert runtime.with_precision(config).train.precision == best
    assert runtime.with_precision(config, "cuda").train.precision == "bf16"
    assert runtime.with_precision(config).rollout.precision == "fp32"
    assert main(["doctor", "household-demo", "--train.precision", "auto"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"90 GFLOP/s in fp32, {bf16 / 1e9:.0f} in bf16" in said
    assert ("--rollout.precision bf16 is faster" in said) == (best == "bf16")
    assert "--train.precision" not in said
    runtime.faster_precision.cache_clear()


def test_accelerators_come_from_a_file_too(tmp_path: Path) -> None:
    names = [device.name for device in accelerators()[0]]
    assert names[:3] == ["H200", "H100 80GB", "A100 80GB"]
    own = tmp_path / "own.toml"
    own.write_text(
        'prices_as_of = "today"\n[accelerators.mine]\nmemory = 10\nbf16 = 1\nfp32 = 1\nbandwidth = 1\nprice = 9\n'
    )
    assert accelerators(own) == ([Accelerator("mine", 10, 1, 1, 1, 9)], "today")
    own.write_text("[accelerators.mine]\nmemory = 10\n")
    with pytest.raises(UserError, match="is not a table of accelerators"):
        accelerators(own)
    with pytest.raises(UserError, match=r"cannot read .*gone\.toml"):
        accelerators(tmp_path / "gone.toml")


# --- what fits -------------------------------------------------------------------------------------------------------


def test_a_batch_follows_from_the_recipe() -> None:
    found = workload(published())
    assert (found.episodes, found.longest_turns, found.turns) == (128, 50, 30)
    assert found.response == 256
    assert found.auxiliary_rows == pytest.approx(128 * 30 * (0.2 + 0.05))
    tiny = workload(load_recipe("household-demo"))
    assert (tiny.episodes, tiny.longest_turns) == (96, 18)
    assert tiny.auxiliary_rows == pytest.approx(96 * 10.8 * 0.05), "state prediction is in the policy's pass"


def test_what_helps_comes_in_order_and_what_changes_results_last() -> None:
    config = published()
    shape = recipe_shape(config)
    roomy = estimate(config, shape, DEVICE, cuda=True)
    assert roomy.fits(2 * roomy.bytes)
    assert remedy(config, shape, DEVICE, 2 * roomy.bytes, cuda=True).changes == ()
    some = remedy(config, shape, DEVICE, roomy.bytes, cuda=True)
    assert [(c.key, c.harmless) for c in some.changes] == [("train.micro_batch_tokens", True)]
    assert some.enough
    assert some.bytes < roomy.bytes
    assert some.changes[0].saves >= roomy.bytes - some.bytes
    small = remedy(config, shape, DEVICE, 20 * GIB, cuda=True)
    keys = [(c.key, c.harmless) for c in small.changes]
    assert ("rollout.slots", True) in keys
    assert keys[-2:] == [("objective.kl_weight", False), ("model.lora_rank", False)]
    assert small.enough, "an adapter of rank 16 leaves the base's weights, 5.8 GiB"
    assert not remedy(config, shape, DEVICE, 6 * GIB, cuda=True).enough


def test_a_model_that_is_not_there_is_known_by_its_name(tmp_path: Path) -> None:
    config = published()
    assert recipe_shape(config).parameters == 1_543_714_304
    own = replace(config, model=replace(config.model, path=str(tmp_path / "mine")))
    with pytest.raises(UserError, match="its name is none whose shape is known"):
        recipe_shape(own)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is not a model's configuration"):
        recipe_shape(own)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("ALFWORLD_DATA", "WEBSHOP_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    return folder


def test_without_a_recipe_it_says_what_is_there_and_how_to_get_the_rest(capsys: Say) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok    torch " in out
    assert "envrl data get alfworld" in out
    assert out.endswith("nothing to mend\n")
    assert all(len(line) <= 100 for line in out.splitlines())


def test_a_recipe_that_fits_is_status_0(capsys: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "memory", lambda: (64 * GIB, 64 * GIB))
    assert main(["doctor", "household-demo", "--train.updates", "2", "--json", "found.json"]) == 0
    out = capsys.readouterr().out
    assert "20,000 tasks in train" in out
    assert "RTX 3090" in out
    assert all(len(line) <= 100 for line in out.splitlines())
    record = json.loads(Path("found.json").read_text())
    assert record["good"] is True
    assert record["peak"] == max(sum(p.values()) for p in record["memory"].values()) + record["process"]
    assert record["accelerators"][0]["fits"] is True
    assert record["hours"]["updates"] == pytest.approx(2 * sum(record["seconds"].values()) / 3600)


def test_who_plays_elsewhere_is_not_judged(capsys: Say) -> None:
    """With a server, say: the tables count the built-in sampler, and the report says so."""
    main(["doctor", "household-demo", "--rollout.sampler", "ray"])
    said = " ".join(capsys.readouterr().out.split())
    assert "sampler ray its devices are not judged: memory and hours below are counted as if the built-in" in said
    main(["doctor", "household-demo"])
    assert "not judged" not in capsys.readouterr().out


def test_a_recipe_that_lacks_things_is_status_1_and_says_which(capsys: Say) -> None:
    gone = ["--train.device", "cuda:7", "--model.path", "models/of/mine/Qwen2.5-1.5B-Instruct"]
    assert main(["doctor", "household-demo", *PUBLISHED, *gone, "--json", "found.json"]) == 1
    words = " ".join(capsys.readouterr().out.split())
    assert "'models/of/mine/Qwen2.5-1.5B-Instruct' is neither a folder here" in words
    assert "train.device = 'cuda:7' is not there" in words
    record = json.loads(Path("found.json").read_text())
    assert {f["name"] for f in record["findings"] if f["good"] is False} >= {"model", "train.device"}
    assert main(["doctor", "alfworld-grpo"]) == 1
    assert "FAIL data alfworld not here: envrl data get alfworld" in " ".join(capsys.readouterr().out.split())


def test_too_small_a_machine_gets_settings_to_change(capsys: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "memory", lambda: (48 * GIB, 48 * GIB))
    assert main(["doctor", "household-demo", *PUBLISHED]) == 1
    words = " ".join(capsys.readouterr().out.split())
    assert "of 48.0 GiB on this CPU free" in words
    assert "--train.micro_batch_tokens 4096 saves" in words or "--train.micro_batch_tokens 2048 saves" in words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["household-dmeo"], "did you mean 'household-demo'?"),
        (["--train.updates", "3"], "is about a recipe"),
        (["--accelerators", "x.toml"], "is about a recipe"),
        (["household-demo", "--train.updats", "3"], "did you mean 'train.updates'?"),
        (["household-demo", "--accelerators", "gone.toml"], "cannot read 'gone.toml'"),
        (["--json", "found.txt"], "name a file that ends with .json"),
    ],
)
def test_wrong_input_is_status_2_and_one_sentence(
    arguments: list[str], said: str, capsys: Say, empty_folder: Path
) -> None:
    assert main(["doctor", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []


# --- findings --------------------------------------------------------------------------------------------------------


def test_an_extra_is_there_whole_or_has_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ['scienceworld>=1.2; extra == "scienceworld"', 'ruff; extra == "dev"', "torch>=2", 'a; extra == "b"']
    monkeypatch.setattr(installed.metadata, "requires", lambda _: lines)
    assert [found.name for found in extras()] == ["b", "scienceworld"]
    versions = {"scienceworld": "1.2"}
    monkeypatch.setattr(installed, "_version", lambda name: versions.get(name, ""))
    monkeypatch.setattr(installed.shutil, "which", lambda _: None)
    assert extra_finding("b") == Finding("extras", "b", None, "missing: pip install 'envrl[b]'")
    assert "needs Java" in extra_finding("scienceworld").detail
    monkeypatch.setattr(installed.shutil, "which", lambda _: "/usr/bin/java")
    assert extra_finding("scienceworld") == Finding("extras", "scienceworld", True, "scienceworld 1.2")


def test_data_is_found_where_worlds_find_it(tmp_path: Path) -> None:
    assert data_finding("webshop").good is None
    folder = tmp_path / "share" / "envrl" / "webshop"
    folder.mkdir(parents=True)
    assert "holds nothing of it" in data_finding("webshop").detail
    (folder / "items_human_ins.json").write_text("{}")
    assert data_finding("webshop").good is True


@pytest.mark.parametrize("memory", [lambda: (0, 0), installed.memory])
def test_a_machine_of_unknown_memory_is_no_error(
    memory: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "memory", memory)
    assert any("memory" in found.name for found in installed._machine())


def test_long_lines_are_wrapped_and_paths_left_whole() -> None:
    path = "/" + "x" * 120
    assert wrapped(f"in {path} it lies", "  head  ").splitlines() == ["  head  in", f"  {path}", "  it lies"]


def test_several_processes_share_weights_gradients_and_moments() -> None:
    """Of a Qwen2.5-7B in 1 and 8: what is sharded is an eighth, what plays is whole, episodes are dealt out.

    The whole weights are put away for an update.
    """
    config = load_recipe("qwen2.5-7b-alfworld-grpo", [("train.engine", "sharded")])
    shape = recipe_shape(config)
    one, eight = (estimate(config, shape, DEVICE, cuda=True, processes=count) for count in (1, 8))
    assert one.load.slots == 8 * eight.load.slots == 128
    for part in ("a shard of them", "Adam's moments", "a second model", "gradients"):
        assert eight.memory.phases["update"][part] == -(-one.memory.phases["update"][part] // 8)
    for part in ("weights to sample", "whole for a pass", "activations"):
        assert eight.memory.phases["update"][part] == one.memory.phases["update"][part]
    assert "weights" not in eight.memory.phases["update"]
    assert eight.memory.phases["rollout"]["weights"] == 4 * shape.parameters
    assert eight.memory.phases["evaluation"]["weights"] == 4 * shape.parameters
    layer = 3 * 3584 * 18944 + 2 * 3584 * (3584 + 512)  # gate, up, down; q and o, k and v
    assert eight.memory.phases["update"]["whole for a pass"] == pytest.approx(
        4 * (2 * 2 * 152064 * 3584 + 5 * layer), rel=0.001
    ), "embedding and output with their gradients, two layers, and what is summed of three gradients"
    assert eight.hours["updates"] < one.hours["updates"]


def test_processes_share_a_warm_start() -> None:
    """No process takes more for it than for an update, and eight take an eighth of the time."""
    config = load_recipe("household-demo", [("train.engine", "sharded")])
    one, eight = (estimate(config, recipe_shape(config), DEVICE, cuda=True, processes=count) for count in (1, 8))
    assert set(eight.memory.phases) == {"rollout", "update", "optimiser step", "evaluation"}
    assert eight.hours["warm start"] == pytest.approx(one.hours["warm start"] / 8)
    assert one.hours["warm start"] > 0


def test_processes_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "qwen2.5-1.5b-alfworld-grpo", "--processes", "4"])
    printed = capsys.readouterr().out
    assert "in each of 4 processes" in printed
    assert "\n4 devices" in printed
    assert main(["doctor", "--processes", "4"]) == 2
    assert main(["doctor", "household-demo", "--processes", "0"]) == 2
    assert main(["doctor", "household-demo", "--processes", "2", "--train.engine", "local"]) == 2


@pytest.mark.parametrize("processes", [2, 4])
def test_what_fits_several_processes_is_found(processes: int) -> None:
    """It never ended: a process plays its share of the episodes, and its slots cannot be more."""
    config = load_recipe("qwen2.5-7b-alfworld-grpo", [])
    found = remedy(config, recipe_shape(config), DEVICE, int(79.1 * GIB), cuda=True, processes=processes)
    assert found.enough
    assert found.bytes <= 79.1 * GIB
    assert "rollout.slots" in [change.key for change in found.changes]
