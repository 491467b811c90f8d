"""Opens a shared object that may be damaged: the dynamic linker maps a file that is cut short, and the process
dies of SIGBUS; a FIFO keeps it waiting for ever.

What is checked: a regular file, ELF for this machine, every segment inside the file (System V ABI, chapter 4 and
5; glibc's ld.so.cache as in its dl-cache.h, format 1.1). Where the linker would look for a name is looked at in
its order: LD_LIBRARY_PATH, ld.so.cache, the standard folders.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterator

_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
_CACHE = "/etc/ld.so.cache"
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER, _CACHE_ENTRY = 48, struct.Struct("=iIIIQ")
_MOST_CACHE_BYTES = 16 << 20

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr
_SEGMENT = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_ELF64_LITTLE = b"\x7fELF\x02\x01\x01"
_SHARED, _LOAD, _DYNAMIC = 3, 1, 2  # ET_DYN, PT_LOAD, PT_DYNAMIC
_AT_SECURE = 23  # getauxval(3)


class NotLoadable(Exception):
    """A file that is no shared object for this process; the message says which and why."""


class CutShort(NotLoadable):
    """A shared object of which a part is missing: opening it would end the process."""


def is_privileged() -> bool:
    """Whether this process got capabilities or an id from its file: it must not load what the environment names."""
    try:
        return bool(ctypes.CDLL(None).getauxval(_AT_SECURE))
    except AttributeError:
        return os.geteuid() != os.getuid()


def candidates(name: str) -> Iterator[str]:
    """The files that the dynamic linker would try for a name; the name itself if it is a path."""
    if "/" in name:
        yield name
        return
    named = "" if is_privileged() else os.environ.get("LD_LIBRARY_PATH", "")
    folders = [folder for folder in named.replace(";", ":").split(":") if folder]
    paths = [*(os.path.join(f, name) for f in folders), *_cached(name), *(os.path.join(f, name) for f in _FOLDERS)]
    for path in dict.fromkeys(paths):
        if os.path.lexists(path):
            yield path


def _cached(name: str) -> list[str]:
    """What ld.so.cache has for a name; nothing if it cannot be read."""
    try:
        with open(_CACHE, "rb") as f:
            cache = f.read(_MOST_CACHE_BYTES)
        start = cache.index(_CACHE_MAGIC)
        (count,) = struct.unpack_from("=I", cache, start + len(_CACHE_MAGIC))
        wanted, found = name.encode(), []
        for i in range(min(count, len(cache) // _CACHE_ENTRY.size)):
            _, key, value, _, _ = _CACHE_ENTRY.unpack_from(cache, start + _CACHE_HEADER + i * _CACHE_ENTRY.size)
            if _text(cache, start + key) == wanted:
                found.append(os.fsdecode(_text(cache, start + value)))
        return found
    except (OSError, ValueError, struct.error):
        return []


def _text(cache: bytes, at: int) -> bytes:
    return cache[at : cache.index(b"\0", at)]


def check(path: str) -> None:
    """Look at a file without mapping it.

    Raises:
        CutShort: it is a shared object of which a part is missing.
        NotLoadable: it is anything else that this process cannot load.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise NotLoadable(f"{path}: {e.strerror}") from None
    try:
        _check_file(path, fd)
    except OSError as e:
        raise NotLoadable(f"{path}: {e.strerror}") from None
    finally:
        os.close(fd)


def _check_file(path: str, fd: int) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise NotLoadable(f"{path}: not a regular file")
    head = os.pread(fd, _HEADER.size, 0)
    if not head.startswith(b"\x7fELF"):
        raise NotLoadable(f"{path}: not an ELF file ({found.st_size} bytes)")
    if len(head) < _HEADER.size:
        raise CutShort(f"{path}: cut short, {found.st_size} bytes")
    _, kind, machine, _, _, at, _, _, _, entry_size, count, *_ = _HEADER.unpack(head)
    if not head.startswith(_ELF64_LITTLE) or kind != _SHARED or machine not in (_own_machine(), 0):
        raise NotLoadable(f"{path}: not a shared object for this machine")
    is_inside = entry_size == _SEGMENT.size and at < found.st_size
    table = os.pread(fd, count * _SEGMENT.size, at) if is_inside else b""
    segments = [_SEGMENT.unpack_from(table, i * _SEGMENT.size) for i in range(len(table) // _SEGMENT.size)]
    needed = [offset + size for kind, _, offset, _, _, size, *_ in segments if kind in (_LOAD, _DYNAMIC)]
    if len(segments) != count or not {_LOAD, _DYNAMIC} <= {kind for kind, *_ in segments}:
        raise CutShort(f"{path}: cut short or damaged, its program headers are not all there")
    if max(needed) > found.st_size:
        raise CutShort(f"{path}: cut short, {found.st_size} bytes of at least {max(needed)}")


def _own_machine() -> int:
    """The machine of the running interpreter's own file, as ELF numbers it; 0 if it cannot be read."""
    try:
        with open("/proc/self/exe", "rb") as f:
            return int(_HEADER.unpack(f.read(_HEADER.size))[2])
    except (OSError, struct.error):
        return 0


def open_shared(name: str) -> tuple[ctypes.CDLL, str]:
    """A shared object by path or by name, and the path of what was opened.

    Raises:
        NotLoadable: none was found that can be opened; the message names every one that was looked at.
    """
    reasons = []
    for path in candidates(name):
        try:
            check(path)
            return ctypes.CDLL(path), path
        except (NotLoadable, OSError) as e:
            reasons.append(str(e))
    raise NotLoadable("; ".join(reasons) or f"{name}: no such file where the dynamic linker looks")


def is_cut_short(name: str) -> bool:
    """Whether the dynamic linker, asked for a name, would map a file that is cut short."""
    for path in candidates(name):
        try:
            check(path)
        except CutShort:
            return True
        except NotLoadable:
            continue
        return False
    return False
