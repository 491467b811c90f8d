"""A source that lies elsewhere, for the time of a measurement: any URL that fsspec reads.

Rules of this file: what is fetched lies in a file without a name, so that nothing is left of it however this process
ends. One is kept, the last, since the measurements of a source follow each other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from dataclasses import replace
from typing import IO, Any

from multifd.bench.job import SourceSpec
from multifd.errors import MultifdError, RamError, UsageError

_PIECE = 1 << 20
_lock = threading.Lock()
_kept: tuple[tuple[str, str], IO[bytes]] | None = None
"""URL and version of what was fetched last, and the file; guarded by the lock."""


def is_url(path: str) -> bool:
    """Whether a source's path is a URL, not a file of this host."""
    return "://" in path


def local(source: SourceSpec) -> SourceSpec:
    """The same source as a file that processes of this user on this host can open while this process lives.

    It is valid until another source is fetched; safe to call from any thread, but a caller that measures holds
    `multifd.bench.host.alone` from here to the end of the measurement.

    Args:
        source: its path is returned as it is, unless it is a URL.

    Raises:
        UsageError: nothing is installed for this kind of URL.
        RamError: it cannot be read, or there is no room for it.
    """
    if not is_url(source.path):
        return source
    if source.path.startswith("file://"):
        return replace(source, path=source.path.removeprefix("file://"))
    with _lock:
        return replace(source, path=f"/proc/{os.getpid()}/fd/{_fetched(source.path).fileno()}")


def _fetched(url: str) -> IO[bytes]:
    global _kept
    filesystem, path = _filesystem(url)
    try:
        version = str(filesystem.ukey(path))
        if _kept is not None and _kept[0] == (url, version):
            return _kept[1]
        if _kept is not None:
            _kept[1].close()
            _kept = None
        file = _copy(filesystem, path)
    except MultifdError:
        raise
    except Exception as e:  # a driver of any store raises what it likes
        raise RamError(f"{url}: {type(e).__name__}: {e}") from e
    _kept = ((url, version), file)
    return file


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
    """A sparse copy without a name, in the temporary folder."""
    need, room = filesystem.size(path), shutil.disk_usage(tempfile.gettempdir()).free
    if need is not None and need > room:
        raise RamError(f"{path}: {need} bytes, {tempfile.gettempdir()} has room for {room}: set TMPDIR")
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
