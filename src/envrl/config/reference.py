"""Generate `docs/recipes.md` from the schema and the recipes: `python -m envrl.config.reference > docs/recipes.md`."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files

from envrl.config.keys import COMMON, KEYS, SECTIONS, Key, describe
from envrl.config.quick import LARGEST
from envrl.config.recipes_index import recipe_names, recipe_summary
from envrl.config.values import show
from envrl.registry import KINDS, find

_INTRODUCTION = """\
# Recipes

<!-- Made from src/envrl/config/ by `make docs`; edit the comments there. -->

A recipe is a TOML file. `envrl train RECIPE` takes a file, or the name of one of those that ship:

{recipes}

`envrl recipes NAME` prints one with every key. A recipe may build on another by `extends = "name or file"` at its top
and set only what differs. On the command line `--section.key value` sets a key after the recipe; a list is written
`a,b`. A key that does not exist, a value of another type and a value out of its range are refused.

`seed` stands at the top, before the first section: {seed}. So does `quick`, which `envrl train RECIPE --quick` sets: it
lowers the settings below to a run that shows in about a minute that everything works, with a language model of 135
million parameters on one core; what the command line sets beside it is left alone. Its figures mean nothing: `envrl
compare` refuses it beside other runs, and the report says so.

{quick}
"""


_COMMON = {
    "auxiliary": """\
What every auxiliary objective can be told, in RL by `[auxiliary.NAME]` and in the warm start by
`[warm_start.auxiliary.NAME]`; one without a weight is off. Ours are `state` (rows that ask for the next observation),
`inverse` (rows that ask for the command between two observations), and `echo` (the next observation in the policy's own
rows); `docs/extend.md` adds one. The warm start counts its optimiser steps where updates are counted here.

""",
    "reward": """\
What every reward beside the world's can be told; one without a weight is off. Ours are `inverse`
(`docs/algorithms/inverse-reward.md`) and `overlong` (`docs/algorithms/dapo.md`); `docs/extend.md` adds one.

""",
    "regularizer": """\
What every regularizer of the policy's tokens can be told; one without a weight is off. Ours is `epo`, a band for the
entropy (`docs/algorithms/epo.md`); `docs/extend.md` adds one.

""",
    "teacher": """\
What every teacher of the policy's own tokens can be told; one without a weight is off. Ours are `distill`, a model in a
folder (`docs/algorithms/distillation.md`), and `sdpo`, the policy itself that was told how an attempt failed
(`docs/algorithms/sdpo.md`); `docs/extend.md` adds one.

""",
}

_HEAD = "| key | value | default | meaning |\n|---|---|---|---|\n"


def recipe_reference() -> str:
    """Return `docs/recipes.md`: the built-in recipes, and every key with its type, range, default and meaning."""
    recipes = "\n".join(f"- `{name}`: {recipe_summary(name)}" for name in recipe_names())
    lowered = ", ".join(f"`{name}` {largest}" for name, largest in LARGEST.items())
    parts = [_INTRODUCTION.format(recipes=recipes, seed=describe(KEYS["seed"].annotation), quick=lowered)]
    meanings = _meanings()
    for section in SECTIONS:
        title, text, keys = f"[{section}]", "", [key for name, key in KEYS.items() if name.startswith(f"{section}.")]
        if section in COMMON:
            title, text = f"[{section}.NAME]", _COMMON[section]
            keys = [replace(key, name=f"{section}.NAME.{name}") for name, key in COMMON[section].items()]
        rows = "\n".join(_row(key, meanings.get(key.name.replace(".NAME", ""), "")) for key in keys)
        parts.append(f"## `{title}`\n\n{text}{_HEAD}{rows}\n")
        chosen = [(kind, name) for kind, of in KINDS.items() if of.tables[0] == section for name in of.built_in]
        parts += [_owned(section, kind, name) for kind, name in chosen if find(kind, name).settings]
    return "\n".join(parts)


def _owned(section: str, kind: str, name: str) -> str:
    """Return the table of a registered thing's settings."""
    entry = find(kind, name)
    shared = [
        (
            replace(COMMON[kind][key], name=f"{section}.{name}.{key}", default=value),
            "as for all, with another default",
        )
        for key, value in entry.traits.get("defaults", {}).items()
    ]
    keys = [(Key(f"{section}.{name}.{s.name}", s.annotation, s.default), s.meaning) for s in entry.settings.values()]
    keys = [*shared, *keys]
    rows = "\n".join(_row(key, meaning) for key, meaning in keys)
    chosen_by = f': with `{KINDS[kind].key} = "{name}"`' if KINDS[kind].key else ", besides"
    written = name if name.replace("_", "").replace("-", "").isalnum() else f'"{name}"'  # as TOML wants it
    return f"### `[{section}.{written}]`{chosen_by}\n\n{_HEAD}{rows}\n"


def _row(key: Key, meaning: str) -> str:
    cells = (f"`{key.name}`", describe(key.annotation), f"`{show(key.default)}`", meaning)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _meanings() -> dict[str, str]:
    """Return the comment behind each key of the schema, by dotted key."""
    meanings: dict[str, str] = {}
    prefix = ""
    for line in (files("envrl.config") / "schema.py").read_text(encoding="utf-8").splitlines():
        if section := re.match(r"class (\w+)Config:", line):
            prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", section[1]).lower() + "."
        elif key := re.match(r"    (\w+): .*?  # (.*)", line):
            meanings[prefix + key[1]] = key[2]
    return meanings


if __name__ == "__main__":
    print(recipe_reference(), end="")
