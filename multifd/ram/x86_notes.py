"""Notes of an ELF core about x86-64 CPUs, from the cpu sections of the devices' state.

NT_PRSTATUS is what gdb, crash and drgn read registers from: Linux's struct elf_prstatus, of x86-64
(include/uapi/linux/elfcore.h, arch/x86/include/asm/elf.h). The note named QEMU is what crash and drgn find the page
tables by: QEMUCPUState (target/i386/arch_dump.c of QEMU). Both are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from multifd.wire import vmstate
from multifd.wire.vmstate import Field, Section

_PRSTATUS = struct.Struct("<32xI76x27Q8x")  # pr_pid, then pr_reg; pr_fpvalid is 0
_QEMU = struct.Struct("<2I18Q" + 10 * "4IQ" + "6Q")
_QEMU_VERSION = 1
_NT_PRSTATUS = 1
# Order of env.segs, target/i386/cpu.h
_ES, _CS, _SS, _DS, _FS, _GS = range(6)
_SEGMENT = struct.Struct(">IQII")  # selector, base, limit, flags: vmstate_segment of target/i386/machine.c
_FIELDS = {
    "env.regs": 8 * 16, "env.eip": 8, "env.eflags": 8, "env.segs": 20 * 6, "env.ldt": 20, "env.tr": 20, "env.gdt": 20,
    "env.idt": 20, "env.cr[0]": 8, "env.cr[2]": 8, "env.cr[3]": 8, "env.cr[4]": 8, "env.kernelgsbase": 8,
}  # fmt: skip
"""Fields and their bytes, without which a section is not read; ``i386`` targets have shorter ones."""
_REGISTER = 8  # bytes of an element of those that are no segments


@dataclass(frozen=True)
class Note:
    """A note of an ELF core."""

    name: bytes
    kind: int
    data: bytes

    def encode(self) -> bytes:
        """Header, name and data, both padded to 4 bytes."""
        name = self.name + b"\0"
        header = struct.pack("<III", len(name), len(self.data), self.kind)
        return header + name.ljust(-(-len(name) // 4) * 4, b"\0") + self.data.ljust(-(-len(self.data) // 4) * 4, b"\0")


def cpu_sections(state: bytes, description: Mapping[str, Any]) -> list[Section]:
    """The sections of x86-64 CPUs that can be read, in the order of their instances."""
    found = (s for s in vmstate.sections(state, description, "cpu") if _is_readable(s.fields))
    return sorted(found, key=lambda section: section.instance)


def cpu_notes(cpus: list[Section]) -> Iterator[Note]:
    """The notes of each CPU: first all NT_PRSTATUS, then all of QEMU, as QEMU's own dump has them."""
    for number, cpu in enumerate(cpus):
        yield Note(b"CORE", _NT_PRSTATUS, _prstatus(cpu.fields, number + 1))
    for cpu in cpus:
        yield Note(b"QEMU", 0, _qemu(cpu.fields))


def _is_readable(fields: Mapping[str, Field]) -> bool:
    has_all = all(name in fields and len(fields[name].data) == nbytes for name, nbytes in _FIELDS.items())
    return has_all and all(fields[name].size == _REGISTER for name, nbytes in _FIELDS.items() if nbytes % _SEGMENT.size)


def _segments(fields: Mapping[str, Field], name: str) -> list[tuple[int, int, int, int]]:
    return list(_SEGMENT.iter_unpack(fields[name].data))


def _prstatus(fields: Mapping[str, Field], pid: int) -> bytes:
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 = fields["env.regs"].numbers()
    segs = _segments(fields, "env.segs")
    rip, flags = fields["env.eip"].number, fields["env.eflags"].number
    orig_rax = 0
    return _PRSTATUS.pack(
        pid, r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, segs[_CS][0],
        flags, rsp, segs[_SS][0], segs[_FS][1], segs[_GS][1], segs[_DS][0], segs[_ES][0], segs[_FS][0], segs[_GS][0],
    )  # fmt: skip


def _qemu(fields: Mapping[str, Field]) -> bytes:
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, *others = fields["env.regs"].numbers()
    segs = _segments(fields, "env.segs")
    tables = [_segments(fields, f"env.{name}")[0] for name in ("ldt", "tr", "gdt", "idt")]
    in_order = [segs[i] for i in (_CS, _DS, _ES, _FS, _GS, _SS)] + tables
    numbers = [n for selector, base, limit, flags in in_order for n in (selector, limit, flags, 0, base)]
    cr0, cr2, cr3, cr4 = (fields[f"env.cr[{i}]"].number for i in (0, 2, 3, 4))
    return _QEMU.pack(
        _QEMU_VERSION, _QEMU.size, rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, *others, fields["env.eip"].number,
        fields["env.eflags"].number, *numbers, cr0, 0, cr2, cr3, cr4, fields["env.kernelgsbase"].number,
    )  # fmt: skip
