"""Makes the simulated table and the picture of the IAA page: ``python docs/iaa_figure.py``.

Writes ``iaa-simulated.inc`` and ``iaa.svg`` beside itself. The simulation repeats exactly, so a second run
changes nothing unless the plugin did.
"""

from __future__ import annotations

from pathlib import Path

from multifd_qpl.experiment import Row, simulate

HERE = Path(__file__).parent
DEVICES = range(1, 9)
CHANNELS = (2, 4, 8)
POLICIES = ("fallback", "wait")
LETTER_PAGES = 15.23e6  # the guest of the QPL v8 cover letter, see multifd_qpl.simulator.Machine
PUBLISHED_MS = {(4, 2): 7330, (4, 4): 5219, (4, 8): 5250}  # the letter's rows of IAA, no bandwidth limit
COLOURS = {2: "#1b7837", 4: "#2166ac", 8: "#b2182b"}


def rows() -> dict[tuple[int, int, str], Row]:
    """Every case, with RAM in proportion to the devices so that the ends of a run weigh the same."""
    return {
        (devices, channels, policy): simulate(
            [policy], devices=devices, channels=channels, ram_bytes=(48 << 20) * devices
        )[0]
        for devices in DEVICES
        for channels in CHANNELS
        for policy in POLICIES
    }


def total_ms(row: Row) -> float:
    """The time of the letter's guest at this row's rate."""
    return LETTER_PAGES / row.pages_per_second_mean * 1e3


def table(found: dict[tuple[int, int, str], Row]) -> str:
    lines = [
        "| devices | channels | fallback: ms | M pages/s | in software | wait: ms | M pages/s | published: ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for devices in DEVICES:
        for channels in CHANNELS:
            fallback, wait = (found[devices, channels, policy] for policy in POLICIES)
            share = fallback.software_pages / (fallback.software_pages + fallback.hardware_pages)
            lines.append(
                f"| {devices} | {channels} | {total_ms(fallback):.0f} | {fallback.pages_per_second_mean / 1e6:.2f} "
                f"| {share:.1%} | {total_ms(wait):.0f} | {wait.pages_per_second_mean / 1e6:.2f} "
                f"| {PUBLISHED_MS.get((devices, channels), '')} |"
            )
    return "\n".join(lines) + "\n"


def picture(found: dict[tuple[int, int, str], Row]) -> str:
    """Pages a second over devices: a line for each number of channels, solid fallback, dashed wait."""
    left, top, width, height, most = 60, 20, 480, 300, 6.0

    def x(devices: float) -> float:
        return left + (devices - 1) / 7 * width

    def y(rate: float) -> float:
        return top + height - rate / most * height

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 380" font-family="sans-serif" font-size="12">',
        "<title>Simulated: million pages a second by 1 to 8 IAA devices</title>",
        '<rect width="720" height="380" fill="white"/>',
    ]
    for tick in range(int(most) + 1):
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 10}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    for devices in DEVICES:
        parts.append(f'<text x="{x(devices):.1f}" y="{top + height + 18}" text-anchor="middle">{devices}</text>')
    parts.append(
        f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">IAA devices (simulated)</text>'
    )
    parts.append(
        f'<text transform="translate(14 {top + height / 2}) rotate(-90)" text-anchor="middle">million pages/s</text>'
    )
    for i, channels in enumerate(CHANNELS):
        for k, policy in enumerate(POLICIES):
            points = " ".join(
                f"{x(d):.1f},{y(found[d, channels, policy].pages_per_second_mean / 1e6):.1f}" for d in DEVICES
            )
            style = f'stroke="{COLOURS[channels]}" fill="none" stroke-width="2"' + (
                ' stroke-dasharray="6 4"' if k else ""
            )
            line_y = top + 20 + 40 * i + 18 * k
            parts.append(f'<polyline points="{points}" {style}/>')
            parts.append(f'<line x1="560" x2="590" y1="{line_y}" y2="{line_y}" {style}/>')
            parts.append(f'<text x="598" y="{line_y + 4}">{channels} channels, {policy}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    found = rows()
    (HERE / "iaa-simulated.inc").write_text(table(found))
    (HERE / "iaa.svg").write_text(picture(found))


if __name__ == "__main__":
    main()
