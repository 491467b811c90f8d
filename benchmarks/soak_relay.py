"""A relay service under migrations that come one after another on every route, some of whose ends are killed.

``python benchmarks/soak_relay.py`` runs 200 migrations on 4 routes, with ``--seconds 3600`` an hour of them. Sources
and destinations are processes of their own; one in three migrations loses one of them by SIGKILL, at any moment.
Meanwhile the settings are read again and again. Afterwards everything has to add up, or the status is 1:

* each migration carries a guest's uuid of its own, so each of the relay's results belongs to one of them, and none is
  missing: whatever was not killed completed, byte for byte, and the relay says so, too;
* the log and the metrics say the same, in numbers and in bytes;
* threads and descriptors are as many as at the beginning, and memory is flat.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from relay_process import DEADLINE_S, METHODS, Relay, Sample, make_ram, metric

_WARM = 3
"""Migrations on each route before descriptors, threads and memory are looked at: methods are loaded, buffers had."""
_QUARTER = 20
"""Samples, 0.5 s apart, without which a quarter says nothing of memory."""
_SLACK_BYTES = 24 << 20
"""By which memory may differ between two quarters of a run: what malloc keeps, of channels that come and go. A leak of
one packet's buffer for each migration would be 100 MiB over 200 of them."""


# -- the ends, each in a process of its own ---------------------------------------------------------


def source(pipe: Connection, uri: str, seed: int, nbytes: int, guest: str, options: dict[str, Any]) -> None:
    """Send, and say how it ended."""
    from multifd import MemoryImage, send

    with reporting(pipe):
        send(MemoryImage(make_ram(seed, nbytes)), uri, uuid=guest, timeout=DEADLINE_S, **options)


def destination(pipe: Connection, uri: str, seed: int, nbytes: int, guest: str, options: dict[str, Any]) -> None:
    """Receive, compare, and say how it ended."""
    from multifd import receive

    with reporting(pipe):
        memory = bytearray(nbytes)
        receive(uri, memory, timeout=DEADLINE_S, on_listening=lambda _: pipe.send("listening"))
        if hashlib.sha256(memory).digest() != hashlib.sha256(make_ram(seed, nbytes)).digest():
            pipe.send("other memory")


@contextlib.contextmanager
def reporting(pipe: Connection) -> Iterator[None]:
    """Say at the end what became of a migration."""
    from multifd.errors import MultifdError

    try:
        yield
    except MultifdError as e:
        pipe.send(f"failed: {e}")
    else:
        pipe.send("completed")


class End:
    """A source or a destination that runs."""

    def __init__(self, run: Any, *arguments: object) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=run, args=(theirs, *arguments))
        self.process.start()
        theirs.close()

    def word(self) -> str:
        """The next thing that it says; ``killed`` if it can say nothing any more."""
        try:
            return str(self._pipe.recv()) if self._pipe.poll(DEADLINE_S) else "silent"
        except EOFError:
            return "killed"

    def end(self) -> str:
        """Its last word, and wait for it."""
        word = last = self.word()
        while word not in ("killed", "silent"):
            last, word = word, self.word()
        self.process.join(DEADLINE_S)
        self._pipe.close()
        return "silent" if word == "silent" else last if last == "completed" or self.process.exitcode == 0 else "killed"


# -- migrations -------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """One migration, as its ends saw it."""

    guest: str
    victim: str
    """Which end was killed: source, destination, or nobody."""
    source: str = ""
    destination: str = ""


@dataclass
class Plan:
    """What to do."""

    nbytes: int
    channels: int
    kill_share: float
    until: float
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> bool:
        """Whether there is one more migration to do."""
        with self.lock:
            self.left -= 1
            return self.left >= 0 and time.monotonic() < self.until


def run_route(relay: Relay, name: str, plan: Plan, rng: random.Random, attempts: list[Attempt]) -> None:
    """One migration after another on one route."""
    while plan.next():
        victim = rng.choice(("source", "destination")) if rng.random() < plan.kill_share else "nobody"
        attempt = Attempt(str(uuid.UUID(int=rng.getrandbits(128))), victim)
        attempts.append(attempt)
        seed = rng.getrandbits(32)
        common = (seed, plan.nbytes, attempt.guest)
        to = End(destination, relay.to(name), *common, {})
        if to.word() != "listening":
            attempt.destination = to.end()
            continue
        # Slow enough for a kill to come in the middle as often as before or after it.
        options = {"channels": plan.channels, "method": rng.choice(METHODS), "max_bandwidth": 2 * plan.nbytes}
        options["connect_timeout"] = DEADLINE_S
        out = End(source, relay.uris[name], *common, options)
        if victim != "nobody":
            time.sleep(rng.random() * 0.8)
            (out if victim == "source" else to).process.kill()
        attempt.source = out.end()
        if attempt.source != "completed" and victim != "destination":
            # Nobody comes any more to a destination that the relay has not reached.
            to.process.join(5)
            if to.process.is_alive():
                to.process.kill()
        attempt.destination = to.end()


def soak(routes: int, plan: Plan, seed: int, reload_s: float) -> list[str]:
    """Run it; returns what does not add up."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["multifd.api", "multifd.ram.memory"])
    attempts: list[Attempt] = []
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="soak-relay-") as folder:
        relay = Relay(Path(folder), routes, plan.channels)
        try:
            threads = [
                threading.Thread(target=run_route, args=(relay, name, plan, random.Random(f"{seed} {name}"), attempts))
                for name in relay.names
            ]
            for thread in threads:
                thread.start()
            next_reload = time.monotonic() + reload_s
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.5)
                if len(attempts) > _WARM * routes:
                    samples.append(relay.sample())
                if time.monotonic() > next_reload:
                    relay.reload()
                    next_reload += reload_s
            end = settle(relay, routes)
            text = relay.scrape()
        finally:
            relay.process.terminate()
            status = relay.process.wait(2 * DEADLINE_S)
        problems = [] if status == 0 else [f"the relay ended with status {status}"]
        problems += account(attempts, relay.events(), text)
        problems += held(samples, end, routes)
        if problems:
            print("the relay's log:", *map(json.dumps, relay.events()), sep="\n")
    tell(attempts, samples, end)
    return problems


def settle(relay: Relay, routes: int) -> Sample:
    """What it holds once nothing is under way."""
    deadline = time.monotonic() + DEADLINE_S
    idle = idle_threads(routes)
    while True:
        sample = relay.sample()
        if sample.threads <= idle or time.monotonic() > deadline:
            return sample
        time.sleep(0.2)


def idle_threads(routes: int) -> int:
    """The main thread, the scrape server and its answer, a thread for each route."""
    return 3 + routes


def account(attempts: list[Attempt], events: list[dict[str, Any]], text: str) -> list[str]:
    """What does not add up between the ends, the log and the metrics."""
    problems = []
    ended = [event for event in events if event["event"].startswith("migration-") and "result" in event]
    results: dict[str, list[str]] = {}
    for event in ended:
        results.setdefault(event["result"]["uuid"], []).append(event["result"]["status"])
    known = {attempt.guest for attempt in attempts}
    problems += [f"a result of a guest that nobody sent: {guest}" for guest in results if guest and guest not in known]
    unnamed = len(results.get("", []))  # the source was killed before any channel had come
    for attempt in attempts:
        mine = results.get(attempt.guest, [])
        where = f"guest {attempt.guest}, {attempt.victim} was killed: "
        if len(mine) > 1:
            problems.append(f"{where}results {mine}, expected one")
        if attempt.victim == "nobody" and (attempt.source, attempt.destination, mine) != (
            "completed", "completed", ["completed"],
        ):  # fmt: skip
            problems.append(f"{where}source {attempt.source}, destination {attempt.destination}, relay {mine}")
        if "completed" in (attempt.source, attempt.destination) and mine in ([], ["failed"], ["cancelled"]):
            problems.append(f"{where}source {attempt.source}, destination {attempt.destination}, but the relay {mine}")
    silent = [attempt for attempt in attempts if not results.get(attempt.guest)]
    if unnamed > len([attempt for attempt in silent if attempt.victim == "source"]):
        problems.append(f"{unnamed} results without a guest, for {len(silent)} migrations without a result")
    for state in ("completed", "failed", "cancelled", "unknown"):
        logged = sum(event["result"]["status"] == state for event in ended)
        counted = metric(text, "multifd_migrations_total", f'state="{state}"')
        if logged != counted:
            problems.append(f"{logged} {state} in the log, {counted:g} in the metrics")
    for name, key in (("received", "bytes_in"), ("sent", "bytes_out")):
        logged = sum(event["result"][key] for event in ended)
        counted = metric(text, f"multifd_{name}_bytes_total")
        if logged != counted:
            problems.append(f"{logged} bytes {name} in the log, {counted:g} in the metrics")
    if defects := [event["message"] for event in events if event["event"] in ("defect", "route-failed", "route-stuck")]:
        problems.append(f"{len(defects)} defects: {defects[0]}")
    if refused := metric(text, "multifd_config_reloads_total", 'outcome="refused"'):
        problems.append(f"settings were refused {refused:g} times")
    return problems


def held(samples: list[Sample], end: Sample, routes: int) -> list[str]:
    """What the relay holds at the end that it did not hold before."""
    problems = []
    if end.threads > idle_threads(routes):
        problems.append(f"{end.threads} threads at the end, expected {idle_threads(routes)}")
    # stdin, stdout, stderr; the scrape's listener, selector, connection; a route's listener, selector, event; and /proc
    # files that are read while it counts.
    expected = 8 + 3 * routes
    if end.descriptors > expected:
        problems.append(f"{end.descriptors:g} descriptors at the end, expected at most {expected}")
    quarter = len(samples) // 4
    if quarter >= _QUARTER:
        early = statistics.median(s.resident_bytes for s in samples[quarter : 2 * quarter])
        late = statistics.median(s.resident_bytes for s in samples[-quarter:])
        if late > early + _SLACK_BYTES:
            problems.append(f"memory grew from {early / 2**20:.1f} to {late / 2**20:.1f} MiB")
    return problems


def tell(attempts: list[Attempt], samples: list[Sample], end: Sample) -> None:
    """The figures."""
    print(f"{len(attempts)} migrations: {dict(Counter(a.victim for a in attempts))} killed")
    print(f"sources {dict(Counter(a.source.split(':')[0] for a in attempts))}")
    print(f"destinations {dict(Counter(a.destination.split(':')[0] for a in attempts))}")
    for i in range(4):
        part = samples[len(samples) * i // 4 : len(samples) * (i + 1) // 4]
        if part:
            resident = statistics.median(s.resident_bytes for s in part) / 2**20
            print(f"quarter {i + 1}: {resident:.1f} MiB, at most {max(s.descriptors for s in part):g} descriptors, "
                  f"{max(s.threads for s in part)} threads")  # fmt: skip
    print(f"end: {end.resident_bytes / 2**20:.1f} MiB, {end.descriptors:g} descriptors, {end.threads} threads")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, default=4)
    parser.add_argument("--migrations", type=int, help="in all; 200 if no time is said")
    parser.add_argument("--seconds", type=float, help="as many migrations as this takes")
    parser.add_argument("--mebibytes", type=int, default=16, help="of each guest")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--kill-share", type=float, default=1 / 3, help="of the migrations")
    parser.add_argument("--reload", type=float, default=5.0, metavar="S", help="how often settings are read again")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    migrations = arguments.migrations or (sys.maxsize if arguments.seconds else 200)
    until = time.monotonic() + (arguments.seconds or 86400)
    plan = Plan(arguments.mebibytes << 20, arguments.channels, arguments.kill_share, until, migrations)
    start = time.monotonic()
    problems = soak(arguments.routes, plan, arguments.seed, arguments.reload)
    print(f"{time.monotonic() - start:.0f} s")
    for problem in problems:
        print(f"does not add up: {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
