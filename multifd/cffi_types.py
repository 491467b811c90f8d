"""The types of a module that cffi made, all of them realized before threads ask for them.

cffi makes a type when it is first used, from a table that all threads share, and on builds with a GIL nothing holds a
lock meanwhile: where two threads use one for the first time at once, the process is ended by an assertion, or by a bad
pointer (cffi 2.0 and 2.1; issue 271 of python-cffi; seen with channels that started together, 2026-11-30).
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

_lock = threading.Lock()
_realized: dict[int, Any] = {}
"""By their ids the modules' ffi objects, which live as long as the process."""


def realize(ffi: Any, lib: Any) -> None:
    """Make every type of a module, once; from any thread. It takes a few ms.

    Args:
        ffi, lib: the module's.
    """
    if id(ffi) in _realized:
        return
    with _lock:
        if id(ffi) in _realized:
            return
        typedefs, structs, unions = ffi.list_types()
        tagged = [f"struct {name}" for name in structs] + [f"union {name}" for name in unions]
        for name in [*typedefs, *(name for name in tagged if "$" not in name)]:  # those have no name in C
            # A function's type is none that cffi gives; older releases of zstandard have one.
            with contextlib.suppress(ffi.error):
                _realize_fields(ffi, ffi.typeof(name))
        for name in dir(lib):
            getattr(lib, name)
        _realized[id(ffi)] = ffi


def _realize_fields(ffi: Any, kind: Any) -> None:
    if kind.kind in ("struct", "union"):
        try:
            ffi.sizeof(kind)
        except (ffi.error, ValueError, TypeError):  # opaque: asked for its fields, cffi's assertions end the process
            return
        _ = kind.fields
