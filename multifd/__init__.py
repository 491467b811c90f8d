"""Move guest memory between hosts in pages, over many connections, by a method chosen by name.

`send` and `receive` are the two ends of a migration on QEMU's own multifd wire, `relay` stands between two. What is
sent is an `Image` in a file, a `MemoryImage` in a buffer, or `Live` memory, an `Arena` that is written meanwhile.
`Tls` says how connections are encrypted, `Access` who may connect; a `Canceller` cancels; `load_method` gives a method
by name; a method of your own is a subclass of `multifd.method.MultifdMethods`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from multifd._version import __version__

if TYPE_CHECKING:
    from multifd.api import receive, relay, send
    from multifd.engine.canceller import Canceller
    from multifd.live.arena import Arena
    from multifd.registry import load_method
    from multifd.sources import Image, Live, MemoryImage
    from multifd.transport.access import Access
    from multifd.transport.tls import Tls

__all__ = [
    "Access",
    "Arena",
    "Canceller",
    "Image",
    "Live",
    "MemoryImage",
    "Tls",
    "__version__",
    "load_method",
    "receive",
    "relay",
    "send",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "Access": "multifd.transport.access",
    "Arena": "multifd.live.arena",
    "Canceller": "multifd.engine.canceller",
    "Image": "multifd.sources",
    "Live": "multifd.sources",
    "MemoryImage": "multifd.sources",
    "Tls": "multifd.transport.tls",
    "load_method": "multifd.registry",
    "receive": "multifd.api",
    "relay": "multifd.api",
    "send": "multifd.api",
}


def __getattr__(name: str) -> object:
    # numpy and the engines are imported when they are used: `multifd --help` needs neither.
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
