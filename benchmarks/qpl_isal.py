"""What a page costs by qpl's native hooks on ISA-L, beside a loop in C over ISA-L's own functions and other ways.

    python benchmarks/qpl_isal.py [--image FILE] [--page-size 4096] [--rounds 5]

One thread, no connection; pages of zeros are left out, as the engine sends those itself. Runs are interleaved, figures
are medians; the bytes of both directions are compared with the image. libqpl is the one that MULTIFD_QPL_LIBRARY names.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from multifd_qpl.isal_library import open_package
from multifd_qpl.method import QplMethod, QplOptions

from multifd.bench.synthetic import write_image
from multifd.method import Memory, Pages, RecvParams, SendParams
from multifd.pages import Geometry

# Level 0 by its stateless functions, as igzip_lib.h says: no packet, no table, every page tried.
C_SOURCE = r"""
#include <stdint.h>
#include <string.h>
typedef struct {
    const uint8_t *in; uint32_t in_left, in_total; uint8_t *out; uint32_t out_left, out_total;
    void *code; uint32_t level, level_size; uint8_t *level_buffer; uint16_t end, flush, gzip, window;
    uint8_t rest[90000];
} deflater;
typedef struct {
    uint8_t *out; uint32_t out_left, out_total; const uint8_t *in; uint64_t bits; uint32_t in_left; uint8_t rest[90000];
} inflater;
static deflater d;
static inflater s;
void loop_deflate(void (*init)(void *), int (*run)(void *), const uint8_t *in, uint32_t page, long n, uint8_t *out,
                  uint32_t *lengths)
{
    for (long i = 0; i < n; i++) {
        init(&d);
        d.window = 12;
        d.in = in + i * page; d.in_left = page;
        d.out = out + i * page; d.out_left = page - 1;
        lengths[i] = run(&d) == 0 ? d.out_total : page;
        if (lengths[i] == page)
            memcpy(out + i * page, in + i * page, page);
    }
}
void loop_inflate(void (*init)(void *), int (*run)(void *), const uint8_t *in, uint32_t page, long n, uint8_t *out,
                  const uint32_t *lengths)
{
    for (long i = 0; i < n; i++) {
        if (lengths[i] == page) {
            memcpy(out + i * page, in + i * page, page);
            continue;
        }
        init(&s);
        s.in = in + i * page; s.in_left = lengths[i];
        s.out = out + i * page; s.out_left = page;
        run(&s);
    }
}
"""

SEND = ctypes.CFUNCTYPE(
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.c_uint64,
)
RECV = ctypes.CFUNCTYPE(
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.c_void_p,
    ctypes.c_uint32,
)


def nonzero_pages(image: Path | None, page_size: int) -> np.ndarray:
    """Pages of an image, or of this machine's files, shape (n, page_size), whole packets of them."""
    with tempfile.TemporaryDirectory() as folder:
        if image is None:
            image = Path(folder) / "image"
            write_image(image, 64 << 20)
        data = np.fromfile(image, np.uint8)
    pages = data[: len(data) // page_size * page_size].reshape(-1, page_size)
    pages = pages[pages.any(axis=1)]
    count = Geometry.of(page_size).page_count
    return np.ascontiguousarray(pages[: len(pages) // count * count])


class Loop:
    """The C loop over ISA-L's functions."""

    def __init__(self, pages: np.ndarray, folder: Path) -> None:
        source, target = folder / "loop.c", folder / "loop.so"
        source.write_text(C_SOURCE)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
        self._loop, (isal, *_) = ctypes.CDLL(str(target)), open_package()
        self._isal, self._pages = isal, pages
        self._out, self._back = np.empty_like(pages), np.empty_like(pages)
        self._lengths = np.zeros(len(pages), np.uint32)

    def _run(self, function: str, init: str, run: str, source: np.ndarray, target: np.ndarray) -> None:
        getattr(self._loop, function)(
            *(ctypes.cast(getattr(self._isal, f"isal_{name}"), ctypes.c_void_p) for name in (init, run)),
            ctypes.c_void_p(source.ctypes.data),
            ctypes.c_uint32(source.shape[1]),
            ctypes.c_long(len(source)),
            ctypes.c_void_p(target.ctypes.data),
            ctypes.c_void_p(self._lengths.ctypes.data),
        )

    def send(self) -> int:
        """Bytes of all streams."""
        self._run("loop_deflate", "deflate_stateless_init", "deflate_stateless", self._pages, self._out)
        return int(self._lengths.sum())

    def receive(self) -> np.ndarray:
        """The pages."""
        self._run("loop_inflate", "inflate_init", "inflate_stateless", self._out, self._back)
        return self._back


class Hooks:
    """Both ends of a channel, by native hooks or by those in Python."""

    def __init__(self, pages: np.ndarray, options: QplOptions, *, native: bool) -> None:
        self._method, self._native, self._source = QplMethod(options), native, pages
        page_size = pages.shape[1]
        geometry = Geometry.of(page_size)
        self._count, self._target = geometry.page_count, np.zeros_like(pages)
        scratch = Memory(bytearray(geometry.page_count * page_size), page_size)
        self._memories = [Memory(memoryview(a.reshape(-1)), page_size) for a in (pages, self._target)]
        none = Pages(scratch, np.array([], np.int64), scratch)
        self._scratch, abort = scratch, bytearray(1)
        self._sender = SendParams(0, geometry, abort, none)
        self._receiver = RecvParams(0, geometry, abort, none)
        self._method.send_setup(self._sender)
        self._method.recv_setup(self._receiver)
        self._payloads: list[np.ndarray] = []
        self._out = np.zeros(self._method.max_payload(geometry), np.uint8)
        self._hooks = self._method.native_send(self._sender), self._method.native_recv(self._receiver)

    def _packets(self) -> range:
        return range(0, len(self._source), self._count)

    def _pointers(self, array: np.ndarray, first: int) -> np.ndarray:
        return array.ctypes.data + np.arange(first, first + self._count, dtype=np.uint64) * array.shape[1]

    def _pages(self, which: int, first: int) -> Pages:
        offsets = np.arange(first, first + self._count, dtype=np.int64) * self._source.shape[1]
        return Pages(self._memories[which], offsets, self._scratch)

    def send(self) -> int:
        """Bytes of all payloads but their tables."""
        total, keep = 0, not self._payloads
        hook, out = self._hooks[0], self._out
        for first in self._packets():
            if self._native and hook is not None:
                pointers = self._pointers(self._source, first)
                length = SEND(hook.function)(hook.state, pointers.ctypes.data, self._count, out.ctypes.data, len(out))
                payload = out[:length]
            else:
                self._sender.pages = self._pages(0, first)
                self._sender.iov.clear()
                self._method.send_prepare(self._sender)
                length = sum(map(len, self._sender.iov))
                payload = np.frombuffer(b"".join(self._sender.iov), np.uint8) if keep else out
            total += length - 4 * self._count
            if keep:
                self._payloads.append(payload.copy())
        return total

    def receive(self) -> np.ndarray:
        """The pages."""
        hook = self._hooks[1]
        for first, payload in zip(self._packets(), self._payloads, strict=True):
            if self._native and hook is not None:
                pointers = self._pointers(self._target, first)
                RECV(hook.function)(hook.state, payload.ctypes.data, len(payload), pointers.ctypes.data, self._count)
            else:
                self._receiver.pages, self._receiver.payload = self._pages(1, first), payload.data
                self._method.recv(self._receiver)
        return self._target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, help="default: made of this machine's files")
    parser.add_argument("--page-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    pages = nonzero_pages(arguments.image, arguments.page_size)
    with tempfile.TemporaryDirectory() as name:
        isal = QplOptions(hardware="off", software="isal")
        ways: dict[str, Loop | Hooks] = {
            "ISA-L, bare loop in C": Loop(pages, Path(name)),
            "ISA-L, native hooks": Hooks(pages, isal, native=True),
            "ISA-L, hooks in Python": Hooks(pages, isal, native=False),
        }
        if "MULTIFD_QPL_LIBRARY" in os.environ:
            libqpl = QplOptions(hardware="off", software="libqpl")
            ways["libqpl, native hooks"] = Hooks(pages, libqpl, native=True)
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        sizes: dict[str, int] = {}

        def timed(call: Callable[[], object]) -> float:
            start = time.thread_time()
            call()
            return (time.thread_time() - start) / len(pages) * 1e6

        for k in range(arguments.rounds + 1):
            for way, ends in ways.items():
                if k == 0:
                    sizes[way] = ends.send()
                    assert np.array_equal(ends.receive(), pages), way
                else:
                    times[way].append((timed(ends.send), timed(ends.receive)))
    print(f"{len(pages)} pages of {arguments.page_size} bytes; us of CPU time a page:")
    for way, values in times.items():
        send, receive = (statistics.median(column) for column in zip(*values, strict=True))
        ratio = pages.nbytes / sizes[way]
        print(f"  {way:24} send {send:6.2f}  receive {receive:6.2f}  both {send + receive:6.2f}  ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
