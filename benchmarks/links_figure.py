"""Makes the tables and the picture of links that the documentation has: ``python benchmarks/links_figure.py``.

Of docs/links.json, which ``benchmarks/links.py --json`` wrote, it makes ``links.inc``, ``links-changing.inc`` and
``links.svg`` beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from links_row import AUTO, NONE, Row

DOCS = Path(__file__).parent.parent / "docs"
IMAGES = ("real", "mixed")
"""A panel of the picture each."""
COLOURS = {NONE: "#2166ac", AUTO: "#b2182b"}
GREYS = ("#c8c8c8", "#b0b0b0", "#989898", "#808080", "#686868", "#505050")
"""Of the fixed levels, ascending."""
ABOVE, WIDTH, HEIGHT = 30, 240, 260
LEFTS = (60, 360)


def rows(path: Path) -> list[Row]:
    """What was measured."""
    return [Row(**row) for row in json.loads(path.read_text())]


def _level(way: str) -> str:
    return way.rpartition("=")[2]


def _cell(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"


def constant_table(found: Iterable[Row]) -> str:
    """Links of one rate: seconds, and the ratios that are promised."""
    lines = [
        "| link | image | MiB | channels | `none` | best fixed level | its time | `auto` | / best fixed | / `none` |",
        "|---" * 10 + "|",
    ]
    for row in found:
        if not row.is_changing:
            lines.append(
                f"| {row.link} | {row.image} | {row.mib} | {row.channels} | {_cell(row.time_s.get(NONE))} "
                f"| {_level(row.best_fixed)} | {_cell(row.time_s[row.best_fixed])} | {_cell(row.time_s.get(AUTO))} "
                f"| {_cell(row.auto_to(row.best_fixed))} | {_cell(row.auto_to(NONE))} |"
            )
    return "\n".join(lines) + "\n"


def changing_table(found: Iterable[Row]) -> str:
    """Links that change: seconds by every way that was tried."""
    changing = [row for row in found if row.is_changing]
    ways = sorted({way for row in changing for way in row.time_s if way != AUTO}, key=_ascending)
    names = [f"`{NONE}`" if way == NONE else _level(way) for way in ways]
    lines = [
        f"| link | image | MiB | {' | '.join(names)} | `auto` | / best fixed |",
        "|---" * (5 + len(ways)) + "|",
    ]
    for row in changing:
        cells = " | ".join(_cell(row.time_s.get(way)) for way in [*ways, AUTO])
        lines.append(f"| {row.link} | {row.image} | {row.mib} | {cells} | {_cell(row.auto_to(row.best_fixed))} |")
    return "\n".join(lines) + "\n"


def _ascending(way: str) -> float:
    return -math.inf if way == NONE else float(_level(way))


def picture(found: Iterable[Row]) -> str:
    """Seconds for a GiB over the link's rate, both logarithmic: a panel for each image."""
    panels = {
        image: [row for row in found if row.image == image and not row.is_changing and row.channels == 2]
        for image in IMAGES
    }
    shown = [row for panel in panels.values() for row in panel]
    times = [time_s * 1024 / row.mib for row in shown for time_s in row.time_s.values()]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    rates = [row.measured_bits_per_s for row in shown]
    slowest, fastest = math.log10(min(rates)), math.log10(max(rates))
    fixed = sorted({way for row in shown for way in row.time_s if way not in (AUTO, NONE)}, key=_ascending)
    ways = [*fixed, NONE, AUTO]
    colours = {**dict(zip(fixed, GREYS, strict=False)), **COLOURS}

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 350" font-family="sans-serif" font-size="12">',
        "<title>Seconds for a GiB of memory against the link's rate: fixed levels, none, and auto</title>",
        '<rect width="720" height="350" fill="white"/>',
    ]
    for left, (image, panel) in zip(LEFTS, panels.items(), strict=True):

        def x(row: Row, left: int = left) -> float:
            return left + (math.log10(row.measured_bits_per_s) - slowest) / (fastest - slowest) * WIDTH

        def y(seconds: float) -> float:
            return ABOVE + HEIGHT - (math.log10(seconds) - low) / (high - low) * HEIGHT

        parts.append(f'<text x="{left}" y="{ABOVE - 12}">{image} image: seconds for a GiB</text>')
        for mark in [k * 10.0**e for e in range(low, high) for k in (1, 2, 5)] + [10.0**high]:
            parts.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 8}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>')
        for k, row in enumerate(panel):
            foot = ABOVE + HEIGHT + (18 if k % 2 == 0 else 32)
            parts.append(f'<text x="{x(row):.1f}" y="{foot}" text-anchor="middle">{row.link}</text>')
        for way in ways:
            points = [(x(row), y(row.time_s[way] * 1024 / row.mib)) for row in panel if way in row.time_s]
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in sorted(points))
            width = 2.5 if way in COLOURS else 1.2
            style = f'stroke="{colours.get(way, "#444")}" stroke-width="{width}"'
            parts.append(f'<polyline points="{line}" {style} fill="none"/>')
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colours.get(way, "#444")}"/>' for a, b in points
            ]
    for k, way in enumerate(reversed(ways)):
        parts.append(f'<rect x="618" y="{ABOVE + 20 * k}" width="12" height="12" fill="{colours.get(way, "#444")}"/>')
        parts.append(f'<text x="636" y="{ABOVE + 10 + 20 * k}">{_level(way)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Make them all."""
    found = rows(DOCS / "links.json")
    (DOCS / "links.inc").write_text(constant_table(found))
    (DOCS / "links-changing.inc").write_text(changing_table(found))
    (DOCS / "links.svg").write_text(picture(found))


if __name__ == "__main__":
    main()
