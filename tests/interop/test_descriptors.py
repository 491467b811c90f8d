"""What a QEMU does with a descriptor and multifd: why `fd:` is for managers that start multifd, not for its peers."""

from __future__ import annotations

import json
import socket

import pytest
from interop.qemu import Qemu, QemuMissing, QmpError, newer_release

pytestmark = pytest.mark.qemu


def hand_over(qemu: Qemu, sock: socket.socket, name: str) -> None:
    """QMP's getfd."""
    socket.send_fds(
        qemu._sock, [json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode()], [sock.fileno()]
    )
    assert "return" in json.loads(qemu._lines.readline())


@pytest.mark.parametrize("is_incoming", [False, True])
def test_a_newer_qemu_takes_no_descriptor_with_multifd(tmp_path, is_incoming):
    try:
        release = newer_release()
    except QemuMissing as e:
        pytest.skip(str(e))
    qemu = Qemu(release, tmp_path, "qemu", 16, machine="none", is_incoming=is_incoming)
    ours, its = socket.socketpair()
    try:
        qemu.multifd("none", 2)
        hand_over(qemu, its, "migration")
        with pytest.raises(QmpError, match="multi-channel URIs"):
            qemu("migrate-incoming" if is_incoming else "migrate", uri="fd:migration")
    finally:
        qemu.stop()
        ours.close()
        its.close()
