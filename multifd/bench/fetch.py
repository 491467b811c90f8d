"""A source that is no file of this host, as one: any URL that fsspec reads, and stored streams, ``dir:PATH``.

Rules of this file: what is fetched lies in a file without a name, so that nothing is left of it however this process
ends. The last one is kept, since what is measured of a source follows each other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from multifd import scratch
from multifd.engine import resend
from multifd.errors import MultifdError, RamError, UsageError
from multifd.ram.folder import StoredFolder
from multifd.transport.address import folder_of

_PIECE = 1 << 20
_lock = threading.Lock()
_kept: tuple[tuple[str, str], IO[bytes]] | None = None
"""URL and version of what was fetched last, and the file; guarded by the lock."""


def is_url(path: str) -> bool:
    """Whether a source's path is a URL or a folder of stored streams, not a file of this host."""
    return "://" in path or bool(folder_of(path))


@contextlib.contextmanager
def fetched(url: str) -> Iterator[str]:
    """What lies at a URL, as a path that processes of this user on this host can open while the context lasts.

    Args:
        url: of any kind that an installed fsspec driver reads; a ``file`` is not copied; ``dir:PATH`` is unpacked.

    Raises:
        UsageError: nothing is installed for this kind of URL.
        RamError: it cannot be read, or there is no room for it in the temporary folder.
    """
    if url.startswith("file://"):
        yield url.removeprefix("file://")
        return
    with _lock:
        descriptor = os.dup(_copied(url).fileno())
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _copied(url: str) -> IO[bytes]:
    """The copy that is kept; of another URL than before it replaces the other."""
    global _kept
    version, copy = _unpacking(folder_of(url)) if folder_of(url) else _copying(url)
    if _kept is None or _kept[0] != (url, version):
        if _kept is not None:
            _kept[1].close()
            _kept = None
        _kept = (url, version), copy()
    return _kept[1]


def _unpacking(folder: str) -> tuple[str, Callable[[], IO[bytes]]]:
    """The version of stored streams, and what makes a capture without a name of them."""
    streams = StoredFolder(folder)
    streams.close()

    def unpack() -> IO[bytes]:
        with (
            scratch.folder() as place,
            resend.as_file(f"dir:{folder}", Path(place, "source")) as path,
        ):
            return open(path, "rb")

    return streams.manifest.encode().decode(), unpack


def _copying(url: str) -> tuple[str, Callable[[], IO[bytes]]]:
    """The version of what lies at a URL, and what copies it."""
    filesystem, path = _filesystem(url)

    def copy() -> IO[bytes]:
        with _told_of(url):
            return _copy(filesystem, path)

    with _told_of(url):
        return str(filesystem.ukey(path)), copy


@contextlib.contextmanager
def _told_of(url: str) -> Iterator[None]:
    try:
        yield
    except MultifdError:
        raise
    except Exception as e:  # a driver of any store raises what it likes
        raise RamError(f"{url}: {type(e).__name__}: {e}") from e


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as e:
        raise UsageError(f"{url}: needs fsspec: pip install 'multifd[dask]'") from e
    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as e:  # "Install s3fs to access S3"; a scheme that nobody knows
        raise UsageError(f"{url}: {e}") from e
    return filesystem, path


def _copy(filesystem: Any, path: str) -> IO[bytes]:
    """A sparse copy without a name."""
    folder = tempfile.gettempdir()
    need, room = filesystem.size(path), shutil.disk_usage(folder).free
    if need is not None and need > room:
        raise RamError(f"{path}: {need} bytes, {folder} has room for {room}: set TMPDIR")
    file = tempfile.TemporaryFile(prefix="multifd-bench-")  # noqa: SIM115 - closed by whoever fetches the next
    try:
        zeros = bytes(_PIECE)
        with filesystem.open(path, "rb") as remote:
            while piece := remote.read(_PIECE):
                if piece == zeros:
                    file.seek(_PIECE, os.SEEK_CUR)
                else:
                    file.write(piece)
        file.truncate()
        file.flush()
    except BaseException:
        file.close()
        raise
    return file
