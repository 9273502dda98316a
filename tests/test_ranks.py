"""Which of the processes that train together this one is."""

from __future__ import annotations

import pytest

from envrl import ranks


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
    ],
)
def test_a_single_process_writes_its_files_whatever_rank_it_is_given(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler may set RANK without WORLD_SIZE: a run that took that for its own wrote nothing, with status 0."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.is_first() is first
