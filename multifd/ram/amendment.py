"""A manifest that takes the place of a folder's own, with more in it.

Rules of this file: whoever reads the folder meanwhile has the old one or the new one. What a killed process leaves is a
file that readers overlook and the next amendment replaces.
"""

from __future__ import annotations

import os

from multifd.errors import RamError
from multifd.ram import manifest
from multifd.ram.file import write
from multifd.ram.folder import StoredFolder
from multifd.ram.manifest import Manifest
from multifd.ram.part_file import PartFile


class Amendment:
    """The place of a manifest to be: made first, so that a folder that cannot be written is told before any work.

    Args:
        folder: stays the caller's, who is `multifd.ram.folder.alone`.

    Raises:
        RamError: it cannot be written.
    """

    def __init__(self, folder: StoredFolder) -> None:
        self._folder = folder
        try:
            self._file = PartFile(folder.path / manifest.NAME)
        except RamError as e:
            raise RamError(f"{folder.path}: nothing can be added to its manifest: {e}") from e

    def commit(self, said: Manifest) -> None:
        """Write it, durably, and give it the name.

        Raises:
            RamError: it is too long, or cannot be written; the folder is as it was.
        """
        data = said.encode()
        if len(data) > manifest.MOST_BYTES:
            raise RamError(f"{self._file.path}: would have {len(data)} bytes, at most {manifest.MOST_BYTES}")
        try:
            self._file.admit(os.stat(self._file.path))
        except OSError as e:
            raise RamError(f"{self._file.path}: was removed meanwhile: {e.strerror}") from e
        write(self._file.fd, data, 0, self._file.part)
        self._file.commit()

    def discard(self) -> None:
        """Remove it, unless it was committed. Twice is harmless."""
        self._file.discard()
