"""A file that appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import os
import stat

from multifd.errors import RamError
from multifd.ram.file import OpenFile, close, sync_data
from multifd.ram.part import Part, part_name


def sidecar_name(name: str) -> str:
    """What the file with the digests of file `name` is called; it is beside it."""
    return f"{name}.sha256"


class PartFile(Part):
    """A file written beside `path` and renamed to it when complete, mode 0600; see `Part`.

    Digests of what was under the name before (``NAME.sha256``) are removed first, and durably, so that they never
    condemn the new file.

    Args:
        path: the file to make or replace.

    Raises:
        RamError: it cannot be written there.
    """

    fd: OpenFile
    _flags = os.O_RDWR

    def _refuse(self) -> None:
        """See `Part`: only a regular file is replaced, also behind a link, and only digests that can be removed."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(self.path.name, dir_fd=self._parent).st_mode):
                raise RamError(f"{self.path}: exists and is not a regular file")
        name = sidecar_name(self.path.name)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=self._parent, follow_symlinks=False).st_mode):
                raise RamError(f"{self.path.with_name(name)}: a folder where digests of {self.path.name} belong")

    def _make(self) -> None:
        """See `Part`."""
        close(os.open(self.part.name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._parent))

    def _take(self, fd: int) -> None:
        """See `Part`."""
        self.fd = OpenFile(fd, self.part)

    def _leftovers(self) -> tuple[str, ...]:
        """See `Part`: its digests, half written."""
        return (part_name(sidecar_name(self.path.name)),)

    def admit(self, like: os.stat_result) -> None:
        """Let those read it who may read another file, as far as the system lets this process."""
        with self.fd.use() as fd:
            with contextlib.suppress(OSError):  # only root may, and not to everybody
                os.fchown(fd, like.st_uid, like.st_gid)
            with contextlib.suppress(OSError):
                os.fchmod(fd, 0o600 | (like.st_mode & 0o044))

    def resize(self, nbytes: int) -> None:
        """Make it `nbytes` long; what is not written stays a hole.

        Raises:
            RamError: the file system cannot hold a file of this length.
        """
        try:
            with self.fd.use() as fd:
                os.ftruncate(fd, nbytes)
        except OverflowError as e:
            raise RamError(f"{self.part}: cannot hold {nbytes} bytes: more than a file can have") from e
        except OSError as e:
            raise RamError(f"{self.part}: cannot hold {nbytes} bytes: {e.strerror}") from e

    def flush(self) -> None:
        """Make durable what is written so far.

        Raises:
            RamError: the disk failed.
        """
        sync_data(self.fd, self.part)

    def commit(self) -> None:
        """Sync file and folder and give it its name: it survives a power failure from here on.

        Raises:
            RamError: it cannot, or `discard` came first; the file does not have its name then.
        """
        try:
            with self.fd.use() as fd:
                os.fsync(fd)  # may take long: `discard` need not wait for it
            self._take_name()
        except OSError as e:
            raise RamError(f"{self.path}: cannot be completed: {e.strerror}") from e
        self.discard()

    def _forget(self) -> None:
        """See `Part`: durably, because after a power failure old digests must not be beside the new file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(sidecar_name(self.path.name), dir_fd=self._parent)
            os.fsync(self._parent)

    def _remove(self) -> None:
        """See `Part`."""
        os.unlink(self.part.name, dir_fd=self._parent)

    def _close(self) -> None:
        """See `Part`."""
        self.fd.close()
