"""Where the memory is to appear, and what is there afterwards: looked at with as little of multifd as there can be."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from faults.matrix import NBYTES, Plan
from faults.outcome import Outcome
from interop.mapped import read_blocks

import multifd

OLD = b"what was there before" * 1000


class Place:
    """A folder for what a migration makes, and the source's own copy of the memory.

    Args:
        plan: what it is for.
        root: a folder, empty, this trial's alone.
        source: from `faults.sources.Sources`; copied.
        memory: what is to arrive.
    """

    def __init__(self, plan: Plan, root: Path, source: Path, memory: bytes) -> None:
        self._kind, self._source_kind, self._replaces = plan.way.destination, plan.way.source, plan.replaces
        self._memory, self._original = memory, source
        self.folder = root / "place"
        """Below it calls are counted."""
        self.source, self.parent = self.folder / "source", self.folder / "dest"
        self.out, self.sidecar = self.parent / "out", self.parent / "out.sha256"
        self.scratch = root / "scratch"
        """For what a process keeps for itself."""
        self.given = root / "given"
        """For what the trial itself makes; nobody looks at it."""
        for one in (self.folder, self.parent, self.scratch, self.given):
            one.mkdir()
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, self.source)

    @property
    def address(self) -> str:
        """What a command line calls it."""
        return f"dir:{self.out}" if self._kind == "streams" else str(self.out)

    @property
    def source_address(self) -> str:
        """What a command line calls the source."""
        return f"dir:{self.source}" if self._source_kind == "streams" else str(self.source)

    def prepare(self) -> None:
        """What is there before."""
        match self._kind:
            case "arena":
                self.out.write_bytes(bytes(NBYTES))
            case "streams" if self._replaces:
                self.out.mkdir()
            case "raw" | "mapped-ram" if self._replaces:
                self.out.write_bytes(OLD)
                self.sidecar.write_text(f"{hashlib.sha256(OLD).hexdigest()}  out\n")

    def look(self, outcome: Outcome) -> None:
        """What is where."""
        outcome.source_changed = self._source_kind != "arena" and not _is_same(self.source, self._original)
        match self._kind:
            case "arena":
                outcome.is_there = self.out.read_bytes() == self._expected()
            case "qemu":
                pass  # the QEMU says it
            case _:
                outcome.is_old = self._is_old()
                if self.out.exists() and not outcome.is_old:
                    outcome.stray = self.wrong()
                    outcome.is_there = not outcome.stray
                elif self._replaces and self._kind != "streams":
                    outcome.old_digests = self._old_digests()
        outcome.leftovers = tuple(sorted(path.name for path in self._others(outcome.is_there or outcome.is_old)))

    def others(self) -> list[str]:
        """What is there besides the complete memory."""
        return [path.name for path in self._others(True) if path.parent != self.scratch]

    def _others(self, may_have_digests: bool) -> list[Path]:
        found = [*self.parent.iterdir(), *self.folder.iterdir(), *self.scratch.iterdir()]
        known = {self.out, self.parent, self.source}
        if may_have_digests:
            known.add(self.sidecar)
        return [path for path in found if path not in known]

    def _is_old(self) -> bool:
        if self._kind == "streams":
            return self._replaces and self.out.is_dir() and not list(self.out.iterdir())
        return self._replaces and self.out.exists() and self.out.read_bytes() == OLD

    def _old_digests(self) -> str:
        if not self.sidecar.exists():
            return "gone"
        return "there" if hashlib.sha256(OLD).hexdigest() in self.sidecar.read_text() else "others"

    def _expected(self) -> bytes:
        """What is to arrive: of a live source, what its memory holds now that nobody writes it any more."""
        return self.source.read_bytes() if self._source_kind == "arena" else self._memory

    def wrong(self) -> str:
        """What is wrong with what is under the final name; empty if it is the complete memory."""
        try:
            found = self._read()
        except Exception as e:
            return f"nothing that can be read: {type(e).__name__}: {e}"
        expected = self._expected()
        if found == expected:
            return self._wrong_digests()
        if len(found) != len(expected):
            return f"{len(found)} bytes, expected {len(expected)}"
        first = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        return f"other memory, from byte {first} on"

    def _read(self) -> bytes:
        match self._kind:
            case "raw":
                return self.out.read_bytes()
            case "mapped-ram":
                return read_blocks(self.out)["ram"]
            case _:
                return self._read_streams()

    def _read_streams(self) -> bytes:
        """The files are those of the manifest; what they hold is decoded by multifd, in this process."""
        said = json.loads((self.out / "manifest.json").read_bytes())["multifd_streams"]["files"]
        there = {path.name: path.read_bytes() for path in self.out.iterdir() if path.name != "manifest.json"}
        assert {name: hashlib.sha256(data).hexdigest() for name, data in there.items()} == {
            name: entry["sha256"] for name, entry in said.items()
        }
        memory = bytearray(NBYTES)
        multifd.receive(f"dir:{self.out}", memory)
        return bytes(memory)

    def _wrong_digests(self) -> str:
        """What is wrong with the digests beside a file, if there are any; empty if nothing."""
        if self._kind == "streams" or not self.sidecar.exists():
            return ""
        said, found = self.sidecar.read_text().split()[0], hashlib.sha256(self.out.read_bytes()).hexdigest()
        return "" if said == found else "a complete file, and digests of another one beside it"


def _is_same(one: Path, other: Path) -> bool:
    if not other.is_dir():
        return one.read_bytes() == other.read_bytes()
    names = {path.name for path in one.iterdir()} | {path.name for path in other.iterdir()}
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
