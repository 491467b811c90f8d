"""Files that are something known, and not RAM as it is: refused by name instead of sent as a raw image.

A raw image has no mark; so what has another format's mark is taken for that. RAM of a real guest begins with its
interrupt vectors or with zeros, which are none of these. Whoever knows better says ``raw``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

START = 68 << 10
"""Bytes from a file's first on that `name` wants to see, or the whole file."""
END = 512
"""Bytes before a file's end that `name` wants to see."""


@dataclass(frozen=True)
class _Mark:
    """Bytes by which a format is known."""

    name: str
    data: bytes
    offset: int = 0


# Each from the format's own description, or from the headers of the program that writes it.
_MARKS = (
    # States of guests and crash dumps
    _Mark("an ELF file (a core?)", b"\x7fELF"),  # System V ABI, chapter 4
    _Mark("a LiME memory dump", b"EMiL"),  # LiME: doc/README.md, magic 0x4C694D45 little-endian
    _Mark("an AVML memory dump", b"AVML"),  # AVML: src/image.rs, LiME with snappy
    _Mark("a kdump", b"KDUMP   "),  # makedumpfile: IMPLEMENTATION
    _Mark("a diskdump", b"DISKDUMP"),  # makedumpfile: IMPLEMENTATION
    _Mark("a flattened kdump", b"makedumpfile\0"),  # makedumpfile: IMPLEMENTATION
    _Mark("a Windows crash dump", b"PAGEDUMP"),  # DUMP_HEADER.Signature, ValidDump
    _Mark("a Windows crash dump", b"PAGEDU64"),
    _Mark("a Windows minidump", b"MDMP"),  # minidumpapiset.h: MINIDUMP_SIGNATURE
    _Mark("a Windows hibernation file", b"hibr"),  # PO_MEMORY_IMAGE.Signature
    _Mark("a Windows hibernation file", b"HIBR"),
    _Mark("a Windows hibernation file", b"wake"),
    _Mark("a Windows hibernation file", b"WAKE"),
    _Mark("a Windows hibernation file", b"RSTR"),
    _Mark("a VMware state", b"\xd0\xbe\xd2\xbe"),  # .vmss, .vmsn: as Volatility 3 knows them, layers/vmware.py
    _Mark("a VMware state", b"\xd1\xba\xd1\xba"),
    _Mark("a VMware state", b"\xd2\xbe\xd2\xbe"),
    _Mark("a VMware state", b"\xd3\xbe\xd3\xbe"),
    _Mark("a VirtualBox saved state", b"\x7fVirtualBox SavedState"),  # SSM.cpp
    _Mark("a Xen save image", b"LinuxGuestRecord"),  # xl_cmdtable: older headers
    _Mark("a Xen save image", b"Xen saved domain"),  # xl.h: SAVEFILE_MAGIC
    _Mark("a Xen core", b"\xeb\x0f\x0f\xf0"),  # xenctrl.h: XC_CORE_MAGIC
    _Mark("a Xen core", b"\xed\x0f\x0f\xf0"),
    _Mark("a Xen migration stream", b"\xff" * 8 + b"XENF"),  # libxc migration stream, version 2
    _Mark("a Linux hibernation image", b"S1SUSPEND", 4086),  # kernel/power/swap.c, HIBERNATE_SIG
    _Mark("Linux swap space", b"SWAPSPACE2", 4086),
    _Mark("Linux swap space", b"SWAPSPACE2", 65526),
    _Mark("a libvirt save image", b"LibvirtQemudSave"),
    _Mark("a libvirt save image that was never completed", b"LibvirtQemudPart"),
    # Disks and file systems
    _Mark("a qcow2 disk image", b"QFI\xfb"),  # QEMU: docs/interop/qcow2.rst
    _Mark("a QED disk image", b"QED\0"),  # QEMU: docs/interop/qed_spec.rst
    _Mark("a VMDK disk image", b"KDMV"),  # VMware: Virtual Disk Format 5.0
    _Mark("a VMDK disk image", b"COWD"),
    _Mark("a VMDK disk description", b"# Disk DescriptorFile"),
    _Mark("a VDI disk image", b"\x7f\x10\xda\xbe", 64),  # VirtualBox: VDICore.h
    _Mark("a VHDX disk image", b"vhdxfile"),  # MS-VHDX 2.2
    _Mark("a VHD disk image", b"conectix"),
    _Mark("a Parallels disk image", b"WithoutFreeSpace"),  # QEMU: docs/interop/parallels.txt
    _Mark("a Parallels disk image", b"WithouFreSpacExt"),
    _Mark("a LUKS volume", b"LUKS\xba\xbe"),  # LUKS on-disk format
    _Mark("a GPT disk image", b"EFI PART", 512),  # UEFI 5.3.2
    _Mark("a squashfs", b"hsqs"),  # fs/squashfs/squashfs_fs.h
    _Mark("a cramfs", b"\x45\x3d\xcd\x28"),
    _Mark("an XFS file system", b"XFSB"),
    _Mark("a btrfs file system", b"_BHRfS_M", (64 << 10) + 64),
    _Mark("an ISO 9660 image", b"CD001", 32769),  # ECMA-119 8.4
    _Mark("an NTFS file system", b"NTFS    ", 3),
    # Compressed files and archives
    _Mark("a gzip file", b"\x1f\x8b\x08"),  # RFC 1952
    _Mark("a zstd file", b"\x28\xb5\x2f\xfd"),  # RFC 8878
    _Mark("an xz file", b"\xfd7zXZ\0"),  # The .xz File Format 1.1
    _Mark("an lzma file", b"\x5d\0\0\x80\0"),
    _Mark("an lz4 file", b"\x04\x22\x4d\x18"),  # LZ4 Frame Format
    _Mark("an lz4 file (legacy)", b"\x02\x21\x4c\x18"),
    _Mark("an lzop file", b"\x89LZO\0\r\n\x1a\n"),
    _Mark("a snappy file", b"\xff\x06\0\0sNaPpY"),
    _Mark("a compress file", b"\x1f\x9d\x90"),
    _Mark("a zip archive", b"PK\x03\x04"),  # APPNOTE.TXT 4.3
    _Mark("a zip archive", b"PK\x05\x06"),
    _Mark("a 7z archive", b"7z\xbc\xaf\x27\x1c"),
    _Mark("a RAR archive", b"Rar!\x1a\x07"),
    _Mark("a tar archive", b"ustar", 257),  # POSIX.1-2017, pax
    _Mark("a cpio archive", b"070701"),
    _Mark("a cpio archive", b"070702"),
    _Mark("an ar archive", b"!<arch>\n"),
    _Mark("an RPM package", b"\xed\xab\xee\xdb"),
    # Anything else that is at hand by mistake
    _Mark("a pcap capture", b"\xd4\xc3\xb2\xa1"),
    _Mark("a pcap capture", b"\xa1\xb2\xc3\xd4"),
    _Mark("a pcap capture", b"\x4d\x3c\xb2\xa1"),
    _Mark("a pcapng capture", b"\x0a\x0d\x0d\x0a"),
    _Mark("a Mach-O file", b"\xcf\xfa\xed\xfe"),
    _Mark("a WebAssembly module", b"\0asm"),
    _Mark("a Java class", b"\xca\xfe\xba\xbe"),
    _Mark("a PNG picture", b"\x89PNG\r\n\x1a\n"),
    _Mark("a JPEG picture", b"\xff\xd8\xff"),
    _Mark("a GIF picture", b"GIF8"),
    _Mark("a PDF", b"%PDF-"),
    _Mark("an SQLite database", b"SQLite format 3\0"),
    _Mark("an HDF5 file", b"\x89HDF\r\n\x1a\n"),
    _Mark("a Linux kernel", b"HdrS", 514),  # Documentation/arch/x86/boot.rst
    _Mark("a device tree", b"\xd0\x0d\xfe\xed"),  # Devicetree Specification 5.2
    _Mark("a U-Boot image", b"\x27\x05\x19\x56"),
    _Mark("a Git pack", b"PACK\0\0\0"),
    _Mark("a script", b"#!/"),
)
_TEXTS = (b"<?xml", b"<domain", b"<!DOCTYPE", b"<html", b"-----BEGIN ")
_UTF8_BOM = b"\xef\xbb\xbf"
_JSON = re.compile(rb'\{\s*"|\[\s*[{"\[]')
_TEXT_BYTES, _TEXT_LETTERS = 512, 8
"""RAM that begins with so many printable bytes, of so many kinds at least, is no guest's."""


def name(start: bytes, end: bytes) -> str | None:
    """What a file is that is no RAM image, in words; None if it may be one.

    Args:
        start: its first bytes, `START` of them or all.
        end: its last bytes, `END` of them or all.
    """
    for mark in _MARKS:
        if start[mark.offset : mark.offset + len(mark.data)] == mark.data:
            return mark.name
    for test in (_short_mark, _boot_sector, _text):
        if (found := test(start)) is not None:
            return found
    if end.startswith(b"conectix"):  # a fixed VHD has its mark at the end: Virtual Hard Disk Image Format
        return "a VHD disk image"
    if end.startswith(b"koly"):
        return "a DMG disk image"
    return None


def _short_mark(start: bytes) -> str | None:
    """Formats whose mark is so short that more has to be right."""

    def number(offset: int, nbytes: int) -> int:
        return int.from_bytes(start[offset : offset + nbytes], "little")

    if start.startswith(b"QEVM"):
        return f"a QEMU stream of version {int.from_bytes(start[4:8], 'big')}, of which only 3 is read"
    if start.startswith(b"BZh") and start[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "a bzip2 file"
    if start.startswith(b"MZ") and start[number(0x3C, 4) :].startswith(b"PE\0\0"):  # PE format, 3.1
        return "a Windows program"
    # fs/ext4/ext4.h, the superblock from 1024 on: s_magic, s_log_block_size, s_inodes_count, s_blocks_count_lo
    if number(1080, 2) == 0xEF53 and number(1048, 4) <= 6 and number(1024, 4) and number(1028, 4):
        return "an ext file system"
    return None


def _boot_sector(start: bytes) -> str | None:
    """A disk that begins with a partition table or a FAT: RAM begins with interrupt vectors, or nothing."""
    if start[510:512] != b"\x55\xaa":
        return None
    entries = [start[at : at + 16] for at in range(446, 510, 16)]
    is_table = all(e[0] in (0, 0x80) for e in entries) and any(e[4] and any(e[12:16]) for e in entries)
    is_fat = start[0] in (0xEB, 0xE9) and start[11:13] in (b"\0\x02", b"\0\x04", b"\0\x08", b"\0\x10")
    return "a disk image with a boot sector" if is_table or is_fat else None


def _text(start: bytes) -> str | None:
    words = start.removeprefix(_UTF8_BOM).lstrip(b" \t\r\n")
    if words.startswith(_TEXTS):
        return "text (XML, HTML or PEM)"
    if _JSON.match(words):
        return "text (JSON)"
    sample = start[:_TEXT_BYTES]
    printable = all(0x20 <= c < 0x7F or c in b"\t\r\n" for c in sample)
    return "text" if len(sample) == _TEXT_BYTES and printable and len(set(sample)) > _TEXT_LETTERS else None
