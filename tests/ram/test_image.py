"""What `send` takes and refuses before it connects: formats by their marks, and all that `verify` refuses."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from conftest import make_image
from interop.mapped import read_blocks
from mapped_files import DEVICES, MIB, PAGE, build
from plain_files import XML, XML_UUID, build_plain, save_header

import multifd
from multifd.errors import RamError, UsageError
from multifd.ram import capture, foreign
from multifd.ram.image import open_source, open_stored, open_target

IMAGE = make_image(70, 3)
BLOCKS = [(b"pc.ram", IMAGE), (b"vga.vram", bytes(3 * PAGE) + b"v" * PAGE)]
NOWHERE = "unix:/nonexistent/socket"  # whoever connects fails with another error


def at(offset: int, data: bytes) -> bytes:
    return bytes(offset) + data


def partition_table() -> bytes:
    return at(446, b"\x80\x01\x01\0\x83\xfe\xff\xff" + struct.pack("<II", 2048, 1 << 20)) + bytes(48) + b"\x55\xaa"


FOREIGN = {
    "an ELF file": b"\x7fELF\2\1\1\0",
    "a LiME memory dump": b"EMiL\1\0\0\0",
    "an AVML memory dump": b"AVML\2\0\0\0",
    "a kdump": b"KDUMP   \6\0\0\0",
    "a diskdump": b"DISKDUMP",
    "a flattened kdump": b"makedumpfile\0\0\0\0",
    "a Windows crash dump": b"PAGEDU64",
    "a Windows minidump": b"MDMP\x93\xa7",
    "a Windows hibernation file": b"HIBR\0\0\0\0",
    "a VMware state": b"\xd2\xbe\xd2\xbe",
    "a VirtualBox saved state": b"\x7fVirtualBox SavedState V2.0\n",
    "a Xen save image": b"Xen saved domain, xl format\n",
    "a Xen core": b"\xed\x0f\x0f\xf0",
    "a Xen migration stream": b"\xff" * 8 + b"XENF",
    "a Linux hibernation image": at(4086, b"S1SUSPEND"),
    "Linux swap space": at(4086, b"SWAPSPACE2"),
    "a qcow2 disk image": b"QFI\xfb\0\0\0\3",
    "a QED disk image": b"QED\0",
    "a VMDK disk image": b"KDMV\1\0\0\0",
    "a VDI disk image": at(64, b"\x7f\x10\xda\xbe"),
    "a VHDX disk image": b"vhdxfile",
    "a VHD disk image": b"conectix",
    "a LUKS volume": b"LUKS\xba\xbe\0\2",
    "a GPT disk image": at(512, b"EFI PART"),
    "a squashfs": b"hsqs",
    "an ext file system": at(1024, struct.pack("<6I", 8192, 32768, 0, 0, 0, 0) + struct.pack("<I", 2))
    + at(1080 - 1024 - 28, b"\x53\xef"),
    "an XFS file system": b"XFSB",
    "a btrfs file system": at(65600, b"_BHRfS_M"),
    "an ISO 9660 image": at(32768, b"\1CD001"),
    "an NTFS file system": b"\xeb\x52\x90NTFS    ",
    "a disk image with a boot sector": partition_table(),
    "a gzip file": b"\x1f\x8b\x08\0",
    "a zstd file": b"\x28\xb5\x2f\xfd",
    "an xz file": b"\xfd7zXZ\0",
    "an lz4 file": b"\x04\x22\x4d\x18",
    "an lzop file": b"\x89LZO\0\r\n\x1a\n",
    "a bzip2 file": b"BZh91AY&SY",
    "a zip archive": b"PK\3\4",
    "a 7z archive": b"7z\xbc\xaf\x27\x1c",
    "a tar archive": at(257, b"ustar\000"),
    "a cpio archive": b"070701",
    "a pcap capture": b"\xd4\xc3\xb2\xa1\2\0\4\0",
    "a pcapng capture": b"\n\r\r\n\x1c\0\0\0",
    "a Windows program": b"MZ" + bytes(58) + struct.pack("<I", 128) + bytes(64) + b"PE\0\0",
    "a PNG picture": b"\x89PNG\r\n\x1a\n",
    "a PDF": b"%PDF-1.7",
    "an SQLite database": b"SQLite format 3\0",
    "a Linux kernel": at(514, b"HdrS"),
    "a Proxmox backup": b"VMA\0\0\0\0\1",
    "a Firecracker snapshot": struct.pack("<Q", 0x0710_1984_8664_0000),
    "a CRIU image": struct.pack("<2I", 0x54564319, 0x58313116),
    "an EnCase image": b"EVF\x09\x0d\x0a\xff\0",
    "an AFF image": b"AFF10\r\n\0",
    "an HPAK memory dump": b"HPAK",
    "a channel of stored streams, which are sent by dir:FOLDER": struct.pack(">2I", 0x11223344, 1),
    "an exFAT file system": b"\xeb\x76\x90EXFAT   ",
    "a BitLocker volume": b"\xeb\x58\x90-FVE-FS-",
    "an LVM volume": at(512, b"LABELONE"),
    "a part of a Linux RAID": at(4096, struct.pack("<I", 0xA92B4EFC)),
    "an EROFS": at(1024, struct.pack("<I", 0xE0F5E1E2)),
    "an F2FS file system": at(1024, struct.pack("<I", 0xF2F52010)),
    "an HFS+ file system": at(1024, b"H+\0\4"),
    "an APFS container": at(32, b"NXSB"),
    "a UDF file system": at(32768, b"\0BEA01"),
    "a JFS file system": at(32768, b"JFS1"),
    "a ReiserFS": at(65588, b"ReIsEr2Fs"),
    "a GFS2 file system": at(65536, struct.pack(">I", 0x01161970)),
    "a bcache or bcachefs": at(4120, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    "a romfs": b"-rom1fs-",
    "a UBI image": b"UBI#",
    "a Bochs disk image": b"Bochs Virtual HD Image",
    "an Android sparse image": struct.pack("<I", 0xED26FF3A),
    "an Android boot image": b"ANDROID!",
    "a firmware volume": at(40, b"_FVH"),
    "an lzip file": b"LZIP\1",
    "an lrzip file": b"LRZI",
    "a zstd or lz4 file, which begins with a frame to skip": struct.pack("<I", 0x184D2A53),
    "a cabinet": b"MSCF\0\0\0\0",
    "a WIM image": b"MSWIM\0\0\0",
    "a borg repository's segment": b"BORG_SEG",
    "a systemd journal": b"LPKSHHRH",
    "an OLE2 document": bytes.fromhex("d0cf11e0a1b11ae1"),
    "a RIFF file": b"RIFF\x24\0\0\0WAVE",
    "an MP4 file": b"\0\0\0\x20ftypisom",
    "an encrypted file": b"Salted__",
    "a script": b"#!/bin/sh\n",
    "text (XML": b"<?xml version='1.0'?>\n<domain/>",
    "text (JSON)": b'{\n  "return": {}\n}\n',
    "text": b"0000000 0000 0000 0000 0000 0000 0000 a hex dump of something\n" * 9,
    "a QEMU stream of version 2": b"QEVM\0\0\0\2",
}


class TestForeign:
    @pytest.mark.parametrize("name", list(FOREIGN))
    def test_refused_by_name(self, tmp_path, name):
        """By everything that opens a file; forced, it is sent."""
        path = tmp_path / "f"
        path.write_bytes(FOREIGN[name].ljust(80 * PAGE, b"\1"))
        with pytest.raises(RamError) as caught:
            multifd.send(path, NOWHERE)
        assert f"{path}: {name}" in str(caught.value)
        for call in (capture.info, capture.verify):
            with pytest.raises(RamError) as caught:
                call(path)
            assert f"{path}: not a capture: {name}" in str(caught.value)
        open_source(path, format="raw").close()

    def test_a_mark_at_the_end(self, tmp_path):
        (tmp_path / "f").write_bytes(b"\1" * 8 * PAGE + b"conectix".ljust(512, b"\0"))
        with pytest.raises(RamError, match="a VHD disk image"):
            open_source(tmp_path / "f")

    @pytest.mark.parametrize(
        "start", [b"", b"\xff\x53\xff\x00\xf0" * 99, IMAGE, b"x" * PAGE, b"MZ", b"BZh", bytes(1080) + b"\x53\xef",
                  bytes(510) + b"\x55\xaa", b"{}", b"abcd" * 200,
                  b"\x93NUMPY\1\0", b"BM", b"\x6a\x2a\x4d\x18"],
    )  # fmt: skip
    def test_ram_is_none_of_them(self, tmp_path, start):
        (tmp_path / "f").write_bytes(start.ljust(80 * PAGE, b"\0"))
        open_source(tmp_path / "f").close()

    def test_short_files(self):
        data = b"".join(FOREIGN.values())
        for n in range(200):
            foreign.name(data[:n], data[:n])


SOUND = {
    "mapped-ram": build(BLOCKS, align=MIB),
    "stream": build_plain(BLOCKS),
    "libvirt": save_header(0) + build_plain(BLOCKS),
}


class TestOpens:
    @pytest.mark.parametrize("name", list(SOUND))
    def test_by_mark_and_by_name(self, tmp_path, name):
        (tmp_path / "f").write_bytes(SOUND[name])
        for format in ("auto", name):
            open_source(tmp_path / "f", format=format).close()
        for format in SOUND.keys() - {name}:
            with pytest.raises(RamError, match=f"its format is {name}, not {format}"):
                open_source(tmp_path / "f", format=format)

    @pytest.mark.parametrize("name", list(SOUND))
    def test_round_trip(self, receiver, tmp_path, name):
        """Any format in, mapped-ram out."""
        (tmp_path / "f").write_bytes(SOUND[name])
        destination = receiver(tmp_path / "out", format="mapped-ram")
        multifd.send(tmp_path / "f", destination.uri, "zstd")
        destination.join()
        assert read_blocks(tmp_path / "out") == {n.decode(): data for n, data in BLOCKS}
        assert (tmp_path / "out").read_bytes().endswith(DEVICES)

    @pytest.mark.parametrize("format", ["stream", "libvirt-raw", "libvirt-sparse"])
    @pytest.mark.parametrize("method", ["none", "zlib"])
    def test_round_trip_out(self, receiver, tmp_path, format, method):
        """mapped-ram in, any format out, and in again."""
        (tmp_path / "f").write_bytes(SOUND["mapped-ram"])
        (tmp_path / "xml").write_bytes(XML)
        xml = {"xml": tmp_path / "xml"} if format.startswith("libvirt") else {}
        destination = receiver(tmp_path / "out", format=format, **xml)
        multifd.send(tmp_path / "f", destination.uri, method)
        destination.join()
        found = capture.verify(tmp_path / "out")
        assert found.format == ("mapped-ram" if format == "libvirt-sparse" else "stream")
        assert found.domain == ("tiny" if xml else None)
        destination = receiver(tmp_path / "again", format="mapped-ram")
        multifd.send(tmp_path / "out", destination.uri, method)
        destination.join()
        assert read_blocks(tmp_path / "again") == {n.decode(): data for n, data in BLOCKS}

    def test_the_machines_uuid_is_the_domains(self, tmp_path):
        (tmp_path / "f").write_bytes(SOUND["libvirt"])
        source = open_stored(tmp_path / "f")
        source.close()
        assert source.machine.uuid == XML_UUID

    def test_no_such_format(self, tmp_path):
        with pytest.raises(UsageError, match="expected auto, mapped-ram, stream, libvirt or raw"):
            open_source(tmp_path / "f", format="qcow2")
        with pytest.raises(UsageError, match="expected mapped-ram, raw, stream, libvirt-raw or libvirt-sparse"):
            open_target(tmp_path / "f", format="libvirt")


VMDESC = DEVICES.rindex(b"\x06\0\0\0") - len(DEVICES)
DAMAGED = {
    "half of the vmdesc": lambda data: data[:-20],
    "no EOF": lambda data: data[: VMDESC - 1],
    "devices cut": lambda data: data[: VMDESC - 30],
    "no devices": lambda data: data[: -len(DEVICES)],
    "more behind the end": lambda data: data + b"\0",
}


class TestDamaged:
    """`send` refuses what `verify` refuses, and with its words."""

    @pytest.mark.parametrize("name", list(SOUND))
    @pytest.mark.parametrize("damage", list(DAMAGED))
    def test_devices(self, tmp_path, name, damage):
        (tmp_path / "f").write_bytes(DAMAGED[damage](SOUND[name]))
        with pytest.raises(RamError, match="does not end as a stream does") as verified:
            capture.verify(tmp_path / "f")
        with pytest.raises(RamError) as sent:
            multifd.send(tmp_path / "f", NOWHERE)
        assert str(sent.value) == str(verified.value)

    @pytest.mark.parametrize("format", ["mapped-ram", "libvirt"])
    def test_stray_bits(self, tmp_path, format):
        """Also where a verbatim method never looks at a page."""
        head = save_header(6) if format == "libvirt" else b""
        data = bytearray(build([(b"ram", b"x" * PAGE)], align=PAGE))
        bitmap = data.index(b"\0\0\0\1" + struct.pack(">Q", PAGE)) + 28
        data[bitmap] |= 2
        if head:
            data = move(data, len(head))
        (tmp_path / "f").write_bytes(head + data)
        for call in (capture.verify, lambda path: multifd.send(path, NOWHERE, "none")):
            with pytest.raises(RamError, match="1 bits set behind the last page"):
                call(tmp_path / "f")

    @pytest.mark.parametrize("name", list(SOUND))
    def test_ram_cut(self, tmp_path, name):
        (tmp_path / "f").write_bytes(SOUND[name][: len(SOUND[name]) // 2])
        with pytest.raises(RamError):
            multifd.send(tmp_path / "f", NOWHERE)

    @pytest.mark.parametrize("name", list(SOUND))
    def test_without_a_vmdesc(self, receiver, tmp_path, name):
        """QEMU's suppress-vmdesc: it is sound, and gets the shortest one, for which every receiver waits."""
        (tmp_path / "f").write_bytes(SOUND[name][:VMDESC])
        capture.verify(tmp_path / "f")
        destination = receiver(tmp_path / "out", format="mapped-ram")
        multifd.send(tmp_path / "f", destination.uri)
        destination.join()
        assert read_blocks(tmp_path / "out") == {n.decode(): data for n, data in BLOCKS}


def move(data: bytearray, by: int) -> bytearray:
    """A mapped-ram file of one block that is to lie `by` bytes further on: its places are the file's."""
    header = data.index(b"\0\0\0\1" + struct.pack(">Q", PAGE))
    bitmap, pages = struct.unpack_from(">QQ", data, header + 12)
    extra = -(pages + by) % PAGE
    struct.pack_into(">QQ", data, header + 12, bitmap + by, pages + by + extra)
    return data[:pages] + bytes(extra) + data[pages:]


ENCODED = [b"<?xml version='1.0' encoding='%s'?><domain/>" % name for name in (b"utf-32", b"no-such", b"idna")]
COMPRESSED = ("gzip", "bzip2", "xz", "lzop", "zstd")


class TestLibvirt:
    def test_what_is_said_of_it(self, tmp_path):
        for running in (0, 1):
            (tmp_path / "f").write_bytes(save_header(0, was_running=running) + build_plain(BLOCKS))
            found = capture.info(tmp_path / "f")
            assert (found.domain, found.was_running, found.xml) == ("tiny", bool(running), XML.decode())

    def test_sparse(self, tmp_path):
        """All places in it are the file's, not the stream's."""
        head = save_header(6)
        (tmp_path / "f").write_bytes(head + move(bytearray(build([(b"ram", IMAGE)], align=PAGE)), len(head)))
        found = capture.verify(tmp_path / "f")
        assert (found.format, found.domain) == ("mapped-ram", "tiny")

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (save_header(0, magic=b"LibvirtQemudPart"), "never completed"),
            (save_header(0)[:50], "in its header"),
            (save_header(0, version=3), "version 3, expected 1 or 2"),
            (save_header(0, version=0x02000000), "big-endian host"),
            *((save_header(i), f"compressed with {n}") for i, n in enumerate(COMPRESSED, 1)),
            (save_header(7), "format 7, expected 0"),
            (save_header(0, data_len=1 << 31), "2147483648 bytes of XML"),
            (save_header(0, data_len=0), "0 bytes of XML"),
            (save_header(0, cookie=1 << 20), "its cookie at 1048576"),
            (save_header(6) + build_plain(BLOCKS), "header says sparse, but it has a plain stream"),
            (save_header(0) + build(BLOCKS), "header says raw, but it has mapped-ram"),
            (save_header(0) + b"QEVM\0\0\0\2", "stream version 2, expected 3"),
            (save_header(0) + b"\x28\xb5\x2f\xfd" * 9, "magic"),
        ],
    )  # fmt: skip
    def test_refused(self, tmp_path, data, words):
        (tmp_path / "f").write_bytes(data.ljust(100, b"\0") if len(data) > 92 else data)
        for call in (capture.info, lambda path: multifd.send(path, NOWHERE)):
            with pytest.raises(RamError, match=words):
                call(tmp_path / "f")

    @pytest.mark.parametrize("xml", [b"", b"not xml", b"<network/>", b"<domain>", b"\xff\xfe", *ENCODED])
    def test_xml_refused(self, tmp_path, xml):
        (tmp_path / "xml").write_bytes(xml)
        with pytest.raises(RamError, match=r"not XML|expected a <domain>"):
            open_target(tmp_path / "f", format="libvirt-raw", xml=tmp_path / "xml")
        assert [p.name for p in tmp_path.iterdir()] == ["xml"]

    def test_xml_and_format(self, tmp_path):
        with pytest.raises(UsageError, match="needs the domain's XML"):
            open_target(tmp_path / "f", format="libvirt-raw")
        with pytest.raises(UsageError, match="not for mapped-ram"):
            open_target(tmp_path / "f", xml=tmp_path / "xml")
        with pytest.raises(RamError, match="No such file"):
            open_target(tmp_path / "f", format="libvirt-raw", xml=Path("/nonexistent"))


class TestCommandLine:
    def test_info_and_verify(self, cli, tmp_path):
        (tmp_path / "f").write_bytes(SOUND["libvirt"])
        out, _ = cli("info", tmp_path / "f").wait()
        assert "format: libvirt save image (stream)\ndomain: tiny, running when saved\n" in out
        assert XML.decode() in out
        cli("verify", tmp_path / "f").wait()
        assert cli("info", tmp_path / "f", "--json").json()["domain"] == "tiny"

    def test_nothing_reaches_the_terminal(self, cli, tmp_path):
        xml = b"<domain><name>a&#133;b</name>\x1b[2J</domain>"
        (tmp_path / "f").write_bytes(save_header(0, xml=xml) + build_plain(BLOCKS))
        out, _ = cli("info", tmp_path / "f").wait()
        assert "\x1b" not in out
        assert "\\x1b[2J" in out

    def test_no_descriptor_is_left(self, tmp_path):
        for name, data in (("sound", SOUND["libvirt"]), ("cut", SOUND["stream"][:-1]), ("elf", b"\x7fELF")):
            (tmp_path / name).write_bytes(data)
        before = len(os.listdir("/proc/self/fd"))
        open_source(tmp_path / "sound").close()
        for name, format in (("cut", "auto"), ("elf", "auto"), ("sound", "stream"), ("elf", "raw")):
            with pytest.raises(RamError):
                open_source(tmp_path / name, format=format)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_refused_before_it_connects(self, cli, tmp_path):
        (tmp_path / "f").write_bytes(b"QFI\xfb".ljust(PAGE, b"\0"))
        _, err = cli("send", tmp_path / "f", NOWHERE).wait(6)
        what = "a qcow2 disk image, not RAM; source format raw takes it as it is (--source-format)"
        assert err == f"multifd: error: {tmp_path}/f: {what}\n"
