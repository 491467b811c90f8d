"""Files that are something known, and not RAM as it is: refused by name instead of sent as a raw image.

A raw image has no mark; so what has another format's mark is taken for that. RAM of a real guest begins with its
interrupt vectors or with zeros, which are none of these. Whoever knows better says ``raw``. Marks of two bytes are left
out, and formats that programs lay out in memory as they are in files (arrays, models): an arena may begin so.
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
    _Mark("a Proxmox backup", b"VMA\0"),  # pve-qemu: vma_spec.txt
    _Mark("a Firecracker snapshot", b"\0\0\x64\x86\x84\x19\x10\x07"),  # firecracker: snapshot/mod.rs, its magic
    _Mark("a Firecracker snapshot", b"\0\0\xaa\xaa\x84\x19\x10\x07"),
    _Mark("a CRIU image", b"\x19\x43\x56\x54"),  # CRIU: include/magic.h, IMG_COMMON_MAGIC and IMG_SERVICE_MAGIC
    _Mark("a CRIU image", b"\x40\x59\x10\x55"),
    _Mark("an EnCase image", b"EVF\t\r\n\xff\0"),  # libewf: Expert Witness Compression Format
    _Mark("an EnCase image", b"EVF2\r\n\x81\0"),
    _Mark("an EnCase image", b"LVF\t\r\n\xff\0"),
    _Mark("an AFF image", b"AFF10\r\n\0"),  # afflib: AF_HEADER
    _Mark("an HPAK memory dump", b"HPAK"),  # Volatility: plugins/addrspaces/hpak.py
    _Mark("a channel of stored streams, which are sent by dir:FOLDER", b"\x11\x22\x33\x44\0\0\0\1"),  # wire/packet.py
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
    _Mark("an exFAT file system", b"EXFAT   ", 3),
    _Mark("a ReFS file system", b"ReFS\0\0\0\0", 3),
    _Mark("a BitLocker volume", b"-FVE-FS-", 3),
    _Mark("a LUKS volume", b"SKUL\xba\xbe", 16 << 10),  # LUKS2: the second header
    _Mark("an LVM volume", b"LABELONE"),  # LVM2: lib/label/label.c, in one of the first four sectors
    _Mark("an LVM volume", b"LABELONE", 512),
    _Mark("an LVM volume", b"LABELONE", 1024),
    _Mark("an LVM volume", b"LABELONE", 1536),
    _Mark("a part of a Linux RAID", b"\xfc\x4e\x2b\xa9"),  # include/uapi/linux/raid/md_p.h, version 1.1
    _Mark("a part of a Linux RAID", b"\xfc\x4e\x2b\xa9", 4096),  # version 1.2
    _Mark("an EROFS", b"\xe2\xe1\xf5\xe0", 1024),  # fs/erofs/erofs_fs.h
    _Mark("an F2FS file system", b"\x10\x20\xf5\xf2", 1024),  # include/linux/f2fs_fs.h
    _Mark("an HFS+ file system", b"H+\0\4", 1024),  # TN1150
    _Mark("an HFS+ file system", b"HX\0\5", 1024),
    _Mark("an APFS container", b"NXSB", 32),  # Apple File System Reference
    _Mark("a UDF file system", b"BEA01", 32769),  # ECMA-167 2/9
    _Mark("a JFS file system", b"JFS1", 32 << 10),
    _Mark("a ReiserFS", b"ReIsEr", (64 << 10) + 52),
    _Mark("a GFS2 file system", b"\x01\x16\x19\x70", 64 << 10),  # include/uapi/linux/gfs2_ondisk.h
    _Mark("an OCFS2 file system", b"OCFSV2", 8192),
    _Mark("a bcache or bcachefs", b"\xc6\x85\x73\xf6", 4096 + 24),  # BCACHE_MAGIC, BCHFS_MAGIC
    _Mark("a romfs", b"-rom1fs-"),
    _Mark("a squashfs", b"sqsh"),
    _Mark("a UBI image", b"UBI#"),
    _Mark("a UBIFS image", b"\x31\x18\x10\x06"),
    _Mark("Linux swap space", b"SWAP-SPACE", 4086),
    _Mark("a VMDK disk image", b"\xbe\xba\xfe\xca\0\0\0\0"),  # QEMU: block/vmdk.c, SESPARSE_CONST_HEADER_MAGIC
    _Mark("a Bochs disk image", b"Bochs Virtual HD Image"),
    _Mark("an Android sparse image", b"\x3a\xff\x26\xed"),  # system/core/libsparse/sparse_format.h
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
    _Mark("a cpio archive", b"070707"),
    _Mark("a zip archive", b"PK\x07\x08"),
    _Mark("an lzip file", b"LZIP"),
    _Mark("an lrzip file", b"LRZI"),
    _Mark("a bzip3 file", b"BZ3v1"),
    _Mark("a zpaq archive", b"7kSt"),
    _Mark("an lzfse file", b"bvx2"),
    _Mark("a cabinet", b"MSCF\0\0\0\0"),
    _Mark("a WIM image", b"MSWIM\0\0\0"),
    _Mark("a xar archive", b"xar!"),
    _Mark("an LHA archive", b"-lh5-", 2),
    _Mark("an ACE archive", b"**ACE**", 7),
    _Mark("a borg repository's segment", b"BORG_SEG"),
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
    _Mark("an Android boot image", b"ANDROID!"),
    _Mark("an Android boot image", b"VNDRBOOT"),
    _Mark("a firmware volume", b"_FVH", 40),  # UEFI PI 1.7, volume 3, 3.2.1
    _Mark("a Linux kernel", b"ARM\x64", 56),  # Documentation/arch/arm64/booting.rst
    _Mark("a Linux kernel", b"RSC\x05", 56),  # Documentation/arch/riscv/boot-image-header.rst
    _Mark("a Linux kernel", b"\x18\x28\x6f\x01", 36),  # arch/arm/boot/compressed/head.S
    _Mark("a pcap capture", b"\xa1\xb2\x3c\x4d"),
    _Mark("a Mach-O file", b"\xce\xfa\xed\xfe"),
    _Mark("a Mach-O file", b"\xfe\xed\xfa\xcf"),
    _Mark("a Dalvik executable", b"dex\n"),
    _Mark("LLVM bitcode", b"BC\xc0\xde"),
    _Mark("a systemd journal", b"LPKSHHRH"),
    _Mark("a perf recording", b"PERFILE2"),
    _Mark("a Windows event log", b"ElfFile\0"),
    _Mark("a Windows registry", b"regf"),
    _Mark("an OLE2 document", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    _Mark("a PostScript document", b"%!PS"),
    _Mark("an RTF document", b"{\\rtf"),
    _Mark("a RIFF file", b"RIFF"),
    _Mark("an Ogg file", b"OggS"),
    _Mark("a FLAC file", b"fLaC"),
    _Mark("an MP4 file", b"ftyp", 4),
    _Mark("a Matroska file", b"\x1aE\xdf\xa3"),
    _Mark("a TIFF picture", b"II*\0"),
    _Mark("a TIFF picture", b"MM\0*"),
    _Mark("a PostgreSQL dump", b"PGDMP"),
    _Mark("a Redis dump", b"REDIS0"),
    _Mark("an encrypted file", b"Salted__"),  # openssl enc
    _Mark("an encrypted file", b"age-encryption.org/"),
    _Mark("a script", b"#!/"),
    _Mark("a script", b"#! /"),
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
    if start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5:  # RFC 8878, 3.1.2; LZ4 Frame Format
        return "a zstd or lz4 file, which begins with a frame to skip"
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
