"""What matplotlib draws, as SVG to stand inside an HTML page: no script, no font, every colour a variable of the page.

Rules of this file: it knows a figure, no result. Matplotlib is given `ROLES` for colours, and `finish` turns each into
``var(--name)``, so that light and dark are the page's affair. What the page must be able to tell apart, such as a
point with its words, has a ``gid``.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from multifd.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = [f"#0505{slot:02x}" for slot in range(8)]
"""Colours of series, as many as can be told apart by hue and mark, by colour-blind eyes too."""
PARTS = [f"#0606{part:02x}" for part in range(4)]
"""Colours of the parts of a whole."""
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
ROLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper",
    **{code: f"series-{slot}" for slot, code in enumerate(SERIES)},
    **{code: f"part-{part}" for part, code in enumerate(PARTS)},
}  # fmt: skip
"""A colour that matplotlib is given, and the page's variable that it stands for."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "multifd", "text.parse_math": False, "axes.unicode_minus": False,
    "font.family": "DejaVu Sans", "font.size": 9, "axes.labelsize": 9,
    "text.color": INK, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.edgecolor": GRID, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
}  # fmt: skip
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NOT_SHOWN = {f"{{{_SVG}}}metadata", f"{{{_SVG}}}title"}


@contextmanager
def sheet(width: float, height: float) -> Iterator[Figure]:
    """An empty figure in the page's style.

    Args:
        width, height: inches, of 96 CSS pixels at most on the page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(width, height))


def finish(figure: Figure, name: str, title: str, said: Mapping[str, str]) -> str:
    """The figure as an ``svg`` element; call it inside `sheet`.

    Args:
        figure: of `sheet`.
        name: a prefix for every identifier inside, another for each chart of a page.
        title: what a reader who cannot see it is told.
        said: words for the artists whose ``gid`` is the key, shown when the pointer rests there.
    """
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = ElementTree.fromstring(out.getvalue())
    for parent in list(svg.iter()):
        for child in [c for c in parent if c.tag in _NOT_SHOWN]:
            parent.remove(child)
    for element in svg.iter():
        words = said.get(element.get("id", ""))
        if words is not None:
            tip = ElementTree.Element(f"{{{_SVG}}}title")
            tip.text = printable(words)
            element.insert(0, tip)
        for key, value in list(element.attrib.items()):
            element.set(key, _attribute(key.rpartition("}")[2], value, name))
    label = ElementTree.Element(f"{{{_SVG}}}title", {"id": f"{name}-title"})
    label.text = printable(title)
    svg.insert(0, label)
    _, _, width, height = svg.get("viewBox", "0 0 0 0").split()
    svg.attrib.clear()
    svg.attrib.update({"viewBox": f"0 0 {width} {height}", "role": "img", "aria-labelledby": f"{name}-title"})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(svg, encoding="unicode")


def _attribute(key: str, value: str, name: str) -> str:
    """An attribute as it stands on the page: identifiers are the chart's own, colours and font are the page's."""
    match key:
        case "id":
            return f"{name}-{value}"
        case "href":
            return value.replace("#", f"#{name}-", 1)
        case "clip-path":
            return value.replace("url(#", f"url(#{name}-")
        case "style":
            value = re.sub(r"font-family: [^;]*;? ?|(?<=px) '[^;]*", "", value)
            # The shorthand of older matplotlibs, which cannot do without a family.
            value = re.sub(
                r"font: (?:(\d+) )?([\d.]+px)", lambda m: f"font-weight: {m[1] or 400}; font-size: {m[2]}", value
            )
            return re.sub(r"#0[1-6]0[1-6][0-9a-f]{2}\b", lambda m: f"var(--{ROLES[m[0]]})", value)
    return value
