"""`envrl export RUN DIR`: a run's model as a folder that transformers loads, or its episodes for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser
from envrl.errors import UserError, suggest


def run(arguments: Sequence[str]) -> int:
    """Write the model of a run or of a checkpoint, or the episodes of a run, into a new folder."""
    parser = Parser("export", "Write a run's model as a folder that transformers loads, or its recorded episodes.")
    parser.add_argument("run", metavar="RUN", help="a run (its latest checkpoint), or a checkpoint")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder to make")
    parser.add_argument(
        "--as",
        dest="form",
        default="model",
        metavar="FORM",
        help="'model' (the default; a LoRA adapter is merged); or the episodes: 'jsonl' with its schema, 'datasets' "
        "for Hugging Face's load_dataset, 'inspect' for Inspect's viewer",
    )
    parser.add_argument(
        "--model.path", dest="base", default="", metavar="NAME", help="the base of a LoRA run, where it was moved"
    )
    options = parser.parse(arguments)
    if options.form == "model":
        from envrl.eval.export import export_model

        export_model(options.run, options.folder, options.base)
        return 0

    from envrl.report.exports import EXPORTS

    if options.form not in EXPORTS:
        raise UserError(f"--as {options.form} is no form of an export{suggest(options.form, ['model', *EXPORTS])}")
    if options.base:
        raise UserError("--model.path is for the model, and episodes have none: leave it out")
    count = EXPORTS[options.form](Path(options.run), options.folder)
    print(f"{count} episodes in {options.folder}")
    return 0
