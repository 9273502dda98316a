"""SVG text: elements, labels and numbers as people write them; colours and fonts come from `chart.css`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

Point = tuple[float, float]


def tag(name: str, content: str = "", **attributes: str | float) -> str:
    """Return an element; `content` is markup, attribute values are escaped (`class_`, `a_b` stand for class, a-b)."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value if isinstance(value, str) else short(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def label(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> str:
    """Return text at a place, escaped."""
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, class_=class_ or "label")


def picture(width: float, height: float, content: str, name: str) -> str:
    """Return the whole drawing, scaled to the width it is given; `name` says what it shows to those who cannot see."""
    return tag(
        "svg",
        content,
        class_="chart",
        viewBox=f"0 0 {short(width)} {short(height)}",
        role="img",
        aria_label=name,
    )


def document(width: float, height: float, content: str, name: str) -> str:
    """Return a file's whole SVG: `content` on a light ground with a rim, with the charts' colours and fonts."""
    style = tag("style", files("envrl.report").joinpath("chart.css").read_text("utf-8"))
    ground = tag("rect", width=width, height=height, rx=10, style="fill:#ffffff;stroke:#e3e7eb")
    return tag(
        "svg",
        style + ground + content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {short(width)} {short(height)}",
        width=width,
        height=height,
        class_="chart",
        role="img",
        aria_label=name,
    )


def placed(chart: str, x: float, y: float, width: float, height: float) -> str:
    """Return a `picture` as a part of a document, at a place and in a size, pixels."""
    where = {"x": x, "y": y, "width": width, "height": height}
    return chart.replace("<svg ", "<svg " + "".join(f'{key}="{short(value)}" ' for key, value in where.items()), 1)


def short(value: float) -> str:
    """Return a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def percent(rate: float, digits: int = 0) -> str:
    """Return 0.742 as "74 %", with a space that does not break."""
    return f"{100 * rate:.{digits}f}\N{NO-BREAK SPACE}%"


def figure(value: float) -> str:
    """Return a number as people write it: three significant digits, thousands and millions as k and M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if size >= 1e-4 else f"{value:.1e}"


def path(points: Sequence[Point]) -> str:
    """Return the `d` of a line through pixels."""
    return "M" + "L".join(f"{short(x)} {short(y)}" for x, y in points)
