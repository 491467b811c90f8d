"""What a capture must put back, on disk before the first change: a killed capture can be finished from it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from multifd.errors import RamError, about
from multifd.manage.settings import Settings
from multifd.ram.file import close

_VERSION = 1
_LONGEST = 1 << 20  # bytes; one is about 1 KiB


@dataclass(frozen=True)
class State:
    """A QEMU as it was before a capture."""

    monitor: dict[str, str]
    """What `multifd.manage.monitor.open_monitor` takes."""
    run_state: str
    """query-status."""
    before: Settings
    """Of all settings those that the capture changes."""
    snapshot: str = ""
    """The disk snapshot that the capture takes; empty: none."""
    disks: list[str] = field(default_factory=list)
    """The devices or nodes that it is taken of."""


class StateFile:
    """``.NAME.multifd-capture`` beside the capture's file NAME, mode 0600, locked by the process at work.

    Args:
        out: the capture's file.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self._out = Path(out)
        self.path = self._out.with_name(f".{self._out.name}.multifd-capture")
        self._fd = -1

    def create(self, state: State) -> None:
        """Write it; durable when this returns.

        Raises:
            RamError: there is one already, or it cannot be written.
        """
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileExistsError as e:
            error = RamError(
                f"{self.path}: a capture into {self._out.name} is at work, or was killed: then recover it first"
            )
            raise about(error, "recover") from e
        except OSError as e:
            raise RamError(f"{self.path}: {e.strerror}") from e
        try:
            document = json.dumps({"version": _VERSION, **asdict(state)}).encode()
            if os.write(self._fd, document) != len(document):
                raise RamError(f"{self.path}: cannot be written whole")
            os.fsync(self._fd)
            self._sync_folder()
        except OSError as e:
            self.remove()
            raise RamError(f"{self.path}: {e.strerror}") from e
        except BaseException:
            self.remove()
            raise

    def open(self) -> State:
        """Read one that was left, and lock it.

        Raises:
            RamError: there is none, it is in use, or it is not one.
        """
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            document: dict[str, Any] = json.loads(os.read(self._fd, _LONGEST))
            if document.pop("version") != _VERSION:
                raise ValueError("another version")
            before = document.pop("before")
            state = State(before=Settings(**before), **document)
            if not _is_whole(state):
                raise ValueError("other types of values")
            return state
        except FileNotFoundError as e:
            raise RamError(f"{self._out}: no capture was left unfinished there (no {self.path.name})") from e
        except BlockingIOError as e:
            raise RamError(f"{self.path}: the capture is still at work; end it with SIGINT or SIGTERM") from e
        except OSError as e:
            raise RamError(f"{self.path}: {e.strerror}") from e
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise RamError(
                f"{self.path}: not what a capture leaves; if QEMU is gone, remove it ({type(e).__name__}: {e})"
            ) from e

    def remove(self) -> None:
        """Everything is as it was. Twice is harmless.

        Raises:
            RamError: it cannot be removed, or not durably.
        """
        if self._fd < 0:
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            self._sync_folder()
        except OSError as e:
            raise RamError(
                f"{self.path}: cannot be removed for good: {e.strerror}; nothing is left to put back, remove it by hand"
            ) from e
        finally:
            self.close()

    def close(self) -> None:
        """Leave it where it is, for `open` of another process. Twice is harmless."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            close(folder)


def _is_whole(state: State) -> bool:
    """Whether all parts are what they are used as; the keys of a JSON document are texts."""
    capabilities, parameters = state.before.capabilities, state.before.parameters
    if not (
        isinstance(state.disks, list) and all(isinstance(x, dict) for x in (state.monitor, capabilities, parameters))
    ):
        return False
    texts = (state.run_state, state.snapshot, *state.monitor.values(), *state.disks)
    return all(isinstance(x, str) for x in texts) and all(isinstance(x, bool) for x in capabilities.values())
