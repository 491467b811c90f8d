"""Two hosts with a link of a known rate between them, on one machine: network namespaces, a veth pair, a token bucket.

What the source's side sends is held to a rate, which may change at any time. Needs root, iproute2 and a kernel with
veth and tbf. Nothing outside of the two namespaces is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, Self

DEADLINE_S = 10
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SOURCE, _DESTINATION = "192.0.2.1", "192.0.2.2"  # TEST-NET-1, RFC 5737
_GSO_BYTES = 65536
_NUMBERS = itertools.count()


class LinkUnavailable(Exception):
    """No such link can be made here; says why."""


class Ends(Protocol):
    """Where the two ends of a migration are started, and where the destination listens."""

    address: str

    def source(self) -> contextlib.AbstractContextManager[None]:
        """What this thread starts meanwhile, processes and threads, is at the source."""

    def destination(self) -> contextlib.AbstractContextManager[None]:
        """What this thread starts meanwhile, processes and threads, is at the destination."""


class Loopback:
    """Both ends where this process is."""

    address = "127.0.0.1"

    def source(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def destination(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class ShapedLink:
    """Two namespaces and a link of `bits_per_s` from the first to the second; gone when the context ends.

    Raises:
        LinkUnavailable: it cannot be made.
    """

    address = _DESTINATION

    def __init__(self, bits_per_s: int) -> None:
        stem = f"multifd-{os.getpid()}-{next(_NUMBERS)}"
        self._namespaces = f"{stem}-source", f"{stem}-destination"
        here, there = self._namespaces
        try:
            for namespace in self._namespaces:
                _run("ip", "netns", "add", namespace)
            pair = ("link0", "netns", here, "type", "veth", "peer", "name", "link0", "netns", there)
            _run("ip", "link", "add", *pair)
            for namespace, address in ((here, _SOURCE), (there, _DESTINATION)):
                _run("ip", "-n", namespace, "address", "add", f"{address}/30", "dev", "link0")
                for device in ("lo", "link0"):
                    _run("ip", "-n", namespace, "link", "set", device, "up")
            self._qdisc("add", bits_per_s)
            for side in (self.source, self.destination):
                with side():
                    _use_cubic()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """The namespaces go once nobody is in them any more."""
        for namespace in self._namespaces:
            with contextlib.suppress(LinkUnavailable):
                _run("ip", "netns", "delete", namespace)

    def shape(self, bits_per_s: int) -> None:
        """Change the rate, from now on; from any thread."""
        self._qdisc("change", bits_per_s)

    def limit_send_buffers(self, nbytes: int) -> None:
        """How much a socket at the source takes before it waits, from the next connection on: what Linux lets grow to
        4 MiB hides a slow link from whoever sends no more than that."""
        with self.source(), open("/proc/sys/net/ipv4/tcp_wmem", "w") as setting:
            setting.write(f"4096 16384 {nbytes}")

    def _qdisc(self, verb: str, bits_per_s: int) -> None:
        # A packet that the kernel has not cut up yet must fit the bucket; 2 ms of the rate are lost to no timer.
        burst = 2 * _GSO_BYTES + bits_per_s // 8 // 500
        tbf = ("tbf", "rate", f"{bits_per_s}bit", "burst", str(burst), "limit", str(burst + (1 << 20)))
        _run("tc", "-n", self._namespaces[0], "qdisc", verb, "dev", "link0", "root", "handle", "1:", *tbf)

    def source(self) -> contextlib.AbstractContextManager[None]:
        """As `Ends.source`."""
        return _inside(self._namespaces[0])

    def destination(self) -> contextlib.AbstractContextManager[None]:
        """As `Ends.destination`."""
        return _inside(self._namespaces[1])


class Phase(NamedTuple):
    """A rate, and for how long."""

    bits_per_s: int
    seconds: float = math.inf


class Changes:
    """The phases of a link, one after the other and over again, as long as the context lasts."""

    def __init__(self, link: ShapedLink, phases: Sequence[Phase]) -> None:
        self._link, self._phases = link, phases
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link_changes", daemon=True)

    def __enter__(self) -> Self:
        self._link.shape(self._phases[0].bits_per_s)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        for phase, following in itertools.pairwise(itertools.cycle(self._phases)):
            if self._over.wait(phase.seconds):
                return
            self._link.shape(following.bits_per_s)


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, is in a network namespace."""
    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{namespace}") as there:
        _set_namespace(there.fileno())
        try:
            yield
        finally:
            _set_namespace(before.fileno())


def _set_namespace(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    if libc.setns(fd, _CLONE_NEWNET):
        raise LinkUnavailable(f"setns: {os.strerror(ctypes.get_errno())}")


def _use_cubic() -> None:
    """Linux's default, whatever this machine has chosen: figures of two machines can be compared."""
    with contextlib.suppress(OSError), open("/proc/sys/net/ipv4/tcp_congestion_control", "w") as setting:
        setting.write("cubic")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    except FileNotFoundError:
        raise LinkUnavailable(f"{command[0]} is missing (apt-get install iproute2)") from None
    except subprocess.TimeoutExpired:
        raise LinkUnavailable(f"{' '.join(command)}: no answer in {DEADLINE_S} s") from None
    if done.returncode:
        raise LinkUnavailable(f"{' '.join(command)}: {done.stderr.strip()}")
