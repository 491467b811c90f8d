"""A capture of a running guest, from its settings before to its settings after.

Rules of this file: nothing is changed before the state file is durable; whatever happens from there on,
`_put_back` runs, and the state file goes when, and only when, everything is as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from multifd import scratch
from multifd.engine.canceller import Canceller
from multifd.errors import Cancelled, ChannelError, ControlError, MultifdError, RamError, UsageError, about
from multifd.manage import guest
from multifd.manage.incoming import Incoming
from multifd.manage.monitor import Monitor, MonitorLost, open_monitor
from multifd.manage.settings import apply_method, plan, read
from multifd.manage.state_file import State, StateFile
from multifd.ram.part_file import PartFile
from multifd.registry import load_method
from multifd.stats import Result
from multifd.transport.private_folder import private_folder

THEN = ("cont", "stop", "quit")
_T = TypeVar("_T")


@dataclass(frozen=True)
class CaptureResult:
    """What a capture was; `as_dict` is the command line's JSON."""

    figures: Result
    """With downtime and dirty syncs as QEMU counts them."""
    run_state: str
    """query-status at the end; quit if QEMU was ended."""
    stood_still_ms: float | None
    """From the guest's stop to its going on; None if it did not go on, or nobody says."""
    snapshot: str
    """The disk snapshot that fits the file; empty if none was asked for."""

    def as_dict(self) -> dict[str, Any]:
        """A dict of plain values."""
        own = {"run_state": self.run_state, "stood_still_ms": self.stood_still_ms, "snapshot": self.snapshot}
        return {**self.figures.as_dict(), **own}


def capture(
    monitor: Monitor,
    out: str | os.PathLike[str],
    method: str = "none",
    *,
    channels: int = 2,
    max_bandwidth: int = 0,
    snapshot_disks: str = "",
    then: str | None = None,
    listen: str = "",
    timeout: float = 60.0,
    on_progress: Callable[[Result], None] | None = None,
    canceller: Canceller | None = None,
) -> CaptureResult:
    """Migrate a guest into a file, and let it go on as it did before.

    Args:
        monitor: the guest's, from `open_monitor`.
        out: the file to make; it must not exist.
        method: one that the guest's QEMU has, with options.
        channels: connections besides main, 1 to 255.
        max_bandwidth: bytes per second; 0 is unlimited.
        snapshot_disks: name of a snapshot to take of every writable disk while the guest stands still; empty: none.
        then: cont, stop or quit (QEMU ends, once the file is durable); None: the guest runs if it ran before.
        listen: where QEMU connects, ``tcp:HOST:PORT`` or ``unix:PATH``; empty: a unix socket in a private folder.
        timeout: seconds that all connections may be silent.
        on_progress: called in this thread with the figures so far.
        canceller: cancels this call from another thread.

    Returns:
        The figures; the file is durable and under its name, and every setting of QEMU is as it was.

    Raises:
        MultifdError: there is no file; guest, disks and settings are as they were, or a note says what is not.
    """
    load_method(method)  # refused here, not by the receiver
    if then not in (None, *THEN):
        raise about(UsageError(f"then {then!r}, expected one of {', '.join(THEN)}"), "then")
    if Path(out).exists():
        raise RamError(f"{out}: exists; a capture replaces nothing")
    state = guest.require_capturable(monitor)
    wanted, before = plan(
        read(monitor), method, channels, max_bandwidth=max_bandwidth, pause=bool(snapshot_disks)
    )  # fmt: skip
    disks = guest.disks_for(monitor, snapshot_disks) if snapshot_disks else []
    file = StateFile(out)
    run = _Capture(
        monitor,
        out,
        State(monitor.address, state, before, snapshot_disks, disks),
        then or _as_before(state),
        on_progress,
    )
    canceller = canceller or Canceller()
    canceller.begin(run.cancel, run.cancel)
    with _address(listen) as uri:
        file.create(run.state)
        try:
            run.incoming = Incoming(uri, out, method, channels, timeout)
            apply_method(monitor, wanted, method)
            result = run.migrate(run.incoming)
        except BaseException as e:
            _undo(monitor, run, file, e)
            raise
    return _finish(monitor, run, file, result)


def _as_before(state: str) -> str:
    return "cont" if state == "running" else "stop"


@contextlib.contextmanager
def _address(listen: str) -> Iterator[str]:
    if listen:
        yield listen
        return
    with private_folder() as folder:
        yield f"unix:{folder}/capture"


class _Capture:
    """One that is at work."""

    def __init__(
        self, monitor: Monitor, out: str | os.PathLike[str], state: State, then: str,
        on_progress: Callable[[Result], None] | None,
    ) -> None:  # fmt: skip
        self.state, self.then = state, then
        self.stood_still_ms: float | None = None
        self.incoming: Incoming | None = None
        self._monitor, self._out, self._on_progress = monitor, out, on_progress
        self._is_cancelled = False

    def cancel(self) -> None:
        """From any thread, or a signal handler: a word and no lock."""
        self._is_cancelled = True

    def migrate(self, incoming: Incoming) -> Result:
        """The migration, the snapshot, and the guest's going on.

        Returns:
            The figures; the file is durable.
        """
        monitor = self._monitor
        monitor.execute("migrate", uri=incoming.uri)
        while (info := guest.migration(monitor))["status"] != "completed":
            self._look(incoming)
            if info["status"] in ("failed", "cancelled", "none"):
                raise self._failed(info, incoming)
            if incoming.error is not None:
                raise incoming.error
            if info["status"] == "pre-switchover":
                if self.state.snapshot:
                    guest.take_snapshot(monitor, self.state.snapshot, self.state.disks)
                monitor.execute("migrate-continue", state="pre-switchover")
            time.sleep(guest.ASK_S)
        if self.then == "cont":
            monitor.resume()
            self.stood_still_ms = monitor.stood_still_ms()
        result = incoming.result(lambda: self._look(incoming))
        # 7.2 says "completed" before its figures are there.
        info = guest.retried(lambda: self._figures(), "say how long its migration took")
        return dataclasses.replace(
            result, downtime_ms=float(info["downtime"]), dirty_sync_count=info["ram"]["dirty-sync-count"]
        )

    def _look(self, incoming: Incoming) -> None:
        if self._is_cancelled:
            # QEMU first: 7.2 may crash if connections break while it is told to cancel.
            guest.stop_migration(self._monitor)
            if incoming.cancel():
                raise Cancelled("the capture was cancelled")
        if self._on_progress is not None and incoming.progress is not None:
            self._on_progress(incoming.progress)

    def _figures(self) -> dict[str, Any] | None:
        info = guest.migration(self._monitor)
        return info if "downtime" in info and "ram" in info else None

    def _failed(self, info: dict[str, Any], incoming: Incoming) -> BaseException:
        """The cause: the receiver's own error, unless that is a consequence."""
        incoming.stop()
        if self._is_cancelled:
            return Cancelled("the capture was cancelled")
        what = f"QEMU's migration ended as {info['status']}"
        error = ControlError(f"{what}: {info.get('error-desc', 'QEMU does not say why; see its own output')}")
        cause = incoming.error
        if cause is None or isinstance(cause, ChannelError | Cancelled):
            return error
        cause.add_note(str(error))
        return cause


def _finish(monitor: Monitor, run: _Capture, file: StateFile, result: Result) -> CaptureResult:
    """The file is there. Now the settings; that these fail does not make it untrue."""
    try:
        if run.then == "quit":
            ended = "quit"
            with contextlib.suppress(MonitorLost):  # it may be gone before it answers
                monitor.execute("quit")
        else:
            _put_back_settings(monitor, run.state)
            if run.then == "stop" and run.state.run_state != "running":
                guest.bring_back(monitor, run.state.run_state)
            ended = guest.run_state(monitor)
    except BaseException as e:
        file.close()
        e.add_note("the file is complete; QEMU's settings may not be as they were: recover the capture")
        raise
    file.remove()
    return CaptureResult(result, ended, run.stood_still_ms, run.state.snapshot)


def _undo(monitor: Monitor, run: _Capture, file: StateFile, error: BaseException) -> None:
    """After a failure: as it was, or a note to the error that says what is not."""
    state, is_complete = run.state, False
    try:
        if isinstance(error, MonitorLost):
            monitor.reopen()
        is_broken = run.incoming is not None and run.incoming.error is not None
        guest.stop_migration(monitor, patience_s=guest.PATIENCE_S if is_broken else 0.0)
        if run.incoming is not None:
            run.incoming.stop()
            is_complete = run.incoming.is_complete  # it was too late to stop
        _put_back(monitor, dataclasses.replace(state, snapshot="") if is_complete else state)
    except MultifdError as e:
        if run.incoming is not None:
            run.incoming.stop()
        file.close()
        error.add_note(f"the guest or QEMU's settings may not be as they were: {e}")
        error.add_note(f"recover the capture when QEMU answers again; {file.path} remembers what to put back")
    except BaseException:
        file.close()
        raise
    else:
        file.remove()
        what = "the file is complete" if is_complete else "there is no file"
        error.add_note(f"{what}; the guest and QEMU's settings are as they were")


def _put_back(monitor: Monitor, state: State) -> None:
    guest.stop_migration(monitor)
    guest.bring_back(monitor, state.run_state)
    _put_back_settings(monitor, state)
    if state.snapshot:
        guest.delete_snapshot(monitor, state.snapshot, state.disks)


def _put_back_settings(monitor: Monitor, state: State) -> None:
    # For a moment after a migration QEMU still calls itself busy.
    def step() -> bool:
        state.before.put_back(monitor)
        return True

    guest.retried(step, "take its settings back")


def recover(out: str | os.PathLike[str]) -> str:
    """Finish what a killed capture into `out` has left: no migration, the guest and QEMU's settings as they were.

    A file that is complete stays, with its snapshot; anything else of it is removed.

    Returns:
        The guest's run state.

    Raises:
        RamError: no capture was left there, or it is at work.
        ControlError: QEMU cannot be had, or refuses; nothing is forgotten, try again.
    """
    file = StateFile(out)
    state = file.open()
    try:
        with contextlib.closing(open_monitor(**state.monitor)) as monitor:
            is_complete = Path(out).exists()
            guest.stop_migration(monitor, patience_s=guest.PATIENCE_S)
            _put_back(monitor, dataclasses.replace(state, snapshot="") if is_complete else state)
            ended = guest.run_state(monitor)
        PartFile(out).discard()
        scratch.remove_stale()
    except BaseException as e:
        file.close()
        if isinstance(e, ControlError):
            e.add_note(f"nothing is forgotten: try again, or, if that QEMU has ended, remove {file.path}")
        raise
    file.remove()
    return ended
