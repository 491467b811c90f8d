"""The two ends that a folder of stored streams has: where a source can connect, and who connects to a destination.

An address ``dir:PATH`` becomes one of this process: a `Keeper` or a `Player` works beside the caller's end, and both
meet at a socket that nobody else knows. So every engine sends to a folder and receives from one as from anybody.

Rules of this file: the caller's end is in charge. The other one ends when that does; what it knows better, it says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from multifd import scratch, threads
from multifd.engine.canceller import Canceller
from multifd.engine.checking import Look, MainStart, check
from multifd.engine.config import ReceiveConfig, SendConfig
from multifd.engine.crew import JOIN_S
from multifd.engine.fate import attach
from multifd.engine.keeper import Keeper
from multifd.engine.player import Player
from multifd.engine.receiver import Receiver
from multifd.errors import ChannelError, PeerFailed
from multifd.method import MultifdMethods
from multifd.ram.block import Target
from multifd.ram.folder import StoredFolder, StoredStream
from multifd.ram.part_folder import PartFolder
from multifd.stats import Result
from multifd.transport.access import Access
from multifd.transport.address import Uri
from multifd.transport.handed import HandedConnections
from multifd.transport.listen import Listener
from multifd.wire.dialect import DIALECTS

AS_STORED = DIALECTS["9.0"]
"""In the place of a dialect where streams go as they are: none is spoken."""
_LOG = logging.getLogger(__name__)
_Listening = TypeVar("_Listening", bound=Listener | HandedConnections)
_LAST_WORD_S = 5.0
"""How long the other end may take to say why the caller's has failed."""


@contextlib.contextmanager
def destination(
    uri: Uri, method: str | MultifdMethods, timeout_s: float, ram: Mapping[str, str] | None = None
) -> Iterator[Uri]:
    """Where to connect for what goes to `uri`: `uri` itself, or if it is a folder, who keeps it there.

    Args:
        uri: where to.
        method: as the manifest has it, as far as it is known; empty: the name of the one that comes.
        timeout_s: how long all connections may be silent.
        ram: SHA-256 of the blocks that go there, as `multifd.ram.manifest.Manifest.ram`, if it is known.

    Raises:
        RamError: the folder cannot be made.
        MultifdError: at the end, though nobody heard of it: there is no folder, and why.
    """
    if not uri.folder:
        yield uri
        return
    folder = PartFolder(uri.folder, ram)
    try:
        with _meeting_place() as listener:
            canceller = Canceller()
            name = method if isinstance(method, str) else method.name
            keeper = Keeper(listener, folder, ReceiveConfig(timeout_s=timeout_s), name, canceller=canceller)
            with _beside(keeper.run, canceller) as errors:
                yield listener.uri
            if errors:  # a source that asked for no answer does not hear that there is no folder
                attach(errors[0], None)
                raise errors[0]
    finally:
        folder.discard()


@contextlib.contextmanager
def source(
    uri: Uri,
    access: Access,
    timeout_s: float,
    canceller: Canceller,
    listen: Callable[[Uri, Access], _Listening],
) -> Iterator[tuple[_Listening | Listener, int | None]]:
    """Where what comes from `uri` arrives: its listener, or if it is a folder, one at which that is played.

    With it comes how many channels there are, None if only the source knows.

    Args:
        uri: where from.
        access: who may connect.
        timeout_s: how long all connections may be silent.
        canceller: ends the check of the folder.
        listen: makes a listener.

    Raises:
        RamError: the folder is not sound.
        ChannelError, UsageError: what `listen` raises.
    """
    if not uri.folder:
        with contextlib.closing(listen(uri, access)) as listener:
            yield listener, None
        return
    with opened(uri.folder, canceller) as (folder, start), played(folder, start, timeout_s) as place:
        yield place, folder.manifest.channels


def receiver(
    listener: Listener | HandedConnections,
    target: Target | PartFolder,
    config: ReceiveConfig,
    on_progress: Callable[[Result], None] | None,
    canceller: Canceller,
) -> Receiver:
    """What takes a migration into a target, or keeps it in a folder as it comes; arguments as `Receiver`'s."""
    if isinstance(target, PartFolder):
        return Keeper(listener, target, config, on_progress=on_progress, canceller=canceller)
    return Receiver(listener, target, config, on_progress, canceller)


@contextlib.contextmanager
def played(folder: StoredFolder, start: MainStart, timeout_s: float) -> Iterator[Listener]:
    """A listener at which a folder arrives as from any source.

    Args:
        folder: the caller's, checked.
        start: what the check has found.
        timeout_s: how long all connections may be silent.
    """
    with _meeting_place() as place:
        canceller = Canceller()
        config = SendConfig(place.uri, folder.manifest.channels, AS_STORED, timeout_s=timeout_s)
        player = Player(folder, start, config, canceller=canceller)
        # Once the caller has ended, nobody accepts what waits at the socket: the player must not wait for him.
        with _beside(player.run, canceller) as errors, contextlib.closing(place):
            yield place
        for error in errors:
            _LOG.warning("%s", error)


@contextlib.contextmanager
def opened(
    path: str, canceller: Canceller, look: Look = StoredStream.check
) -> Iterator[tuple[StoredFolder, MainStart]]:
    """A folder whose files are what was written; arguments as `check`'s.

    Raises:
        RamError: they are not.
    """
    folder = StoredFolder(path)
    try:
        yield folder, check(folder, canceller, look)
    finally:
        folder.close()


@contextlib.contextmanager
def _meeting_place() -> Iterator[Listener]:
    """A listener that only this process can reach: its file is gone again before anybody connects.

    So nobody else finds it, and whoever is killed leaves nothing behind.
    """
    with scratch.folder() as folder, _reached_by_number(folder) as number:
        listener = Listener(Uri(path=f"{number}/socket"))
        try:
            place = os.open(listener.uri.path, os.O_PATH | os.O_CLOEXEC)
        except BaseException:
            listener.close()
            raise
    try:
        listener.uri = Uri(path=f"/proc/self/fd/{place}")  # which leads to the socket, whatever its file's name was
        yield listener
    finally:
        listener.close()
        os.close(place)


@contextlib.contextmanager
def _reached_by_number(folder: str) -> Iterator[str]:
    """A path of it that is short, as a socket's must be, however long its own is."""
    number = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = f"/proc/self/fd/{number}"
        if not os.path.lexists(path):
            raise ChannelError("stored streams need /proc, which is not there")
        yield path
    finally:
        os.close(number)


@contextlib.contextmanager
def _beside(run: Callable[[], object], canceller: Canceller) -> Iterator[list[BaseException]]:
    """Run the other end in a thread for the length of a ``with``; gives what it has raised, by its end.

    Args:
        run: it.
        canceller: its own.
    """
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=guarded, name="multifd_other_end", daemon=True)
    threads.start(thread)
    try:
        yield errors
        thread.join(JOIN_S)
    except (ChannelError, PeerFailed) as e:
        thread.join(_LAST_WORD_S)
        cause = next((error for error in errors if not isinstance(error, ChannelError | PeerFailed)), None)
        if cause is None:
            raise
        if e.result is not None:
            notes = tuple(getattr(cause, "__notes__", ()))
            attach(cause, dataclasses.replace(e.result, error=str(cause), notes=notes))
        raise cause from e
    finally:
        canceller.cancel()
        thread.join(JOIN_S)
