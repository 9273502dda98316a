"""`envrl export RUN DIR`: a run's model as a folder that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser


def run(arguments: Sequence[str]) -> int:
    """Write the model of a run's latest checkpoint, or of the checkpoint that is named, into a new folder."""
    parser = Parser("export", "Write a run's model as a folder that transformers loads; a LoRA adapter is merged.")
    parser.add_argument("run", metavar="RUN", help="a run (its latest checkpoint), or a checkpoint")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder to make")
    parser.add_argument(
        "--model.path", dest="base", default="", metavar="NAME", help="the base of a LoRA run, where it was moved"
    )
    options = parser.parse(arguments)

    from envrl.eval.export import export_model

    export_model(options.run, options.folder, options.base)
    return 0
