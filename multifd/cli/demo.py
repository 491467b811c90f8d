"""Methods against memory: the same RAM image through each of them, every destination verified."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from multifd import registry, scratch
from multifd.api import Progress, send
from multifd.bench.synthetic import PAGE, write_image
from multifd.cli.workload import Workload
from multifd.errors import ChannelError, MultifdError, UsageError
from multifd.interrupts import held
from multifd.live.arena import Arena
from multifd.sources import Live
from multifd.stats import Result

_PAGES_PER_S = 2000
"""8 MiB/s of 4 KiB pages: what zlib at 50 MB/s still keeps up with, within the default downtime limit."""
_PIECE = 1 << 20
_CHILD_S = 30.0
"""How long the receiving process may take to start, and to end after the sender has."""
_LONGEST_LINE = 4096
_LISTENING = "listening on "
_ERROR = "multifd: error: "


def compare(
    size: int,
    methods: Sequence[str] = (),
    *,
    channels: int = 2,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Migrate memory to a second process over loopback TCP while a program writes to it, once by each method.

    The destination is compared with the source as it stood at the switchover; then the program goes on, and the next
    method has its turn.

    Args:
        size: bytes of RAM.
        methods: specs; empty for every installed method that can run here.
        channels: connections besides main.
        on_progress: as for `multifd.send`.
        say: told in words what happens.

    Returns:
        The figures of each; ``error`` is set if it failed or the destination differs.

    Raises:
        MultifdError: a method cannot be had; it cannot be tried at all on this machine.
    """
    _check_room(size)
    for spec in methods:
        registry.load_method(spec)
    if not methods:
        infos = registry.describe()
        for info in infos:
            if info.status != "ok":
                say(f"{info.name}: left out: {info.reason}")
        methods = [info.name for info in infos if info.status == "ok"]
    results = []
    with scratch.folder(_roomy_folder(2 * size)) as folder:
        image, out = Path(folder, "source.ram"), Path(folder, "destination.ram")
        say(f"writing a RAM image of {size >> 20} MiB; a program writes to {_PAGES_PER_S} of its pages each second")
        write_image(image, size)
        memory = _load(image, size)
        image.unlink()
        with Arena(memory) as arena, Workload(memoryview(memory), PAGE, _PAGES_PER_S) as workload:
            for spec in methods:
                say(f"{spec}: migrating over {channels} channels")
                result = _migrate(arena, workload, out, spec, channels, on_progress)
                if result.error is None and not _equal(memory, out):
                    result = replace(result, status="failed", error="the destination differs from the source")
                say(f"{spec}: {result.error or 'the destination is equal to the source as it stood, byte for byte'}")
                results.append(result)
                out.unlink(missing_ok=True)
                workload.resume()
    return results


def _load(image: Path, size: int) -> mmap.mmap:
    """The image in private memory."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with image.open("rb", buffering=0) as file, memoryview(memory) as view:
        at = 0
        while at < size:
            with view[at:] as rest:
                at += file.readinto(rest) or 0
    return memory


def _check_room(size: int) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise UsageError(f"{size} bytes of RAM to migrate, this machine has {memory}")


def _roomy_folder(need: int) -> str | None:
    """Memory where there is room, so that the disk is not what is measured; else the default."""
    shm = "/dev/shm"
    if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 1.25 * need:
        return shm
    return None


def _migrate(
    arena: Arena, workload: Workload, out: Path, spec: str, channels: int, on_progress: Progress | None
) -> Result:
    with _ReceivingProcess(out, spec) as child:
        try:
            live = Live(arena, workload.pause, workload.resume, page_size=PAGE)
            result = send(live, child.uri(), spec, channels=channels, on_progress=on_progress)
            child.wait()
        except MultifdError as e:
            if e.result is None:
                raise
            child.stop()
            said = f" (the receiver: {child.words})" if child.words else ""
            failed: Result = e.result
            return replace(failed, error=f"{e}{said}")
    return result


class _ReceivingProcess:
    """``multifd receive`` into a raw image, at a port of the kernel's choice; ended by the context's end.

    A thread reads all that it says, so that it never waits for room in the pipe. `words` are its error, or else the
    last line.
    """

    def __init__(self, out: Path, spec: str) -> None:
        self.words = ""
        self._uri = ""
        self._said = threading.Event()  # its first line, or that there will be none
        # Named: over TCP a private method may not be chosen by the sender alone.
        method = ["--method", spec.partition(":")[0]]
        self._command = [sys.executable, "-m", "multifd", "receive", "tcp:127.0.0.1:0", str(out), "--format", "raw"]
        self._command += method
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = threading.Thread(target=self._read, name="multifd_demo", daemon=True)

    def __enter__(self) -> Self:
        try:
            with held():  # a process that nobody knows of would go on
                self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                self._reader.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def uri(self) -> str:
        """Where it listens.

        Raises:
            MultifdError: it does not.
        """
        if not self._said.wait(_CHILD_S) or not self._uri:
            self.stop()
            raise ChannelError(f"the receiving process did not start: {self.words or 'it said nothing'}")
        return self._uri

    def wait(self) -> None:
        """Let it end by itself; whether it did well is seen by its file."""
        if self._process is None:
            return
        try:
            self._process.wait(_CHILD_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def stop(self) -> None:
        """End it, wait for it, and for what it has said."""
        if self._process is None:
            return
        self._process.terminate()
        self.wait()
        self._process.wait(_CHILD_S)
        self._reader.join(_CHILD_S)

    def _read(self) -> None:
        pipe = self._process.stderr if self._process is not None else None
        if pipe is None:  # it was asked for
            return
        is_error = False
        with pipe:
            while line := pipe.readline(_LONGEST_LINE):
                text = line.decode("utf-8", "replace").rstrip()
                if text.startswith(_ERROR):
                    self.words, is_error = text.removeprefix(_ERROR), True
                elif text and not is_error:
                    self.words = text
                if text.startswith(_LISTENING):
                    self._uri = text.removeprefix(_LISTENING)
                    self._said.set()
        self._said.set()


def _equal(memory: mmap.mmap, path: Path) -> bool:
    """Whether a file holds the same bytes as memory."""
    if path.stat().st_size != len(memory):
        return False
    with path.open("rb") as file:
        return all(file.read(_PIECE) == memory[at : at + _PIECE] for at in range(0, len(memory), _PIECE))
