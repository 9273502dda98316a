"""What several test files share: the real data where it is at hand, and a small game written by hand."""

from __future__ import annotations

import fcntl
import gc
import gzip
import json
import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import boxes
import no_sync  # noqa: F401
from envrl import registry
from envrl.config import plugins
from envrl.envs.data import default_folder
from envrl.envs.household.problem import Goal, Item, Problem, Receptacle
from ray_cluster import NODE

# Examples are a function of the test alone, and busy cores are no failure.
settings.register_profile("envrl", deadline=None, derandomize=True)
settings.load_profile("envrl")

# A shell starts what runs in its background deaf to Ctrl-C, and what tests start and interrupt would be so, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW = {
    f"test_{name}"
    for name in [
        "adapters",
        "admission",
        "alfworld",
        "chats",
        "checkpoint",
        "data",
        "docs",
        "docs_commands",
        "endpoint",
        "evaluate",
        "golden",
        "graphs",
        "gymnasium_worlds",
        "hub",
        "kept",
        "memory",
        "original",
        "out_of_memory",
        "panel",
        "pool",
        "processes",
        "qwen",
        "ray",
        "ray_sampler",
        "real_model",
        "registry",
        "resume",
        "settings",
        "sharded",
        "slots",
        "stacks",
        "states",
        "textworld",
        "thoughts",
        "training",
        "update",
        "workers",
    ]
}
"""Files that take more than some seconds: `make test-quick` leaves them out."""


LONG = [
    "processes",
    "ray",
    "ray_sampler",
    "docs_commands",
    "real_model",
    "resume",
    "sharded",
    "golden",
    "training",
    "original",
    "graphs",
]
"""Files of more than twenty seconds, which come first: one that came last would keep one process busy alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, and mark the tests of those that are not slow as quick."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))
    for item in items:
        if item.path.stem not in SLOW:
            item.add_marker(pytest.mark.quick)


def pytest_collection_finish() -> None:
    """Leave the modules' objects, some million, out of every later collection of garbage, which runs look for too."""
    gc.collect()
    gc.freeze()


boxes.register()

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def alfworld_data() -> Path:
    """The folder that holds json_2.1.1: $ALFWORLD_DATA, else the packed games beside the repository, unpacked once."""
    if os.environ.get("ALFWORLD_DATA"):
        return Path(os.environ["ALFWORLD_DATA"])
    return _unpacked("alfworld", "ALFWorld games", "$ALFWORLD_DATA")


@pytest.fixture(scope="session")
def webshop_data() -> Path:
    """The folder of WebShop's files: $WEBSHOP_DATA, else the packed 1,000 products beside the repository."""
    if os.environ.get("WEBSHOP_DATA"):
        return Path(os.environ["WEBSHOP_DATA"])
    return _unpacked("webshop", "WebShop products", "$WEBSHOP_DATA") / "webshop"


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The folder of a real language model, SmolLM2-135M-Instruct (30 layers), where `envrl models get` puts it."""
    folder = default_folder("models") / "smollm2-135m"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no real model in {folder}: envrl models get smollm2-135m")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Built shops go into a folder of this test run, for the processes that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    """Nothing that a test registers or loads stays for the next one, but for what ships: a module registers once."""
    tables: list[dict[Any, Any]] = [registry._ENTRIES, registry._LOADED, plugins._LOADED]
    known = [dict(table) for table in tables]
    yield
    ours = {key: entry for key, entry in registry._ENTRIES.items() if entry.ships and not entry.file}
    for table, before in zip(tables, known, strict=True):
        table.clear()
        table.update(before)
    registry._ENTRIES.update(ours)


def _unpacked(name: str, what: str, variable: str) -> Path:
    archive, unpacked = SHARED / f"{name}.tar.xz", ROOT / ".cache" / name
    if not unpacked.is_dir():
        if not archive.is_file():
            pytest.skip(f"no {what}: {variable} is not set, and there is no {archive}")
        unpacked.parent.mkdir(exist_ok=True)
        with open(unpacked.with_suffix(".lock"), "w") as lock:  # another test run may be at it
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not unpacked.is_dir():
                _unpack(archive, unpacked)
    return unpacked


def shared_lines(name: str) -> list[dict[str, Any]]:
    """Return the recorded cases of a file beside the repository, one a line; skips the test where there is none."""
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"no recordings of the original: there is no {path}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _unpack(archive: Path, target: Path) -> None:
    """Unpack aside and rename, so that a killed unpack leaves nothing that looks whole."""
    for stale in target.parent.glob(f"{target.name}-unpack-*"):
        shutil.rmtree(stale, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{target.name}-unpack-", dir=target.parent))
    with tarfile.open(archive) as packed:
        packed.extractall(aside, filter="data")
    aside.rename(target)


@pytest.fixture(scope="session")
def transcripts() -> list[dict[str, Any]]:
    """The true engine's episodes: game, reset_obs, admissible0, steps (action, obs, admissible, won, reward, done)."""
    path = SHARED / "alfworld_transcripts_public.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no transcripts of the true engine: there is no {path}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture
def kitchen() -> Problem:
    """A game with every rule in it: a shared place, things in two receptacles or none, a mug in itself, a cool egg.

    Names: apple_bar_1 is apple 2, apple_bar_2 is apple 1; drawer_bar_1 is drawer 2 and stands where countertop 1 does.
    """
    food = frozenset({"pickupable", "heatable", "coolable", "cleanable", "sliceable"})
    return Problem(
        receptacles=(
            Receptacle("countertop_bar_1", "countertop", "loc_a"),
            Receptacle("desk_bar_1", "desk", "loc_b"),
            Receptacle("drawer_bar_1", "drawer", "loc_a", openable=True),
            Receptacle("drawer_bar_2", "drawer", "loc_c", openable=True),
            Receptacle("fridge_bar_1", "fridge", "loc_d", openable=True),
            Receptacle("microwave_bar_1", "microwave", "loc_e", openable=True),
            Receptacle("sink_bar_1_bar_sinkbasin", "sinkbasin", "loc_f"),
        ),
        items=(
            Item("apple_bar_1", "apple", ("loc_a",), food),
            Item("apple_bar_2", "apple", ("loc_d",), food),
            Item("butterknife_bar_1", "butterknife", ("loc_a",), frozenset({"pickupable", "cleanable"})),
            Item("desklamp_bar_1", "desklamp", ("loc_b",), frozenset({"pickupable", "toggleable"})),
            Item("egg_bar_1", "egg", ("loc_a",), food | {"iscool"}),
            Item("mug_bar_1", "mug", ("loc_a",), food - {"sliceable"} | {"isreceptacleobject"}),
            Item("pen_bar_1", "pen", (), frozenset({"pickupable"})),
            Item("sink_bar_1", "sink", ("loc_f",)),
            Item("statue_bar_1", "statue", ("loc_b",)),
        ),
        in_receptacle=frozenset(
            {
                ("apple_bar_1", "countertop_bar_1"),
                ("apple_bar_2", "fridge_bar_1"),
                ("butterknife_bar_1", "drawer_bar_1"),
                ("desklamp_bar_1", "desk_bar_1"),
                ("egg_bar_1", "countertop_bar_1"),
                ("mug_bar_1", "countertop_bar_1"),
                ("mug_bar_1", "drawer_bar_1"),
                ("pen_bar_1", "desk_bar_1"),
                ("statue_bar_1", "desk_bar_1"),
            }
        ),
        in_object=frozenset({("mug_bar_1", "mug_bar_1"), ("pen_bar_1", "mug_bar_1")}),
        can_contain=frozenset(
            {(place, item) for place in ("countertop", "fridge", "microwave") for item in ("apple", "egg", "mug")}
            | {("countertop", "butterknife"), ("drawer", "butterknife"), ("desk", "pen"), ("sinkbasin", "apple")}
        ),
        start="loc_start",
        goal=Goal("pick_two_obj_and_place", "apple", "fridge"),
        task="put two apple in fridge.",
        walkthrough=(
            "go to countertop 1",
            "take apple 2 from countertop 1",
            "go to fridge 1",
            "open fridge 1",
            "move apple 2 to fridge 1",
        ),
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with a CPU each, whose raylets are processes of this machine."""
    utils: Any = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install 'envrl[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        made = utils.Cluster(initialize_head=True, connect=False, head_node_args={**NODE, "include_dashboard": False})
        made.add_node(**NODE)
        yield made
        made.shutdown()
