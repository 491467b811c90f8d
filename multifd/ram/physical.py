"""Where a PC's RAM lies in guest-physical memory.

A block is what QEMU allocated; the machine maps it below the PCI hole and, what does not fit there, from 4 GiB on.
How much is below: by machine type and RAM size (hw/i386/pc_piix.c pc_init1, pc_q35.c pc_q35_init, microvm.c
microvm_memory_init, QEMU 7.2 and 10.0; compared at twelve sizes with their ``info mtree``), or as machine option
max-ram-below-4g says. The option is not in the stream, but the clock chip's RAM has what QEMU told the firmware
(hw/i386/pc.c pc_cmos_init): it decides where it adds up. tests/interop/test_export.py compares with QEMU itself.

Not known from a stream: that with an AMD CPU and addresses up to 1 TiB the upper part begins there
(pc_set_amd_above_4g_mem_start, 7.1 and later), and where a guest's other memory lies: DIMMs, PCI devices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from multifd.errors import RamError
from multifd.wire.dialect import release_of
from multifd.wire.stream import Block, Machine

_GIB = 1 << 30
FOUR_GIB = 4 * _GIB
_UNIT = 64 << 10  # of RAM sizes in the clock chip's RAM
_BIOS = "pc.bios"
_NEAR_1_TIB = 960 * _GIB
"""From here on RAM and 64-bit PCI holes may reach the hole that AMD CPUs have below 1 TiB."""


@dataclass(frozen=True)
class Extent:
    """A piece of a block and where it is in guest-physical memory."""

    idstr: str
    offset: int
    """Of its first byte in the block."""
    address: int
    """Guest-physical, of its first byte."""
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """Where RAM is."""

    extents: tuple[Extent, ...]
    """By rising address."""
    reason: str
    """Where that is known from."""
    firmware: tuple[Extent, ...]
    """What is mapped besides RAM, for a core that has it."""
    not_placed: tuple[str, ...]
    """Other blocks, whose address does not show."""

    @property
    def end(self) -> int:
        """The first address behind all RAM."""
        last = self.extents[-1]
        return last.address + last.nbytes


def layout(machine: Machine, cmos: bytes | None, *, below_4g: int | None = None) -> Layout:
    """Where a machine's RAM is.

    Args:
        machine: from a stream.
        cmos: the clock chip's 128 bytes, from the devices' state; None if they cannot be read.
        below_4g: bytes below the PCI hole, instead of what the machine says.

    Raises:
        RamError: the machine is not one of those known here, or its RAM cannot be told.
    """
    blocks = _ram_blocks(machine)
    total = sum(block.used_length for block in blocks)
    by_type = _below_4g_by_type(machine.name, total)
    by_cmos = _below_4g_by_cmos(cmos, total)
    if below_4g is not None:
        if not 0 < below_4g <= FOUR_GIB or below_4g % machine.page_size:
            raise RamError(f"{below_4g} bytes below 4 GiB, expected a multiple of {machine.page_size} up to {FOUR_GIB}")
        below, reason = below_4g, "as told"
    elif by_cmos is not None:
        below, reason = by_cmos, "by the clock chip's RAM"
    elif by_type is not None:
        below, reason = by_type, "by machine type and size"
    else:
        raise RamError(
            f"machine type {machine.name!r}: where its RAM lies is known only of pc-i440fx, pc-q35, isapc and microvm"
        )
    if total > _NEAR_1_TIB:
        raise RamError(f"RAM of {total} bytes may begin at 1 TiB in part, which no stream says: export blocks as raw")
    # hw/i386/x86.c x86_bios_rom_init: it ends at 4 GiB. What is below 1 MiB is in RAM once the firmware runs.
    firmware = [Extent(b.idstr, 0, FOUR_GIB - b.used_length, b.used_length) for b in machine.blocks if b.idstr == _BIOS]
    placed = {block.idstr for block in blocks} | {_BIOS}
    not_placed = tuple(block.idstr for block in machine.blocks if block.idstr not in placed)
    return Layout(tuple(_extents(blocks, below)), reason, tuple(firmware), not_placed)


def _ram_blocks(machine: Machine) -> Sequence[Block]:
    """The machine's own RAM: one block, or one of each NUMA node in their order (hw/core/numa.c)."""
    named = {block.idstr.removeprefix("/objects/"): block for block in machine.blocks}
    for name in ("pc.ram", "microvm.ram"):  # default_ram_id of the machine types
        if name in named:
            return [named[name]]
    nodes = [(int(m[1]), block) for name, block in named.items() if (m := re.fullmatch(r"ram-node(\d{1,4})", name))]
    if nodes:
        return [block for _, block in sorted(nodes, key=lambda node: node[0])]
    objects = [block for block in machine.blocks if block.idstr.startswith("/objects/")]
    if len(objects) == 1:
        return objects
    names = ", ".join(block.idstr for block in machine.blocks)
    raise RamError(f"none of the blocks shows to be the machine's RAM (pc.ram, ram-node0, ...): {names}")


def _below_4g_by_type(name: str, total: int) -> int | None:
    if name.startswith("pc-q35-"):
        return total if total < 0xB0000000 else 0x80000000
    if name == "microvm":
        return min(total, 0xC0000000)
    release = release_of(name)
    if name == "isapc" or (name.startswith("pc-i440fx-") and release is not None and release < (2, 0)):
        return min(total, 0xE0000000)
    if name.startswith("pc-i440fx-"):
        return total if total < 0xE0000000 else 0xC0000000
    return None


def _below_4g_by_cmos(cmos: bytes | None, total: int) -> int | None:
    """34h and 35h: RAM from 16 MiB to 4 GiB; 5Bh to 5Dh: RAM above. None if they do not add up."""
    if cmos is None or len(cmos) < 128:
        return None
    above_16m = int.from_bytes(cmos[0x34:0x36], "little") * _UNIT
    above_4g = int.from_bytes(cmos[0x5B:0x5E], "little") * _UNIT
    below = above_16m + (16 << 20)
    return below if above_16m and below + above_4g == total else None


def _extents(blocks: Sequence[Block], below: int) -> list[Extent]:
    """Blocks one after the other, with the step from `below` to 4 GiB."""
    out, at = [], 0
    for block in blocks:
        in_low = max(0, min(block.used_length, below - at))
        if in_low:
            out.append(Extent(block.idstr, 0, at, in_low))
        if in_low < block.used_length:
            out.append(Extent(block.idstr, in_low, FOUR_GIB + max(at - below, 0), block.used_length - in_low))
        at += block.used_length
    return out
