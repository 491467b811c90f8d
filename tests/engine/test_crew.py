"""The threads of a migration."""

from __future__ import annotations

import threading

import pytest

from multifd.engine.crew import Crew
from multifd.errors import ChannelError
from multifd.transport.idle import IdleTimer


def test_a_thread_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said in words, and nobody waits for what never ran."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    crew = Crew(IdleTimer(60.0))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ChannelError, match="no thread for channel: can't start new thread; ulimit -u"):
        crew.start("channel", lambda: None)
    assert not crew.is_busy()
    assert not crew.join()
