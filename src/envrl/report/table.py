"""A table: for the terminal, as Markdown, as LaTeX (booktabs)."""

from __future__ import annotations

from dataclasses import dataclass
from shutil import get_terminal_size

FORMATS = ("terminal", "markdown", "latex")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a header, with a title."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def written(self, form: str) -> str:
        """Return the table in one of `FORMATS`."""
        return {"terminal": self._terminal, "markdown": self._markdown, "latex": self._latex}[form]()

    def _terminal(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) > get_terminal_size((160, 24)).columns:
            return self._blocks()
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.header, *self.rows)
        ]
        return "\n".join([self.title, "", lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    def _blocks(self) -> str:
        """Return a table that is too wide for the terminal as a block of lines a row."""
        width = max(map(len, self.header))
        blocks = []
        for first, *rest in self.rows:
            cells = [f"  {name:<{width}}  {cell}" for name, cell in zip(self.header[1:], rest, strict=True)]
            blocks.append("\n".join([first, *cells]))
        return "\n\n".join([self.title, *blocks])

    def _markdown(self) -> str:
        rows = [self.header, ("---",) * len(self.header), *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(row)} |" for row in rows)])

    def _latex(self) -> str:
        lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (self.header, *self.rows)]
        columns = "l" + "r" * (len(self.header) - 1)
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_escaped(self.title)}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "\N{MINUS SIGN}": r"$-$",
    "\N{EN DASH}": "--", "…": r"\ldots{}",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
