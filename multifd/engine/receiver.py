"""The destination's end: connections in any order, everything validated, success only when durable.

Rules of this file: the caller's thread accepts, watches time and finishes; one thread reads main, one each channel,
one keeps the disk busy. They meet in `Barrier` (sync points) and `Negotiation` (channels and method). Whatever ends
the migration goes through `_settle`, where the first error is chosen and `Fate` says where the memory is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from multifd.engine.canceller import Canceller
from multifd.engine.candidates import Candidates
from multifd.engine.config import ReceiveConfig
from multifd.engine.crew import JOIN_S, Crew
from multifd.engine.disk import Disk
from multifd.engine.fate import RECEIVER, Custody, Fate, attach
from multifd.engine.muster import Muster
from multifd.engine.negotiation import Negotiation
from multifd.engine.recv_channel import RecvChannel
from multifd.engine.recv_main import CHANNELS_S, RecvMain, Rejected
from multifd.engine.sync import Barrier
from multifd.errors import Cancelled, ChannelError, HookError, MultifdError, StreamError
from multifd.pages import Geometry
from multifd.ram.block import Target, TargetBlock
from multifd.stats import MigrationStats, Result
from multifd.transport.accept import Acceptor, Arrival
from multifd.transport.connection import Connection
from multifd.transport.handed import HandedConnections
from multifd.transport.idle import IdleTimer
from multifd.transport.incoming import PlainIncoming
from multifd.transport.listen import Listener
from multifd.wire.packet import InitPacket
from multifd.wire.return_path import PONG
from multifd.wire.stream import Machine
from multifd.wire.vmdesc import UNMARKED

_LOG = logging.getLogger(__name__)
_POLL_S = 0.05
_PONG_S = 5.0
"""How often the sender hears from us while the disk, or what a thread has left to do, takes its time."""
_DRAIN_S = 5.0


class Receiver:
    """One migration into this process; use once.

    Args:
        listener: where the sender connects; closed as soon as nobody else can belong to the migration.
        target: where RAM goes; committed or discarded when `run` is over.
        config: how.
        on_progress: called in the caller's thread with the figures so far, about ten times a second.
        canceller: to cancel it with.
    """

    def __init__(
        self,
        listener: Listener | HandedConnections,
        target: Target,
        config: ReceiveConfig,
        on_progress: Callable[[Result], None] | None = None,
        canceller: Canceller | None = None,
    ) -> None:
        self._listener, self._target, self._on_progress = listener, target, on_progress
        self._canceller = canceller or Canceller()
        self._idle = IdleTimer(config.timeout_s, self._describe_connections, self._wanted)
        self._negotiation = Negotiation(config.methods, config.channels, is_local=listener.is_local)
        self._acceptor = Acceptor(listener, config.timeout_s, config.tls.open if config.tls else PlainIncoming)
        self._muster = Muster(self._acceptor, self._negotiation)
        self._crew = Crew(self._idle, self._acceptor.wake)
        self._disk = Disk(target, self._crew)
        self._candidates = Candidates(self._crew, "multifdrecv_main", self._run_candidate)
        self._electing = threading.Lock()
        self._main: RecvMain | None = None
        self._ready = threading.Event()  # geometry and blocks are known, or all is over
        self._geometry = Geometry.of(4096)
        self._blocks: Mapping[str, TargetBlock] = {}
        self._channels: list[RecvChannel] = []
        self._stop_at = float("inf")
        self._alone_since = float("inf")  # when main had ended and channels were missing
        self.barrier = Barrier()
        self.fate = Fate(RECEIVER)
        self.stats = MigrationStats(time.monotonic())
        self.stats.is_source = False

    @property
    def result(self) -> Result:
        """The figures so far, or of the end."""
        if self._negotiation.method is not None:
            self.stats.method = self._negotiation.method.name
        self.stats.wire_bytes = sum(c.bytes_received for c in self._connections())
        return self.stats.snapshot(time.monotonic())

    def announce(self, on_listening: Callable[[str], None]) -> None:
        """Tell the caller where senders can connect; what it raises leaves nothing behind."""
        try:
            on_listening(str(self._listener.uri))
        except BaseException:
            self._tear_down()
            raise

    def run(self) -> Result:
        """Wait for a sender and take everything it sends.

        Raises:
            MultifdError: what went wrong first, with ``result``; nothing remains of the target unless that says
                completed.
            KeyboardInterrupt: passes through, after everything was torn down.
        """
        try:
            self._canceller.begin(self._cancel, self._stop_waiting)
            while self._main is None or not self._main.has_ended:
                self._serve(_POLL_S)
            self._finish()
            self._tear_down()
        except BaseException as error:
            told = error
            try:
                told = self._settle(error)
                self._tear_down()
            except BaseException as e:  # another interrupt: what is known of the memory is said of it, too
                told = self.fate.conclude(e)
                self._target.discard()
            self._record(told)
            if told is error:
                raise
            raise told from told.__cause__
        self.stats.finish(time.monotonic(), "completed")
        if rejected := self._acceptor.rejected:
            _LOG.info("%d connections that were no migration's were closed", rejected)
        return self.result

    # -- the caller's thread ----------------------------------------------------------------------

    def _serve(self, timeout_s: float) -> None:
        """One turn: accept, notice errors and silence, report."""
        self._accept(timeout_s)
        self._crew.check()
        self._idle.check()
        main = self._main
        if main is None and isinstance(self._listener, Listener):  # handed-over ones come in any order
            self._muster.drop_ended((one.connection.peer, one.connection.since) for one in self._candidates)
        now = time.monotonic()
        if main is None or self._muster.is_complete or not main.connection.has_hung_up():
            self._alone_since = float("inf")
        else:
            # Its thread waits at a sync point for channels that may still be on their way.
            self._alone_since = min(self._alone_since, now)
            if self._muster.objection is not None or now - self._alone_since > CHANNELS_S:
                raise ChannelError(
                    f"{main.connection.peer} closed the main connection before its channels were there: it does not "
                    "use multifd, whose capability must be on there, or could not connect them"
                )
        if self.stats.is_due(now):
            result = self.result
            self.stats.tick(now)
            if self._on_progress is not None:
                self._on_progress(result)

    def _accept(self, timeout_s: float) -> None:
        for arrival in self._muster.poll(timeout_s):
            if arrival[2] is None:
                self._start_candidate(arrival)
            else:
                self._start_channel(arrival, arrival[2])
        if self._main is not None and self._muster.is_complete and self._negotiation.is_announced:
            # Nobody else can belong to this migration: the next who connects is refused by the kernel.
            self._acceptor.stop_listening()

    def _start_candidate(self, arrival: Arrival) -> None:
        incoming, peer, _ = arrival
        if self._main is not None:
            self._acceptor.dismiss(incoming)
            return
        candidate = self._new_main(incoming.take(self._idle, peer))
        self._idle.touch()
        self._candidates.add(candidate, candidate.connection)

    def _run_candidate(self, candidate: RecvMain) -> None:
        try:
            candidate.run()
        except (Rejected, StreamError, ChannelError) as e:
            self._idle.check()  # all is over, or silent: that is no fault of this candidate
            if candidate is self._main or (self._main is None and self._is_a_source(candidate, e)):
                raise
            _LOG.info("%s was not the migration's main: %s", candidate.connection.peer, e)
            if self._main is None and (candidate.has_configuration or isinstance(e, StreamError)):
                self._acceptor.last_stranger = f"a source that was not taken: {e}"
            self._candidates.remove(candidate)
            self._acceptor.count()
            candidate.connection.close()

    def _is_a_source(self, candidate: RecvMain, error: Exception) -> bool:
        """Whether a candidate that failed before its list of blocks was what this end has waited for.

        It is said at once where it is quiet: nobody came before and nobody is there, or nobody else can come. Among
        strangers it may be one of them, however well it knows how a stream begins.
        """
        is_quiet = self._listener.is_local or not self._acceptor.rejected
        alone = is_quiet and list(self._candidates) == [candidate]
        return alone and candidate.has_configuration and isinstance(error, StreamError)

    def _start_channel(self, arrival: Arrival, init: InitPacket) -> None:
        incoming, peer, _ = arrival
        if not self._channels:
            self.barrier.expect(self._negotiation.expected())
            self.stats.method = init.method
        connection = incoming.take(self._idle, f"channel {init.id} ({peer})")
        self._idle.touch()
        channel = self._new_channel(init, connection)
        self._channels.append(channel)
        self._crew.start(f"multifdrecv_{init.id}", self._run_channel, channel)

    def _new_main(self, connection: Connection) -> RecvMain:
        return RecvMain(connection, self)

    def _new_channel(self, init: InitPacket, connection: Connection) -> RecvChannel:
        return RecvChannel(
            init.id, connection, self.barrier, self._negotiation.method_of, self._has_ended, self.stats.add_channel()
        )

    def _connections(self) -> list[Connection]:
        mains = self._candidates if self._main is None else [self._main]
        return [*(channel.connection for channel in self._channels), *(main.connection for main in mains)]

    def _has_ended(self) -> bool:
        return self._main is not None and self._main.has_ended

    def _wanted(self) -> str:
        return "" if self._candidates or self._muster.present else "no sender connected"

    def _describe_connections(self) -> str:
        turned_away = self._acceptor.turned_away
        if self._wanted():
            return turned_away
        if self._main is not None and self._main.has_device_state:
            return f"; {UNMARKED}"
        main = "connected" if self._candidates else "not connected"
        why = self._acceptor.exhaustion or "the channel count must be the sender's"
        return (
            f"; main is {main}, {self._muster.present} of {self._negotiation.expected()} channels are "
            f"({why}){turned_away}"
        )

    def _finish(self) -> None:
        """Main has ended: nothing may be missing, then make it durable and say so.

        The order matters: the channels end before anything is committed, so no page comes late; a channel that was
        turned away is looked for after that, since its pages would be lost; cancelling ends before the commit begins.
        """
        main = self._main
        if main is None:
            raise MultifdError("a migration ended that had no main connection")
        self.barrier.end()
        self._disk.stop()
        for channel in self._channels:
            channel.connection.shutdown_read()
        self._await_channels(main)
        for _ in range(4):  # accept; the magic; the rest of an init packet; what follows it
            self._accept(0)
        self._crew.check()
        if self._muster.surplus is not None:
            raise self._muster.surplus
        self._commit(main)
        main.say_shut(0)
        self._drain(main)

    def _await_channels(self, main: RecvMain) -> None:
        """All threads but the disk's end: every page is here, so a hook or a busy machine may take its time."""
        threads = [thread for thread in self._crew.threads if thread is not self._disk.flusher]
        deadline = time.monotonic() + self._idle.timeout_s
        for late in self._turns(main, threads):
            self._crew.check()
            if time.monotonic() > deadline:
                raise HookError(f"{', '.join(late)}: still busy {self._idle.timeout_s:g} s after the last sync point")

    def _commit(self, main: RecvMain) -> None:
        """Commit in a thread of its own; a slow disk may take its time, too."""
        self._canceller.close()
        self.fate.hand_over()
        for _ in self._turns(main, [self._disk.commit(self._negotiation.uuid)]):
            if time.monotonic() >= self._stop_at:
                raise Cancelled("the receiver was told to stop while it made the memory durable")
        self._crew.check()
        self.fate.commit()

    def _turns(self, main: RecvMain, threads: Sequence[threading.Thread]) -> Iterator[list[str]]:
        """Wait for threads, and give the names of those that are busy after each turn.

        That is no silence: PONGs go out meanwhile.
        """
        pong_at = time.monotonic() + _PONG_S
        while late := self._crew.join(threads, _POLL_S):
            yield late
            if time.monotonic() >= pong_at:
                pong_at += _PONG_S
                try:
                    main.answer(PONG, 0)
                except ChannelError as e:
                    _LOG.info("the sender does not hear that this end is at work: %s", e)

    def _drain(self, main: RecvMain) -> None:
        """Read what is left until the sender closes: closing before would reset its connection."""
        deadline = time.monotonic() + _DRAIN_S
        connection = main.connection
        try:
            while (left := min(deadline, self._stop_at) - time.monotonic()) > 0:
                if not connection.wait_readable(min(left, _POLL_S if main.has_return_path else 0.2)):
                    if not main.has_return_path:
                        return
                elif connection.recv_available() == b"":
                    return
        except ChannelError as e:
            _LOG.info("the sender closed without reading the last word: %s", e)

    def _cancel(self) -> None:
        """From `Canceller.cancel`, in any thread: what blocks ends, the caller's thread raises `Cancelled`."""
        self._crew.fail(Cancelled("the migration was cancelled"))
        self._idle.abort.set()
        self._acceptor.wake()

    def _stop_waiting(self) -> None:
        self._stop_at = time.monotonic()

    # -- the end ------------------------------------------------------------------------------------

    def _settle(self, error: BaseException) -> BaseException:
        """Decide what happened, tell the sender; returns what to raise."""
        if self.fate.custody is Custody.HANDED_OVER:
            # The commit has begun. Either this prevents it or it was quicker: the target knows.
            self._target.discard()
            if self._target.is_committed:
                self.fate.commit()
            else:
                self.fate.take_back()
        if self._main is not None:
            self._main.say_shut(0 if self.fate.custody is Custody.COMMITTED else 1)
        elif first := next(iter(self._candidates), None):
            first.say_shut(1)
        told = self._crew.first_error(error)
        objection = self._muster.surplus or self._muster.objection
        if objection is not None and isinstance(told, ChannelError):
            # The sender broke off because one of its channels was turned away.
            objection.add_note(str(told))
            told = objection
        return self.fate.conclude(told)

    def _record(self, told: BaseException) -> None:
        text, notes = str(told) or type(told).__name__, getattr(told, "__notes__", ())
        _ = self.result  # the bytes as they are at the end
        self.stats.finish(time.monotonic(), self.fate.status(told), text, notes)
        attach(told, self.result)

    def _tear_down(self) -> None:
        self._idle.abort.set()
        self.barrier.end()
        self._ready.set()
        self._disk.stop()
        for connection in self._connections():
            connection.shutdown()
        if late := self._crew.join():
            _LOG.warning("%s: still busy %g s after the end", ", ".join(late), JOIN_S)
        self._muster.dismiss_others()
        self._acceptor.close()
        for connection in self._connections():
            connection.close()
        self._target.discard()

    # -- in the threads of main's candidates (see `recv_main.Host`) and of the channels ---------------

    def elect(self, main: RecvMain, machine: Machine) -> Mapping[str, TargetBlock]:
        """See `multifd.engine.recv_main.Host`."""
        with self._electing:
            if self._main is not None:
                raise Rejected("another connection is main")
            self._main = main
        self._muster.main_is_from(main.connection.peer)
        self.stats.begin(main.connection.since)
        self._geometry = Geometry.of(machine.page_size)
        self._blocks = self._target.allocate(machine)
        self.stats.ram_bytes = sum(b.used_length for b in machine.blocks)
        self.stats.setup_done(time.monotonic())
        self._ready.set()
        self._disk.start()
        for other in self._candidates:
            if other is not main:
                other.connection.shutdown()
        return self._blocks

    def add_device_state(self, data: bytes) -> None:
        """See `multifd.engine.recv_main.Host`."""
        self._target.add_device_state(data)

    def _run_channel(self, channel: RecvChannel) -> None:
        self._ready.wait()  # the end of everything sets it, too
        self._idle.check()
        channel.run(self._geometry, self._blocks, self._idle)
