"""RAM images of known kinds, for trials and for machines where no guest's memory is at hand.

==========  =====================================================================================================
zero        nothing but zero pages
noise       pages that do not compress
text        words, each page another
files       pages of this machine's programs, libraries and documents
mix         runs of pages, 1/4 zero, 1/2 files, 1/4 noise
==========  =====================================================================================================

Equal seeds give equal bytes, those from files on an unchanged machine.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from multifd.errors import RamError, UsageError

PAGE = max(4096, mmap.PAGESIZE)
KINDS = ("zero", "noise", "text", "files", "mix")
_LONGEST_RUN = 128  # pages of a kind in a row
_FEWEST_RUNS = 16
"""Runs in a small image, so that it has a bit of everything."""
_PIECE = 1 << 20
_PACKED = {".bz2", ".gif", ".gz", ".jar", ".jpg", ".png", ".ttf", ".whl", ".woff2", ".xz", ".zip", ".zst"}
_WORDS = b"a page of guest memory is sent once and again when it was written to before the source stands still".split()
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse(text: str) -> tuple[str, int]:
    """``mix:64M`` as a kind and bytes.

    Raises:
        UsageError: no such kind, or no such size.
    """
    kind, _, size = text.partition(":")
    match = re.fullmatch(r"([0-9]{1,12})([KMGT]?)(?:i?B)?", size, re.IGNORECASE)
    nbytes = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if kind not in KINDS or not nbytes or nbytes % PAGE:
        raise UsageError(
            f"synthetic source {text!r}, expected KIND:SIZE such as mix:64M, a kind of {', '.join(KINDS)} and a "
            f"multiple of {PAGE} bytes"
        )
    return kind, nbytes


def write_image(path: Path, nbytes: int, kind: str = "mix", seed: int = 1) -> None:
    """Write a RAM image.

    Args:
        path: the file to make; zero pages are holes.
        nbytes: a multiple of the page size.
        kind: one of `KINDS`.
        seed: of everything that is chosen.

    Raises:
        RamError: `nbytes` is not a multiple of the page size, or no room.
    """
    if nbytes <= 0 or nbytes % PAGE:
        raise RamError(f"RAM of {nbytes} bytes, expected a multiple of {PAGE}")
    rng = random.Random(seed)
    choices = _choices(kind, rng)
    left = nbytes // PAGE
    longest = min(_LONGEST_RUN, max(left // _FEWEST_RUNS, 1))
    try:
        with path.open("wb") as image:
            while left:
                run = min(left, rng.randint(1, longest))
                made = rng.choice(choices)(run * PAGE)
                if made:
                    image.write(made)
                else:
                    image.seek(run * PAGE, os.SEEK_CUR)
                left -= run
            image.truncate(nbytes)
    except OSError as e:
        raise RamError(f"{path}: {e.strerror}") from e


_Maker = Callable[[int], bytes]


def _choices(kind: str, rng: random.Random) -> tuple[_Maker, ...]:
    """What runs are made by, each as likely; one that gives nothing leaves a hole."""
    files = _file_bytes(rng)
    makers: Mapping[str, tuple[_Maker, ...]] = {
        "zero": (_hole,),
        "noise": (rng.randbytes,),
        "text": (_text(rng),),
        "files": (files,),
        "mix": (_hole, files, files, rng.randbytes),
    }
    return makers[kind]


def _hole(nbytes: int) -> bytes:
    return b""


def _text(rng: random.Random) -> _Maker:
    def write(nbytes: int) -> bytes:
        words = [b"%d" % rng.getrandbits(16) if rng.random() < 0.2 else rng.choice(_WORDS) for _ in range(nbytes // 3)]
        return b" ".join(words)[:nbytes].ljust(nbytes, b".")

    return write


def _file_bytes(rng: random.Random) -> _Maker:
    """A reader that goes through this machine's programs, libraries and sources for ever."""
    stored = bytearray()
    pieces = _pieces(rng)

    def read(count: int) -> bytes:
        while len(stored) < count:
            stored.extend(next(pieces))
        taken = bytes(stored[:count])
        del stored[:count]
        return taken

    return read


def _pieces(rng: random.Random) -> Iterator[bytes]:
    roots = [Path(sysconfig.get_path("stdlib")), Path("/usr/bin"), Path("/usr/lib"), Path("/usr/share/doc")]
    paths = []
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            paths += [os.path.join(folder, n) for n in sorted(names) if Path(n).suffix not in _PACKED]
    while True:
        rng.shuffle(paths)
        for path in paths:
            try:
                with open(path, "rb") as file:
                    piece = file.read(_PIECE)
            except OSError:
                continue
            if len(piece) >= PAGE:
                yield piece
