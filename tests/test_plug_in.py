"""A world in a package of its own, really built and installed, is found by the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "your-own-environment.md"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment, check=False, timeout=300
    )


def test_the_example_of_the_documentation_installs(tmp_path: Path) -> None:
    if find_spec("setuptools") is None:  # to import it here would replace this process's distutils
        pytest.skip("setuptools is not installed, and nothing is downloaded here")
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name, text in re.findall(
        r"<!-- file: (parcels.py|pyproject.toml) -->\n```\w+\n(.*?)^```", PAGE.read_text(), re.M | re.S
    ):
        (source / name).write_text(text, encoding="utf-8")
    missing = run("envrl", "check-env", "parcels")
    assert missing.returncode == 2
    assert "unknown world 'parcels'" in missing.stderr
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    installed = run("pip", "install", "--quiet", *offline, "--target", str(target), str(source))
    assert installed.returncode == 0, installed.stderr
    assert (target / "envrl_parcels-0.1.dist-info" / "entry_points.txt").is_file()
    checked = run("envrl", "check-env", "parcels", PYTHONPATH=str(target))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.endswith("parcels keeps the contract\n")
    assert (
        "60 in split 'valid'" in run("envrl", "check-env", "parcels", "--split", "valid", PYTHONPATH=str(target)).stdout
    )
