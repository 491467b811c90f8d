"""The picture that ``benchmarks/live.py curve --svg`` draws."""

from __future__ import annotations

import math
from collections.abc import Callable

COLOURS = {"none": "#2166ac", "zstd": "#b2182b", "zlib": "#1b7837"}
ABOVE, WIDTH, HEIGHT = 30, 270, 230
Point = tuple[float, float, float | None, int]
"""Dirty rate in MiB/s, total seconds, downtime in ms (None: refused), rounds."""


def picture(found: dict[str, list[tuple[int, Point]]], mib: int, limit_s: float) -> str:
    """Two panels over the dirty rate: total time on a logarithmic scale, and downtime. A cross is a refusal."""
    most = max(rate for points in found.values() for rate, _ in points)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 360" font-family="sans-serif" font-size="12">',
        "<title>Total time and downtime of a live migration against the dirty rate</title>",
        '<rect width="720" height="360" fill="white"/>',
    ]
    seconds = [p[1] for points in found.values() for _, p in points]
    low, high = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))

    def share(seconds: float) -> float:
        return (math.log10(seconds) - low) / (high - low)

    marks = [k * 10.0**e for e in range(low, high) for k in (1, 2, 5)] + [10.0**high]
    logarithmic = [(share(mark), f"{mark:g}") for mark in marks]
    parts += _panel(60, "total time, s (logarithmic)", most, found, lambda p: share(p[1]), logarithmic)
    top = limit_s * 1.2
    ticks = [(k * limit_s / 6 / top, f"{k * limit_s / 6 * 1e3:.0f}") for k in range(8)]
    parts += _panel(
        420, "downtime, ms", most, found, lambda p: 1.0 if p[2] is None else min(p[2] / top / 1e3, 1.0), ticks
    )
    line = ABOVE + HEIGHT - limit_s / top * HEIGHT
    parts.append(
        f'<line x1="420" x2="{420 + WIDTH}" y1="{line:.1f}" y2="{line:.1f}" stroke="#666" stroke-dasharray="4 4"/>'
        f'<text x="{420 + WIDTH}" y="{line - 5:.1f}" text-anchor="end" fill="#666">limit</text>'
    )
    for k, spec in enumerate(found):
        parts.append(f'<rect x="{60 + 90 * k}" y="332" width="12" height="12" fill="{COLOURS.get(spec, "#444")}"/>')
        parts.append(f'<text x="{78 + 90 * k}" y="342">{spec}</text>')
    parts.append(
        f'<text x="260" y="342">{mib} MiB over loopback, 2 channels; a cross: refused, the source ran on</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    left: int, label: str, most: float, found: dict[str, list[tuple[int, Point]]], height_of: Callable[[Point], float],
    ticks: list[tuple[float, str]],
) -> list[str]:  # fmt: skip
    """One diagram; `height_of` and the ticks are shares of its height."""

    def x(rate: float) -> float:
        return left + rate / most * WIDTH

    def y(share: float) -> float:
        return ABOVE + HEIGHT - share * HEIGHT

    parts = [f'<text x="{left}" y="{ABOVE - 12}">{label}</text>']
    for share, text in ticks:
        parts.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{text}</text>')
    for k in range(5):
        at, foot = most * k / 4, ABOVE + HEIGHT + 18
        parts.append(f'<text x="{x(at):.1f}" y="{foot}" text-anchor="middle">{at:.0f}</text>')
    middle = left + WIDTH / 2
    parts.append(f'<text x="{middle}" y="{ABOVE + HEIGHT + 38}" text-anchor="middle">pages written, MiB/s</text>')
    for spec, points in found.items():
        colour = COLOURS.get(spec, "#444")
        good = [(x(rate), y(height_of(p))) for rate, p in points if p[2] is not None]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in good)
        parts.append(f'<polyline points="{line}" stroke="{colour}" fill="none" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in good]
        for a, b in ((x(rate), y(height_of(p))) for rate, p in points if p[2] is None):
            parts.append(f'<path d="M{a - 4:.1f} {b - 4:.1f}l8 8m-8 0l8 -8" stroke="{colour}" stroke-width="2"/>')
    return parts
