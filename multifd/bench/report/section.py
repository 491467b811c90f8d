"""What a report says of one source on one machine: the verdict, the charts and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multifd.bench.job import Row
from multifd.bench.report import charts
from multifd.bench.report.crossover import Best, Curve, ranking, span
from multifd.bench.report.group import Document, Group, median
from multifd.bench.report.quantity import about, bytes_rate, digits, nbytes, rate, seconds

_STEPS = 160
"""Of a line, each a hundredth of a decade or two."""
_KINDS = ("zero", "same", "repeated", "other")
_KIND_WORDS = ("zero", "all bytes equal", "repeated", "other")
_MOST_BLOCKS = 6


def section(group: Group, slots: Mapping[str, int], anchor: str) -> dict[str, Any]:
    """The values that the template shows.

    Args:
        group: with at least one run, which may have failed.
        slots: of the methods that have a colour.
        anchor: the section's identifier, and the prefix of those inside.
    """
    curves = group.curves()
    drawn = [curve for curve in curves if curve.name in slots]
    low, high = span(curves) if curves else (0.0, 0.0)
    best = ranking(curves, low, high) if curves else []
    return {
        "anchor": anchor,
        "source": group.source["id"],
        "machine": group.machine["id"],
        "verdict": _verdict(best, curves),
        "about": _about(group),
        "failures": [failure(run) for run in group.failures()],
        "legend": [{"slot": slots[c.name], "mark": charts.GLYPHS[slots[c.name]], "name": c.name} for c in drawn],
        "time": _time(group, drawn, best, slots, anchor, low, high) if drawn else None,
        "time_caption": _time_caption(curves, drawn),
        "ratio": _ratio(group, drawn, slots, anchor) if drawn else None,
        "anatomy": _anatomy(group.source["anatomy"], anchor),
        "table": _table(group),
        "codec": [_codec(rate) for rate in group.codec],
    }


def _verdict(best: Sequence[Best], curves: Sequence[Curve]) -> str:
    """The page in a sentence."""
    if not best:
        return "No migration succeeded."
    if len(curves) == 1:
        return f"Only {best[0].name} was measured."
    if len(best) == 1:
        return f"{best[0].name} is fastest at every link from {rate(best[0].low)} to {rate(best[0].high)}."
    first, *middle, last = best
    parts = [f"{first.name} is fastest up to {about(first.high)}", *(f"{b.name} up to {about(b.high)}" for b in middle)]
    return f"{', '.join(parts)}, {last.name} above."


def _about(group: Group) -> str:
    machine, source = group.machine, group.source
    channels = sorted({run.channels for run in group.runs})
    most = max(row["runs"] for row in group.rows()) if group.rows() else 0
    return (
        f"{source['id']} ({source['format']}, {nbytes(source['ram_bytes'])}) on {machine['id']}, "
        f"{machine['cpus']} CPUs of {machine['cpu']} for both ends; {' or '.join(map(str, channels))} channels; "
        f"up to {most} runs of each."
    )


def failure(run: Row) -> str:
    """A run that has no figures, in words."""
    link = "" if run.link_bits_per_s is None else f" at {rate(run.link_bits_per_s)}"
    return f"{run.method}, {run.channels} channels{link}, run {run.run}: {run.error}"


def _time(
    group: Group, curves: Sequence[Curve], best: Sequence[Best], slots: Mapping[str, int], anchor: str, low: float,
    high: float,
) -> Any:  # fmt: skip
    lines = []
    for curve in curves:
        links = [low * (high / low) ** (k / _STEPS) for k in range(_STEPS + 1)]
        places = [(link, curve.seconds(link)) for link in links if curve.covers(link)]
        points = []
        for link in sorted(curve.at):
            row = group.best(curve.name, link)
            if row is not None:
                points.append((link, curve.at[link], f"{_point(row)} at {rate(link)}"))
        lines.append(charts.Line(curve.name, slots[curve.name], places, points))
    fastest = {curve.name: curve for curve in curves}
    crossings = [
        charts.Crossing(b.low, fastest[b.name].seconds(b.low), f"{b.name} from {about(b.low)}")
        for b in best[1:]
        if b.name in fastest
    ]
    return _markup(charts.time_against_link(lines, crossings, f"{anchor}-time"))


def _time_caption(curves: Sequence[Curve], drawn: Sequence[Curve]) -> str:
    words = []
    if any(curve.at for curve in curves):
        words.append("A filled mark was measured, with the number of channels that was fastest there.")
    if any(curve.free_s is not None for curve in curves):
        words.append(
            "A line is calculated, and goes through the marks: the bytes on the wire over the link, or the time that "
            "was measured without a limit if that is longer."
        )
    else:
        words.append("Nothing was measured without a limit, so a line ends where the marks do.")
    words.append(
        "Both scales are logarithmic. A ring is where another method becomes the fastest; one that is nowhere 5 % "
        "faster than the others is not named."
    )
    missing = [curve.name for curve in curves if curve not in drawn]
    if missing:
        words.append(f"Only in the table: {', '.join(missing)}.")
    return " ".join(words)


def _ratio(group: Group, curves: Sequence[Curve], slots: Mapping[str, int], anchor: str) -> Any:
    lines = []
    for curve in curves:
        row = max((r for r in group.rows() if r["method"] == curve.name), key=median("ram_bytes_per_s"))
        place = median("ram_bytes_per_s")(row), median("ratio")(row)
        lines.append(charts.Line(curve.name, slots[curve.name], [], [(*place, _point(row))]))
    return _markup(charts.ratio_against_speed(lines, f"{anchor}-ratio"))


def _point(row: Document) -> str:
    """What a mark says when the pointer rests on it."""
    return (
        f"{row['method']}, {row['channels']} channels: {seconds(median('total_time_ms')(row) / 1e3)}, "
        f"{bytes_rate(median('ram_bytes_per_s')(row))}, ratio {digits(median('ratio')(row))}"
    )


def _anatomy(anatomy: Document | None, anchor: str) -> dict[str, Any] | None:
    if anatomy is None or not anatomy["total"]["read_pages"]:
        return None
    blocks = sorted((b for b in anatomy["blocks"] if b["read_pages"]), key=lambda b: -b["pages"])
    rows = [("all", anatomy["total"]), *((b["idstr"], b) for b in blocks[:_MOST_BLOCKS] if len(blocks) > 1)]
    bars = [(name, [pages[kind] / pages["read_pages"] for kind in _KINDS]) for name, pages in rows]
    total, sample = anatomy["total"], anatomy["sample"]
    left_out = f" {len(blocks) - _MOST_BLOCKS} smaller blocks are not shown." if len(blocks) > _MOST_BLOCKS else ""
    error = f" Shares are right to {sample['error'] * 100:.2g} points." if sample["error"] else ""
    return {
        "parts": list(enumerate(_KIND_WORDS)),
        "kinds": _markup(charts.shares(bars, f"{anchor}-kinds", _kinds_in_words(bars))),
        "sizes": _histogram(
            total["compressed"], 1.0, f"{anchor}-sizes", f"compressed length of a page ({anatomy['codec']})"
        ),
        "entropy": _histogram(total["entropy"], 8.0, f"{anchor}-entropy", "entropy of a page, bits a byte"),
        "caption": (
            f"{sample['read_pages']} of {sample['of_pages']} pages were read, {sample['pages']} of them compressed; "
            f"those of equal bytes are not in the histograms.{error}{left_out}"
        ),
    }


def _kinds_in_words(bars: Sequence[tuple[str, Sequence[float]]]) -> str:
    shares = (f"{share * 100:.0f} % {kind}" for kind, share in zip(_KIND_WORDS, bars[0][1], strict=True))
    return f"Kinds of pages: {', '.join(shares)}."


def _histogram(counts: Sequence[int], end: float, name: str, label: str) -> Any:
    if not (total := sum(counts)):
        return None
    return _markup(charts.histogram([count / total for count in counts], end, name, f"Pages by {label}.", label))


def _table(group: Group) -> list[dict[str, Any]]:
    """Rows by link, ascending, without a limit last; the fastest first."""
    links = sorted({row["link_bits_per_s"] for row in group.rows()}, key=lambda link: (link is None, link))
    return [
        {
            "link": "no limit" if link is None else rate(link),
            "lines": [
                _cells(row, is_best=number == 0)
                for number, row in enumerate(
                    sorted((r for r in group.rows() if r["link_bits_per_s"] == link), key=median("total_time_ms"))
                )
            ],
        }
        for link in links
    ]


def _cells(row: Document, *, is_best: bool) -> dict[str, Any]:
    def of(name: str) -> float:
        return median(name)(row)

    total = row["figures"]["total_time_ms"]
    return {
        "is_best": is_best,
        "method": row["method"],
        "channels": row["channels"],
        "total": seconds(of("total_time_ms") / 1e3),
        "spread": f"({seconds(total['low'] / 1e3)} to {seconds(total['high'] / 1e3)})" if row["runs"] > 1 else "",
        "downtime": seconds(of("downtime_ms") / 1e3),
        "speed": bytes_rate(of("ram_bytes_per_s")),
        "pages": f"{of('pages_per_second'):,.0f}",
        "wire": nbytes(of("transferred_bytes")),
        "ratio": digits(of("ratio")),
        "cpu": f"{of('source_cpu_s'):.2f} + {of('destination_cpu_s'):.2f} s",
        "peak": nbytes(max(of("source_peak_bytes"), of("destination_peak_bytes"))),
        "count": f"{row['runs']} of {row['runs'] + row['failed']}" if row["failed"] else str(row["runs"]),
    }


def _codec(rate: Document) -> dict[str, Any]:
    return {
        "method": rate["method"],
        "compress": bytes_rate(rate["compress_bytes_per_s"]),
        "decompress": bytes_rate(rate["decompress_bytes_per_s"]),
        "ratio": digits(rate["ratio"]),
        "pages": rate["pages"],
    }


def _markup(svg: str) -> Any:
    """Markup that is ours: the charts escape what came from elsewhere."""
    from markupsafe import Markup

    return Markup(svg)
