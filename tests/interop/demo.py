"""`make demo`'s third act: a running guest is captured, and goes on in a second QEMU by another method."""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

from interop.guest import Guest, check, passes_printed
from interop.qemu import Qemu, QemuMissing, Release, system_release

import multifd
from multifd.ram.capture import info
from multifd.stats import Result

MIB = 64


def main() -> None:
    """Run it, or say in one line what is missing."""
    try:
        release = system_release()
    except QemuMissing as missing:
        print(f"Third act left out: {missing}", file=sys.stderr)
        return
    version = ".".join(map(str, release.version))
    print(f"Third act: a guest that dirties its memory, captured from a QEMU {version} and restored in another")
    with tempfile.TemporaryDirectory() as folder:
        _run(release, Path(folder))


def _run(release: Release, folder: Path) -> None:
    guest, file = Guest(), folder / "vm.ram"
    source = Qemu(release, folder, "source", MIB, disk=guest.disk(), is_paused=False)
    try:
        destination = Qemu(release, folder, "destination", MIB, disk=guest.disk(), is_incoming=True)
        try:
            source.wait(lambda: passes_printed(source.console()) > 2, "third pass of the guest")
            captured = _capture(source, file, folder)
            stopped = check(source.ram(), guest)
            what = info(file)
            print(
                f"captured by zlib in {captured.total_time_ms:.0f} ms: {captured.normal_pages} pages, "
                f"{captured.zero_pages} zero pages; {what.machine}, {len(what.blocks)} blocks, "
                f"{len(what.devices)} devices"
            )
            destination.multifd("zstd", 4)
            uri = destination.listen(f"unix:{folder}/replay")
            sent = multifd.send(file, uri, "zstd", channels=4)
            destination.wait_migrated()
            if destination.ram() != source.ram():
                raise SystemExit("the destination's RAM is not the source's")
            print(f"restored by zstd in {sent.total_time_ms:.0f} ms: the RAM of both QEMUs is equal, byte for byte")
            destination("cont")
            destination.wait(lambda: passes_printed(destination.console()) > 2, "third pass of the guest")
            destination("stop")
            state = check(destination.ram(), guest)
            print(f"and goes on: pass {stopped.passes} at the capture, pass {state.passes} now, its invariant holds")
        finally:
            destination.stop()
    finally:
        source.stop()


def _capture(source: Qemu, file: Path, folder: Path) -> Result:
    results: list[Result] = []
    listening = threading.Event()

    def receive() -> None:
        results.append(
            multifd.receive(f"unix:{folder}/capture", file, channels=2, on_listening=lambda _: listening.set())
        )

    receiver = threading.Thread(target=receive)
    receiver.start()
    listening.wait(10)
    source.multifd("zlib", 2)
    source("migrate", uri=f"unix:{folder}/capture")
    receiver.join()
    if not results:
        raise SystemExit("the capture failed")
    source.wait_migrated()
    return results[0]


if __name__ == "__main__":
    main()
