"""A folder for a socket that nobody else can reach, where temporary files are."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from multifd.errors import ChannelError

_MOST_BYTES = 107 - len("/restore")
"""sun_path, unix(7), less the longest name of a socket in it."""


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """A folder of mode 0700 for the length of a ``with``.

    Raises:
        ChannelError: there can be none, or the path of a socket in it would be too long.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="multifd-")
    except OSError as e:
        raise ChannelError(f"no folder for a socket can be made: {e.strerror or e}; TMPDIR can name a place") from e
    with folder as path:
        if len(os.fsencode(path)) > _MOST_BYTES:
            raise ChannelError(f"{path}: too long for the path of a socket in it; TMPDIR can name a shorter place")
        yield path
