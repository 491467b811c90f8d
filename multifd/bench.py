"""Methods against memory: the same RAM image through each of them, every destination verified."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from multifd import registry
from multifd.errors import MultifdError, RamError
from multifd.migrate import Progress, send
from multifd.stats import Result

_PAGE = 4096
_PACKED = {".bz2", ".gif", ".gz", ".jar", ".jpg", ".png", ".ttf", ".whl", ".woff2", ".xz", ".zip", ".zst"}
_CHILD_S = 30.0
"""How long the receiving process may take to start, and to end after the sender has."""


def write_image(path: Path, size: int, seed: int = 1) -> None:
    """Write a RAM image of real bytes: runs of pages, 1/4 zero, 1/2 from this machine's files, 1/4 noise.

    Args:
        path: the file to make.
        size: bytes, a multiple of 4096.
        seed: equal seeds on an unchanged machine give equal images.

    Raises:
        RamError: `size` is not a multiple of the page size, or no room.
    """
    if size <= 0 or size % _PAGE:
        raise RamError(f"RAM of {size} bytes, expected a multiple of {_PAGE}")
    rng = random.Random(seed)
    files = _file_bytes(rng)
    kinds: tuple[Callable[[int], bytes], ...] = (bytes, files, files, rng.randbytes)
    left = size // _PAGE
    try:
        with path.open("wb") as image:
            while left:
                run = min(left, rng.randint(1, 128))
                image.write(rng.choice(kinds)(run * _PAGE))
                left -= run
    except OSError as e:
        raise RamError(f"{path}: {e.strerror}") from e


def _file_bytes(rng: random.Random) -> Callable[[int], bytes]:
    """A reader that goes through this machine's programs, libraries and sources for ever."""
    stored = bytearray()
    pieces = _pieces(rng)

    def read(count: int) -> bytes:
        while len(stored) < count:
            stored.extend(next(pieces))
        taken = bytes(stored[:count])
        del stored[:count]
        return taken

    return read


def _pieces(rng: random.Random) -> Iterator[bytes]:
    roots = [Path(sysconfig.get_path("stdlib")), Path("/usr/bin"), Path("/usr/lib"), Path("/usr/share/doc")]
    paths = []
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            paths += [os.path.join(folder, n) for n in sorted(names) if Path(n).suffix not in _PACKED]
    while True:
        rng.shuffle(paths)
        for path in paths:
            try:
                with open(path, "rb") as file:
                    piece = file.read(1 << 20)
            except OSError:
                continue
            if len(piece) >= _PAGE:
                yield piece


def compare(
    size: int,
    methods: Sequence[str] = (),
    *,
    channels: int = 2,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Migrate one image to a second process over loopback TCP, once by each method.

    Args:
        size: bytes of RAM.
        methods: specs; empty for every installed method that can run here.
        channels: connections besides main.
        on_progress: as for `multifd.send`.
        say: told in words what happens.

    Returns:
        The figures of each; ``error`` is set if it failed or the destination differs.
    """
    if not methods:
        infos = registry.describe()
        for info in infos:
            if info.status != "ok":
                say(f"{info.name}: left out: {info.reason}")
        methods = [info.name for info in infos if info.status == "ok"]
    results = []
    with tempfile.TemporaryDirectory(prefix="multifd-demo-", dir=_roomy_folder(2 * size)) as folder:
        image, out = Path(folder, "source.ram"), Path(folder, "destination.ram")
        say(f"writing a RAM image of {size >> 20} MiB")
        write_image(image, size)
        for spec in methods:
            say(f"{spec}: migrating over {channels} channels")
            result = _migrate(image, out, spec, channels, on_progress)
            if result.error is None and not _equal(image, out):
                result = replace(result, status="failed", error="the destination differs from the source")
            say(f"{spec}: {result.error or 'the destination is equal, byte for byte'}")
            results.append(result)
            out.unlink(missing_ok=True)
    return results


def _roomy_folder(need: int) -> str | None:
    """Memory where there is room, so that the disk is not what is measured; else the default."""
    shm = "/dev/shm"
    if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 1.25 * need:
        return shm
    return None


def _migrate(image: Path, out: Path, spec: str, channels: int, on_progress: Progress | None) -> Result:
    command = [sys.executable, "-m", "multifd", "receive", "tcp:127.0.0.1:0", str(out), "--format", "raw"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        try:
            first = child.stderr.readline()
            uri = first.removeprefix("listening on ").strip()
            if not first.startswith("listening on "):
                raise MultifdError(f"the receiving process did not start: {first}{child.stderr.read()}")
            result = send(image, uri, spec, channels=channels, on_progress=on_progress)
            child.communicate(timeout=_CHILD_S)
        except MultifdError as e:
            child.terminate()
            words = child.communicate(timeout=_CHILD_S)[1].strip().splitlines()
            said = f" (the receiver: {words[-1]})" if words else ""
            if e.result is None:
                raise
            failed: Result = e.result
            return replace(failed, error=f"{e}{said}")
        except BaseException:
            child.kill()
            raise
    return result


def _equal(a: Path, b: Path) -> bool:
    """Whether two files hold the same bytes."""
    import filecmp

    filecmp.clear_cache()
    return filecmp.cmp(a, b, shallow=False)
