"""The charts of a report. They know lines, points and bars, no result.

A text may come from a user: it is never taken for markup, and it is shortened, not wrapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multifd.bench.report.inline_svg import GRID, INK, PAPER, PARTS, SERIES, finish, sheet
from multifd.bench.report.quantity import bytes_rate, rate, seconds
from multifd.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_MARKS = "osD^vPX*"
"""Of the series, so that they can be told apart without colour; and for a legend in text:"""
GLYPHS = "●■◆▲▼✚✖★"
_LONGEST_NAME = 19  # characters beside a line's end
_LINE = 0.042  # height of a line's name as a share of the axes' height
_TENS = (10.0, 100.0, 1000.0)
_TWOS = (2.0, 4.0, 16.0, 256.0)
_MOST_TICKS = 7
Place = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A method in a chart.

    Args:
        name: as the user wrote it.
        slot: its colour and mark, the same in all charts of a page: 0 to 7.
        drawn: x and y of the line, ascending in x.
        measured: x, y, and what is said of each point.
    """

    name: str
    slot: int
    drawn: Sequence[Place]
    measured: Sequence[tuple[float, float, str]]

    def places(self) -> list[Place]:
        """All that must be inside the chart."""
        return [*self.drawn, *((x, y) for x, y, _ in self.measured)]


@dataclass(frozen=True)
class Crossing:
    """Where the best line becomes another, and what is said of it."""

    x: float
    y: float
    text: str


def time_against_link(lines: Sequence[Line], crossings: Sequence[Crossing], name: str) -> str:
    """Total time in seconds over the link's bits each second, both logarithmic.

    Args:
        lines: one for each method; at least one has a place.
        crossings: marked over the whole height.
        name: a prefix for the identifiers inside, another for each chart of a page.

    Returns:
        An ``svg`` element.
    """
    places = [place for line in lines for place in line.places()]
    left, right = _room([x for x, _ in places], 1.0)
    low, high = _room([y for _, y in places], 1.3)
    with sheet(7.6, 4.3) as figure:
        axes = figure.add_axes((0.105, 0.12, 0.67, 0.80))
        axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high), xlabel="link", ylabel="total time")
        _tick(axes.xaxis, left, right, rate)
        _tick(axes.yaxis, low, high, seconds)
        for line in lines:
            axes.plot(*_split(line.drawn), color=SERIES[line.slot], linewidth=1.8, solid_capstyle="round")
        said = _measured(axes, lines)
        _cross(axes, crossings)
        _name_ends(axes, lines)
        title = f"Total time against the link for {_names(lines)}. " + " ".join(f"{c.text}." for c in crossings)
        return finish(figure, name, title, said)


def ratio_against_speed(lines: Sequence[Line], name: str) -> str:
    """Compression ratio over bytes of guest memory each second, the latter logarithmic.

    Args:
        lines: of each method what was ``measured``.
        name: as above.
    """
    places = [place for line in lines for place in line.places()]
    left, right = _room([x for x, _ in places], 1.7)
    with sheet(4.8, 3.8) as figure:
        axes = figure.add_axes((0.10, 0.14, 0.86, 0.83))
        axes.set(xscale="log", xlim=(left, right), ylim=(0, max(y for _, y in places) * 1.18))
        axes.set(xlabel="guest memory each second", ylabel="ratio: memory / bytes on the wire")
        _tick(axes.xaxis, left, right, bytes_rate, _TWOS)
        axes.grid(axis="y")
        said = _measured(axes, lines)
        _name_points(axes, lines)
        return finish(figure, name, f"Compression ratio against speed for {_names(lines)}.", said)


def shares(rows: Sequence[tuple[str, Sequence[float]]], name: str, title: str) -> str:
    """A horizontal bar for each row, divided into at most four parts.

    Args:
        rows: a name, and shares that add up to 1.
        name: as above.
        title: what is shown, in words.
    """
    height = 0.34 * len(rows) + 0.34
    with sheet(4.8, height) as figure:
        axes = figure.add_axes((0.26, 0.28 / height, 0.69, 1 - 0.32 / height))
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [_short(label, 15) for label, _ in rows])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.spines[["left", "bottom"]].set_visible(False)
        for y, (_, parts) in enumerate(rows):
            start = 0.0
            for part, share in enumerate(parts):
                axes.barh(y, share, left=start, height=0.62, color=PARTS[part], edgecolor=PAPER, linewidth=1)
                start += share
        return finish(figure, name, title, {})


def histogram(counts: Sequence[float], end: float, name: str, title: str, label: str) -> str:
    """Shares of pages over some quantity of a page.

    Args:
        counts: shares of all pages, in equal steps from 0 to `end`.
        end: of the horizontal axis; if it is 1, the axis is in per cent.
        name, title: as above.
        label: of the horizontal axis.
    """
    with sheet(4.8, 2.1) as figure:
        axes = figure.add_axes((0.11, 0.235, 0.84, 0.73))
        axes.set(xlim=(0, end), xlabel=label, ylabel="pages")
        axes.grid(axis="y")
        step = end / len(counts)
        starts = [k * step for k in range(len(counts))]
        axes.bar(starts, counts, step, align="edge", color=PARTS[3], edgecolor=PAPER, linewidth=1)
        axes.xaxis.set_tick_params(pad=5)
        for axis in (axes.xaxis, axes.yaxis) if end == 1 else (axes.yaxis,):
            axis.set_major_formatter(lambda share, _: f"{share * 100:.3g} %")
        return finish(figure, name, title, {})


def _room(values: Iterable[float], factor: float) -> Place:
    """Limits of a logarithmic axis."""
    low, high = min(values), max(values)
    return (low / factor, high * factor) if high > low * 1.5 else (low / 2, high * 2)


def _tick(axis: Axis, low: float, high: float, words: Callable[[float], str], steps: Sequence[float] = _TENS) -> None:
    """Marks of a logarithmic axis, at most about seven: powers of one of `steps`; with few tens, 2 and 5 times them."""
    step = next((s for s in steps if math.log(high / low, s) <= _MOST_TICKS), steps[-1])
    factors = (1.0, 2.0, 5.0) if step == 10 and high / low < 200 else (1.0,)
    exponents = range(math.floor(math.log(low, step)), math.ceil(math.log(high, step)) + 1)
    marks = [f * step**e for e in exponents for f in factors if low * 0.999 <= f * step**e <= high * 1.001]
    axis.set_ticks(marks, [words(mark) for mark in marks])
    axis.set_ticks([], minor=True)
    axis.grid(True)


def _measured(axes: Axes, lines: Sequence[Line]) -> dict[str, str]:
    """Filled marks; returns the words of each by its identifier."""
    said = {}
    for line in lines:
        for number, (x, y, words) in enumerate(line.measured):
            gid = f"point-{line.slot}-{number}"
            said[gid] = words
            axes.plot(
                [x], [y], _MARKS[line.slot], color=SERIES[line.slot], markersize=7, markeredgecolor=PAPER, zorder=4,
                gid=gid, clip_on=False,
            )  # fmt: skip
    return said


def _cross(axes: Axes, crossings: Sequence[Crossing]) -> None:
    """A dotted line and a ring for each; the words stand above the chart, in as many rows as it takes."""
    taken: list[Any] = []
    for crossing in sorted(crossings, key=lambda c: -c.x):
        axes.plot([crossing.x], [crossing.y], "o", markersize=11, markerfacecolor="none", color=INK, zorder=5)
        for row in range(len(crossings)):
            words = axes.annotate(
                crossing.text, (crossing.x, 1), (3, 4 + 12 * row), ("data", "axes fraction"), "offset points",
                ha="right" if crossing.x > _middle(axes) else "left", fontweight="bold", annotation_clip=False,
            )  # fmt: skip
            extent = words.get_window_extent()
            if not any(extent.overlaps(other) for other in taken):
                taken.append(extent)
                break
            words.remove()
        axes.axvline(crossing.x, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)


def _middle(axes: Axes) -> float:
    left, right = axes.get_xlim()
    return math.sqrt(left * right)


def _name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Each line's name beside its end, pushed apart where they would lie on each other."""
    low, high = map(math.log, axes.get_ylim())
    left, right = map(math.log, axes.get_xlim())
    ends = []
    for line in lines:
        if places := line.places():
            x, y = max(places)
            ends.append(((math.log(y) - low) / (high - low), (math.log(x) - left) / (right - left), line))
    ends.sort(key=lambda end: (end[0], end[2].slot))
    heights: list[float] = []
    for at, _, _ in ends:
        heights.append(max(at, heights[-1] + _LINE) if heights else at)
    excess = max(0.0, heights[-1] - 1) if heights else 0.0
    for height, (at, across, line) in zip(heights, ends, strict=True):
        axes.annotate(
            _short(line.name), (across, at), (1.035, height - excess), "axes fraction", "axes fraction",
            va="center", color=SERIES[line.slot], fontweight="bold", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GRID, "shrinkA": 0, "shrinkB": 0, "linewidth": 0.8},
        )  # fmt: skip


def _name_points(axes: Axes, lines: Sequence[Line]) -> None:
    """Each line's name beside its points, where it covers no other name and no point; else it is in the legend."""
    taken: list[Any] = []
    for x, y in (place for line in lines for place in line.places()):
        across, up = axes.transData.transform((x, y))
        taken.append(_box(across - 5, up - 5, across + 5, up + 5))
    inside = axes.get_window_extent()
    for line in lines:
        if not (places := sorted(line.places())):
            continue
        for place, shift, side in (
            (places[-1], 9, "left"), (places[0], -9, "right"), (places[0], 9, "center"), (places[0], -9, "center"),
        ):  # fmt: skip
            name = axes.annotate(
                _short(line.name), place, (0, shift) if side == "center" else (shift, 0), textcoords="offset points",
                ha=side, va=("bottom" if shift > 0 else "top") if side == "center" else "center",
                color=SERIES[line.slot], fontweight="bold",
            )  # fmt: skip
            extent = name.get_window_extent()
            is_inside = inside.x0 <= extent.x0 and extent.x1 <= inside.x1 and extent.y1 <= inside.y1
            if is_inside and not any(extent.overlaps(other) for other in taken):
                taken.append(extent)
                break
            name.remove()


def _box(left: float, low: float, right: float, high: float) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(left, low, right, high)


def _short(text: str, longest: int = _LONGEST_NAME) -> str:
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _names(lines: Sequence[Line]) -> str:
    return ", ".join(printable(line.name) for line in lines)


def _split(places: Sequence[Place]) -> tuple[list[float], list[float]]:
    return [x for x, _ in places], [y for _, y in places]
