"""A folder for a socket that nobody else can reach, where temporary files are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from multifd import scratch
from multifd.errors import ChannelError

_MOST_BYTES = 107 - len("/restore")
"""sun_path, unix(7), less the longest name of a socket in it."""


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """A folder of mode 0700 for the length of a ``with``.

    Raises:
        RamError: there can be none.
        ChannelError: the path of a socket in it would be too long.
    """
    with scratch.folder() as path:
        if len(os.fsencode(path)) > _MOST_BYTES:
            raise ChannelError(f"{path}: too long for the path of a socket in it; TMPDIR can name a shorter place")
        yield path
