"""Digests of a file with RAM: made and written beside it, and checked.

A capture has no digest of its own, so a flipped bit inside a page would pass. What is digested are the file's bytes as
a reader sees them (`multifd.ram.span_digests`): holes count as the zeros that they read as, and may be filled or dug.

Rules of this file: the capture is durable and under its name before its sidecar is; `PartFile` removes the sidecar of
what it replaces first. So a sidecar never stands beside a newer capture of multifd's, whatever is killed when. For
what other programs replace see `_is_another`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from multifd.errors import RamError, UsageError, about
from multifd.ram import sidecar
from multifd.ram.checksum import KINDS, SHA256
from multifd.ram.file import OpenFile
from multifd.ram.sidecar import Sidecar, path_beside
from multifd.ram.span import Span, step_for
from multifd.ram.span_digests import Digests, Progress, of_spans, of_zeros

_LOG = logging.getLogger(__name__)
MODES = ("auto", "require", "ignore")
"""Of a check: if there is a sidecar; there must be one; not at all."""
_FEW = 16
"""Places in which a file may differ from its digests and still be the same file, damaged."""


class DigestedSource(Protocol):
    """RAM in a file, as `multifd.ram.image.open_source` opens it."""

    path: Path
    file: OpenFile
    nbytes: int
    """The file's length."""

    @property
    def form(self) -> str:
        """mapped-ram, stream or raw."""
        ...

    def spans(self, step: int) -> Sequence[Span]:
        """All of the file in order, in pieces of at most `step` bytes."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What a check has shown; a mismatch is an error instead."""

    digest: str
    """match; none: there is no sidecar; older: it is of an earlier file; ignored; of stored streams' RAM also added."""
    words: str
    """The same in a line."""
    is_news: bool = False
    """It is not as it should be, or not known to be. Most raw images are of other programs: that one has no digests
    is no news."""

    def log(self) -> None:
        """Say it: as a warning if it is news."""
        _LOG.log(logging.WARNING if self.is_news else logging.INFO, "%s", self.words)


def make(source: DigestedSource, on_progress: Progress | None = None) -> Path:
    """Digest a file, and write its sidecar.

    Args:
        source: stays the caller's.
        on_progress: see `Progress`.

    Returns:
        The sidecar, durable and under its name.

    Raises:
        RamError: the file cannot be read or changes meanwhile, or the sidecar cannot be written.
    """
    path, before = source.path, _identity(source.file)
    with source.file.use() as fd:
        like = os.fstat(fd)
    spans = source.spans(step_for(source.nbytes))
    wanted = [(_all(source), (SHA256,)), *((span, tuple(KINDS)) for span in spans)]
    whole, *pieces = of_spans(source.file, wanted, on_progress)
    digests = {kind: [piece[kind] for piece in pieces] for kind in KINDS}
    file = sidecar.write_beside(path, sidecar.encode(path.name, whole[SHA256], spans, digests), like)
    try:
        _require_same(source, before)
        file.commit()
        # Whoever replaced it between the two may have found no sidecar to remove.
        if _identity_of(path) != before:
            path_beside(path).unlink(missing_ok=True)
            _require_same(source, before)
    finally:
        file.discard()
    return path_beside(path)


def check(source: DigestedSource, mode: str = "auto", on_progress: Progress | None = None) -> Verdict:
    """Compare a file with its sidecar, by the digests that take the least time.

    Args:
        source: stays the caller's.
        mode: one of `MODES`.
        on_progress: see `Progress`.

    Raises:
        UsageError: there is no such mode.
        RamError: the file does not match, the sidecar is none, or there is none that is the file's and mode is require.
    """
    return _look(source, mode, on_progress, lambda known: tuple(known.digests)[:1])


def verify(source: DigestedSource, mode: str = "auto", on_progress: Progress | None = None) -> Verdict:
    """Compare a file with every digest that its sidecar has; otherwise as `check`."""
    return _look(source, mode, on_progress, lambda known: tuple(known.digests))


def _look(
    source: DigestedSource, mode: str, on_progress: Progress | None, wanted: Callable[[Sidecar], tuple[str, ...]]
) -> Verdict:
    if mode not in MODES:
        raise about(UsageError(f"digest {mode!r}, expected {', '.join(MODES[:-1])} or {MODES[-1]}"), "digest")
    path, place = source.path, path_beside(source.path)
    if mode == "ignore":
        return Verdict("ignored", f"{path}: bytes inside pages are not checked")
    before = _identity(source.file)
    known = sidecar.read_beside(path)
    if known is None:
        words = f"{path}: bytes inside pages are not checked: there is no {place.name}"
        verdict = Verdict("none", f"{words}, which multifd digest makes", is_news=source.form != "raw")
    else:
        verdict = _compare(source, known, wanted(known), before, on_progress)
    if mode == "require" and verdict.digest != "match":
        raise RamError(verdict.words)
    return verdict


def _compare(
    source: DigestedSource,
    known: Sidecar,
    kinds: tuple[str, ...],
    before: tuple[int, ...],
    on_progress: Progress | None,
) -> Verdict:
    path, name = source.path, known.path.name
    if not known.spans:
        (found,) = of_spans(source.file, [(_all(source), (SHA256,))], on_progress)
        wrong = [] if found[SHA256] == known.digest else ["SHA-256 of the whole file"]
        is_another = False
    else:
        there = [span for span in known.spans if span.first + span.nbytes <= source.nbytes]
        digests = of_spans(source.file, [(span, kinds) for span in there], on_progress)
        differs = [[one[kind] != known.digests[kind][i] for kind in kinds] for i, one in enumerate(digests)]
        wrong = [_place(span) for span, is_wrong in zip(there, differs, strict=True) if any(is_wrong)]
        if source.nbytes != known.nbytes:
            wrong.append(f"{source.nbytes} bytes, expected {known.nbytes}")
        is_another = bool(wrong) and _is_another(there, digests, [all(is_wrong) for is_wrong in differs])
    if not wrong:
        return Verdict("match", f"{path}: matches {name}")
    if _identity_of(path) != before:
        raise RamError(f"{path}: was replaced or changed while it was checked; try again")
    if is_another and before[-1] > known.mtime_ns:
        words = f"{path}: bytes inside pages are not checked: {name} is older and of another file"
        return Verdict("older", f"{words}; multifd digest makes a new one", is_news=True)
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    whose = "" if known.name == path.name else f", which is of {known.name}"
    raise RamError(
        f"{path}: does not match {name}{whose}: {wrong[0]}{more}: it was damaged, or is not the file that was "
        "digested; if it is known to be right, multifd digest makes a new one"
    )


def _is_another(spans: Sequence[Span], digests: Sequence[Digests], differs: Sequence[bool]) -> bool:
    """Whether what differs is all over the file: another one was put there; damage is here and there, or zeros."""
    holds = [one != of_zeros(span.nbytes, tuple(one)) for span, one in zip(spans, digests, strict=True)]
    changed = [is_wrong and is_held for is_wrong, is_held in zip(differs, holds, strict=True)]
    places = sum(now and not before for before, now in zip([False, *changed], changed, strict=False))
    return places > _FEW or (sum(changed) > 1 and 2 * sum(changed) > sum(holds))


def _all(source: DigestedSource) -> Span:
    return Span(0, source.nbytes, "the whole file")


def _place(span: Span) -> str:
    return f"{span.what} (bytes {span.first} to {span.first + span.nbytes} of the file)"


def _require_same(source: DigestedSource, before: tuple[int, ...]) -> None:
    if not before == _identity(source.file) == _identity_of(source.path):
        raise RamError(f"{source.path}: was replaced or changed while it was digested; digest it again")


def _identity(file: OpenFile) -> tuple[int, ...]:
    with file.use() as fd:
        return _of(os.fstat(fd))


def _identity_of(path: Path) -> tuple[int, ...]:
    try:
        return _of(os.stat(path))
    except OSError:
        return ()


def _of(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
