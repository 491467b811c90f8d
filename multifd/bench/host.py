"""One measurement at a time on a host: two of them would measure each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator

from multifd.errors import ChannelError

WAIT_S = 6 * 3600.0
"""How long a measurement waits for its turn: a worker with many threads may have a queue of long ones."""
_LOOK_S = 0.05
_FILE = "multifd-bench.lock"


@contextlib.contextmanager
def alone(wait_s: float = WAIT_S) -> Iterator[None]:
    """While this is held, no other thread or process of the host holds it, whoever's it is.

    The kernel gives it back when a process dies. Hosts are told apart by their temporary folder.

    Args:
        wait_s: for whoever holds it.

    Raises:
        ChannelError: it was held for all that time.
    """
    path = os.path.join(tempfile.gettempdir(), _FILE)
    descriptor = _open(path)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ChannelError(f"{path}: another measurement has held it for {wait_s:g} s") from None
                time.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _open(path: str) -> int:
    """The file, read-only, which is enough for flock: it may be another user's."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
