"""The data sets that worlds can use: where the originals lie, and what is known of them.

Addresses are those of the original projects' own scripts: alfworld's `scripts/alfworld-download` (commit ca98194) and
WebShop's `setup.sh` (commit 64fa2a5), whose Google Drive files are named by their ids. Neither project publishes sizes
or hashes. Those here are what several independent users of the same files state in public repositories; we have
confirmed one of them (items_ins_v2_1000.json) on a copy of our own, and downloaded none of them from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from envrl.errors import UserError, suggest


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to download: its size in bytes and SHA-256 as far as known (0 and empty where not)."""

    name: str
    url: str
    bytes: int = 0
    sha256: str = ""
    extra: bool = False
    """Got only when asked for, since it is large."""
    partner: str = ""
    """The file that is of no use without this one."""

    @property
    def is_archive(self) -> bool:
        return self.name.endswith(".zip")


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set; `counts` is how many games or products each of its parts holds."""

    name: str
    title: str
    version: str
    licence: str
    page: str
    files: tuple[RemoteFile, ...]
    counts: Mapping[str, int]
    inside: tuple[str, ...] = field(default=())
    """Folders below the named one that the data may lie in."""


def _drive(identifier: str) -> str:
    """Return the address of a Google Drive file's content; without `confirm` large files answer with a web page."""
    return f"https://drive.usercontent.google.com/download?id={identifier}&export=download&confirm=t"


ALFWORLD = DataSet(
    name="alfworld",
    title="ALFWorld's text games: game.tw-pddl files below json_2.1.1",
    version="json_2.1.3_tw-pddl.zip of ALFWorld's release 0.4.2",
    licence="MIT (ALFWorld, on ALFRED's games, MIT)",
    page="https://github.com/alfworld/alfworld",
    files=(
        RemoteFile(
            "json_2.1.3_tw-pddl.zip",
            "https://github.com/alfworld/alfworld/releases/download/0.4.2/json_2.1.3_tw-pddl.zip",
            36_507_267,
            "5df77ea759f2211a4106082839ddbbb790f1ba4e7d097ed732cf453f72aa36cf",
        ),
    ),
    counts={"train": 3553, "valid_seen": 140, "valid_unseen": 134, "valid_train": 200},
)

WEBSHOP = DataSet(
    name="webshop",
    title="WebShop's products, their attributes, and instructions written by people",
    version="as in setup.sh of WebShop's commit 64fa2a5",
    licence="MIT for WebShop's files; product texts are from public Amazon pages: research use, not to be passed on",
    page="https://github.com/princeton-nlp/WebShop",
    files=(
        RemoteFile(
            "items_shuffle_1000.json",
            _drive("1EgHdxQ_YxqIQlvvq5iKlCrkEKR6-j0Ib"),
            4_467_013,
            "30a4765c3a327af72d9a9a95a6b2486d516f0fa1d3ecd83681901ce82a21b269",
            partner="items_ins_v2_1000.json",
        ),
        RemoteFile(
            "items_ins_v2_1000.json",
            _drive("1IduG0xl544V_A_jv3tHXC0kyFi7PnyBu"),
            147_099,
            "f88a36314a397b53b3d9c3fa5878e5f7b26d35019a51ec83fbedeca61a948f6f",
            partner="items_shuffle_1000.json",
        ),
        RemoteFile(
            "items_human_ins.json",
            _drive("14Kb5SPBk_jfdLZ_CDBNitW98QLDlKR5O"),
            5_137_548,
            "cf78667548a71786e1d9049c24b802e48e1084ad4bb021cae56ce1f6d96954a3",
        ),
        RemoteFile(
            "items_shuffle.json",
            _drive("1A2whVgOO0euk5O13n2iYDM0bQRkkRduB"),
            5_479_720_229,
            "2ef591d65df3af89e972ab72468eb82cbf124d876552d9f3678667edd620a6c8",
            extra=True,
            partner="items_ins_v2.json",
        ),
        RemoteFile(
            "items_ins_v2.json",
            _drive("1s2j6NgHljiZzQNL3veZaAiyW_qDEgBNi"),
            186_295_270,
            "1d36af476bdb8f82a5da62bd8acdabe54cd8de2fa84010d37da5c4890feb447e",
            extra=True,
            partner="items_shuffle.json",
        ),
    ),
    counts={"items_shuffle_1000.json": 1000, "items_ins_v2_1000.json": 1000},
    inside=("webshop", "data"),
)

SETS = {data.name: data for data in (ALFWORLD, WEBSHOP)}


def find_set(name: str) -> DataSet:
    """Return the data set of a name; raises `UserError` for an unknown one."""
    if name not in SETS:
        raise UserError(f"unknown data set '{name}'{suggest(name, SETS)}")
    return SETS[name]
