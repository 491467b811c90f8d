"""Which ISA-L the C code uses, and which it refuses: too old, without its functions, or not as ``_isal.h`` says."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from isal import igzip_lib
from multifd_qpl import isal_library
from multifd_qpl._batch import ffi, lib
from multifd_qpl.abi import LibraryUnavailable
from multifd_qpl.isal_library import load_isal, open_library, open_package, use
from multifd_qpl.jobs import Job
from multifd_qpl.method import QplMethod, QplOptions
from qpl_ends import Ends, make_pages

from multifd.testing.harness import SendEnd
from multifd.testing.strategies import PACKET_KINDS, packet

# The real functions, each with something wrong afterwards.
WRAPPER = r"""
#include <stdint.h>
typedef struct {
    const uint8_t *next_in; uint32_t avail_in, total_in;
    uint8_t *next_out; uint32_t avail_out, total_out;
    uint8_t rest[82384 - 32], behind[100];
} stream_t;
typedef struct {
    uint8_t *next_out; uint32_t avail_out, total_out;
    uint8_t rest[87368 - 16], behind[100];
} state_t;
typedef void (*init_fn)(void *);
typedef int (*run_fn)(void *);
static init_fn deflate_init, inflate_init, inflate_reset;
static run_fn deflate, inflate, inflate_streaming;
void set_real(init_fn a, run_fn b, init_fn c, init_fn d, run_fn e, run_fn f)
{
    deflate_init = a; deflate = b; inflate_init = c; inflate_reset = d; inflate_streaming = e; inflate = f;
}
void isal_deflate_stateless_init(stream_t *s) { deflate_init(s); }
void isal_inflate_init(state_t *s) { inflate_init(s); }
void isal_inflate_reset(state_t *s) { inflate_reset(s); }
int isal_inflate(state_t *s) { int result = inflate_streaming(s); STREAMED; return result; }
int isal_deflate_stateless(stream_t *s) { int result = deflate(s); DEFLATED; return result; }
int isal_inflate_stateless(state_t *s) { int result = inflate(s); INFLATED; return result; }
"""

# What goes wrong in deflate_stateless, inflate_stateless or inflate, and what the self-test says.
WRONG = {
    "writes behind its stream": ("DEFLATED", "s->behind[99] = 0", "behind its structures: 1"),
    "writes behind its state": ("INFLATED", "s->behind[9] = 1", "behind its structures: [12]"),
    "writes behind its streaming state": ("STREAMED", "s->behind[9] = 1", "behind its structures: 1"),
    "compresses to other bytes": ("DEFLATED", "s->next_out[-9] ^= 16", "inflate"),
    "counts other bytes": ("DEFLATED", "s->total_out -= result == 0", "inflate"),
    "compresses nothing": ("DEFLATED", "result = -1", "is compressed: False"),
    "writes behind the room, compressing": ("DEFLATED", "s->next_out[s->avail_out] = 1", "keeps to its room"),
    "writes behind the room": ("INFLATED", "s->next_out[s->avail_out] = 1", "keeps to its room"),
    "decompresses to other bytes": ("INFLATED", "s->next_out[-1] ^= 1", "by zlib"),
    "takes more than a page": ("INFLATED", "result = result == 2 ? 0 : result", "refused"),
    "takes no page": ("INFLATED", "result = -1", "comes back"),
}


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """The process's own ISA-L does the jobs again that are made after a test."""
    own = open_package()
    yield
    use(own)


@pytest.mark.parametrize("case", WRONG)
def test_a_library_that_is_otherwise_is_refused(compile_library: Callable[..., str], case: str) -> None:
    place, fault, word = WRONG[case]
    places = {"DEFLATED": "", "INFLATED": "", "STREAMED": "", place: fault}
    path = compile_library(WRAPPER, *(f"-D{name}={text}" for name, text in places.items()))
    opened, (real, *_) = ctypes.CDLL(path), open_package()
    opened.set_real(*(ctypes.cast(getattr(real, f"isal_{name}"), ctypes.c_void_p) for name in isal_library._FUNCTIONS))
    with pytest.raises(LibraryUnavailable, match=f"failed its self-test: .*{word}"):
        use((opened, path, "2.99"))


def test_streams_of_ones_own_are_known_by_their_code() -> None:
    job = Job(load_isal(), lib.MQ_SOFTWARE)
    assert lib.mq_isal_knows_code(job.pointer)
    job.finish()


@pytest.mark.parametrize("fault", ["result = -1", "s->next_out[-1] ^= 1", "s->avail_out++"])
def test_without_a_known_code_it_goes_on(compile_library: Callable[..., str], fault: str) -> None:
    """An ISA-L that cannot go on behind a header, or does so wrongly, reads every header."""
    path = compile_library(WRAPPER, "-DDEFLATED=", "-DINFLATED=", f"-DSTREAMED={fault}")
    opened, (real, *_) = ctypes.CDLL(path), open_package()
    opened.set_real(*(ctypes.cast(getattr(real, f"isal_{name}"), ctypes.c_void_p) for name in isal_library._FUNCTIONS))
    job = Job(use((opened, path, "2.99")), lib.MQ_SOFTWARE)
    assert not lib.mq_isal_knows_code(job.pointer)
    job.finish()


def test_one_that_hides_its_functions_is_refused(compile_library: Callable[..., str]) -> None:
    path = compile_library("void isal_deflate_stateless_init(void *s) { (void)s; }")
    with pytest.raises(LibraryUnavailable, match="does not export isal_deflate_stateless"):
        use((ctypes.CDLL(path), path, "2.31"))


@pytest.mark.parametrize("version", ["2.29.0", "1.40", "3.0.0", "", "two"])
def test_versions_that_are_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    import isal

    monkeypatch.setattr(isal, "ISAL_VERSION", version, raising=False)
    with pytest.raises(LibraryUnavailable, match=r"expected 2\.30 or a later 2\.x"):
        open_package()


@pytest.mark.parametrize(
    ("name", "version"), [("libisal.so.2.0.30", "2.30"), ("libisal.so.2.0.29", None), ("libisal.so.2", None)]
)
def test_the_systems_library_says_its_version_by_its_name(
    compile_library: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str | None
) -> None:
    (tmp_path / name).write_bytes(Path(compile_library("int nothing;")).read_bytes())
    link = tmp_path / "linked.so.2"
    link.symlink_to(tmp_path / name)
    monkeypatch.setattr(isal_library, "SONAME", str(link))
    if version is None:
        with pytest.raises(LibraryUnavailable, match="expected 2"):
            open_library()
    else:
        assert open_library()[1:] == (str(link), version)


def test_the_package_is_taken() -> None:
    assert ".so" in load_isal().path
    assert Path(load_isal().path).name.startswith("igzip_lib")


def test_both_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal.igzip_lib", None)
    monkeypatch.setattr(isal_library, "SONAME", "libisal-is-not-here.so.2")
    with pytest.raises(LibraryUnavailable, match=r"cannot be imported.*libisal-is-not-here\.so\.2"):
        isal_library._open_and_test()


def test_two_of_them_do_not_meet() -> None:
    """The package's and the system's, each with the jobs that its library makes."""
    package, nothing = use(open_package()), ffi.new("mq_table *")
    lib.mq_isal_table(ffi.new("mq_isal *"), 1, nothing)
    assert nothing.init_job != package.table.init_job
    job = Job(package, lib.MQ_SOFTWARE)
    assert lib.mq_isal_knows_code(job.pointer)
    job.finish()


def test_a_channel_keeps_the_isal_it_was_made_with(compile_library: Callable[..., str]) -> None:
    """Another ISA-L in the process changes nothing for it."""
    source, target = make_pages(4096, 8), bytearray(8 * 4096)
    with Ends(QplMethod(QplOptions(software="isal", hardware="off"))) as ends:
        before = ends.send(source)
        functions, table = ffi.new("mq_isal *"), ffi.new("mq_table *")
        lib.mq_isal_table(functions, 0, table)  # whose functions are NULL
        assert ends.send(source) == before
        ends.receive(before, target)
        assert target == source


# Which pages are not tried.


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_only_noise_is_taken_for_noise(kind: str, page_size: int) -> None:
    """Whatever is called noise does not shrink by a hundredth; random pages are found."""
    import isal.igzip_lib

    found = 0
    data = packet(kind, 5, page_size, 6)
    pages = [data[i : i + page_size] for i in range(0, len(data), page_size)]
    for page in pages:
        if lib.mq_is_noise(page, page_size):
            found += 1
            assert len(isal.igzip_lib.compress(page, 0, 0, 0, 12)) > page_size * 0.99
    if kind == "random":
        assert found == len(pages)


@pytest.mark.parametrize("period", [100, 256, 1000, 1024, 2000])
def test_noise_that_comes_twice_is_none(period: int) -> None:
    noise = make_pages(4096, 4)[3 * 4096 :]
    assert lib.mq_is_noise(bytes(noise), 4096)
    assert not lib.mq_is_noise(bytes(noise[:period] * 41)[:4096], 4096)


@pytest.mark.parametrize("record", [64, 72, 96, 128, 256, 512])
def test_noise_beside_zeros_is_none(record: int) -> None:
    """Whatever a record's size, and wherever in it stands what is random."""
    noise = bytes(make_pages(4096, 4)[3 * 4096 :])
    half = record // 2
    for shift in (0, 8, half):
        page = b"".join(noise[i : i + half] + bytes(half) for i in range(0, 4096, record))
        page = (page[shift:] + page)[:4096]
        assert not lib.mq_is_noise(page, 4096)


@pytest.mark.parametrize("by", ["from C", "page by page"])
def test_a_page_that_saves_less_than_a_quarter_is_raw(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "page by page":

        def refuse() -> None:
            raise LibraryUnavailable("for this test")

        monkeypatch.setattr("multifd_qpl.method.load_isal", refuse)
    noise = packet("random", 1, 4096, 2)
    pages = [noise[:2700] + bytes(1396), noise[:2000] + bytes(2096)]
    with SendEnd(QplMethod(QplOptions(hardware="off", software="isal"))) as send:
        payload = send.pack(b"".join(pages))
    first, second = struct.unpack_from(">2I", payload)
    assert (first, payload[8 : 8 + first]) == (4096, pages[0])
    assert 2000 < second <= 3072
    assert 3072 < len(igzip_lib.compress(pages[0], 0, igzip_lib.COMP_DEFLATE, 0, 12)) < 4096
