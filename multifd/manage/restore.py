"""A stored machine into a QEMU that was started with ``-incoming defer``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from multifd.api import send
from multifd.engine.canceller import Canceller, unless_cancelled
from multifd.errors import ControlError, MultifdError, OutcomeUnknown, UsageError, about
from multifd.manage import guest
from multifd.manage.monitor import Monitor
from multifd.manage.settings import Settings, apply_method, plan, read
from multifd.ram.digest import check
from multifd.ram.image import open_source
from multifd.registry import load_method, parse_spec
from multifd.sources import Image
from multifd.stats import Result
from multifd.transport.private_folder import private_folder

THEN = ("cont", "stop")


def restore(
    monitor: Monitor,
    source: str | os.PathLike[str],
    method: str = "none",
    *,
    channels: int = 2,
    max_bandwidth: int = 0,
    then: str | None = None,
    listen: str = "",
    timeout: float = 60.0,
    dialect: str | None = None,
    digest: str = "auto",
    on_digest: Callable[[int, int], object] | None = None,
    on_progress: Callable[[Result], None] | None = None,
    canceller: Canceller | None = None,
) -> tuple[Result, str]:
    """Send a stored machine to a QEMU, and leave its settings as they were.

    Args:
        monitor: the QEMU's, from `open_monitor`.
        source: the stored machine.
        method: one that this QEMU has, with options.
        channels: connections besides main, 1 to 255.
        max_bandwidth: bytes per second; 0 is unlimited.
        then: cont or stop; None: as QEMU was started, with -S or without.
        listen: where QEMU is to listen, ``tcp:HOST:PORT`` or ``unix:PATH``; empty: a unix socket in a private folder.
        timeout: seconds that all connections may be silent.
        dialect: as `multifd.send`.
        digest, on_digest: as `multifd.Image`; the file is looked at before anything is changed in QEMU.
        on_progress: called in this thread with the figures so far.
        canceller: cancels this call from another thread.

    Returns:
        The figures, and the guest's run state.

    Raises:
        MultifdError: a note says whether the QEMU can be used again.
    """
    load_method(method)  # refused here, before anything is changed
    if then not in (None, *THEN):
        raise about(UsageError(f"then {then!r}, expected one of {', '.join(THEN)}"), "then")
    if not Path(source).is_file():
        raise about(UsageError(f"{source}: no such file"), "source")
    if (state := guest.run_state(monitor)) != "inmigrate":
        raise ControlError(f"QEMU does not wait for a migration (state {state}): start it with -incoming defer")
    if (status := guest.migration(monitor)["status"]) != "none":
        raise ControlError(f"QEMU waits for another migration (status {status}): start it with -incoming defer")
    name, _ = parse_spec(method)  # its options are the sender's, not QEMU's
    wanted, before = plan(read(monitor), name, channels)
    canceller = canceller or Canceller()
    with contextlib.closing(open_source(source)) as opened:
        verdict = check(opened, digest, unless_cancelled(canceller, on_digest))
    verdict.log()
    has_begun = False
    with private_folder() as folder:
        try:
            apply_method(monitor, wanted, method)
            if then == "stop":
                monitor.execute("stop")
            has_begun = True
            uri = _listen(monitor, listen or f"unix:{folder}/restore")
            result = send(
                Image(source, digest="ignore"), uri, method, channels=channels, max_bandwidth=max_bandwidth,
                timeout=timeout, dialect=dialect, uuid=_uuid(monitor), on_progress=on_progress, canceller=canceller,
            )  # fmt: skip
        except BaseException as e:
            _undo(monitor, before, e, has_begun)
            raise
    guest.retried(lambda: guest.migration(monitor)["status"] == "completed", "complete the migration")
    _put_back(monitor, before)
    if then == "cont" and guest.run_state(monitor) != "running":
        monitor.resume()
    return dataclasses.replace(result, notes=(*result.notes, verdict.words)), guest.run_state(monitor)


def _listen(monitor: Monitor, uri: str) -> str:
    """Let QEMU listen; the URI to send to, its port filled in."""
    monitor.execute("migrate-incoming", uri=uri)
    if not (uri.startswith("tcp:") and uri.endswith(":0")):
        return uri
    address: dict[str, Any] = guest.retried(
        lambda: next(iter(guest.migration(monitor).get("socket-address", ())), None), "say where it listens"
    )
    return f"{uri[:-1]}{address['port']}"


def _uuid(monitor: Monitor) -> str | None:
    """The destination's: a QEMU takes no channel of a machine with another one."""
    return str(UUID(monitor.execute("query-uuid")["UUID"]))


def _put_back(monitor: Monitor, before: Settings) -> None:
    def step() -> bool:
        before.put_back(monitor)
        return True

    guest.retried(step, "take its settings back")


def _undo(monitor: Monitor, before: Settings, error: BaseException, has_begun: bool) -> None:
    if has_begun and isinstance(error, OutcomeUnknown):
        error.add_note("multifd may be on in that QEMU: switch it off before its next savevm")
    if has_begun:
        error.add_note("a QEMU whose migration failed takes no other: start it again")
    with contextlib.suppress(MultifdError):  # it may be gone, or hang: nothing is left on in it then
        before.put_back(monitor)
