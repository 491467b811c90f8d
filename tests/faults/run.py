"""Many trials, a few at a time."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.matrix import NBYTES, PAGES, draw
from faults.outcome import Outcome
from faults.process import Ends
from faults.shim import build
from faults.trial import Trial

import multifd
from multifd import registry

_MODULES = ("multifd.cli.main", "multifd.cli.tables", "multifd.cli.service", "multifd.api", "faults.arena_end")
"""What every end imports, sooner or later."""


def _modules(names: tuple[str, ...]) -> list[str]:
    """Where methods are."""
    return [type(registry.load_method(name)).__module__ for name in names]


def methods() -> tuple[str, ...]:
    """What is installed, each by its name."""
    return tuple(sorted(registry.installed()))


def make_memory() -> bytes:
    """A quarter zero, a quarter repeating, the rest noise."""
    rng = random.Random(1)
    pages = (bytes(4096), rng.randbytes(64) * 64, rng.randbytes(4096), rng.randbytes(4096))
    memory = b"".join(rng.choices(pages, k=PAGES))
    assert len(memory) == NBYTES
    return memory


class Run:
    """What all trials of a run share.

    Args:
        folder: for everything.
        methods: to choose from.
    """

    def __init__(self, folder: Path, methods: tuple[str, ...]) -> None:
        self._folder, self._methods = folder, methods
        self._processes = Ends(build(folder), [*_MODULES, *_modules(methods)])
        self._sources = {medium: folder / f"{medium}.source" for medium in ("raw", "arena", "mapped-ram")}
        memory = make_memory()
        self._sources["raw"].write_bytes(memory)
        self._sources["arena"].write_bytes(memory)
        _capture(memory, self._sources["mapped-ram"], folder)

    def trial(self, seed: int, number: int) -> Outcome:
        """One of them."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            return Trial(draw(seed, number, self._methods), Path(folder), self._sources, self._processes).run()

    def trials(self, seed: int, numbers: Iterable[int], at_once: int) -> Iterator[Outcome]:
        """Several, as they end, in their order; those that have not begun when this is left are not tried."""
        pool = ThreadPoolExecutor(at_once)
        try:
            yield from pool.map(lambda number: self.trial(seed, number), numbers)
        finally:
            pool.shutdown(cancel_futures=True)


def _capture(memory: bytes, path: Path, folder: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        uri = f"unix:{folder}/capture"
        received = pool.submit(multifd.receive, uri, path, format="mapped-ram")
        multifd.send(memory, uri)
        received.result()
