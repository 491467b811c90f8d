"""Exports of real guests against QEMU's own dump-guest-memory, byte for byte, and RAM's places against info mtree."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from interop.guest import Guest
from interop.qemu import Qemu

from multifd.ram import physical
from multifd.ram.export import export
from multifd.wire.stream import Block, Machine


def store(machine: Qemu, path: Path) -> None:
    """The stopped machine's state in a file, without multifd: mapped-ram where QEMU has it, else a plain stream."""
    if machine.release.version >= (9, 0):
        machine.set({"mapped-ram": True})
        machine("migrate", uri=f"file:{path}")
    else:
        machine.set({})
        machine("migrate", uri=f"exec:cat > {path}")
    machine.wait_migrated()


def segments(path: Path) -> tuple[dict[int, bytes], bytes]:
    """Memory by physical address and the notes, of an ELF core."""
    data, memory, notes = path.read_bytes(), {}, b""
    (start,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    for at in range(start, start + size * count, size):
        kind, _, offset, _, address, nbytes = struct.unpack_from("<IIQQQQ", data, at)
        if kind == 1:
            memory[address] = data[offset : offset + nbytes]
        else:
            notes = data[offset : offset + nbytes]
    return memory, notes


@pytest.mark.parametrize("below_4g", [None, 20], ids=["below", "below-and-above"])
@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("release", ["system", "newer"])
def test_as_qemus_own_dump(start, tmp_path, release, machine, below_4g):
    """RAM below and above 4 GiB, with the step between them where a small guest has it too."""
    option = ("-M", f"max-ram-below-4g={below_4g}M") if below_4g else ()
    source = start("source", release, machine, Guest(), arguments=("-smp", "2", *option))
    source("stop")
    source("dump-guest-memory", paging=False, protocol=f"file:{tmp_path}/own")
    store(source, tmp_path / "stored")
    done = export(tmp_path / "stored", tmp_path / "core", format="elf")
    own, own_notes = segments(tmp_path / "own")
    ours, our_notes = segments(tmp_path / "core")
    assert ours == own
    assert (physical.FOUR_GIB in ours) == (below_4g is not None)
    # QEMU writes registers as of a CPU of 32 bits for a guest that is not in long mode: those are not compared here.
    qemus = our_notes.index(b"QEMU\0")
    assert our_notes[qemus:] == own_notes[own_notes.index(b"QEMU\0") :]
    assert done.cpus == 2

    export(tmp_path / "stored", tmp_path / "physical", format="physical")
    with (tmp_path / "physical").open("rb") as file:
        for address, memory in own.items():
            if address != physical.FOUR_GIB - (256 << 10):  # the firmware, which is no RAM
                file.seek(address)
                assert file.read(len(memory)) == memory


RANGE = re.compile(r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio [^)]*\): pc\.ram(?: @([0-9a-f]+))?", re.MULTILINE)
TYPES = {
    "pc": "pc-i440fx-7.2",
    "q35": "pc-q35-7.2",
    "microvm": "microvm",
    "pc-i440fx-1.7": "pc-i440fx-1.7",
    "isapc": "isapc",
}


@pytest.mark.parametrize("mib", [2816, 3584, 5120])
@pytest.mark.parametrize(
    ("release", "machine"),
    [*(("system", machine) for machine in TYPES), *(("newer", machine) for machine in ("pc", "q35", "microvm"))],
)
def test_where_ram_lies(qemu, release, machine, mib):
    """By machine type and size, around the sizes at which it changes."""
    text = qemu("machine", mib, release, machine=machine)("human-monitor-command", command_line="info mtree -f")
    (view,) = re.findall(r"Root memory region: system\n(.*?)\n\n", text.replace("\r", ""), re.DOTALL)
    places = [(int(a, 16), int(b, 16) + 1, int(c or "0", 16)) for a, b, c in RANGE.findall(view)]
    layout = physical.layout(Machine(TYPES[machine], 4096, (Block("pc.ram", mib << 20),)), None)
    for first, end, offset in places:
        assert any(
            extent.address <= first and end <= extent.address + extent.nbytes
            and offset - extent.offset == first - extent.address
            for extent in layout.extents
        )  # fmt: skip
    assert max(end for _, end, _ in places) == layout.end
    assert max(end for _, end, _ in places if end <= physical.FOUR_GIB) == layout.extents[0].nbytes
