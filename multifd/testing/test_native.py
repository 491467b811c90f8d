"""Hooks in native code beside those in Python: the same bytes, the same refusals, and nothing else touched.

Each runs in a process of its own, which a hook may crash.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from multifd.registry import load_method
from multifd.testing.child import prove
from multifd.testing.native import is_offered

_NATIVE = "multifd.testing.native"


def _skip_without_hooks(spec: str) -> None:
    method = load_method(spec)
    if method.capabilities.verbatim:
        pytest.skip("verbatim=True: the packet pump moves the pages itself, and calls no hook")
    if not any(is_offered(method)):
        pytest.skip("the method offers no hook in native code: native_send and native_recv give None here")


def test_native_payloads(multifd_method: str) -> None:
    """Equal payloads if that is promised; each path decodes what the other has made."""
    _skip_without_hooks(multifd_method)
    prove(_NATIVE, "payloads", multifd_method)


def test_native_mixtures(multifd_method: str) -> None:
    """A channel goes on where the other path stopped, packet by packet, and counts the same."""
    _skip_without_hooks(multifd_method)
    prove(_NATIVE, "mixtures", multifd_method)


@pytest.mark.parametrize("attack", ["refusals", "bombs"])
def test_native_refusals(multifd_method: str, attack: str) -> None:
    """Hostile payloads: what recv raises or decodes, in bounded memory and time."""
    _skip_without_hooks(multifd_method)
    prove(_NATIVE, attack, multifd_method)


def test_native_guards(multifd_method: str) -> None:
    """No byte beside pages, payload and output is touched, and none at all after the hook has returned."""
    _skip_without_hooks(multifd_method)
    prove(_NATIVE, "guards", multifd_method)


def test_native_live_pages(multifd_method: str, tmp_path: Path) -> None:
    """The guest writes to its pages during the call: the others decode exactly."""
    _skip_without_hooks(multifd_method)
    prove(_NATIVE, "live", multifd_method, tmp_path)


def test_native_channels_in_threads(multifd_method: str) -> None:
    """Many channels at once, without the interpreter lock."""
    _skip_without_hooks(multifd_method)
    prove(_NATIVE, "threads", multifd_method)


def test_native_abort(multifd_method: str) -> None:
    """Told to stop, a hook comes back, and its error is one of the contract."""
    _skip_without_hooks(multifd_method)
    prove(_NATIVE, "abort", multifd_method)
