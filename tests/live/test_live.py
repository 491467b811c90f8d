"""Live arenas: writers at work, every tracker and method; and whatever fails, the source goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import mmap
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from ends import RelayThread
from memory_kinds import TRACKERS, make_memory, needs_log

import multifd
from multifd import registry
from multifd.errors import (
    Cancelled,
    ChannelError,
    CodecError,
    MultifdError,
    NotConverged,
    OutcomeUnknown,
    PeerFailed,
    RamError,
    UsageError,
)
from multifd.methods.none import NoneMethod
from multifd.methods.zlib import ZlibMethod

PAGE = 4096
PAGES = 1024
PLUGINS = [
    pytest.param(name, marks=pytest.mark.skipif(name not in registry.installed(), reason=f"multifd-{name} is missing"))
    for name in ("lz4", "qpl")
]


class Workload:
    """Threads that write to an arena as fast as they are let, and count how often they were stopped and started.

    Args:
        memory: writable.
        threads: how many.
        span: bytes from its start that they write to.
        step: how many pages each writes between two looks at whether it should stand still.
    """

    def __init__(self, memory, threads=1, span=None, step=4):
        self.memory = memory
        self.words = np.frombuffer(memory, np.uint64)[: (span or len(memory)) // 8]
        self.paused = self.resumed = 0
        self._step = step
        self._may_run, self._stop = threading.Event(), threading.Event()
        self._may_run.set()
        self._locks = [threading.Lock() for _ in range(threads)]
        self._wrote = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(i,)) for i in range(threads)]

    def _write(self, number):
        rng = np.random.default_rng(number)
        while not self._stop.is_set():
            self._may_run.wait()
            with self._locks[number]:
                if self._may_run.is_set():
                    for at in rng.integers(0, len(self.words), self._step).tolist():
                        self.words[at : at + 3] += np.uint64(1)
                    self._wrote.set()

    def pause(self):
        self.paused += 1
        self._may_run.clear()
        for lock in self._locks:
            with lock:
                pass

    def resume(self):
        self.resumed += 1
        self._may_run.set()

    def is_running(self):
        """Whether somebody writes."""
        self._wrote.clear()
        return self._wrote.wait(10)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._may_run.set()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def memory(image):
    made = make_memory("private", PAGES * PAGE)
    made[:] = image[: len(made)]
    return made


LIVE = [field.name for field in dataclasses.fields(multifd.Live)]
SOON = {"max_rounds": 5, "at_max_rounds": "switch-over"}


def send(memory, uri, method="none", *, workload=None, writers="this-process", **options):
    """Whether the rest fits the downtime is the machine's affair: a test that is about that says so."""
    with multifd.Arena(memory, writers=writers) as arena:
        options.setdefault("pause", workload.pause if workload else lambda: None)
        options.setdefault("resume", workload.resume if workload else lambda: None)
        options = {"timeout": 20, **SOON, **options}
        own = {name: options.pop(name) for name in LIVE if name in options}
        return multifd.send(multifd.Live(arena, **own), uri, method, **options)


class TestEqualAtSwitchover:
    @pytest.mark.parametrize("tracker", TRACKERS)
    @pytest.mark.parametrize("method", ["none", "zlib", "zstd", *PLUGINS])
    @pytest.mark.parametrize("channels", [1, 2, 8])
    def test_threads_write(self, receiver, memory, tracker, method, channels):
        into = make_memory("shared", len(memory))
        into[:] = b"\xee" * len(into)
        destination = receiver(multifd.Arena(into), methods=[method])
        with Workload(memory, threads=2) as workload:
            result = send(memory, destination.uri, method, workload=workload, tracker=tracker, channels=channels)
            assert into[:] == memory[:]
            assert destination.join().status == result.status == "completed"
            assert (workload.paused, workload.resumed) == (1, 0)
        assert result.tracker == tracker
        assert result.rounds >= 1
        assert result.dirty_sync_count == result.rounds + 2

    @pytest.mark.parametrize("tracker", TRACKERS)
    def test_several_rounds(self, receiver, memory, tracker):
        """A link so slow that pages are written again and again while they are sent."""
        into = make_memory("shared", len(memory))
        destination = receiver(multifd.Arena(into))
        seen = []
        with Workload(memory, threads=2, span=1 << 19) as workload:
            result = send(
                memory, destination.uri, workload=workload, tracker=tracker, max_bandwidth=8 << 20,
                downtime_limit=0.001, max_rounds=4, at_max_rounds="switch-over", on_progress=seen.append,
            )  # fmt: skip
            assert into[:] == memory[:]
        destination.join()
        assert result.rounds == 4
        assert result.normal_pages > PAGES
        assert result.dirty_pages_rate > 0
        assert result.expected_downtime_ms > 1
        assert [r.rounds for r in seen] == sorted(r.rounds for r in seen)
        assert all(r.tracker == tracker for r in seen)

    @pytest.mark.parametrize("kind", ["private", "shared", "huge", "memfd"])
    @pytest.mark.parametrize("tracker", TRACKERS)
    def test_kinds_of_memory(self, receiver, kind, tracker):
        memory = make_memory(kind)
        memory[: len(memory) // 2] = b"\5" * (len(memory) // 2)
        into = make_memory(kind)
        destination = receiver(multifd.Arena(into))
        with Workload(memory, threads=1) as workload:
            send(memory, destination.uri, "zlib", workload=workload, tracker=tracker)
            assert into[:] == memory[:]
        destination.join()

    def test_nobody_writes(self, receiver, memory):
        into = make_memory("shared", len(memory))
        destination = receiver(multifd.Arena(into))
        result = send(memory, destination.uri, "zstd")
        destination.join()
        assert into[:] == memory[:]
        assert (result.rounds, result.dirty_pages, result.dirty_pages_rate) == (1, 0, 0)

    def test_a_page_becomes_zero_while_it_is_sent(self, receiver, memory):
        into = make_memory("shared", len(memory))
        destination = receiver(multifd.Arena(into))

        def pause():
            memory[5 * PAGE : 9 * PAGE] = bytes(4 * PAGE)

        send(memory, destination.uri, "zlib", pause=pause)
        destination.join()
        assert into[:] == memory[:]

    @pytest.mark.parametrize("tracker", TRACKERS)
    def test_page_sizes(self, receiver, memory, tracker):
        into = make_memory("shared", len(memory))
        destination = receiver(multifd.Arena(into))
        with Workload(memory) as workload:
            send(memory, destination.uri, "zstd", workload=workload, page_size=16384, tracker=tracker)
            assert into[:] == memory[:]
        assert destination.join().status == "completed"

    def test_through_a_relay(self, receiver, memory):
        """The destination's word on each round comes back through it."""
        into = make_memory("shared", len(memory))
        destination = receiver(multifd.Arena(into))
        with Workload(memory) as workload:
            between = RelayThread(destination.uri, out_method="zlib")
            result = send(memory, between.uri, "zstd", workload=workload)
            assert into[:] == memory[:]
        destination.join()
        assert between.is_over()
        assert result.status == "completed"

    @pytest.mark.parametrize("dialect", ["8.1", "7.2"])
    def test_dialects(self, receiver, memory, dialect):
        into = make_memory("shared", len(memory))
        into[:] = b"\xee" * len(into)
        destination = receiver(multifd.Arena(into))
        with Workload(memory) as workload:
            send(memory, destination.uri, "zstd", workload=workload, dialect=dialect)
            assert into[:] == memory[:]
        destination.join()

    def test_several_blocks(self, receiver):
        names = ["table", "index", "log"]
        memories = {name: make_memory("private", (i + 1) * 64 * PAGE) for i, name in enumerate(names)}
        intos = {name: make_memory("shared", len(memory)) for name, memory in reversed(memories.items())}
        destination = receiver(multifd.Arena(intos))
        with contextlib.ExitStack() as stack:
            loads = [stack.enter_context(Workload(memory)) for memory in memories.values()]
            send(
                memories, destination.uri, "zlib",
                pause=lambda: [load.pause() for load in loads], resume=lambda: [load.resume() for load in loads],
            )  # fmt: skip
            for name, memory in memories.items():
                assert intos[name][:] == memory[:]
        destination.join()

    @pytest.mark.parametrize("tracker", TRACKERS)
    def test_untouched_pages_are_neither_read_nor_sent(self, receiver, tracker):
        memory, into = make_memory("memfd", 64 << 20), make_memory("memfd", 64 << 20)
        for page in (3, 4000, 16000):
            memory[page * PAGE] = 1
        into[50 * PAGE] = 7  # must become zero
        destination = receiver(multifd.Arena(into))
        result = send(memory, destination.uri, tracker=tracker)
        destination.join()
        assert (result.normal_pages, result.zero_pages) == (3, 16381)
        from multifd.live.kernel import populated
        from multifd.live.ranges import count

        for buffer, pages in ((memory, 3), (into, 4)):
            with multifd.Arena(buffer) as arena:
                (region,) = arena.regions
                assert count(populated(region.address, region.nbytes)) == pages
        assert into[:] == memory[:]


WRITER = """
import mmap, sys, random
memory = mmap.mmap(int(sys.argv[1]), 0)
import select
rng, running = random.Random(1), True
while True:
    if select.select([sys.stdin], [], [], 0 if running else None)[0]:
        word = sys.stdin.readline().strip()
        if not word:
            break
        running = word == "resume"
        print(word, flush=True)
    for _ in range(100 * running):
        at = rng.randrange(len(memory))
        memory[at] = (memory[at] + 1) % 256
"""


def test_another_process_writes(receiver):
    fd = os.memfd_create("table")
    os.ftruncate(fd, PAGES * PAGE)
    memory, into = mmap.mmap(fd, 0), make_memory("shared", PAGES * PAGE)
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def tell(word):
        child.stdin.write(word + "\n")
        child.stdin.flush()
        assert select.select([child.stdout], [], [], 30)[0]
        assert child.stdout.readline().strip() == word

    with child:
        tell("resume")  # it is up
        destination = receiver(multifd.Arena(into))
        result = send(
            memory, destination.uri, "zstd", writers=None, pause=lambda: tell("pause"), resume=lambda: tell("resume"),
            max_bandwidth=16 << 20,
        )  # fmt: skip
        assert into[:] == memory[:]
        destination.join()
        child.stdin.close()
    os.close(fd)
    assert result.tracker == "comparison"
    assert "shared (/memfd:table" in result.tracker_reason


class TestConvergence:
    def test_a_source_that_is_too_fast_is_refused_with_the_figures(self, receiver, memory):
        destination = receiver(multifd.Arena(make_memory("shared", len(memory))), timeout=5)
        with Workload(memory) as workload:
            with pytest.raises(NotConverged, match=r"after 2 rounds .* MiB/s reach the destination") as caught:
                send(
                    memory, destination.uri, workload=workload, max_bandwidth=16 << 20, downtime_limit=0.0001,
                    max_rounds=2, at_max_rounds="fail",
                )  # fmt: skip
            assert (workload.paused, workload.resumed) == (0, 0)
            assert workload.is_running()
        assert caught.value.result.status == "failed"
        assert caught.value.result.rounds == 2
        assert "good copy" in " ".join(caught.value.__notes__)
        with pytest.raises(MultifdError):
            destination.join()

    def test_writers_that_slow_down_converge(self, receiver, memory):
        into = make_memory("shared", len(memory))
        destination = receiver(multifd.Arena(into))
        percents = []
        with Workload(memory, span=1 << 19) as workload:

            def throttle(percent):
                percents.append(percent)
                if percent == 30:
                    workload.pause()

            result = send(
                memory, destination.uri, workload=workload, max_bandwidth=8 << 20, downtime_limit=0.001,
                max_rounds=30, throttle=throttle,
            )  # fmt: skip
            assert into[:] == memory[:]
        destination.join()
        assert percents[:2] == [20, 30]
        assert 0 not in percents
        assert result.throttle_percent == percents[-1]

    def test_throttle_is_taken_back_after_a_failure(self, receiver, memory):
        destination = receiver(multifd.Arena(make_memory("shared", len(memory))), timeout=5)
        percents = []
        with Workload(memory, span=1 << 19) as workload, pytest.raises(NotConverged):
            send(
                memory, destination.uri, workload=workload, max_bandwidth=16 << 20, downtime_limit=0.0001,
                max_rounds=5, at_max_rounds="fail", throttle=percents.append,
            )  # fmt: skip
        assert percents[0] == 20
        assert percents[-1] == 0
        assert 0 not in percents[:-1]
        with pytest.raises(MultifdError):
            destination.join()


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"tracker": "magic"}, "expected one of write-protect"),
            ({"downtime_limit": 0}, "downtime limit"),
            ({"max_rounds": 0}, "max_rounds"),
            ({"at_max_rounds": "hope"}, "expected fail or switch-over"),
        ],
    )
    def test_refused(self, memory, options, words):
        with pytest.raises(UsageError, match=words):
            send(memory, "tcp:127.0.0.1:1", **options)

    def test_page_size_that_does_not_fit(self, memory):
        with pytest.raises(RamError, match="every block"):
            send(memoryview(memory)[: 3 * PAGE], "tcp:127.0.0.1:1", page_size=8192)


CHILD = """
import mmap, os, signal, sys
import multifd, multifd.api
from multifd.live.arena import ArenaTarget
how, nbytes = sys.argv[1], int(sys.argv[2])
class Target(ArenaTarget):
    def commit(self, uuid):
        if how == "killed in commit":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "fails in commit":
            raise multifd.errors.RamError("no")
multifd.api.ArenaTarget = Target
say = lambda uri: print(uri, flush=True)
multifd.receive("tcp:127.0.0.1:0", multifd.Arena(mmap.mmap(-1, nbytes)), on_listening=say, timeout=20)
"""


@pytest.fixture
def child():
    """A destination in a process of its own that can be treated badly."""
    started = []

    def start(how, nbytes):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, how, str(nbytes)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


class TestFailures:
    """Whatever fails, the source is as it was and runs; only if the outcome is unknown it stays paused."""

    def check(self, memory, workload, kind, words=None, **options):
        with pytest.raises(kind, match=words) as caught:
            send(memory, workload=workload, **options)
        if kind is OutcomeUnknown:
            assert (workload.paused, workload.resumed) == (1, 0)
            assert "the source stays paused" in caught.value.__notes__
        else:
            assert workload.resumed == workload.paused
            assert workload.is_running()
        return caught.value

    def test_destination_killed_while_pages_move(self, memory, child):
        process, uri = child("", len(memory))
        with Workload(memory) as workload:
            self.check(
                memory, workload, (ChannelError, PeerFailed), uri=uri, max_bandwidth=4 << 20,
                on_progress=lambda r: process.kill(),
            )  # fmt: skip
            assert workload.paused == 0

    def test_destination_killed_while_the_source_stands_still(self, memory, child):
        process, uri = child("", len(memory))
        with Workload(memory) as workload:

            def pause():
                workload.pause()
                process.kill()
                process.wait(10)

            self.check(memory, workload, ChannelError, uri=uri, pause=pause)
            assert workload.resumed == 1

    def test_destination_fails_after_everything_was_sent(self, memory, child):
        _, uri = child("fails in commit", len(memory))
        with Workload(memory) as workload:
            self.check(memory, workload, PeerFailed, "good copy", uri=uri)
            assert workload.resumed == 1

    def test_destination_killed_before_it_confirms(self, memory, child):
        _, uri = child("killed in commit", len(memory))
        with Workload(memory) as workload:
            error = self.check(memory, workload, OutcomeUnknown, "may hold the memory", uri=uri)
        assert error.result.status == "unknown"

    def test_an_unknown_outcome_is_not_hidden_by_what_fails_after_it(self, memory, child):
        class Untidy(NoneMethod):
            def send_cleanup(self, p):
                raise LookupError("cannot clean up")

        _, uri = child("killed in commit", len(memory))
        with Workload(memory) as workload:
            self.check(memory, workload, OutcomeUnknown, uri=uri, method=Untidy(NoneMethod.Options()))

    def test_the_destinations_word_is_not_hidden_by_a_channel_that_breaks_then(self, receiver, memory):
        paused, resumed, packets = threading.Event(), threading.Event(), itertools.count()

        class Spoiling(ZlibMethod):
            def send_prepare(self, p):
                super().send_prepare(p)
                if paused.is_set():
                    if next(packets):
                        resumed.wait(10)
                        raise LookupError("too late")
                    p.iov[:] = [b"no zlib"]

        def pause():
            np.frombuffer(memory, np.uint8)[::PAGE] += 1
            paused.set()

        def resume():
            """The destination's word was read; now the channel breaks too."""
            resumed.set()
            for thread in threading.enumerate():
                if thread.name.startswith("multifdsend_"):
                    thread.join(10)

        destination = receiver(multifd.Arena(make_memory("shared", len(memory))))
        with pytest.raises(PeerFailed, match="good copy"):
            send(memory, destination.uri, Spoiling(ZlibMethod.Options()), pause=pause, resume=resume, channels=1)
        with pytest.raises(CodecError):
            destination.join()

    def test_destination_full(self, memory, cli, tmp_path):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))

        receive = cli("receive", "tcp:127.0.0.1:0", tmp_path / "out", "--format", "raw", preexec_fn=limit)
        uri = receive.listening()
        with Workload(memory) as workload:
            self.check(memory, workload, PeerFailed, uri=uri)
        receive.wait(6)

    def test_destination_of_another_size(self, receiver, memory):
        destination = receiver(multifd.Arena(make_memory("shared", PAGE)))
        with Workload(memory) as workload:
            self.check(memory, workload, PeerFailed, uri=destination.uri)
        with pytest.raises(RamError):
            destination.join()

    def test_nobody_listens(self, memory):
        with Workload(memory) as workload:
            self.check(memory, workload, ChannelError, uri="tcp:127.0.0.1:1", connect_timeout=0.1)

    def test_pause_raises(self, receiver, memory):
        destination = receiver(multifd.Arena(make_memory("shared", len(memory))), timeout=5)
        with Workload(memory) as workload:

            def pause():
                workload.pause()
                raise LookupError("half of them")

            error = self.check(memory, workload, LookupError, uri=destination.uri, pause=pause)
            assert "good copy" in " ".join(error.__notes__)
            assert workload.resumed == 1
        with pytest.raises(MultifdError):
            destination.join()

    def test_resume_raises(self, memory, child):
        _, uri = child("fails in commit", len(memory))

        def resume():
            raise LookupError("cannot")

        with pytest.raises(LookupError, match="cannot") as caught:
            send(memory, uri, resume=resume)
        assert "after the migration failed: the destination reports" in caught.value.__notes__[0]
        assert isinstance(caught.value.__context__, PeerFailed)

    def test_progress_raises(self, receiver, memory):
        destination = receiver(multifd.Arena(make_memory("shared", len(memory))), timeout=5)

        def on_progress(result):
            raise LookupError("no screen")

        with Workload(memory) as workload:
            self.check(
                memory, workload, LookupError, uri=destination.uri, max_bandwidth=4 << 20, on_progress=on_progress
            )
        with pytest.raises(MultifdError):
            destination.join()

    @pytest.mark.parametrize("tracker", TRACKERS)
    def test_after_a_failure_it_can_be_sent_again(self, receiver, memory, child, tracker):
        _, uri = child("fails in commit", len(memory))
        into = make_memory("shared", len(memory))
        destination = receiver(multifd.Arena(into))
        with Workload(memory) as workload:
            self.check(memory, workload, PeerFailed, uri=uri, tracker=tracker)
            send(memory, destination.uri, workload=workload, tracker=tracker)
            assert into[:] == memory[:]
        destination.join()


class TestCancel:
    """From another thread, or by Ctrl-C."""

    @pytest.fixture
    def fails(self, receiver, memory):
        """Sends until it fails, with everybody's word that it did."""

        def run(kind, workload, **options):
            destination = receiver(multifd.Arena(make_memory("shared", len(memory))), timeout=5)
            error = TestFailures().check(memory, workload, kind, uri=destination.uri, max_bandwidth=16 << 20, **options)
            with pytest.raises(MultifdError):
                destination.join()
            return error

        return run

    def test_while_pages_move(self, fails, memory):
        canceller = multifd.Canceller()
        in_time = []
        asking = threading.Thread(target=lambda: in_time.append(canceller.cancel()))
        with Workload(memory) as workload:
            error = fails(Cancelled, workload, canceller=canceller, on_progress=lambda r: asking.start())
            assert workload.paused == 0
        asking.join()
        assert in_time == [True]
        assert error.result.status == "cancelled"

    def test_while_the_source_stands_still(self, fails, memory):
        canceller = multifd.Canceller()
        with Workload(memory) as workload:

            def pause():
                workload.pause()
                assert canceller.cancel()
                assert canceller.cancel()

            fails(Cancelled, workload, canceller=canceller, pause=pause)
            assert workload.resumed == 1

    def test_before(self, memory):
        canceller = multifd.Canceller()
        assert canceller.cancel()
        with Workload(memory) as workload:
            TestFailures().check(
                memory, workload, Cancelled, "was cancelled", uri="tcp:127.0.0.1:1", canceller=canceller
            )

    def test_too_late(self, receiver, memory):
        canceller = multifd.Canceller()
        into = make_memory("shared", len(memory))
        destination = receiver(multifd.Arena(into))
        send(memory, destination.uri, canceller=canceller)
        destination.join()
        assert not canceller.cancel()
        with pytest.raises(UsageError, match="for one call"):
            send(memory, destination.uri, canceller=canceller)

    def test_while_nobody_listens(self, memory):
        canceller = multifd.Canceller()
        timer = threading.Timer(0.05, canceller.cancel)
        timer.start()
        with Workload(memory) as workload:
            TestFailures().check(memory, workload, Cancelled, uri="tcp:127.0.0.1:1", canceller=canceller)
        timer.join()

    def test_memory_that_is_not_live(self, receiver, image):
        canceller = multifd.Canceller()
        destination = receiver(bytearray(len(image)), timeout=5)
        with pytest.raises(Cancelled):
            multifd.send(
                image,
                destination.uri,
                max_bandwidth=16 << 20,
                canceller=canceller,
                on_progress=lambda r: canceller.cancel(),
            )
        with pytest.raises(MultifdError):
            destination.join()

    def test_ctrl_c_while_pages_move(self, fails, memory):
        with Workload(memory) as workload:
            fails(KeyboardInterrupt, workload, on_progress=lambda r: signal.raise_signal(signal.SIGINT))
            assert workload.paused == 0

    def test_ctrl_c_while_the_source_stands_still(self, fails, memory):
        with Workload(memory) as workload:

            def pause():
                workload.pause()
                signal.raise_signal(signal.SIGINT)

            fails(KeyboardInterrupt, workload, pause=pause)
            assert workload.resumed == 1


class Cutter:
    """Passes connections through to a listener until so many bytes went forward, then cuts them all."""

    def __init__(self, uri, after):
        self._port = int(uri.rpartition(":")[2])
        self._left, self._lock = after, threading.Lock()
        self._sockets, self._threads = [], []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, run, *args):
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets.append(far)
                self._start(self._forward, near, far)
                self._start(self._back, far, near)

    def _forward(self, near, far):
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                with self._lock:
                    passed, self._left = data[: self._left], max(self._left - len(data), 0)
                    far.sendall(passed)
                    if not self._left:
                        self._cut()
            far.shutdown(socket.SHUT_WR)

    def _back(self, far, near):
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)

    def _cut(self):
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._cut()
        for thread in self._threads:
            thread.join(10)
        for sock in (self._listener, *self._sockets):
            sock.close()


@pytest.mark.parametrize("permille", [0, 1, 100, 400, 700, 900, 950, 980, 990, 999, 1000])
def test_the_link_dies_after_so_many_bytes(receiver, memory, permille):
    """At any moment: never two that run, never two that stand still unless the error says so."""
    into = make_memory("shared", len(memory))
    whole = send(memory, receiver(multifd.Arena(into)).uri).transferred_bytes
    into[:] = bytes(len(into))
    destination = receiver(multifd.Arena(into), timeout=2)
    with (
        Cutter(destination.uri, max(whole * permille // 1000, 1)) as cutter,
        Workload(memory, span=1 << 16) as workload,
    ):
        try:
            send(memory, cutter.uri, workload=workload, timeout=10)
            is_over, is_known = True, True
        except OutcomeUnknown:
            is_over, is_known = True, False
        except MultifdError:
            is_over, is_known = False, True
        try:
            destination.join()
            has_it = True
        except MultifdError:
            has_it = False
        assert workload.resumed == (0 if is_over else workload.paused)
        if is_known:
            assert has_it == is_over
        if has_it:
            assert workload.resumed == 0
            assert into[:] == memory[:]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_memory_can_be_closed_at_once(receiver, memory, tracker):
    into = make_memory("shared", len(memory))
    with multifd.Arena(into) as arena:
        destination = receiver(arena)
        send(memory, destination.uri, tracker=tracker)
        destination.join()
    memory.close()
    into.close()


@needs_log
def test_no_descriptor_or_thread_is_left(receiver, memory):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    into = make_memory("shared", len(memory))
    for attempt in range(6):
        destination = receiver(multifd.Arena(into), timeout=5)
        if attempt % 2:
            send(memory, destination.uri)
            destination.join()
        else:
            with pytest.raises(LookupError):
                send(memory, destination.uri, pause=lambda: {}["no"])
            with pytest.raises(MultifdError):
                destination.join()
        if attempt == 1:
            before = descriptors(), threading.active_count()
    assert (descriptors(), threading.active_count()) == before
