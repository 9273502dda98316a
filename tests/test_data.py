"""Downloaded data: got whole or not at all, checked, found by the worlds, and remembered by runs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import envrl
import pens
import server as web
from boxes import files, tiny
from envrl.cli.main import main
from envrl.data import sets
from envrl.data.check import check
from envrl.data.fetch import Patience
from envrl.data.get import Wish, get
from envrl.data.sets import ALFWORLD, WEBSHOP, DataSet, RemoteFile
from envrl.errors import RunError, UserError
from envrl.locks import held
from envrl.trainer.loop import train

PRODUCTS = json.dumps([{"asin": f"B{n:05}", "name": "a made-up thing " * 40} for n in range(300)]).encode()
SPLITS = {"train": 5, "valid_seen": 2, "valid_unseen": 1, "valid_train": 1}


@pytest.fixture(autouse=True)
def no_data_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ALFWORLD_DATA", "WEBSHOP_DATA", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def server() -> Iterator[web.Server]:
    with web.serving() as here:
        here.files["things.json"] = PRODUCTS
        yield here


def things(server: web.Server, content: bytes = PRODUCTS, **changes: Any) -> DataSet:
    """A data set of one file that is known to be `content`."""
    file = RemoteFile("things.json", f"{server.address}/things.json", len(content), hashlib.sha256(content).hexdigest())
    return replace(WEBSHOP, files=(replace(file, **changes),), counts={"things.json": 300})


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[tuple[str, int, int]] = []

    def show(self, name: str, done: int, total: int) -> None:
        self.shown.append((name, done, total))

    def say(self, text: str) -> None:
        self.said.append(text)


def bring(
    data: DataSet, folder: Path, source: str = "", verified: bool = True, tries: int = 3, stall: float = 60.0
) -> list[str]:
    tell = Silent()
    get(data, folder, Wish(source, verified=verified, patience=Patience(stall, tries, 0.0)), tell)
    return tell.said


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# --- one file --------------------------------------------------------------------------------------------------------


def test_a_file_comes_whole_is_recorded_and_is_not_got_twice(server: web.Server, tmp_path: Path) -> None:
    tell = Silent()
    assert get(things(server), tmp_path, Wish(), tell) == tmp_path
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS
    assert names(tmp_path) == ["envrl-webshop.json", "things.json"]
    assert tell.shown[-1] == ("things.json", len(PRODUCTS), len(PRODUCTS))
    assert bring(things(server), tmp_path) == ["things.json: is here"]
    assert len(server.asked) == 1
    assert check(things(server), tmp_path).passed


def test_a_broken_line_goes_on_where_it_broke(server: web.Server, tmp_path: Path) -> None:
    server.plan["things.json"] = [web.cut(10_000), web.cut(5_000)]
    said = bring(things(server), tmp_path)
    assert server.ranges("things.json") == ["", "bytes=10000-", "bytes=15000-"]
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS
    assert f"things.json: the connection ended after 10,000 of {len(PRODUCTS):,} bytes; try 2 of 3 in 0 s" in said


def test_what_never_comes_leaves_its_part_for_the_next_time(server: web.Server, tmp_path: Path) -> None:
    server.plan["things.json"] = [web.cut(1_000), web.cut(0), web.status(503), web.cut(500)]
    with pytest.raises(RunError, match=r"failed 3 times in a row, at last with '503 .*keeps the 1,000 bytes that came"):
        bring(things(server), tmp_path)
    assert names(tmp_path) == ["things.json.part", "things.json.part.json"]
    assert (tmp_path / "things.json.part").read_bytes() == PRODUCTS[:1000]
    bring(things(server), tmp_path)  # another call, as of another process
    assert server.ranges("things.json")[-2:] == ["bytes=1000-", "bytes=1500-"]
    assert names(tmp_path) == ["envrl-webshop.json", "things.json"]


def test_a_line_that_comes_again_and_again_is_not_given_up(server: web.Server, tmp_path: Path) -> None:
    server.plan["things.json"] = [web.cut(1_000) for _ in range(12)]
    bring(things(server), tmp_path, tries=2)
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS


def test_a_stalled_line_is_left(server: web.Server, tmp_path: Path) -> None:
    server.plan["things.json"] = [web.stall(20_000)]
    said = bring(things(server), tmp_path, stall=1.5, tries=10)
    assert server.ranges("things.json")[:2] == ["", "bytes=20000-"]
    assert any("nothing came any more" in line for line in said)
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS


def test_a_server_that_knows_no_ranges_begins_anew(server: web.Server, tmp_path: Path) -> None:
    server.plan["things.json"] = [web.cut(10_000), web.no_range]
    bring(things(server), tmp_path)
    assert server.ranges("things.json") == ["", "bytes=10000-"]
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS


def test_halves_of_two_versions_are_not_joined(server: web.Server, tmp_path: Path) -> None:
    """With a mark the server sends all of the new version; without one the hash tells, and it comes once more."""
    server.plan["things.json"] = [web.cut(10_000, '"old"')]
    server.files["things.json"] = bytes(len(PRODUCTS))
    with pytest.raises(RunError):
        bring(things(server), tmp_path, tries=1)
    server.files["things.json"] = PRODUCTS
    bring(things(server), tmp_path)
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS
    assert server.ranges("things.json") == ["", "bytes=10000-"]

    other = tmp_path / "unmarked"
    server.asked.clear()
    server.plan["things.json"] = [web.cut(10_000, ""), web.version(""), web.version("")]
    server.files["things.json"] = bytes(len(PRODUCTS))
    with pytest.raises(RunError):
        bring(things(server), other, tries=1)
    server.files["things.json"] = PRODUCTS
    said = bring(things(server), other)
    assert server.ranges("things.json") == ["", "bytes=10000-", ""]
    assert "things.json: the parts that came do not belong together; once more from the beginning" in said
    assert (other / "things.json").read_bytes() == PRODUCTS


def test_without_a_mark_and_a_hash_nothing_is_joined(server: web.Server, tmp_path: Path) -> None:
    server.plan["things.json"] = [web.cut(10_000, ""), web.version("")]
    bring(things(server, sha256=""), tmp_path)
    assert server.ranges("things.json") == ["", ""]
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS


def test_what_lies_beyond_the_files_end_is_thrown_away(server: web.Server, tmp_path: Path) -> None:
    server.plan["things.json"] = [web.cut(1_000)]
    with pytest.raises(RunError):
        bring(things(server), tmp_path, tries=1)
    (tmp_path / "things.json.part").write_bytes(bytes(len(PRODUCTS) + 7))
    bring(things(server), tmp_path)
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS


def test_a_part_that_is_all_there_is_only_verified(server: web.Server, tmp_path: Path) -> None:
    server.plan["things.json"] = [web.cut(1_000)]
    with pytest.raises(RunError):
        bring(things(server), tmp_path, tries=1)
    (tmp_path / "things.json.part").write_bytes(PRODUCTS)
    bring(things(server), tmp_path)
    assert server.ranges("things.json")[-1] == f"bytes={len(PRODUCTS)}-"
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (web.altered, r"has the SHA-256 \w{64}, not \w{64}: it was altered on the way"),
        (web.status(404), "answers '404 Not Found': name a folder or a mirror"),
        (web.status(403), "answers '403 Forbidden'"),
        (web.web_page, "answered with a web page in place of the file"),
        (web.to("things.json"), "infinite loop"),
    ],
)
def test_what_cannot_be_mended_ends_at_once_and_leaves_nothing(
    server: web.Server, tmp_path: Path, behaviour: web.Behaviour, message: str
) -> None:
    server.plan["things.json"] = [behaviour] * 20
    with pytest.raises(RunError, match=message):
        bring(things(server), tmp_path)
    assert names(tmp_path) == []
    assert len(server.asked) == 1 or message == "infinite loop"


def test_errors_of_the_server_are_tried_again_and_redirects_followed(server: web.Server, tmp_path: Path) -> None:
    server.files["elsewhere.json"] = PRODUCTS
    server.plan["things.json"] = [web.status(500), web.status(429, Retry_After="0"), web.to("elsewhere.json")]
    server.plan["things.json"] += [web.to("elsewhere.json")]
    server.plan["elsewhere.json"] = [web.cut(4_000)]
    bring(things(server), tmp_path, tries=4)
    assert server.ranges("elsewhere.json") == ["", "bytes=4000-"]
    assert (tmp_path / "things.json").read_bytes() == PRODUCTS


def test_a_known_size_alone_tells_a_file_cut_at_its_source(server: web.Server, tmp_path: Path) -> None:
    server.files["things.json"] = PRODUCTS[:-100]
    with pytest.raises(RunError, match=f"has {len(PRODUCTS) - 100:,} bytes, not {len(PRODUCTS):,}"):
        bring(things(server, sha256=""), tmp_path)
    assert names(tmp_path) == []
    with pytest.raises(RunError, match="is not whole JSON; nothing of it is kept"):
        bring(things(server, sha256="", bytes=0), tmp_path)
    assert names(tmp_path) == []


def test_another_number_of_products_is_refused_unless_asked_for(server: web.Server, tmp_path: Path) -> None:
    other = json.dumps([{"asin": "B1"}]).encode()
    server.files["things.json"] = other
    with pytest.raises(RunError, match="holds 1 entries, not 300"):
        bring(things(server, content=other), tmp_path)
    assert names(tmp_path) == []
    bring(things(server), tmp_path, verified=False)
    assert (tmp_path / "things.json").read_bytes() == other
    assert check(things(server), tmp_path).passed  # as recorded when it came


def test_trust_on_first_use(server: web.Server, tmp_path: Path) -> None:
    """Where no hash is known, the one of the first download is what later checks compare with."""
    unknown = things(server, sha256="", bytes=0)
    bring(unknown, tmp_path)
    assert "as recorded when it came" in str(check(unknown, tmp_path).verdicts[0])
    changed = PRODUCTS.replace(b"B00007", b"B99997")
    (tmp_path / "things.json").write_bytes(changed)
    found = check(unknown, tmp_path)
    assert not found.passed
    assert "changed since it was recorded" in str(found.verdicts[0])
    with pytest.raises(UserError, match="is there, and is not the file that is known or was recorded"):
        bring(unknown, tmp_path)
    assert (tmp_path / "things.json").read_bytes() == changed  # never replaced
    (tmp_path / "things.json").unlink()
    (tmp_path / "other").mkdir()
    server.plan["things.json"] = []
    bring(unknown, tmp_path)
    assert check(unknown, tmp_path).passed


def test_files_come_from_a_folder_or_a_mirror(server: web.Server, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "things.json").write_bytes(PRODUCTS)
    data = things(server)
    bring(data, tmp_path / "a", str(source))
    assert (tmp_path / "a" / "things.json").read_bytes() == PRODUCTS
    server.files["mirror/things.json"] = PRODUCTS
    bring(data, tmp_path / "b", f"{server.address}/mirror/")
    assert server.asked == [("mirror/things.json", "")]
    (source / "things.json").write_bytes(PRODUCTS[:-1] + b" ")
    with pytest.raises(RunError, match="has the SHA-256"):
        bring(data, tmp_path / "c", str(source))
    with pytest.raises(UserError, match=r"there is no file '.*things\.json'; --from names"):
        bring(data, tmp_path / "c", str(tmp_path))
    with pytest.raises(UserError, match="is neither a folder nor an address"):
        bring(data, tmp_path / "c", "nowhere")
    assert names(tmp_path / "c") == []


def test_a_full_disk_is_said_before_anything_comes(
    server: web.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))  # type: ignore[attr-defined]
    with pytest.raises(RunError, match=rf"things.json needs {len(PRODUCTS):,} bytes in .*, where 100 are free"):
        bring(things(server), tmp_path)
    assert server.asked == []


# --- archives --------------------------------------------------------------------------------------------------------


def zipped(texts: dict[str, str], *, damage: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name, text in texts.items():
            packed.writestr(name, text)
    content = buffer.getvalue()
    return content.replace(b"take pen 1", b"take pen 2") if damage else content


def archive(server: web.Server, content: bytes, counts: dict[str, int] = SPLITS) -> DataSet:
    server.files["games.zip"] = content
    digest = hashlib.sha256(content).hexdigest()
    file = RemoteFile("games.zip", f"{server.address}/games.zip", len(content), digest)
    return replace(ALFWORLD, files=(file,), counts=counts)


def test_an_archive_is_unpacked_counted_and_recorded(server: web.Server, tmp_path: Path) -> None:
    texts = pens.games(SPLITS)
    data = archive(server, zipped(texts))
    server.plan["games.zip"] = [web.cut(3_000)]
    assert bring(data, tmp_path)[-1] == "games.zip: done"
    assert names(tmp_path) == sorted([*texts, "envrl-alfworld.json"])
    assert [len(envrl.make("alfworld", data=str(tmp_path)).tasks(split)) for split in SPLITS] == [5, 2, 1, 1]
    assert bring(data, tmp_path) == ["games.zip: is here"]
    assert check(data, tmp_path).passed
    # An altered game is found out, and got anew; what else lies there stays.
    path = tmp_path / pens.name("train", 3)
    path.write_text(pens.game("other"))
    (tmp_path / "json_2.1.1" / "notes.txt").write_text("mine")
    found = check(data, tmp_path)
    assert [verdict.good for verdict in found.verdicts] == [False, True, True, True]
    bring(data, tmp_path)
    assert check(data, tmp_path).passed
    assert (tmp_path / "json_2.1.1" / "notes.txt").read_text() == "mine"
    assert path.read_text() == texts[pens.name("train", 3)]


def test_a_killed_unpacking_is_done_again(server: web.Server, tmp_path: Path) -> None:
    data = archive(server, zipped(pens.games(SPLITS)))
    half = tmp_path / ".unpacking-games.zip" / "json_2.1.1" / "train"
    half.mkdir(parents=True)
    (half / "half.txt").write_text("left by a killed process")
    (tmp_path / pens.name("train", 0)).parent.mkdir(parents=True)  # and some of it was in place already
    (tmp_path / pens.name("train", 0)).write_text(pens.games(SPLITS)[pens.name("train", 0)])
    bring(data, tmp_path)
    assert names(tmp_path) == sorted([*pens.games(SPLITS), "envrl-alfworld.json"])
    assert check(data, tmp_path).passed


def test_games_that_cannot_be_played_are_counted_apart(server: web.Server, tmp_path: Path) -> None:
    texts = pens.games(SPLITS)
    texts[pens.name("train", 9)] = pens.game("unsolvable").replace('"solvable": true', '"solvable": false')
    data = archive(server, zipped(texts))
    bring(data, tmp_path)
    found = check(data, tmp_path)
    assert found.passed
    assert "5 games, 1 more that cannot be played" in str(found.verdicts[0])


def test_games_are_put_beside_what_other_downloads_brought(server: web.Server, tmp_path: Path) -> None:
    beside = tmp_path / pens.name("train", 0)
    beside.parent.mkdir(parents=True)
    beside.with_name("traj_data.json").write_text("{}")
    data = archive(server, zipped(pens.games(SPLITS)))
    bring(data, tmp_path)
    assert check(data, tmp_path).passed
    assert beside.with_name("traj_data.json").read_text() == "{}"


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name", ["../out.txt", "/tmp/envrl-out.txt", "json_2.1.1/../../out.txt", "..\\out.txt", "C:/out"]
)
def test_nothing_is_unpacked_outside_the_folder(server: web.Server, tmp_path: Path, name: str) -> None:
    data = archive(server, zipped({**pens.games(SPLITS), name: "out"}))
    with pytest.raises(RunError, match="would land outside its folder"):
        bring(data, tmp_path / "data")
    assert names(tmp_path) == []
    assert not Path("/tmp/envrl-out.txt").exists()


def test_links_in_an_archive_are_refused(server: web.Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr(link("json_2.1.1"), "/etc")
    with pytest.raises(RunError, match=r"'json_2\.1\.1' is neither a file nor a folder"):
        bring(archive(server, buffer.getvalue()), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(pens.games(SPLITS), damage=True), "is damaged: Bad CRC-32"),
        (b"PK\x03\x04 and no more", "is damaged: File is not a zip file"),
        (zipped({"readme.txt": "no games"}), "holds 0 games in train, not 5"),
        (zipped(pens.games({**SPLITS, "train": 4})), "holds 4 games in train, not 5"),
        (zipped({**pens.games(SPLITS), pens.name("train", 1): "{"}), "holds 4 games in train, not 5"),
    ],
)
def test_an_archive_that_is_not_right_leaves_nothing(
    server: web.Server, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        bring(archive(server, content), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- the command line ------------------------------------------------------------------------------------------------


def test_list_says_where_what_and_from_where(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert f"would put it in {tmp_path / 'xdg' / 'envrl' / 'webshop'}" in said
    for data in sets.SETS.values():
        for part in (data.version, data.licence, data.page, *(file.url for file in data.files)):
            assert part in said
        assert all(file.sha256 in said and f"{file.bytes:,} bytes" in said for file in data.files)
    assert main(["data", "list", "alfworld"]) == 0
    assert "webshop" not in capsys.readouterr().out


def test_get_check_and_play_by_the_command_line(
    server: web.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into the default folder, where the world finds the games; then by the environment variable."""
    name = ALFWORLD.files[0].name
    server.files[name] = zipped(pens.games(SPLITS))
    with pytest.raises(UserError, match=r"'envrl data get alfworld'"):
        envrl.make("alfworld").tasks("train")
    assert main(["data", "check", "alfworld"]) == 2
    assert "there is no data for the world 'alfworld' in" in capsys.readouterr().err
    assert main(["data", "get", "alfworld", "--from", server.address]) == 1
    assert "has 1" in capsys.readouterr().err
    default = tmp_path / "xdg" / "envrl" / "alfworld"
    assert names(default) == []
    assert main(["data", "get", "alfworld", "--from", server.address, "--unverified"]) == 0
    assert capsys.readouterr().out == f"alfworld lies in {default}\n"
    assert len(envrl.make("alfworld").tasks("train")) == 5
    assert main(["data", "check", "alfworld"]) == 0
    assert "5 games" in capsys.readouterr().out
    elsewhere = tmp_path / "elsewhere"
    assert main(["data", "get", "alfworld", "--from", server.address, "--unverified", "--data", str(elsewhere)]) == 0
    assert f"export ALFWORLD_DATA={elsewhere}" in capsys.readouterr().out
    (elsewhere / pens.name("valid_seen", 1)).unlink()
    monkeypatch.setenv("ALFWORLD_DATA", str(elsewhere))
    assert main(["data", "check", "alfworld"]) == 1
    assert "FAIL  valid_seen" in capsys.readouterr().out
    assert main(["data", "check", "alfworld", "--record"]) == 0
    assert main(["data", "check", "alfworld"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch"], "unknown action 'fetch'"),
        (["get"], "needs the name of a data set: alfworld or webshop"),
        (["get", "alfwrld"], "unknown data set 'alfwrld'; did you mean 'alfworld'?"),
        (["get", "webshop", "--tries", "0"], "at least 1, not '0'"),
        (["get", "webshop", "--timeout", "0"], "above 0, not '0'"),
        (["get", "webshop", "--record"], "--record belongs to 'envrl data check'"),
        (["check", "webshop", "--full"], "--full belongs to 'envrl data get'"),
        (["check", "webshop", "--data", "nowhere"], "'nowhere' of the world 'webshop' does not exist"),
        (["check", "webshop", "--data", "."], "'.' holds nothing of the data set 'webshop'"),
    ],
)
def test_mistakes_are_sentences(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_came(server: web.Server, tmp_path: Path) -> None:
    server.files["items_shuffle_1000.json"] = PRODUCTS
    server.plan["items_shuffle_1000.json"] = [web.stall(30_000)]
    command = [sys.executable, "-m", "envrl", "data", "get", "webshop", "--from", server.address, "--unverified"]
    process = subprocess.Popen([*command, "--data", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    part = tmp_path / "items_shuffle_1000.json.part"
    assert server.stalling.wait(60)
    while not part.exists() or part.stat().st_size < 30_000:  # all that was sent
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == (
        f"envrl: interrupted; {tmp_path} keeps what came, and the same command goes on from there"
    )
    assert part.read_bytes() == PRODUCTS[:30_000]
    assert not (tmp_path / "items_shuffle_1000.json").exists()
    for name in ("items_ins_v2_1000.json", "items_human_ins.json"):
        server.files[name] = PRODUCTS
    assert main([*command[3:], "--data", str(tmp_path)]) == 0
    assert server.ranges("items_shuffle_1000.json") == ["", "bytes=30000-"]
    assert (tmp_path / "items_shuffle_1000.json").read_bytes() == PRODUCTS


def test_one_process_at_a_time(server: web.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path, ""):
        assert main(["data", "get", "webshop", "--from", server.address, "--data", str(tmp_path)]) == 2
    assert "another process is getting data into" in capsys.readouterr().err


def test_the_real_games_are_all_there(alfworld_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "alfworld", "--data", str(alfworld_data)]) == 0
    said = capsys.readouterr().out
    assert all(f"{count:,} games" in said for count in (3553, 140, 134, 200))


# --- worlds and runs -------------------------------------------------------------------------------------------------


def test_fingerprints_are_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    a, b = (pens.write(tmp_path / name, pens.games(SPLITS)) for name in "ab")
    (b / "json_2.1.1" / "train" / "notes.txt").write_text("no game")
    (b / pens.name("valid_seen", 0)).write_text(pens.game("other"))

    def fingerprint(folder: Path, split: str) -> str:
        return envrl.make("alfworld", data=str(folder)).fingerprint(split)  # type: ignore[attr-defined]

    assert fingerprint(a, "train") == fingerprint(b, "train") == fingerprint(b / "json_2.1.1", "train")
    assert fingerprint(a, "valid_seen") != fingerprint(b, "valid_seen")
    assert len({fingerprint(a, split) for split in SPLITS}) == 4
    lines = []
    for number in range(2):
        text = (a / pens.name("valid_seen", number)).read_bytes()
        name = pens.name("valid_seen", number).removeprefix("json_2.1.1/")
        lines.append(f"{name} {len(text)} {hashlib.sha256(text).hexdigest()}\n")
    assert fingerprint(a, "valid_seen") == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert not hasattr(envrl.make("household"), "fingerprint")


def test_a_run_remembers_its_data_and_says_when_it_is_played_on_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pens.write(tmp_path / "games", pens.games({**SPLITS, "train": 12}))
    config = tiny(
        env={"name": "alfworld", "data": str(folder), "max_steps": 5, "distractors": 1},
        model={"context": 512},
        warm_start={"held_out": 0, "demonstrations": 2, "epochs": 1},
        train={"updates": 1},
        eval={"split": ("valid_seen",), "free_episodes": 0, "probe_episodes": 0},
    )
    run = train(config, tmp_path / "run")
    world = envrl.make("alfworld", data=str(folder))
    known = {split: world.fingerprint(split) for split in ("train", "valid_seen")}  # type: ignore[attr-defined]
    assert json.loads((run / "data.json").read_text()) == {"env": "alfworld", "splits": known}
    arguments = ["eval", str(run), "--split", "valid_seen"]
    assert main(arguments) == 0
    assert "warning" not in capsys.readouterr().err
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert main([*arguments, "--data", str(moved)]) == 0
    assert "warning" not in capsys.readouterr().err
    (moved / pens.name("valid_seen", 1)).write_text(pens.game("other"))
    assert main([*arguments, "--data", str(moved)]) == 0
    said = capsys.readouterr().err
    assert said == (
        f"envrl: warning: the data of 'alfworld' is not what '{run}' was made with: other content in valid_seen\n"
    )
    # Another world is no mistake, and a split that the run does not know is compared by those that it does.
    assert main(["eval", str(run), "--env", "household", "--split", "valid_seen", "--episodes", "1"]) == 0
    assert "warning" not in capsys.readouterr().err
    (moved / pens.name("train", 1)).write_text(pens.game("other"))
    assert main(["eval", str(run), "--split", "valid_unseen", "--data", str(moved)]) == 0
    assert "other content in train, valid_seen" in capsys.readouterr().err
    # Going on with the run changes nothing in it, on the same data without, on other data with a warning.
    before = files(run)
    train(config, run, resume=True)
    shutil.copy(moved / pens.name("valid_seen", 1), folder / pens.name("valid_seen", 1))
    with pytest.warns(UserWarning, match="other content in valid_seen"):
        train(config, run, resume=True)
    assert files(run) == before
    (run / "data.json").write_text("{")
    assert main(arguments) == 2
    assert "data.json is not readable" in capsys.readouterr().err


def test_a_run_without_downloaded_data_has_no_record_of_it(tmp_path: Path) -> None:
    assert not (train(tiny(train={"updates": 0}), tmp_path / "run") / "data.json").exists()


def test_the_default_folder_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from envrl.places import default_folder

    assert default_folder("webshop") == tmp_path / "xdg" / "envrl" / "webshop"
    monkeypatch.setenv("HOME", str(tmp_path))
    for home in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", home)
        assert default_folder("webshop") == tmp_path / ".local" / "share" / "envrl" / "webshop"
    assert os.environ["HOME"] == str(tmp_path)
