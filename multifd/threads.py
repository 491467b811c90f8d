"""The start of a thread, which a process may be refused."""

from __future__ import annotations

import threading

from multifd.errors import ChannelError


def start(thread: threading.Thread) -> None:
    """Let it run.

    Raises:
        ChannelError: this process may have no more threads.
    """
    try:
        thread.start()
    except RuntimeError as e:
        raise ChannelError(
            f"no thread for {thread.name}: {e}; ulimit -u, pids.max of the cgroup and memory limit them"
        ) from e
