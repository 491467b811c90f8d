"""Many trials, a few at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.command import HOST
from faults.matrix import draw
from faults.outcome import Outcome
from faults.process import Ends
from faults.shim import build
from faults.sources import Sources
from faults.trial import Trial

from multifd import registry
from multifd.cli.new_credentials import new_credentials

_MODULES = (
    "multifd.cli.main", "multifd.cli.tables", "multifd.cli.service", "multifd.api", "multifd.ram.capture",
    "multifd.transport.tls", "faults.arena_end",
)  # fmt: skip
"""What every end imports, sooner or later."""


def _modules(names: tuple[str, ...]) -> list[str]:
    """Where methods are."""
    return [type(registry.load_method(name)).__module__ for name in names]


def methods() -> tuple[str, ...]:
    """What is installed, each by its name."""
    return tuple(sorted(registry.installed()))


class Run:
    """What all trials of a run share.

    Args:
        folder: for everything.
        methods: to choose from.
    """

    def __init__(self, folder: Path, methods: tuple[str, ...]) -> None:
        self._folder, self._methods = folder, methods
        self._processes = Ends(build(folder), [*_MODULES, *_modules(methods)])
        self._sources, self._credentials = Sources(folder / "sources"), folder / "credentials"
        new_credentials(self._credentials, [HOST])

    def trial(self, seed: int, number: int) -> Outcome:
        """One of them."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            plan = draw(seed, number, self._methods)
            return Trial(plan, Path(folder), self._sources, self._credentials, self._processes).run()

    def trials(self, seed: int, numbers: Iterable[int], at_once: int) -> Iterator[Outcome]:
        """Several, as they end, in their order; those that have not begun when this is left are not tried."""
        pool = ThreadPoolExecutor(at_once)
        try:
            yield from pool.map(lambda number: self.trial(seed, number), numbers)
        finally:
            pool.shutdown(cancel_futures=True)
