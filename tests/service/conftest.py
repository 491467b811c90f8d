"""A relay service that a test starts, and where its routes lead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peer import Destination
from routes import ServiceThread, wait_for


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[..., ServiceThread]]:
    """Start services of a text, or of the file that is there; none survives the test."""
    started: list[ServiceThread] = []

    def start(text: str = "", **options: Any) -> ServiceThread:
        if text:
            (tmp_path / "relay.toml").write_text(text)
        started.append(ServiceThread(tmp_path / "relay.toml", **options))
        return started[-1]

    before = threading.active_count()
    yield start
    for one in started:
        one.stop()
    # A thread that began while its migration was torn down may be the last to end.
    wait_for(lambda: threading.active_count() <= before)


@pytest.fixture
def destination(tmp_path) -> Iterator[Destination]:
    end = Destination(tmp_path / "to.sock")
    yield end
    end.close()
