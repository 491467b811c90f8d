"""What a killed capture left on the disk: refused with a word, or a state whose parts are what they are used as."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from multifd.errors import RamError
from multifd.manage.settings import Settings
from multifd.manage.state_file import State, StateFile

COVERS = ("multifd.manage.state_file",)
LONGEST = 500
_FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
_FILE = StateFile(Path(_FOLDER.name) / "vm.ram")


def seeds() -> Iterator[bytes]:
    """As they are written."""
    before = Settings({"multifd": False}, {"multifd-channels": 2, "tls-creds": ""})
    for state in (State({"qmp": "/run/q"}, "running", before), State({"libvirt": "vm"}, "paused", before, "s", ["d0"])):
        yield json.dumps({"version": 1, **asdict(state)}).encode()
    yield b'{"version": 1, "before": []}'
    yield b"[" * 400


def run(data: bytes) -> str:
    """Open it."""
    _FILE.path.write_bytes(data)
    try:
        state = _FILE.open()
    except RamError:
        return "refused"
    finally:
        _FILE.close()
    assert all(isinstance(value, str) for pair in state.monitor.items() for value in pair)
    assert isinstance(state.run_state, str)
    assert isinstance(state.snapshot, str)
    assert all(isinstance(disk, str) for disk in state.disks)
    assert all(isinstance(value, bool) for value in state.before.capabilities.values())
    assert all(isinstance(name, str) for name in state.before.parameters)
    return "state"
