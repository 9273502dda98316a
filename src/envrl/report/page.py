"""The page as files: what a server hands out, and the same as one file that holds a run's data.

The page is written once, in `static/`. In one file its scripts and its styles stand inline under their hashes, so that
the page runs nothing else and asks for nothing; the data are compressed and in base64, so that no text ends a tag.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from envrl.report.episode_index import EpisodeFile, Row
from envrl.report.overview import episode_rows
from envrl.report.read import write_whole
from envrl.report.store import RunStore

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
MOST_EPISODES = 3000
"""Episodes in one file, those of `trajectories/` first: a browser unpacks them all when it opens the file."""
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def static_files() -> dict[str, str]:
    """Return the texts of the page's files by name."""
    folder = files("envrl.report").joinpath("static")
    return {each.name: each.read_text("utf-8") for each in folder.iterdir() if Path(each.name).suffix in TYPES}


def write_report(run: Path) -> Path:
    """Write `report.html` of a run, also of one still going, and return its path.

    Raises `UserError` where the directory is no run or holds nothing yet, `RunError` where the disk is full.
    """
    path = run / "report.html"
    write_whole(path, one_file(report_data(RunStore(run))))
    return path


def report_data(store: RunStore) -> dict[str, Any]:
    """Return everything that the page shows of a run, with the episodes that fit one file."""
    rows = store.index.rows()
    chosen = sorted(rows, key=_said_least)[:MOST_EPISODES]
    kept = {id(row) for _, row in chosen}
    overview = store.overview()
    if len(chosen) < len(rows):
        count = f"{len(chosen)} of {len(rows)} recorded episodes are in this file"
        overview["notes"].append(f"{count}: 'envrl view {store.path.name}' shows all.")
    return {
        "label": overview["name"],
        "overview": overview,
        "episodes": episode_rows([each for each in rows if id(each[1]) in kept]),
        "read": {f"{file.name}@{row.offset}": store.episode(file.name, row.offset) for file, row in chosen},
    }


def one_file(data: dict[str, Any]) -> str:
    """Return the page with its scripts, its styles and these data, as one HTML document."""
    static = static_files()
    script, style = one_script(static), static["style.css"]
    packed = base64.b64encode(gzip.compress(json.dumps(data).encode(), mtime=0)).decode()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = static["index.html"]
    for old, new in (
        ('<meta charset="utf-8">', f'<meta charset="utf-8">\n{meta}'),
        ('<link rel="stylesheet" href="style.css">', f"<style>{style}</style>"),
        ('<script type="module" src="app.js"></script>', f'<script type="module">{script}</script>'),
        ("</body>", f'<script type="application/json" id="data">{packed}</script>\n</body>'),
    ):
        page = page.replace(old, new)
    return page


def one_script(static: dict[str, str]) -> str:
    """Return the page's modules as one script: each after those that it imports, without imports and exports."""
    done: dict[str, str] = {}

    def add(name: str) -> None:
        text = static[f"{name}.js"]
        for other in _IMPORT.findall(text):
            if other not in done:
                add(other)
        done[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    add("app")
    return "".join(done.values())


def _said_least(each: tuple[EpisodeFile, Row]) -> bool:
    return not each[0].name.startswith("trajectories/")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
