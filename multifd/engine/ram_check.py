"""Whether stored streams give the RAM that they gave before: every page is decoded, by the method that is found.

The digests of files say that the bytes are those that were stored; those of RAM say that they still decode to the same.

Rules of this file: nothing is changed but the manifest, and that only if it has no digests of RAM yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from multifd.engine import resend, storing, streams_info
from multifd.engine.canceller import Canceller, unless_cancelled
from multifd.engine.checking import MainStart
from multifd.engine.streams_info import StreamsInfo
from multifd.errors import RamError
from multifd.ram import mapped_digest
from multifd.ram.amendment import Amendment
from multifd.ram.digest import Verdict
from multifd.ram.folder import StoredFolder, StoredStream, alone
from multifd.ram.mapped_source import MappedRamSource
from multifd.ram.span import short
from multifd.ram.span_digests import Progress


def verify(
    path: str, on_progress: Progress | None = None, timeout_s: float = 60.0, canceller: Canceller | None = None
) -> StreamsInfo:
    """Compare all of a folder with its digests, and its RAM, too, whose digests are added if there are none.

    Args:
        path: the folder; its RAM is unpacked beside it for as long as it takes.
        on_progress: called about ten times a second in this thread, with the bytes of RAM that are digested and all.
        timeout_s: how long a method may take for nothing.
        canceller: to end it with; nothing is changed then.

    Raises:
        RamError: what is wrong first, by name; RAM cannot be unpacked there; digests cannot be added.
        MultifdError: a page cannot be decoded, or its method is not installed.
    """
    canceller = canceller or Canceller()
    with alone(Path(path)), storing.opened(path, canceller, StoredStream.verify) as (folder, start):
        info = streams_info.read(folder, canceller.check)
        if info.ram is None:
            return _add(folder, start, info, timeout_s, on_progress, canceller)
        _compare(folder, info.ram, _digests(folder, start, timeout_s, on_progress, canceller))
        return dataclasses.replace(info, checked=Verdict("match", f"{path}: RAM matches the manifest"))


def _add(
    folder: StoredFolder, start: MainStart, info: StreamsInfo, timeout_s: float, on_progress: Progress | None,
    canceller: Canceller,
) -> StreamsInfo:  # fmt: skip
    amendment = Amendment(folder)
    try:
        ram = _digests(folder, start, timeout_s, on_progress, canceller)
        amendment.commit(dataclasses.replace(folder.manifest, ram=ram))
    finally:
        amendment.discard()
    words = f"{folder.path}: its manifest had no digests of RAM, and has them now"
    return dataclasses.replace(info, ram=ram, checked=Verdict("added", words))


def _compare(folder: StoredFolder, known: Mapping[str, str], found: Mapping[str, str]) -> None:
    wrong = [name for name, digest in known.items() if found[name] != digest]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RamError(
            f"{folder.path}: block {short(wrong[0])} decodes to another RAM{more}: its SHA-256 is {found[wrong[0]]}, "
            f"not {known[wrong[0]]}; the files are as they were stored, so a method or what decodes it is not"
        )


def _digests(
    folder: StoredFolder, start: MainStart, timeout_s: float, on_progress: Progress | None, canceller: Canceller
) -> dict[str, str]:
    """SHA-256 of each block's bytes, of the RAM that is unpacked beside the folder."""
    beside = folder.path.resolve()
    with (
        resend.unpacked(folder, start, beside, timeout_s, canceller) as path,
        contextlib.closing(MappedRamSource(path)) as source,
    ):
        return mapped_digest.of_blocks(source, unless_cancelled(canceller, on_progress))
