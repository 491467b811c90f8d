"""An end as a process of its own: the command line's `main`, in a fork of one process that has imported everything.

So a trial takes a tenth of the processor time that it would if every end started an interpreter.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from faults.outcome import End
from faults.shim import Counts, Rule, begin

from multifd.cli import signals

DEADLINE_S = 240.0
"""By when every process has ended; some wait for several things, one after another."""
_POLL_S = 0.01
_READY = "ready\n"
_LISTENING = re.compile(r"listening on ([^\s,]+)")
_LOCK = threading.Lock()
"""multiprocessing asks all children how they are when it starts one; two that ask lose the answer."""


class Ends:
    """Starts processes, all of which have the shim.

    Args:
        library: the shim's.
        modules: imported by all of them.
    """

    def __init__(self, library: Path, modules: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*modules, __name__])
        before = os.environ.get("LD_PRELOAD")
        os.environ["LD_PRELOAD"] = str(library)
        try:
            first = self._context.Process(target=_nothing)
            first.start()  # and with it the process that is forked
        finally:
            del os.environ["LD_PRELOAD"]
            if before is not None:
                os.environ["LD_PRELOAD"] = before
        first.join()

    def start(self, role: str, command: Sequence[object], told: Told) -> Running:
        """Start one.

        Args:
            role: whose it is.
            command: the module whose `main` it is, and the words of the command line.
            told: what else it is told.
        """
        return Running(self._context, role, [str(word) for word in command], told)


class Told:
    """What a process is told beside its command.

    Args:
        folder: whose files are counted.
        counts: where.
        rules: what goes wrong.
        environment: added to its own.
        size_limit: of the files that it writes, in bytes; 0 for none.
    """

    def __init__(
        self, folder: Path, counts: Counts, rules: Sequence[Rule], environment: dict[str, str], size_limit: int
    ) -> None:
        self.rules, self.folder, self.counts = "\n".join(map(str, rules)), str(folder), str(counts.path)
        self.environment, self.size_limit = environment, size_limit


class Running:
    """A process that was started."""

    def __init__(
        self, context: multiprocessing.context.ForkServerContext, role: str, command: list[str], told: Told
    ) -> None:
        self.end = End(role)
        self.uri = ""
        self._listening, self._ready = threading.Event(), threading.Event()
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        self._process = context.Process(target=_run, args=(command, told, *(theirs for _, theirs in pipes)))
        with _LOCK:
            self._process.start()
        for _, theirs in pipes:
            theirs.close()
        (out, _), (err, _) = pipes
        self._readers = [
            threading.Thread(target=self._read_out, args=(out,)),
            threading.Thread(target=self._read_err, args=(err,)),
        ]
        for reader in self._readers:
            reader.start()

    def _read_out(self, pipe: Connection) -> None:
        with pipe, open(pipe.fileno(), encoding="utf-8", closefd=False) as lines:
            self.end.out = lines.read()

    def _read_err(self, pipe: Connection) -> None:
        with pipe, open(pipe.fileno(), encoding="utf-8", closefd=False) as lines:
            for line in lines:
                if line == _READY:
                    self._ready.set()
                    continue
                self.end.err += line
                if found := _LISTENING.search(line):
                    self.uri = found[1]
                    self._listening.set()
        self._ready.set()
        self._listening.set()

    def is_listening(self, seconds: float) -> bool:
        """Whether it listens, or has ended, within that time."""
        return self._listening.wait(seconds)

    def listening(self) -> str:
        """Where; empty if it ended before."""
        self._listening.wait(DEADLINE_S)
        return self.uri

    def signal(self, number: signal.Signals) -> None:
        """Send it one, as soon as the command has begun; nothing if it has ended."""
        self._ready.wait(DEADLINE_S)
        if self.end.status is None and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it ends just now
                os.kill(self._process.pid, number)

    def resume(self) -> None:
        """It stands still, or is about to: it goes on."""
        stat = Path(f"/proc/{self._process.pid}/stat")
        with contextlib.suppress(OSError):  # it has ended
            while stat.read_text().rpartition(") ")[2][0] != "T":
                if self.wait(_POLL_S):
                    return
        self.signal(signal.SIGCONT)

    def wait_ready(self) -> None:
        """Return when the command begins."""
        self._ready.wait(DEADLINE_S)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within that time; then `end` is complete."""
        if not multiprocessing.connection.wait([self._process.sentinel], max(seconds, 0.0)):
            return False
        with _LOCK:
            self._process.join()
        self.end.status = self._process.exitcode
        for reader in self._readers:
            reader.join()
        return True

    def close(self) -> None:
        """Nothing of it is left."""
        if self.end.status is None:
            self._process.kill()
            multiprocessing.connection.wait([self._process.sentinel])
        with _LOCK:
            self._process.close()
        for reader in self._readers:
            reader.join()


def _nothing() -> None:
    pass


def _run(command: list[str], told: Told, out: Connection, err: Connection) -> None:
    """In the new process."""
    for pipe, number in ((out, 1), (err, 2)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    # What was there before was made for files.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    os.environ.update(told.environment)
    tempfile.tempdir = None  # as chosen before the fork
    if told.size_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (told.size_limit, told.size_limit))
    module, *words = command
    main = import_module(module).main
    sys.argv = [module, *words]
    begin(told.rules, told.folder, told.counts)
    signals.install()  # from the moment that the runner may send one
    try:
        sys.stderr.write(_READY)
    except (KeyboardInterrupt, signals.Terminated) as e:
        number = signal.SIGINT if isinstance(e, KeyboardInterrupt) else signal.SIGTERM
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    main()
