"""Something that runs beside a test, in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

DEADLINE_S = 60


@contextlib.contextmanager
def beside(run: Callable[[], object]) -> Iterator[None]:
    """Run it for the length of a ``with``, at whose end it must have ended; what it raises is raised there."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as e:
            errors.append(e)

    worker = threading.Thread(target=guarded)
    worker.start()
    try:
        yield
    finally:
        worker.join(DEADLINE_S)
    assert not worker.is_alive()
    if errors:
        raise errors[0]
