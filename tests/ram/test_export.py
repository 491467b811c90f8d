"""Exports against readers written here: where RAM lies, ELF cores with notes, LiME, and what is said where not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from conftest import make_image
from device_state import Device, build_state, clock, cpu
from mapped_files import MIB, PAGE, build
from plain_files import build_plain

from multifd.errors import RamError, UsageError
from multifd.ram import physical
from multifd.ram.export import export
from multifd.ram.physical import FOUR_GIB, Extent
from multifd.wire.stream import Block, Machine

GIB = 1 << 30
LOW, HIGH = 17 * MIB, 2 * MIB
RAM = make_image(60, 11).ljust(LOW - 30 * PAGE, b"\0") + make_image(90, 12).ljust(HIGH + 30 * PAGE, b"\0")
BIOS = make_image(16, 5)
BLOCKS = [(b"pc.ram", RAM), (b"vga.vram", bytes(PAGE)), (b"pc.bios", BIOS)]
STATE = build_state([clock(LOW, HIGH), cpu(0), cpu(1)])
VMCOREINFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vm.ram"
    path.write_bytes(build(BLOCKS, machine=b"pc-i440fx-7.2", devices=STATE))
    return path


def loads(path: Path) -> tuple[dict[int, bytes], list[tuple[bytes, int, bytes]]]:
    """Memory by physical address, and the notes, of an ELF core."""
    data = path.read_bytes()
    assert data[:7] == b"\x7fELF\2\1\1"
    assert struct.unpack_from("<HHI", data, 16) == (4, 62, 1)
    (start,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    memory, notes = {}, []
    for at in range(start, start + size * count, size):
        kind, _, offset, virtual, address, nbytes, in_memory, _ = struct.unpack_from("<IIQQQQQQ", data, at)
        part = data[offset : offset + nbytes]
        assert len(part) == nbytes
        if kind == 1:
            assert (virtual, in_memory) == (address, nbytes)
            memory[address] = part
        else:
            assert kind == 4
            position = 0
            while position < len(part):
                name_bytes, note_bytes, note_kind = struct.unpack_from("<III", part, position)
                name = part[position + 12 : position + 12 + name_bytes]
                position += 12 + -(-name_bytes // 4) * 4
                notes.append((name, note_kind, part[position : position + note_bytes]))
                position += -(-note_bytes // 4) * 4
    return memory, notes


def in_bytes(name: str) -> Device:
    """A CPU one of whose fields is described as so many bytes instead of registers."""
    return Device("cpu", 0, [(n, 1 if n == name else size, data) for n, size, data in cpu().fields])


class TestElf:
    def test_memory(self, path, tmp_path):
        done = export(path, tmp_path / "core", format="elf")
        memory, _ = loads(tmp_path / "core")
        assert memory == {0: RAM[:LOW], FOUR_GIB - len(BIOS): BIOS, FOUR_GIB: RAM[LOW:]}
        assert done.cpus == 2
        assert not done.has_vmcoreinfo
        assert any("vga.vram" in remark for remark in done.remarks)
        present = sum(b.present_pages for b in done.blocks)
        assert (tmp_path / "core").stat().st_blocks * 512 <= present * PAGE + 4 * PAGE

    def test_notes(self, path, tmp_path):
        export(path, tmp_path / "core", format="elf")
        _, notes = loads(tmp_path / "core")
        assert [(name, kind, len(data)) for name, kind, data in notes] == [
            (b"CORE\0", 1, 336), (b"CORE\0", 1, 336), (b"QEMU\0", 0, 440), (b"QEMU\0", 0, 440),
        ]  # fmt: skip
        for i, n in enumerate((0x100, 0x200)):
            (pid,) = struct.unpack_from("<I", notes[i][2], 32)
            registers = struct.unpack_from("<27Q", notes[i][2], 112)
            ax, cx, dx, bx, sp, bp, si, di = range(n, n + 8)
            assert pid == i + 1
            assert registers == (
                n + 15, n + 14, n + 13, n + 12, bp, bx, n + 11, n + 10, n + 9, n + 8, ax, cx, dx, si, di, 0, n + 0x20,
                n + 1, n + 0x21, sp, n + 2, n + 0x14, n + 0x15, n + 3, n, n + 4, n + 5,
            )  # fmt: skip
            qemu = notes[2 + i][2]
            assert struct.unpack_from("<2I18Q", qemu) == (
                1, 440, ax, bx, cx, dx, si, di, sp, bp, *range(n + 8, n + 16), n + 0x20, n + 0x21,
            )  # fmt: skip
            selectors = [struct.unpack_from("<4IQ", qemu, 152 + 24 * k) for k in range(10)]
            assert [s[0] - n for s in selectors] == [1, 3, 0, 4, 5, 2, 0x40, 0x41, 0x42, 0x43]
            assert selectors[0] == (n + 1, 0xFFFF, 0x9300, 0, n + 0x11)
            assert struct.unpack_from("<6Q", qemu, 392) == (n + 0x30, 0, n + 0x32, n + 0x33, n + 0x34, n + 0x50)

    @pytest.mark.parametrize("at", [0, 3 * PAGE, LOW, LOW + HIGH - PAGE])
    def test_vmcoreinfo(self, tmp_path, at):
        note = struct.pack("<III", 11, len(VMCOREINFO), 0) + b"VMCOREINFO\0\0" + VMCOREINFO
        ram = RAM[:at] + note.ljust(PAGE, b"\0") + RAM[at + PAGE :]
        (tmp_path / "f").write_bytes(build_plain([(b"pc.ram", ram)], devices=STATE))
        done = export(tmp_path / "f", tmp_path / "core", format="elf")
        _, notes = loads(tmp_path / "core")
        assert done.has_vmcoreinfo
        assert notes[-1] == (b"VMCOREINFO\0", 0, VMCOREINFO)

    @pytest.mark.parametrize(
        "note",
        [
            struct.pack("<III", 11, 20, 0) + b"VMCOREINFO\0\0" + b"nothing of a kernel",
            struct.pack("<III", 11, 20, 1) + b"VMCOREINFO\0\0" + VMCOREINFO,
            struct.pack("<III", 11, 20, 0) + b"VMCOREINFI\0\0" + VMCOREINFO,
        ],
    )
    def test_what_is_no_vmcoreinfo(self, tmp_path, note):
        (tmp_path / "f").write_bytes(
            build_plain([(b"pc.ram", note.ljust(PAGE, b"\0") + bytes(LOW + HIGH - PAGE))], devices=STATE)
        )
        assert not export(tmp_path / "f", tmp_path / "core", format="elf").has_vmcoreinfo

    @pytest.mark.parametrize(
        ("devices", "remark"),
        [
            ([clock(LOW, HIGH), cpu(0), Device("cpu", 1, [("env.regs", 4, bytes(32))])], "registers of 1 of 2 CPUs"),
            ([clock(LOW, HIGH), in_bytes("env.regs")], "registers of 0 of 1 CPUs"),
            ([clock(LOW, HIGH), in_bytes("env.eip")], "registers of 0 of 1 CPUs"),
            ([clock(LOW, HIGH)], "the devices' state does not tell its CPUs"),
        ],
    )
    def test_cpus_that_do_not_read(self, tmp_path, devices, remark):
        (tmp_path / "f").write_bytes(build_plain(BLOCKS, devices=build_state(devices)))
        done = export(tmp_path / "f", tmp_path / "core", format="elf")
        assert any(remark in said for said in done.remarks)
        assert loads(tmp_path / "core")[0][0] == RAM[:LOW]


class TestOthers:
    def test_physical(self, path, tmp_path):
        export(path, tmp_path / "out", format="physical")
        with (tmp_path / "out").open("rb") as file:
            assert file.read(LOW) == RAM[:LOW]
            file.seek(FOUR_GIB)
            assert file.read() == RAM[LOW:]
        assert (tmp_path / "out").stat().st_blocks * 512 < 2 * len(RAM)

    def test_lime(self, path, tmp_path):
        export(path, tmp_path / "out", format="lime")
        data, at, ranges = (tmp_path / "out").read_bytes(), 0, {}
        while at < len(data):
            magic, version, first, last = struct.unpack_from("<IIQQ8x", data, at)
            assert (magic, version) == (0x4C694D45, 1)
            ranges[first] = data[at + 32 : at + 32 + last - first + 1]
            at += 32 + last - first + 1
        assert ranges == {0: RAM[:LOW], FOUR_GIB: RAM[LOW:]}

    def test_raw_says_that_it_is_not_physical(self, path, tmp_path):
        done = export(path, tmp_path / "out", "pc.ram")
        assert (tmp_path / "out").read_bytes() == RAM
        assert done.extents == (Extent("pc.ram", 0, 0, LOW), Extent("pc.ram", LOW, FOUR_GIB, HIGH))
        (remark,) = done.remarks
        assert f"byte {LOW:#x} of the block is at guest-physical 0x100000000" in remark

    def test_raw_of_other_machines(self, tmp_path):
        (tmp_path / "f").write_bytes(build([(b"ram", RAM[:PAGE])], machine=b"none"))
        done = export(tmp_path / "f", tmp_path / "out")
        assert (done.extents, done.remarks) == ((), ())

    @pytest.mark.parametrize("format", ["physical", "elf", "lime"])
    def test_refused(self, path, tmp_path, format):
        with pytest.raises(UsageError, match="a block is named for raw only"):
            export(path, tmp_path / "out", "pc.ram", format=format)
        (tmp_path / "f").write_bytes(build([(b"mach-virt.ram", RAM[:PAGE])], machine=b"virt-9.0"))
        with pytest.raises(RamError, match="none of the blocks shows to be the machine's RAM"):
            export(tmp_path / "f", tmp_path / "out", format=format)
        (tmp_path / "f").write_bytes(path.read_bytes()[:-1])
        with pytest.raises(RamError, match="does not end"):
            export(tmp_path / "f", tmp_path / "out", format=format)
        assert not (tmp_path / "out").exists()

    def test_no_such_format(self, path, tmp_path):
        with pytest.raises(UsageError, match="expected raw, physical, elf or lime"):
            export(path, tmp_path / "out", format="qcow2")

    def test_command_line(self, cli, path, tmp_path):
        out, _ = cli("export", path, tmp_path / "core", "--format", "elf").wait()
        assert "pc.ram from 0x1100000 on is at 0x100000000 to 0x1001fffff" in out
        assert "registers of 2 CPUs, without VMCOREINFO" in out
        told = cli("export", path, tmp_path / "out", "--format", "physical", "--below-4g", "18M", "--json").json()
        assert [e["nbytes"] for e in told["extents"]] == [18 * MIB, MIB]


def machine(name: str, *blocks: tuple[str, int]) -> Machine:
    return Machine(name, PAGE, tuple(Block(*block) for block in blocks))


class TestLayout:
    @pytest.mark.parametrize(
        ("name", "total", "below"),
        [
            ("pc-i440fx-7.2", 3583 * MIB, 3583 * MIB), ("pc-i440fx-7.2", 3584 * MIB, 3 * GIB),
            ("pc-i440fx-10.0", 5 * GIB, 3 * GIB), ("pc-i440fx-jammy", 8 * GIB, 3 * GIB),
            ("pc-i440fx-rhel7.6.0", 8 * GIB, 3 * GIB), ("pc-i440fx-1.7", 5 * GIB, 3584 * MIB),
            ("pc-q35-7.2", 2815 * MIB, 2815 * MIB), ("pc-q35-7.2", 2816 * MIB, 2 * GIB),
            ("pc-q35-rhel9.4.0", 5 * GIB, 2 * GIB), ("isapc", 3 * GIB, 3 * GIB), ("isapc", 5 * GIB, 3584 * MIB),
        ],
    )  # fmt: skip
    def test_by_type_and_size(self, name, total, below):
        """Compared with QEMU itself in tests/interop/test_export.py."""
        found = physical.layout(machine(name, ("pc.ram", total)), None)
        expected = [Extent("pc.ram", 0, 0, below)]
        if total > below:
            expected.append(Extent("pc.ram", below, FOUR_GIB, total - below))
        assert list(found.extents) == expected
        assert found.end == (total if total == below else FOUR_GIB + total - below)

    def test_the_clock_chip_decides_where_it_adds_up(self):
        one = machine("pc-q35-7.2", ("pc.ram", 5 * GIB))
        cmos = clock(GIB, 4 * GIB).fields[0][2]
        assert physical.layout(one, cmos).extents[0].nbytes == GIB
        for wrong in (clock(GIB, 3 * GIB).fields[0][2], bytes(128), cmos[:64]):
            assert physical.layout(one, wrong).extents[0].nbytes == 2 * GIB

    def test_numa(self):
        """A block of each node, in their order, whatever the order of the list."""
        nodes = [(f"/objects/ram-node{i}", (i + 1) * GIB) for i in (10, 2, 0)]
        found = physical.layout(machine("pc-q35-9.0", *nodes, ("vga.vram", PAGE)), None)
        assert [(e.idstr[-6:], e.offset, e.address, e.nbytes) for e in found.extents] == [
            ("-node0", 0, 0, GIB), ("-node2", 0, GIB, GIB), ("-node2", GIB, 4 * GIB, 2 * GIB),
            ("node10", 0, 6 * GIB, 11 * GIB),
        ]  # fmt: skip
        assert found.not_placed == ("vga.vram",)

    def test_a_memory_backend(self):
        found = physical.layout(machine("pc-q35-9.0", ("/objects/mem0", GIB), ("pc.bios", PAGE)), None)
        assert [e.idstr for e in found.extents] == ["/objects/mem0"]

    @pytest.mark.parametrize(
        ("one", "words"),
        [
            (machine("my-board", ("pc.ram", GIB)), "known only of"),
            (machine("pc-q35-9.0", ("/objects/a", GIB), ("/objects/b", GIB)), "none of the blocks"),
            (machine("pc-q35-9.0", ("pc.ram", 1000 * GIB)), "may begin at 1 TiB"),
        ],
    )
    def test_refused(self, one, words):
        with pytest.raises(RamError, match=words):
            physical.layout(one, None)

    @pytest.mark.parametrize("below", [-PAGE, 0, 5 * GIB, PAGE + 1])
    def test_told_wrong(self, below):
        with pytest.raises(RamError, match="expected a multiple of 4096"):
            physical.layout(machine("pc-q35-9.0", ("pc.ram", GIB)), None, below_4g=below)
