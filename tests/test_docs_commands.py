"""Every command of README.md and docs/ is run, in the order of its page and made small, or stands in EXEMPT."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import pytest

from chat_models import CHATML, make_tokenizer, save_chat_model
from envrl.cli.main import main
from envrl.rollout.scripts import SCRIPTS
from test_docs import NAMES, PAGES, ROOT, commands_in, example_folder, install_plug_in, is_form
from warm import envrl

_NAMED = "names a command; its arguments stand elsewhere"
_CUDA = "needs a GPU"
_CLUSTER = "starts a cluster, or needs one; test_ray.py runs over one"
_RUNS = "several runs, hours of them; test_sweep.py runs one in small, and the queue with a stand-in for training"
_SERVER = "serves until it is stopped; test_openenv.py talks to such servers"
_PAGE = "serves until it is stopped; test_view.py and test_view_browser.py ask it"
__all__ = ["example_folder"]  # a fixture of test_docs
EXEMPT = {
    "envrl bench train": _NAMED,
    "envrl eval expert": _NAMED,
    "envrl data get alfworld": "downloads; test_data.py runs it against a server of its own",
    "envrl data get webshop": "downloads; test_data.py runs it against a server of its own",
    "envrl data get webshop --full": "downloads; the files of the full shop are larger than a test may take",
    "envrl models get Qwen/Qwen2.5-0.5B-Instruct": "downloads from the hub; test_hub.py runs it against a small one",
    "envrl models get Qwen/Qwen2.5-1.5B-Instruct": "downloads from the hub; test_hub.py runs it against a small one",
    "envrl bench env all": "starts every world that is installed, Java among them; test_check_env.py runs it on a few",
    "envrl sweep study.toml --quick": _RUNS,
    "envrl sweep study.toml": _RUNS,
    "envrl sweep alfworld-study": _RUNS,
    "envrl sweep alfworld-dynamics": _RUNS,
    "envrl sweep alfworld-split": _RUNS,
    "envrl sweep alfworld-methods": _RUNS,
    "envrl serve household --split valid_seen --port 8000": _SERVER,
    "envrl serve household": _SERVER,
    "envrl view runs/demo": _PAGE,
    "envrl view runs/demo runs/other --port 0": _PAGE,
    "envrl train household-demo --model.path Qwen/Qwen2.5-0.5B-Instruct --rollout.format action "
    "--rollout.repeat_task false --run runs/qwen-small": "downloads from the hub; test_hub.py trains on a small one",
    "envrl train qwen2.5-1.5b-alfworld-grpo --run runs/vllm --rollout.sampler vllm --rollout.actions free "
    "--train.device cuda": _CUDA,
    "envrl train qwen2.5-1.5b-alfworld-grpo --run runs/served --rollout.sampler server --rollout.server.folder "
    "/shared/weights --rollout.actions free --rollout.ahead 1": "needs a server; test_server_sampler.py has one",
    "envrl train household-demo --run runs/ray --ray local --processes 2": _CLUSTER,
    "envrl train qwen2.5-1.5b-alfworld-grpo --run /runs/sixteen --ray auto --processes 16": _CLUSTER,
    "envrl train alfworld-grpo --run runs/ray --ray auto --processes 8 --train.device cuda --env.place ray "
    "--env.workers 16": _CLUSTER,
    "envrl train qwen2.5-1.5b-alfworld-grpo --run runs/ray --ray auto --processes 2 --train.device cuda "
    "--rollout.sampler ray --rollout.ray.actors 3 --rollout.ahead 1": _CUDA,
    "envrl train qwen2.5-1.5b-alfworld-grpo --run runs/eight --ray local --processes 8 --train.device cuda": _CUDA,
    "envrl panel runs/demo": "plays 1,000 games; test_panel.py runs it on few",
    "envrl panel runs/demo alfworld": "plays 274 games; test_panel.py runs it on few",
    "envrl bench rollout qwen2.5-1.5b-alfworld-grpo --env.name household --shape qwen2.5-1.5b --train.device cuda "
    "--json figures.json": _CUDA,
}
"""The complete commands of the pages that are not run, and why."""
NEEDS = {
    r"alfworld-textworld|household-textworld": "alfworld",
    r"(?<!-)textworld": "textworld",
    "scienceworld": "scienceworld",
    "babyai": "minigrid",
    "sokoban|frozenlake": "gymnasium",
    r"lora_rank|runs/lora": "peft",
    "--as inspect": "inspect_ai",
    "--to tensorboard": "tensorboard",
    "--to wandb": "wandb",
}
"""What a command needs installed where this stands in it."""
_QUICK = ["--quick", "--rollout.max_steps", "2", "--rollout.response_tokens", "24"]
_QUICK += ["--train.threads", "1", "--train.device", "cpu"]
_QUICK += ["--eval.final", "2", "--eval.free_episodes", "0", "--eval.probe_episodes", "1"]
_SHAPE = ["--model.hidden_size", "32", "--model.layers", "2", "--model.heads", "2", "--model.vocabulary", "320"]


def _complete(page: Path) -> list[str]:
    """The commands of a page that can be typed as they stand: no placeholder but FOLDER, for which one is at hand."""
    placeholders = r"\b(RECIPE|RUN|DIR|NAME|ENV|OTHER|FILE\.json)\b"
    typed = [c for c in commands_in(page) if not re.search(placeholders, c)]
    return list(dict.fromkeys(c for c in typed if c == "envrl doctor" or not is_form(c)))


def _plan() -> dict[str, list[str]]:
    """The commands to run by page; what leaves nothing behind is run on the first page alone."""
    seen: set[str] = set()
    plan = {}
    for page, name in zip(PAGES, NAMES, strict=True):
        commands = [c for c in _complete(page) if c not in EXEMPT and (c not in seen or "runs/" in c)]
        seen.update(commands)
        if commands:
            plan[name] = commands
    return plan


PLAN = _plan()


def small(arguments: list[str]) -> list[str]:
    """Return a command's arguments with further ones that make it a matter of seconds."""
    command, first, *_ = arguments
    given = set(arguments)
    if command == "train" and not first.endswith("config.toml"):
        start_alone = "--train.updates 0" in " ".join(arguments)
        short = [] if "--env.max_steps" in given else ["--env.max_steps", "6"]  # the expert wins some games in six
        if "--warm_start.demonstrations" in given:
            short += ["--warm_start.demonstrations", "2"]
        return [*arguments, *_model(first, given), *_QUICK, *short, "--train.updates", str(int(not start_alone))]
    if command == "bench" and first in ("train", "rollout"):
        few = ["--rollout.tasks", "1", "--rollout.group_size", "2", "--rollout.max_steps", "2"]
        few += ["--warm_start.demonstrations", "2", "--warm_start.held_out", "1", "--rollout.response_tokens", "24"]
        few += ["--train.threads", "1"]
        return [*arguments, *_model(arguments[2], given), *few, *(["--repeats", "1"] if first == "train" else [])]
    if command == "bench":
        return [*arguments, "--seconds", "0.05"]
    if command == "check-env":
        return [*arguments, "--episodes", "1"]
    if command == "eval":
        return [*arguments, *_small_evaluation(first, given)]
    return arguments


def _model(recipe: str, given: set[str]) -> list[str]:
    """Return what gives a recipe a tiny model: random in place of a real one, or the preset in small."""
    if "--model.path" in given:
        return []
    return ["--model.path", "FOLDER"] if recipe.startswith(("qwen", "smollm2")) else _SHAPE


def _small_evaluation(target: str, given: set[str]) -> list[str]:
    few = [] if "--protocol" in given else ["--episodes", "1"]
    if target not in SCRIPTS:
        few += ["--env.max_steps", "2", "--free", "0", "--probe", "0"]
    return [*few, "--max-tokens", "16"] if "--format" in given else few


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages assume: a run that is over, a chat model, a table of accelerators."""
    folder = tmp_path_factory.mktemp("assumed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(small(["train", "household-demo", "--run", "runs/demo"])) == 0
    checkpoints = folder / "runs" / "demo" / "checkpoints"
    shutil.copytree(checkpoints / "step-000001", checkpoints / "step-000100")
    chat = make_tokenizer("qwen2")
    # As Qwen3's template does, it knows an argument of its own.
    chat.chat_template = CHATML + "{% if enable_thinking is defined and not enable_thinking %}{{ '' }}{% endif %}"
    save_chat_model("qwen2", folder / "FOLDER", tokenizer=chat, context=8192)
    shutil.copytree(folder / "FOLDER", folder / "path" / "to" / "model")
    shutil.copytree(folder / "FOLDER", folder / "share" / "envrl" / "models" / "smollm2-135m")
    shutil.copytree(ROOT / "results", folder / "results")
    (study,) = re.findall(r"```toml\n(recipe = .*?)```", (ROOT / "docs/sweep.md").read_text(), re.S)
    (folder / "study.toml").write_text(study)
    (folder / "my-gigpo.toml").write_text('extends = "household-demo"\n[objective]\nestimator = "gigpo"\n')
    (folder / "docs" / "pictures").mkdir(parents=True)
    (table,) = re.findall(r"(?:^    [^\n]*\n)+(?=\nand name it: )", (ROOT / "docs/doctor.md").read_text(), re.M)
    (folder / "ours.toml").write_text(re.sub("^    ", "", table, flags=re.M))
    return folder


@pytest.fixture(scope="session")
def few_games(alfworld_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with few of ALFWorld's games, of every split, which are listed and hashed in a moment."""
    folder = tmp_path_factory.mktemp("few")
    for split in sorted((alfworld_data / "json_2.1.1").iterdir()):
        (folder / "json_2.1.1" / split.name).mkdir(parents=True)
        for kind in sorted(split.iterdir())[:: 20 if split.name == "train" else 5]:
            (folder / "json_2.1.1" / split.name / kind.name).symlink_to(kind)
    return folder


@pytest.fixture
def folder(stand_ins: Path, example_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page, with what it assumes; the example world is a plug-in."""
    shutil.copytree(stand_ins, example_folder, dirs_exist_ok=True)
    install_plug_in()
    monkeypatch.setenv("XDG_DATA_HOME", str(example_folder / "share"))
    return example_folder


def _lacking(command: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a command needs and is not here; names the folder of the data that is."""
    for pattern, package in NEEDS.items():
        if re.search(pattern, command) and find_spec(package) is None:
            return f"{package} is not installed"
    whole = "alfworld_data" if command.startswith("envrl data") else "few_games"
    for world, fixture in {"alfworld": whole, "webshop": "webshop_data"}.items():
        if re.search(rf"\b{world}\b", command):
            try:
                monkeypatch.setenv(f"{world.upper()}_DATA", str(request.getfixturevalue(fixture)))
            except pytest.skip.Exception as reason:
                return str(reason)
    return ""


@pytest.mark.parametrize("page", PLAN)
def test_commands_run(
    page: str,
    folder: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lacking = {}
    for command in PLAN[page]:
        missing = _lacking(command, request, monkeypatch)
        if missing:
            lacking[command] = missing
            continue
        _run(command, monkeypatch, capsys)
    if lacking:
        pytest.skip(f"{len(lacking)} of {len(PLAN[page])} not run: {'; '.join(sorted(set(lacking.values())))}")


def _train_missing(runs: list[str]) -> None:
    """Train the runs ALGORITHM-SEED of a study of which the page shows but one or two."""
    for run in runs:
        algorithm, _, seed = Path(run).name.partition("-")
        if not Path(run).exists():
            typed = ["train", f"alfworld-{algorithm}", "--seed", seed, "--warm_start.path", "runs/warm/warm_start"]
            assert main(small([*typed, "--run", run])) == 0


def _expanded(command: str) -> list[str]:
    """Return a command's arguments as a shell gives them."""
    return [a for part in shlex.split(command)[1:] for a in (sorted(glob(part)) if "*" in part else [part])]


def _run(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _expanded(command)
    monkeypatch.setattr("sys.stdin", io.StringIO("look\n?\nquit\n"))
    if arguments[0] == "compare":
        _train_missing([name for name in arguments if name.startswith("runs/")])
    if "results/" in command and arguments[0] == "compare":  # quick runs of the page do not belong beside full ones
        shutil.rmtree("results")
        shutil.copytree(ROOT / "results", "results")
        arguments = _expanded(command)
    typed = small(arguments) if len(arguments) > 1 else arguments
    if "--processes" in arguments and arguments[0] == "train":
        done = envrl(*typed)
        status, out, err = done.returncode, done.stdout, done.stderr
    else:
        status = main(typed)
        out, err = capsys.readouterr()
    if arguments[0] == "doctor":
        assert status == (not out.rstrip().endswith("nothing to mend")), command
    else:
        assert status == 0, f"{command}\n{err[-2000:]}"


def test_what_is_exempt_stands_on_a_page() -> None:
    documented = {command for page in PAGES for command in _complete(page)}
    assert set(EXEMPT) <= documented
    assert documented == set(EXEMPT) | {command for commands in PLAN.values() for command in commands}


def test_torchrun_takes_the_commands_that_are_given_to_it() -> None:
    """Its parser would take our `--run` for the beginning of its own `--run-path`, and ours has the rest to itself."""
    from torch.distributed.run import get_args_parser

    found = re.findall(r"^ +torchrun (.+)$", (ROOT / "docs" / "scale.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == 3
    for line in found:
        asked = get_args_parser().parse_args(shlex.split(line))
        assert (asked.module, asked.training_script, asked.training_script_args[0]) == (True, "envrl", "train")
        assert "--run" in asked.training_script_args
