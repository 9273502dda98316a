"""`envrl doctor [RECIPE]`: what is installed and found; whether a recipe fits, its hours, what to change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from envrl.cli.arguments import Parser, add_plugin, check_output, split_overrides, whole_number
from envrl.cli.installed import Finding, findings
from envrl.cli.launch import check_count
from envrl.config.check import check_processes
from envrl.config.keys import KEYS
from envrl.config.load import load_recipe
from envrl.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Say what is installed and found, or what a recipe needs; status 1 where something is missing or too small."""
    parser = Parser(
        "doctor",
        "What is installed and found; with a recipe, whether it fits, its hours, and what to change.",
        usage="[RECIPE] [--section.key value ...] [--processes N] [--json FILE]",
        epilog="--section.key value sets a key of the recipe, as for 'envrl train'",
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a TOML file, or the name of a recipe that ships")
    add_plugin(parser)
    parser.add_argument("--accelerators", metavar="FILE", type=Path, help="a table of accelerators of your own")
    parser.add_argument(
        "--processes", metavar="N", type=whole_number, help="each on a device of its own (docs/scale.md)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all findings to this file")
    overrides, rest = split_overrides(arguments, KEYS)
    values = parser.parse(rest, also=[f"--{key}" for key in KEYS])
    if values.json is not None:
        check_output(values.json, "--json", ".json")
    if values.recipe is None:
        for name, value in (*overrides, ("accelerators", values.accelerators), ("processes", values.processes)):
            if value is not None:
                raise UserError(f"--{name} is about a recipe; name one: envrl doctor RECIPE --{name} {value}")
        found = list(findings())
        print("\n".join(sections(found)))
        return _finish(found, {}, values.json)

    from envrl.cli.judged import judge

    if values.processes is not None:
        check_count(values.processes)
        if "train.engine" not in dict(overrides):
            overrides = [*overrides, ("train.engine", "sharded")]
    config = load_recipe(values.recipe, overrides, values.plugin)
    check_processes(config, values.processes or 1)
    judged = judge(config, values.accelerators, values.processes or 1)
    print("\n".join([*sections(judged.findings), *judged.lines]))
    return _finish(judged.findings, judged.record, values.json)


def sections(found: Iterable[Finding]) -> list[str]:
    """Return findings as lines, each section under its name."""
    lines: list[str] = []
    section = ""
    for finding in found:
        if finding.section != section:
            lines += [finding.section] if not section else ["", finding.section]
            section = finding.section
        lines.append(str(finding))
    return lines


def _finish(found: Sequence[Finding], record: dict[str, Any], file: Path | None) -> int:
    """Write the findings where asked for; return the exit status."""
    failed = [finding for finding in found if finding.good is False]
    if file is not None:
        from envrl.files import write_json

        parts = [{"section": f.section, "name": f.name, "good": f.good, "detail": f.detail} for f in found]
        write_json(file, {"good": not failed, "findings": parts, **record})
    print()
    if failed:
        print(f"{len(failed)} thing{'s' * (len(failed) != 1)} to mend: {', '.join(f.name for f in failed)}")
    else:
        print("nothing to mend")
    return 1 if failed else 0
