"""What all pictures that matplotlib draws look like."""

from __future__ import annotations

from typing import Any

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b", "#7f7f7f", "#bcbd22",
    "#17becf",
)  # fmt: skip
"""The first seven are Okabe and Ito's, which people who do not see all colours can tell apart."""
STYLE: Any = {
    "axes.spines.right": False, "axes.spines.top": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9,
    "legend.frameon": False, "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "envrl", "savefig.dpi": 200,
    "savefig.facecolor": "white", "text.parse_math": False,
}  # fmt: skip
DATES: dict[str, Any] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""By a file's ending, what leaves the date out, so that equal pictures are equal files."""
PICTURES = (".svg", ".pdf", ".png")
