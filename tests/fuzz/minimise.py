"""The corpus that travels with the source, of what the fuzzer has gathered: ``python -m tests.fuzz.minimise [TARGET]``.

Of a target's inputs in ``build/fuzz`` those are taken that take a step in Python code which the seeds and the inputs
before them do not: the shortest first, as long as there is room. Inputs that found something, ``found-...``, stay.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from tests.fuzz import driver
from tests.fuzz.campaign import OUT

MOST_BYTES = 3 << 10
"""Of a target's part, beside what found something."""

Step = tuple[str, int, int]
"""A file, a line, and the line that came after it."""


def steps(target: ModuleType, data: bytes) -> set[Step]:
    """What a run of an input does in multifd and its plugins; empty if it fails."""
    seen: set[Step] = set()
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if not any(f"/{package}" in code.co_filename for package in driver.PACKAGES):
            return None
        seen.add((code.co_filename, last.get(frame, 0), frame.f_lineno))
        last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        target.run(data)
    except Exception:
        return set()
    finally:
        sys.settrace(None)
    return seen


def kept(folder: Path) -> list[Path]:
    """The inputs of a part of the corpus that may go."""
    return [path for path in folder.glob("*") if not path.name.startswith("found-")]


def minimise(name: str) -> tuple[int, int]:
    """Choose a target's part of the corpus anew; how many inputs, and how many bytes they have."""
    target, folder = driver.load(name), driver.CORPUS / name
    gathered = {path.read_bytes() for path in [*(OUT / name).glob("*"), *kept(folder)]}
    gathered = {data for data in gathered if len(data) <= driver.longest(target)}
    known: set[Step] = set()
    for data in [*target.seeds(), *(path.read_bytes() for path in folder.glob("found-*"))]:
        steps(target, data)  # what happens only once happens here
        known |= steps(target, data)
    chosen: list[bytes] = []
    for data in sorted(gathered, key=lambda data: (len(data), data)):
        if sum(map(len, chosen)) + len(data) <= MOST_BYTES and (new := steps(target, data) - known):
            known |= new
            chosen.append(data)
    for path in kept(folder):
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for data in chosen:
        (folder / hashlib.sha1(data).hexdigest()[:12]).write_bytes(data)
    return len(chosen), sum(map(len, chosen))


def main(names: list[str]) -> None:
    """Each target in a process of its own."""
    for name in names:
        subprocess.run([sys.executable, "-m", "tests.fuzz.minimise", name], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(sys.argv[1], *minimise(sys.argv[1]))
    else:
        main(driver.names())
