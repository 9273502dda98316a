"""No circle of files: what a file imports, inside a function or for a type checker alone included, never leads back."""

from __future__ import annotations

import pytest


def test_no_file_imports_one_that_imports_it() -> None:
    grimp = pytest.importorskip("grimp", reason="import-linter is not installed")
    networkx = pytest.importorskip("networkx", reason="networkx is not installed")
    imports = grimp.build_graph("envrl", cache_dir=None)
    files = networkx.DiGraph(
        (one, other) for one in imports.modules for other in imports.find_modules_directly_imported_by(one)
    )
    assert files.has_edge("envrl.rollout.own", "envrl.rollout.own_sampler"), "imports inside functions count"
    assert [sorted(circle) for circle in networkx.strongly_connected_components(files) if len(circle) > 1] == []
