"""The relay service as a process that a long run watches, and the memory that its guests have."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE_S = 120.0
METHODS = ("none", "zlib", "zstd")


def make_ram(seed: int, nbytes: int) -> bytes:
    """Memory of which a third is zero, a third repeats, a third is noise."""
    rng = random.Random(seed)
    pages = (bytes(4096), rng.randbytes(64) * 64, rng.randbytes(4096))
    return b"".join(rng.choices(pages, k=nbytes // 4096))


@dataclass(frozen=True)
class Sample:
    """What the relay holds."""

    at_s: float
    resident_bytes: float
    descriptors: float
    threads: int


class Relay:
    """The service, as a process."""

    def __init__(self, folder: Path, routes: int, channels: int) -> None:
        self._folder, self.names = folder, [f"r{i}" for i in range(routes)]
        self._channels, self._turn = channels, 0
        self.write_settings()
        self._log = folder / "relay.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "multifd", "relay", "--config", str(folder / "relay.toml"),
                 "--log-format", "json", "--metrics", "tcp:127.0.0.1:0", "--drain-timeout", str(DEADLINE_S)],
                stderr=log,
            )  # fmt: skip
        self.uris: dict[str, str] = {}
        self._scrape = ""
        deadline = time.monotonic() + DEADLINE_S
        while len(self.uris) < routes or not self._scrape:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the relay does not start: {self._log.read_text()}")
            for event in self.events():
                if event["event"] == "listening":
                    self.uris[event["route"]] = event["listen"]
                elif event["event"] == "metrics":
                    self._scrape = event["uri"].replace("tcp:", "http://") + "/metrics"
            time.sleep(0.05)

    def to(self, name: str) -> str:
        """Where a route's destination listens."""
        return f"unix:{self._folder}/{name}.out"

    def write_settings(self) -> None:
        """relay.toml, a bit other each time: routes listen at TCP and unix sockets by turns."""
        self._turn += 1
        lines = []
        for i, name in enumerate(self.names):
            listen = "tcp:127.0.0.1:0" if i % 2 else f"unix:{self._folder}/{name}.in"
            lines += [f"[routes.{name}]", f'listen = "{listen}"', f'to = "{self.to(name)}"']
            lines += [f'out = "{METHODS[(i + self._turn) % len(METHODS)]}"', "connect-timeout = 2.0"]
            lines += [f"timeout = {DEADLINE_S + self._turn}", ""]
        (self._folder / "relay.toml").write_text("\n".join(lines))

    def reload(self) -> None:
        """Other settings, with SIGHUP."""
        self.write_settings()
        self.process.send_signal(signal.SIGHUP)

    def events(self) -> list[dict[str, Any]]:
        """Everything it has logged up to now."""
        lines = self._log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def scrape(self) -> str:
        """Its metrics, as text."""
        with urllib.request.urlopen(self._scrape, timeout=DEADLINE_S) as answer:
            return str(answer.read().decode())

    def sample(self) -> Sample:
        """What it holds now."""
        text = self.scrape()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        threads = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
        return Sample(
            time.monotonic(),
            metric(text, "process_resident_memory_bytes"),
            metric(text, "process_open_fds"),
            int(threads[1]) if threads else 0,
        )


def metric(text: str, name: str, labels: str = "") -> float:
    """The sum of a metric's samples whose labels contain some text."""
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for given, value in found if labels in given)
