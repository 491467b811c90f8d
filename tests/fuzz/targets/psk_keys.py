"""A file of pre-shared keys: refused without a word of what may be a secret, or its keys."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.errors import UsageError
from multifd.transport import psk
from tests.fuzz.memfd import file_of

COVERS = ("multifd.transport.psk",)
LONGEST = 300


def seeds() -> Iterator[bytes]:
    """One key, several with a comment, and what is none."""
    yield b"qemu:00112233445566778899aabbccddeeff\n"
    yield b"# keys\n\nqemu:0011\na:b:FF\r\nqemu: 00 22 \n"
    yield b"qemu:0"
    yield b"\xff"


def run(data: bytes) -> str:
    """Read them."""
    with file_of((0, data)) as path:
        try:
            keys = psk._read(str(path))
        except UsageError as e:
            words = str(e).removeprefix(str(path))
            assert not any(
                line.strip() in words for line in data.decode("latin-1").splitlines() if len(line.strip()) > 24
            )
            return "refused"
    text = "".join(f"{name}:{key.hex()}\n" for name, key in keys.items())
    assert keys
    with file_of((0, text.encode())) as path:
        assert psk._read(str(path)) == keys
    return f"{min(len(keys), 3)} keys"
