"""cffi's types are there before threads ask for them."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from multifd import cffi_types


class Counting:
    """A module of cffi's that counts what is asked of it, each time by one thread alone."""

    def __init__(self, ffi: Any) -> None:
        self._ffi, self.error = ffi, ffi.error
        self.asked: list[str] = []

    def list_types(self) -> Any:
        return self._ffi.list_types()

    def typeof(self, name: str) -> Any:
        self.asked.append(name)
        return self._ffi.typeof(name)

    def sizeof(self, kind: Any) -> int:
        return self._ffi.sizeof(kind)


@pytest.mark.parametrize("name", ["multifd._pump", "zstandard._cffi", "multifd_qpl._batch"])
def test_every_type_once(name: str) -> None:
    """Whoever comes first makes them all, opaque ones, too, and the others wait."""
    module = pytest.importorskip(name, reason="it was not built")
    ffi = Counting(module.ffi)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: cffi_types.realize(ffi, module.lib), range(32)))
    assert len(ffi.asked) == len(set(ffi.asked))
    assert {*module.ffi.list_types()[0]} <= {*ffi.asked}


def test_a_function_type_is_passed_over() -> None:
    """As of `typedef int callback(int)`: cffi has it in its list and does not give it."""

    class Functions:
        error = ValueError

        def list_types(self) -> Any:
            return ["callback"], [], []

        def typeof(self, name: str) -> Any:
            raise ValueError(f"the type {name!r} is a function type, not a pointer-to-function type")

    cffi_types.realize(Functions(), object())


@pytest.mark.parametrize(
    ("loader", "call"), [("multifd.pump.library", "load"), ("multifd.methods._libzstd", "_bindings")]
)
def test_who_loads_a_module_has_them_made(monkeypatch: pytest.MonkeyPatch, loader: str, call: str) -> None:
    pytest.importorskip("multifd._pump", reason="it was not built")
    made: list[Any] = []
    module = importlib.import_module(loader)
    monkeypatch.setattr(module, "realize", lambda ffi, _: made.append(ffi))
    ffi, _ = getattr(module, call)()
    assert made == [ffi]
