"""One long run of everything: migrations by every installed method, captures, live arenas, a relay service, strangers.

``make soak MINUTES=60``, or ``python benchmarks/soak.py --minutes 60 --svg soak.svg``. One process is source and
destination of one migration after another, by a method, channels, kind of memory and way drawn anew for each; some are
cancelled, some meet strangers on their port, some pass through a relay service that runs all the time; `soak_steps` has
them. Each is compared byte for byte. After each, the memory, descriptors, threads and files of this process and of the
relay are noted. Once it is warm, none of them may grow: a line through each says by how much it did.

Memory is what the kernel counts, so malloc is told to keep little of what is freed, as a relay service tells it.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from relay_process import DEADLINE_S
from soak_figure import Series, picture
from soak_steps import Failed, Soak

from multifd.cli import malloc

_KEPT_BYTES = 128 << 10
"""By malloc in each arena; glibc's initial value."""
WARM = 0.25
"""The share of a run before memory, descriptors and threads are judged: methods are loaded, malloc has its arenas."""
MOST = {"MiB": 4.0, "descriptors": 1.5, "threads": 1.5, "files": 0.5}
"""By how much the line may rise over the rest of the run. Between two migrations memory differs by 2 MiB or so; one
channel's buffer that leaked in each would be hundreds."""


@dataclass(frozen=True)
class Held:
    """What a process holds between two migrations."""

    mib: float
    descriptors: int
    threads: int


def held(pid: int | str) -> Held:
    """Of a process, by proc(5)."""
    folder = Path(f"/proc/{pid}")
    lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Held(int(lines["VmRSS"].split()[0]) / 1024, len(os.listdir(folder / "fd")), int(lines["Threads"]))


def soak(minutes: float, mebibytes: int, seed: int) -> tuple[list[Series], collections.Counter[str], list[str]]:
    """Run it: what was held over time, how much was done, and what went wrong, which ends it."""
    rows: list[tuple[float, ...]] = []
    problems: list[str] = []
    malloc.keep(_KEPT_BYTES)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        run = Soak(Path(name), mebibytes << 20, seed)
        start = time.monotonic()
        try:
            while (now := time.monotonic() - start) < 60 * minutes:
                run.step()
                gc.collect()  # what a circle keeps until the collector comes is no leak
                own, relay = held("self"), held(run.relay.process.pid)
                files = len(list(Path(name).iterdir()))
                rows.append(
                    (
                        now / 60,
                        own.mib,
                        own.descriptors,
                        own.threads,
                        files,
                        relay.mib,
                        relay.descriptors,
                        relay.threads,
                    )
                )
        except Failed as e:
            problems.append(str(e))
        finally:
            run.relay.process.send_signal(signal.SIGTERM)
            if status := run.relay.process.wait(2 * DEADLINE_S):
                problems.append(f"the relay ended with status {status}")
    columns = list(zip(*rows, strict=True))
    names = ["MiB", "descriptors", "threads", "files", "relay's MiB", "relay's descriptors", "relay's threads"]
    at = columns[0]
    return (
        [Series(n, at, values, *_line(at, values)) for n, values in zip(names, columns[1:], strict=True)],
        run.outcomes,
        problems,
    )


def _line(at: tuple[float, ...], values: tuple[float, ...]) -> tuple[float, float]:
    """What a line through the warm part rises by over it, and where it begins."""
    first = int(len(at) * WARM)
    if len(at) - first < 8:
        return 0.0, values[-1]
    slope, start = np.polyfit(at[first:], values[first:], 1)
    return float(slope * (at[-1] - at[first])), float(start + slope * at[first])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--mebibytes", type=int, default=8, help="of memory")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--svg", type=Path, help="where to draw it")
    arguments = parser.parse_args()
    series, outcomes, problems = soak(arguments.minutes, arguments.mebibytes, arguments.seed)
    print(json.dumps({"migrations": len(series[0].at), **dict(sorted(outcomes.items()))}))
    for one in series:
        most = MOST[one.name.removeprefix("relay's ")]
        print(
            f"{one.name}: {one.start:.1f}, over the warm part {one.rise:+.2f} (at most {most:g}), in all "
            f"{min(one.values):.1f} to {max(one.values):.1f}"
        )
        if one.rise > most:
            problems.append(f"not flat: {one.name} grew by {one.rise:.2f}")
    if arguments.svg:
        arguments.svg.write_text(picture(series, WARM))
    for problem in problems:
        print(f"wrong: {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
