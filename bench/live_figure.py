"""The picture that ``bench/live.py curve --svg`` draws."""

from __future__ import annotations

from collections.abc import Callable

COLOURS = {"none": "#2166ac", "zstd": "#b2182b", "zlib": "#1b7837"}
Point = tuple[float, float, float | None, int]
"""Dirty rate in MiB/s, total seconds, downtime in ms (None: refused), rounds."""


def picture(found: dict[str, list[tuple[int, Point]]], mib: int, limit_s: float) -> str:
    """Two panels over the dirty rate; a cross is a refusal."""
    most = max(rate for points in found.values() for rate, _ in points)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 360" font-family="sans-serif" font-size="12">',
        "<title>Total time and downtime of a live migration against the dirty rate</title>",
        '<rect width="720" height="360" fill="white"/>',
    ]
    panels: list[tuple[int, str, Callable[[Point], float | None], float]] = [
        (60, "total time, s", lambda p: p[1], max(p[1] for points in found.values() for _, p in points)),
        (420, "downtime, ms", lambda p: p[2], limit_s * 1e3 * 1.2),
    ]
    for left, label, value, top in panels:
        width, height, above = 270, 230, 30

        def x(rate: float, left: int = left, width: int = width) -> float:
            return left + rate / most * width

        def y(v: float, top: float = top, above: int = above, height: int = height) -> float:
            return above + height - min(v / top, 1.0) * height

        step = next(s for s in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if top / s <= 8)
        for k in range(int(top / step) + 1):
            parts.append(
                f'<line x1="{left}" x2="{left + width}" y1="{y(k * step):.1f}" y2="{y(k * step):.1f}" stroke="#ddd"/>'
            )
            parts.append(f'<text x="{left - 8}" y="{y(k * step) + 4:.1f}" text-anchor="end">{k * step:g}</text>')
        for k in range(5):
            rate = most * k / 4
            parts.append(f'<text x="{x(rate):.1f}" y="{above + height + 18}" text-anchor="middle">{rate:.0f}</text>')
        parts.append(
            f'<text x="{left + width / 2}" y="{above + height + 38}" text-anchor="middle">pages written, MiB/s</text>'
        )
        parts.append(f'<text x="{left}" y="{above - 12}">{label}</text>')
        if label.startswith("downtime"):
            line = y(limit_s * 1e3)
            parts.append(
                f'<line x1="{left}" x2="{left + width}" y1="{line:.1f}" y2="{line:.1f}" stroke="#888" '
                'stroke-dasharray="4 4"/>'
            )
            parts.append(f'<text x="{left + width}" y="{line - 5:.1f}" text-anchor="end" fill="#666">limit</text>')
        for spec, points in found.items():
            colour = COLOURS.get(spec, "#444")
            good = [(x(rate), y(v)) for rate, p in points if p[2] is not None and (v := value(p)) is not None]
            line_points = " ".join(f"{a:.1f},{b:.1f}" for a, b in good)
            parts.append(f'<polyline points="{line_points}" stroke="{colour}" fill="none" stroke-width="2"/>')
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in good]
            for rate, p in points:
                if p[2] is None:
                    a, b = x(rate), y(value(p) or top)
                    parts.append(
                        f'<path d="M{a - 4:.1f} {b - 4:.1f}l8 8m-8 0l8 -8" stroke="{colour}" stroke-width="2"/>'
                    )
    for k, spec in enumerate(found):
        parts.append(f'<rect x="{60 + 90 * k}" y="332" width="12" height="12" fill="{COLOURS.get(spec, "#444")}"/>')
        parts.append(f'<text x="{78 + 90 * k}" y="342">{spec}</text>')
    parts.append(
        f'<text x="260" y="342">{mib} MiB over loopback, 2 channels; a cross: refused, the source ran on</text>'
    )
    return "\n".join([*parts, "</svg>", ""])
