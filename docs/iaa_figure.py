"""Makes the simulated tables and the picture of the IAA pages: ``python docs/iaa_figure.py``.

Writes ``iaa-*.inc`` and ``iaa.svg`` beside itself. The simulation repeats exactly, so a second run changes nothing
unless the plugin did; the plugin's ``tests/test_prediction.py`` compares.
"""

from __future__ import annotations

from pathlib import Path

from multifd_qpl import prediction
from multifd_qpl.experiment import simulate
from multifd_qpl.published import IAA_2, IAA_4, IAA_8

HERE = Path(__file__).parent
DEVICES = range(1, 9)
CHANNELS = (2, 4, 8)
POLICIES = ("fallback", "wait")
PUBLISHED = {(row.devices, row.channels): row.total_time_ms for row in (IAA_2, IAA_4, IAA_8)}
COLOURS = {2: "#1b7837", 4: "#2166ac", 8: "#b2182b"}


def table_line(devices: int, channels: int) -> str:
    """Both policies on one machine, with RAM in proportion to the devices so that the ends of a run weigh the same."""
    fallback, wait = simulate(POLICIES, devices=devices, channels=channels, ram_bytes=(48 << 20) * devices)
    share = fallback.software_pages / (fallback.software_pages + fallback.hardware_pages)
    return (
        f"| {devices} | {channels} | {fallback.guest_ms:.0f} | {fallback.pages_per_second_mean / 1e6:.2f} "
        f"| {share:.1%} | {wait.guest_ms:.0f} | {wait.pages_per_second_mean / 1e6:.2f} "
        f"| {PUBLISHED.get((devices, channels), '')} |"
    )


def table() -> str:
    """1 to 8 devices with 2, 4 and 8 channels."""
    lines = [
        "| devices | channels | fallback: ms | M pages/s | in software | wait: ms | M pages/s | published: ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(table_line(devices, channels) for devices in DEVICES for channels in CHANNELS),
    ]
    return "\n".join(lines) + "\n"


def score() -> str:
    """Every published row beside its prediction."""
    lines = [
        "| published row | channels | devices | total ms: published | predicted | error "
        "| mbps: published | predicted | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in prediction.score():
        of = each.published
        lines.append(
            f"| {of.what} | {of.channels} | {of.devices} | {of.total_time_ms} | {each.total_time_ms:.0f} "
            f"| {each.time_error:+.1%} | {of.mbps:.0f} | {each.mbps:.0f} | {each.mbps_error:+.1%} |"
        )
    return "\n".join(lines) + "\n"


def verify() -> str:
    """What verification costs: 1 device, 4 channels, both policies."""
    lines = ["| policy | `verify=off` | `verify=on` |", "| --- | --- | --- |"]
    by_verify = [simulate(POLICIES, devices=1, channels=4, ram_bytes=48 << 20, verify=each) for each in ("off", "on")]
    for off, on in zip(*by_verify, strict=True):
        lines.append(f"| {off.policy} | {off.guest_ms:.0f} ms | {on.guest_ms:.0f} ms |")
    return "\n".join(lines) + "\n"


def _head(first: str) -> str:
    names = [f"{of.what}, {of.channels} ch." for of in prediction.SENSITIVE]
    return f"| {first} | {' | '.join(names)} |\n| --- |" + " --- |" * len(names) + "\n"


def sensitivity_line(parameter: str) -> str:
    """What 20 % of a parameter do to the predicted total times."""
    changes = prediction.sensitivity(parameter)
    return f"| `{parameter}` | " + " | ".join(f"{less:+.1%} / {more:+.1%}" for less, more in changes) + " |\n"


def rate_line(name: str) -> str:
    """The errors with a published device rate that was not taken."""
    return f"| {name} | " + " | ".join(f"{error:+.1%}" for error in prediction.errors_at(name)) + " |\n"


def picture(of_table: str) -> str:
    """Pages a second over devices: a line for each number of channels, solid fallback, dashed wait.

    Args:
        of_table: what `table` made.
    """
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in of_table.splitlines()[2:]]
    rate = {(int(c[0]), int(c[1]), policy): float(c[3 + 3 * k]) for c in cells for k, policy in enumerate(POLICIES)}

    left, top, width, height, most = 60, 20, 480, 300, 6.0

    def x(devices: float) -> float:
        return left + (devices - 1) / 7 * width

    def y(million: float) -> float:
        return top + height - million / most * height

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
            points = " ".join(f"{x(d):.1f},{y(rate[d, channels, policy]):.1f}" for d in DEVICES)
            style = f'stroke="{COLOURS[channels]}" fill="none" stroke-width="2"' + (
                ' stroke-dasharray="6 4"' if k else ""
            )
            line_y = top + 20 + 40 * i + 18 * k
            parts.append(f'<polyline points="{points}" {style}/>')
            parts.append(f'<line x1="560" x2="590" y1="{line_y}" y2="{line_y}" {style}/>')
            parts.append(f'<text x="598" y="{line_y + 4}">{channels} channels, {policy}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Make them all."""
    simulated = table()
    files = {
        "iaa-simulated.inc": simulated,
        "iaa.svg": picture(simulated),
        "iaa-score.inc": score(),
        "iaa-verify.inc": verify(),
        "iaa-sensitivity.inc": _head("parameter, 20 % less / more")
        + "".join(sensitivity_line(name) for name in prediction.PARAMETERS),
        "iaa-rates.inc": _head("rate of a device") + "".join(rate_line(name) for name in prediction.OTHER_RATES),
    }
    for name, text in files.items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
