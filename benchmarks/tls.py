"""What TLS costs: captures, replays and relays beside what QEMU's own TLS (GnuTLS) costs between two QEMUs, in one run.

As benchmarks/qemu.py, with whose bed it measures: one running source, fresh destinations, every way once a round,
interleaved, a warm-up round that does not count, ratios within a round, medians. Method none, TLS 1.3, certificates of
`multifd tls new`.

Usage: PYTHONPATH=tests python benchmarks/tls.py [--mib 512] [--rounds 3] [--folder FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from interop.qemu import Qemu, Release
from qemu import CHANNELS, Bed, finished, listening, multifd, qemu_or_end
from rounds import Aim, interleaved, ratios

from multifd.cli.new_credentials import new_credentials

HOST = "127.0.0.1"


class TlsBed(Bed):
    """A bed whose every connection can be encrypted."""

    def __init__(self, release: Release, mib: int, folder: Path) -> None:
        self._credentials = folder / "credentials"
        new_credentials(self._credentials, [HOST])
        super().__init__(release, mib, folder)
        self._give(self.source, "client")

    def _give(self, process: Qemu, endpoint: str) -> None:
        process("object-add", qom_type="tls-creds-x509", id="tls0", dir=str(self._credentials), endpoint=endpoint)

    @contextlib.contextmanager
    def _waiting(self, *, is_encrypted: bool) -> Iterator[str]:
        """A fresh QEMU destination, which must have everything in the end."""
        process = self._start("destination", "memory-backend-ram,prealloc=on", is_incoming=True)
        try:
            process.multifd("none", CHANNELS)
            if is_encrypted:
                self._give(process, "server")
                process("migrate-set-parameters", tls_creds="tls0")
            yield process.listen(f"tcp:{HOST}:0")
            process.wait_migrated()
        finally:
            process.stop()

    def _migrate(self, uri: str, *, is_encrypted: bool) -> float:
        self.source.multifd("none", CHANNELS, return_path=True)
        self.source("migrate-set-parameters", tls_creds="tls0" if is_encrypted else "")
        return self.migrate(uri).total_ms

    def _options(self, is_encrypted: bool, *prefixes: str) -> list[str]:
        return [f"--{prefix}tls-creds={self._credentials}" for prefix in prefixes] if is_encrypted else []

    def between(self, *, is_encrypted: bool) -> float:
        """QEMU to QEMU."""
        with self._waiting(is_encrypted=is_encrypted) as uri:
            return self._migrate(uri, is_encrypted=is_encrypted)

    def into(self, *, is_encrypted: bool) -> float:
        """QEMU to us, a file."""
        options = self._options(is_encrypted, "")
        with multifd("receive", f"tcp:{HOST}:0", self.file("capture.ram"), "--channels", CHANNELS, *options) as receive:
            total_ms = self._migrate(listening(receive), is_encrypted=is_encrypted)
            finished(receive)
        return total_ms

    def out(self, *, is_encrypted: bool) -> float:
        """Us, the file, to QEMU."""
        capture, options = self.folder / "capture.ram", self._options(is_encrypted, "")
        with self._waiting(is_encrypted=is_encrypted) as uri:
            self.settle()
            with multifd("send", capture, uri, "--channels", CHANNELS, *options) as send:
                return float(finished(send)["total_time_ms"])

    def through(self, *, is_encrypted: bool) -> float:
        """QEMU to QEMU with us between, encrypted on both sides."""
        options = self._options(is_encrypted, "in-", "out-")
        with self._waiting(is_encrypted=is_encrypted) as uri:
            command = ("relay", f"tcp:{HOST}:0", uri, "--once", "--channels", CHANNELS, *options)
            with multifd(*command) as relay:
                total_ms = self._migrate(listening(relay), is_encrypted=is_encrypted)
                finished(relay)
        return total_ms


def ways(bed: TlsBed) -> dict[str, Callable[[], float]]:
    """What is measured, in the order of a round."""
    kinds: dict[str, Callable[..., float]] = {
        "QEMU to QEMU": bed.between, "capture": bed.into, "replay": bed.out, "relay": bed.through,
    }  # fmt: skip
    return {
        f"{name}, {'TLS' if is_encrypted else 'plain'}": lambda call=call, on=is_encrypted: call(is_encrypted=on)
        for name, call in kinds.items()
        for is_encrypted in (False, True)
    }


AIMS = [
    Aim("QEMU to QEMU, TLS", "QEMU to QEMU, plain", None),
    Aim("capture, TLS", "QEMU to QEMU, TLS", 1.1),
    Aim("capture, TLS", "capture, plain", None),
    Aim("replay, TLS", "QEMU to QEMU, TLS", 1.1),
    Aim("replay, TLS", "replay, plain", None),
    Aim("relay, TLS", "QEMU to QEMU, TLS", None),
    Aim("relay, TLS", "relay, plain", None),
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the file; default the temporary folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    release = qemu_or_end()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, TlsBed(release, args.mib, Path(folder)) as bed:
        every = ways(bed)
        rows = interleaved(every, lambda name: bed.once(every[name]), args.rounds)
    medians = {name: statistics.median(row) for name, row in rows.items()}
    compared = ratios(rows, AIMS)
    if args.json:
        print(json.dumps({"total_ms": medians, "ratios": [ratio._asdict() for ratio in compared]}))
        return
    for name, total_ms in medians.items():
        print(f"{name:22} {total_ms:7.0f} ms")
    for ratio in compared:
        print(ratio)


if __name__ == "__main__":
    main()
