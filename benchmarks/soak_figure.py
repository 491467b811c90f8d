"""The picture that ``benchmarks/soak.py --svg`` draws: a small diagram for each thing that must not grow."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH, HEIGHT, GAP, ACROSS = 200, 90, 50, 4
COLOUR, LINE = "#2166ac", "#b2182b"


@dataclass(frozen=True)
class Series:
    """What was held over time.

    Args:
        name: of what.
        at: minutes.
        values: then.
        rise: of a line through the warm part, over it.
        start: where that line begins.
    """

    name: str
    at: tuple[float, ...]
    values: tuple[float, ...]
    rise: float
    start: float


def picture(series: list[Series], warm: float) -> str:
    """All of them, over minutes.

    Args:
        series: of one run.
        warm: the share of it before the lines begin.
    """
    down = -(-len(series) // ACROSS)
    width, height = GAP + ACROSS * (WIDTH + GAP), 30 + down * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        "<title>What a long run holds after each migration</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, one in enumerate(series):
        parts += _panel(one, warm, GAP + i % ACROSS * (WIDTH + GAP), 30 + i // ACROSS * (HEIGHT + GAP))
    return "\n".join([*parts, "</svg>", ""])


def _panel(one: Series, warm: float, left: int, above: int) -> list[str]:
    top, end = max(*one.values, 1.0) * 1.1, one.at[-1]

    def point(minutes: float, value: float) -> str:
        return f"{left + minutes / end * WIDTH:.1f},{above + HEIGHT - value / top * HEIGHT:.1f}"

    step = max(1, len(one.at) // 400)
    dots = " ".join(point(a, v) for a, v in list(zip(one.at, one.values, strict=True))[::step])
    first = one.at[int(len(one.at) * warm)]
    foot, line = above + HEIGHT, f"{point(first, one.start)} {point(end, one.start + one.rise)}"
    return [
        f'<text x="{left}" y="{above - 6}">{one.name}: {one.rise:+.2f}</text>',
        f'<path d="M{left} {above}V{foot}H{left + WIDTH}" stroke="#999" fill="none"/>',
        f'<text x="{left - 4}" y="{above + 8}" text-anchor="end">{top:.0f}</text>',
        f'<text x="{left - 4}" y="{foot}" text-anchor="end">0</text>',
        f'<text x="{left + WIDTH}" y="{foot + 14}" text-anchor="end">{end:.0f} min</text>',
        f'<polyline points="{dots}" stroke="{COLOUR}" fill="none"/>',
        f'<polyline points="{line}" stroke="{LINE}" fill="none"/>',
    ]
