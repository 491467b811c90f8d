"""What recv is given by a peer that lies, and what send_prepare is given by a guest that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from multifd.registry import load_method
from multifd.testing.child import prove
from multifd.testing.guest import send_live
from multifd.testing.harness import RecvEnd, SendEnd


@pytest.mark.parametrize("attack", ["damage", "bombs"])
def test_hostile_payloads(multifd_method: str, attack: str) -> None:
    """Whatever the payload: CodecError or exactly the pages' bytes, in bounded memory and time, no crash."""
    prove("multifd.testing.hostile", attack, multifd_method)


@pytest.mark.parametrize(("layout", "page_size"), [("contiguous", 4096), ("scattered", 4096), ("scattered", 65536)])
def test_live_pages(multifd_method: str, layout: str, page_size: int, tmp_path: Path) -> None:
    """Half of the pages are rewritten by another process meanwhile: the others decode exactly."""
    method = load_method(multifd_method)
    with SendEnd(method, page_size) as send, RecvEnd(method, page_size) as recv:
        send_live(send, recv, layout, tmp_path)
