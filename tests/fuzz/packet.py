"""The packet parser under a coverage-guided fuzzer: whatever a peer sends, the pump and Python see the same.

``make fuzz TARGET=packet SECONDS=60`` runs it by atheris; `test_replay` runs its seeds without it. Coverage is
Python's: the reference's branches guide what the pump is given.

An input's first byte chooses where pages go and which methods may be met; of the rest, each packet is a header's first
40 bytes, 8 bytes of block name, a count of offsets and the offsets, and one byte that says what payload follows.
"""

from __future__ import annotations

import importlib
import struct
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

PAGE, PAGES, MOST_OFFSETS, MOST_PACKETS = 4096, 16, 9, 6
HEADER_BYTES, FIELDS, NAME = 320, 40, 8
FULL, SHORT, NO_PAYLOAD = 0, 1, 2
"""What the byte before a payload says: as many pages as the header has; some bytes; none."""
KINDS = ("memory", "arena", "raw")
SPECS = (("none",), ("zlib",), ("zstd", "none"))


def expand(data: bytes) -> bytes:
    """The wire that an input stands for."""
    out, at = [], 0
    for _ in range(MOST_PACKETS):
        if at >= len(data):
            break
        fields = data[at : at + FIELDS]
        rest = data[at + FIELDS :]
        name, count = rest[:NAME], (rest[NAME] if len(rest) > NAME else 0) % (MOST_OFFSETS + 1)
        offsets, tail = rest[NAME + 1 :][: 8 * count], rest[NAME + 1 + 8 * count :]
        header = fields.ljust(64, b"\0") + name.ljust(256, b"\0") + offsets
        out.append(header.ljust(HEADER_BYTES + 8 * (128 if len(fields) == FIELDS else 0), b"\0"))
        pages = int.from_bytes(fields[16:20], "big") if len(fields) == FIELDS else 0
        match tail[:1]:
            case b"\0":
                out.append((b"payload" * 586)[:PAGE] * min(pages, MOST_OFFSETS))
            case b"\1":
                nbytes = min(int.from_bytes(fields[20:24], "big"), len(tail) - 1)
                out.append(tail[1 : 1 + nbytes])
                at += nbytes
        at += FIELDS + NAME + 2 + 8 * count
    return b"".join(out)


def shrink(header: bytes | bytearray | memoryview, payload: bytes, how: int) -> bytes:
    """The input that stands for a packet of the project's own encoder."""
    normal, _, _, zero = struct.unpack_from(">IIQI", header, 16)
    count = normal + zero
    head = bytes(header[:FIELDS]) + bytes(header[64 : 64 + NAME]) + bytes([count])
    return head + bytes(header[HEADER_BYTES : HEADER_BYTES + 8 * count]) + bytes([how]) + payload * (how == SHORT)


def seeds() -> Iterator[bytes]:
    """Inputs that are sound, of every kind of packet and place."""
    import numpy as np

    from multifd.method import SendParams
    from multifd.pages import Geometry, Memory, Pages
    from multifd.registry import load_method
    from multifd.wire.packet import PacketEncoder

    geometry = Geometry.of(PAGE)
    encoder = PacketEncoder(geometry)
    memory = Memory(bytearray(b"text of a page " * (9 * PAGE // 15 + 1))[: 9 * PAGE], PAGE)

    def offsets(*numbers: int) -> Any:
        return np.array(numbers, np.int64) * PAGE

    for where in range(len(KINDS)):
        for which, spec in enumerate(name for name, *_ in SPECS):
            method, packets = load_method(spec), []
            p = SendParams(0, geometry, bytearray(1), Pages(memory, offsets(), memory))
            method.send_setup(p)
            for number, (normal, zero) in enumerate((((0, 1), ()), ((3, 2, 5), (7,)), ((), (0, 3)), ((15,), (0, 4)))):
                p.pages = Pages(memory, offsets(*range(len(normal))), memory)
                p.iov.clear()
                if normal:
                    method.send_prepare(p)
                payload = b"".join(p.iov) if not method.capabilities.verbatim else b""
                code = method.wire_code or 0
                size = len(normal) * PAGE if method.capabilities.verbatim else len(payload)
                header = encoder.data(code, number, "ram", offsets(*normal), offsets(*zero), size)
                how = NO_PAYLOAD if not normal else FULL if method.capabilities.verbatim else SHORT
                packets.append(shrink(header, payload, how))
            method.send_cleanup(p)
            packets.append(shrink(encoder.sync(9), b"", NO_PAYLOAD))
            yield bytes([where + len(KINDS) * which]) + b"".join(packets)


@cache
def methods_of(which: int) -> Any:
    """The methods that a packet may be of."""
    from multifd.registry import load_method

    return [load_method(spec) for spec in SPECS[which]]


def run(data: bytes, folder: Path) -> Any:
    """Receive by both paths; what was seen, which is the same."""
    from multifd.live.arena import Arena, ArenaTarget
    from multifd.ram.block import bare_machine
    from multifd.ram.memory import MemoryTarget
    from multifd.ram.raw import RawImageTarget
    from tests.pump.both_paths import PATHS, memory, receive

    where, which = data[0] % len(KINDS), data[0] // len(KINDS) % len(SPECS)
    wire, seen = expand(data[1:]), []
    for path in PATHS:
        buffer = memory(PAGES * PAGE, b"old" * 9000)
        target: Any = {
            "memory": lambda buffer=buffer: MemoryTarget(buffer),
            "arena": lambda buffer=buffer: ArenaTarget(Arena(buffer)),
            "raw": lambda: RawImageTarget(folder / "out"),
        }[KINDS[where]]()
        try:
            one = receive(path, wire, target, bare_machine(PAGES * PAGE, PAGE), methods_of(which))
            if one.error is None:  # after a failure the content is undefined
                if KINDS[where] == "raw":
                    target.commit(bytes(16))
                    one.data = (folder / "out").read_bytes()
                else:
                    one.data = bytes(buffer)
        finally:
            target.discard()
        seen.append(one)
    if seen[0] != seen[1]:
        raise AssertionError(f"by Python: {seen[0]}\nby the pump: {seen[1]}")
    return seen[0]


def quick_folder() -> tempfile.TemporaryDirectory[str]:
    """One that is made durable in no time, where there is such."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def main() -> None:
    """Fuzz; the arguments are libFuzzer's, the first folder is the corpus, to which the seeds are added."""
    import atheris

    with atheris.instrument_imports(include=["multifd.engine", "multifd.wire", "multifd.ram"]):
        importlib.import_module("multifd.engine.recv_channel")

    corpus = next(Path(argument) for argument in sys.argv[1:] if not argument.startswith("-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    with quick_folder() as folder:

        def one_input(data: bytes) -> None:
            if data:
                run(data, Path(folder))

        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
