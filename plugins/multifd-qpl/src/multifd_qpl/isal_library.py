"""Finds ISA-L for the C code, has it tested, and makes it do what libqpl's software path does (``_isal.c``).

ISA-L is looked for in the extension module of the isal package first, which exports ISA-L's functions beside its own,
says which version they are of, and is newer than what distributions have; then as ``libisal.so.2``. Where neither can
be used, `multifd_qpl.software` goes through the isal package page by page.

What a page of 4 KiB costs, in us of CPU time, and the ratio, on 12288 pages of programs, libraries and documents, a
third of them incompressible (``benchmarks/qpl_isal.py``, 2-core Zen 5, ISA-L 2.32.1, libqpl 1.6.0, 2026-11-29):

| | compress | decompress | ratio |
| --- | --- | --- | --- |
| this | 4.5 | 3.4 | 1.551 |
| ISA-L's level 0, a bare loop in C | 5.6 | 3.8 | 1.551 |
| its fixed code instead | 5.7 | 4.0 | 1.550 |
| its level 1, with the smallest buffer, a small one, a large one | 26, 15, 17 | 6.2, 5.8, 5.6 | 1.67 |
| its level 3 | 18 | 5.5 | 1.68 |
| libqpl in software | 8.9 | 4.4 | 1.456 |
| libdeflate 1.14's level 1 | 18 | 5.1 | 1.689 |

Level 0 begins each stream with the same code, of 110 bytes, which decodes as fast as the fixed one and loses no bytes
by it. This is faster than the bare loop since noise is not tried (``_noise.c``, 1.1 us), and since the code that every
stream of ISA-L's begins with is read once for a channel instead of once for each page (0.4 us). The rest is ISA-L's, of
which most is branches that no processor foresees, one for each literal or match. So a page of which less than a quarter
would be saved goes raw, which the table is still without: ``_compress.c`` has what that gives.
"""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache

from multifd.cffi_types import realize
from multifd_qpl.abi import Library, LibraryUnavailable
from multifd_qpl.elf import NotLoadable, open_shared

__all__ = ["SONAME", "load_isal", "open_library", "open_package", "use"]

SONAME = "libisal.so.2"

_OLDEST = (2, 30)
"""From here to 2.32.1 the structures were compared, field by field. ISA-L 3 may change them."""
_FUNCTIONS = (
    "deflate_stateless_init",
    "deflate_stateless",
    "inflate_init",
    "inflate_reset",
    "inflate",
    "inflate_stateless",
)

Opened = tuple[ctypes.CDLL, str, str]
"""A shared object, its path, and the version of the ISA-L in it."""

_PACKAGE, _SYSTEM = 0, 1
"""Where the C code keeps the functions of each, so that threads that look for ISA-L at the same time do not meet."""


def load_isal() -> Library:
    """ISA-L in libqpl's shape, without hardware; tested.

    Raises:
        LibraryUnavailable: none can be used from C; the message says why.
    """
    outcome = _outcome()
    if isinstance(outcome, str):
        raise LibraryUnavailable(outcome)
    return outcome


@cache
def _outcome() -> Library | str:
    try:
        return _open_and_test()
    except LibraryUnavailable as e:
        return str(e)


def _open_and_test() -> Library:
    reasons = []
    for place, open_it in ((_PACKAGE, open_package), (_SYSTEM, open_library)):
        try:
            return use(open_it(), place)
        except LibraryUnavailable as e:
            reasons.append(str(e))
    raise LibraryUnavailable("; ".join(reasons))


def open_package() -> Opened:
    """The isal package's extension module.

    Raises:
        LibraryUnavailable: there is none, or its ISA-L is too old.
    """
    try:
        import isal.igzip_lib
    except ImportError as e:
        raise LibraryUnavailable(f"ISA-L cannot be imported: {e}") from e
    path, version = str(isal.igzip_lib.__file__), str(getattr(isal, "ISAL_VERSION", ""))
    _check_version(path, version)
    return ctypes.CDLL(path), path, version


def open_library() -> Opened:
    """The system's library. It has no function that tells its version: its file's name does.

    Raises:
        LibraryUnavailable: there is none, or it is too old.
    """
    try:
        opened, path = open_shared(SONAME)
    except NotLoadable as e:
        raise LibraryUnavailable(str(e)) from e
    found = re.search(r"\.so\.(\d+)\.0\.(\d+)$", os.path.realpath(path))
    version = ".".join(found.groups()) if found else ""
    _check_version(path, version)
    return opened, path, version


def _check_version(path: str, version: str) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if len(numbers) < 2 or numbers < _OLDEST or numbers[0] != _OLDEST[0]:
        raise LibraryUnavailable(f"{path} is ISA-L of version {version or 'unknown'}, expected 2.30 or a later 2.x")


def use(found: Opened, place: int = _PACKAGE) -> Library:
    """A library whose jobs an ISA-L does, after a test of it.

    Args:
        found: the ISA-L.
        place: where the C code keeps its functions; jobs made from now on by what was there before are this one's, too.

    Raises:
        LibraryUnavailable: the extension was not built, ISA-L's functions are not exported, or a test failed.
    """
    try:
        from multifd_qpl._batch import ffi, lib
    except ImportError as e:
        raise LibraryUnavailable(f"the extension multifd_qpl._batch is not there: {e}") from e
    realize(ffi, lib)
    from multifd_qpl.isal_check import check

    opened, path, version = found
    functions, table = ffi.new("mq_isal *"), ffi.new("mq_table *")
    for name in _FUNCTIONS:
        try:
            address = ctypes.cast(getattr(opened, f"isal_{name}"), ctypes.c_void_p).value
        except AttributeError:
            raise LibraryUnavailable(f"{path} (ISA-L {version}) does not export isal_{name}") from None
        setattr(functions, name, ffi.cast(ffi.typeof(getattr(functions, name)), address))
    lib.mq_isal_table(functions, place, table)
    library = Library(table, version, path)
    check(library)
    return library
