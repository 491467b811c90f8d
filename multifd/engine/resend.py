"""What can be made of stored streams: sent as they are, sent by another method, squeezed, unpacked.

Rules of this file: a folder is checked before anything of it is used; nothing here changes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from multifd.engine import storing
from multifd.engine.canceller import Canceller
from multifd.engine.checking import MainStart
from multifd.engine.config import ReceiveConfig, RelayConfig, SendConfig, dialect_for
from multifd.engine.player import Player
from multifd.engine.receiver import Receiver
from multifd.engine.relay import Relay
from multifd.engine.sender import Sender
from multifd.engine.still import send_still
from multifd.errors import Cancelled, MultifdError, UsageError, about
from multifd.method import MultifdMethods
from multifd.ram.folder import StoredFolder
from multifd.ram.image import open_stored, open_target
from multifd.ram.part import unpacked_name
from multifd.registry import load_method
from multifd.stats import RelayResult, Result
from multifd.transport.accept import Acceptor
from multifd.transport.address import Uri, folder_of
from multifd.transport.tls import TlsClient
from multifd.wire.dialect import release_of

Progress = Callable[[Result], None]


@dataclass(frozen=True)
class Way:
    """Where to and how; the arguments of `multifd.send`."""

    to: Uri
    channels: int | None
    """None: as many as are stored."""
    max_bandwidth: int
    connect_timeout_s: float
    timeout_s: float
    tls: TlsClient | None

    def config(self, channels: int) -> SendConfig:
        """Checked, for so many channels."""
        return SendConfig(
            self.to, channels, storing.AS_STORED, self.max_bandwidth, self.connect_timeout_s, self.timeout_s, self.tls
        )


def send(
    path: str,
    method: str | MultifdMethods | None,
    way: Way,
    on_progress: Progress | None,
    canceller: Canceller,
) -> Result:
    """Send stored streams to a destination, as they are or by another method, or squeezed to another folder.

    Args:
        path: their folder.
        method: with options; None: the one by which they were stored, of which nothing is decoded.
        way: where to and how.
        on_progress, canceller: as `Sender`'s.

    Raises:
        RamError: the folder is not what was written; nothing was sent.
        MultifdError: what else went wrong; ``result`` has the figures up to then.
    """
    if method is not None and not isinstance(method, str):
        raise about(UsageError("stored streams go by a method's name with its options, not by a loaded one"), "method")
    begun = time.monotonic()
    with storing.opened(path, canceller) as (folder, start):
        own = folder.manifest.channels
        config = way.config(own if way.channels is None else way.channels)
        if way.to.folder:
            return _squeeze(folder, start, method or folder.manifest.method or "none", config, on_progress, canceller)
        if config.channels != own:
            raise about(UsageError(f"dir:{path} has {own} channels, and each has its own connection"), "channels")
        if method is None:
            player = Player(folder, start, config, on_progress, canceller)
            player.stats.begin(begun)  # the check is part of it
            return player.run()
        return _recode(folder, start, method, config, on_progress, canceller)


def _recode(
    folder: StoredFolder,
    start: MainStart,
    method: str,
    config: SendConfig,
    on_progress: Progress | None,
    canceller: Canceller,
) -> Result:
    """By another method, packet by packet, as a relay does it."""
    relay_config = RelayConfig(
        config.uri, out_method=method, channels=config.channels, connect_timeout_s=config.connect_timeout_s,
        timeout_s=config.timeout_s, max_bandwidth=config.max_bandwidth, out_tls=config.tls,
    )  # fmt: skip
    with storing.played(folder, start, config.timeout_s) as listener:
        acceptor = Acceptor(listener, config.timeout_s)
        try:
            on_relay = None if on_progress is None else lambda figures: on_progress(_as_sent(figures, start))
            return _as_sent(Relay(acceptor, relay_config, canceller, on_relay).run(), start)
        except MultifdError as e:
            if isinstance(e.result, RelayResult):
                e.result = _as_sent(e.result, start)
            raise
        finally:
            acceptor.close()


def _as_sent(figures: RelayResult, start: MainStart) -> Result:
    """A relay's figures as a sender's."""
    return Result(
        status="active" if figures.status == "waiting" else figures.status,
        method=figures.out_method,
        channels=figures.channels,
        total_time_ms=figures.total_time_ms,
        mbps=round(figures.bytes_out * 8 / figures.total_time_ms / 1e3, 3) if figures.total_time_ms else 0.0,
        normal_pages=figures.normal_pages,
        zero_pages=figures.zero_pages,
        transferred_bytes=figures.bytes_out,
        ram_bytes=sum(block.used_length for block in start.machine.blocks),
        method_stats=figures.out_stats,
        error=figures.error,
        notes=figures.notes,
    )


def _squeeze(
    folder: StoredFolder,
    start: MainStart,
    method: str,
    config: SendConfig,
    on_progress: Progress | None,
    canceller: Canceller,
) -> Result:
    """To another folder with every page once: what a guest at work has sent again and again is stored as it ended.

    It is the same RAM, so what is known of it is said there, too, for `multifd.engine.ram_check` to compare.
    """
    loaded = load_method(method)
    with (
        storing.destination(config.uri, method, config.timeout_s, folder.manifest.ram) as uri,
        unpacked(folder, start, Path(config.uri.folder), config.timeout_s, canceller) as path,
        contextlib.closing(open_stored(path)) as source,
    ):
        name = None if release_of(source.machine.name) else "9.0"  # nothing but RAM, as a raw image is sent
        to_keeper = dataclasses.replace(config, uri=uri, dialect=dialect_for(source, name))
        return send_still(Sender(source, loaded, to_keeper, on_progress, canceller), source)


@contextlib.contextmanager
def as_file(
    place: str | os.PathLike[str], beside: Path, timeout_s: float = 60.0, canceller: Canceller | None = None
) -> Iterator[str | os.PathLike[str]]:
    """Stored streams as a capture, for as long as it is needed; any other place as it is.

    Args:
        place: a file's path, or ``dir:PATH``.
        beside: the capture lies in the same folder as this file, hidden.
        timeout_s: how long a method may take for nothing.
        canceller: ends the check and the unpacking.

    Raises:
        RamError: the folder is not what was written, or there is no room.
    """
    if not (path := folder_of(place)):
        yield place
        return
    canceller = canceller or Canceller()
    with (
        storing.opened(path, canceller) as (folder, start),
        unpacked(folder, start, beside, timeout_s, canceller) as capture,
    ):
        yield capture


@contextlib.contextmanager
def unpacked(
    folder: StoredFolder, start: MainStart, beside: Path, timeout_s: float, canceller: Canceller
) -> Iterator[Path]:
    """A folder's memory in a capture, for as long as it is needed.

    Args:
        folder, start: checked.
        beside: where it lies: in the same folder as this file, hidden.
        timeout_s: how long a method may take for nothing.
        canceller: ends the unpacking; free for the next call afterwards.
    """
    path, own = beside.with_name(unpacked_name(beside.name)), Canceller()
    canceller.begin(own.cancel, own.stop_waiting)
    try:
        target = open_target(path)
        try:
            with storing.played(folder, start, timeout_s) as listener:
                config = ReceiveConfig(folder.manifest.channels, timeout_s=timeout_s)
                Receiver(listener, target, config, canceller=own).run()
        except Cancelled:
            canceller.check()  # in the caller's words: here nobody is told of a receiver
            raise
        finally:
            target.discard()
    finally:
        canceller.release()
    try:
        yield path
    finally:
        os.unlink(path)
