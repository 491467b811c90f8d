"""Builds ``multifd._pump`` from the C files beside this, with a C compiler alone.

The extension is optional: without a compiler the installation succeeds, and channels run in Python.
MULTIFD_BUILD=strict makes it necessary and warnings errors, as for whoever publishes a wheel; MULTIFD_BUILD=sanitize
adds ASan and UBSan, MULTIFD_BUILD=fuzz what the fuzzer needs besides; MULTIFD_BUILD=pure leaves it out.
"""

import os
from pathlib import Path

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef("""
typedef int64_t (*multifd_native_send)(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t);
typedef int64_t (*multifd_native_recv)(void *, const uint8_t *, uint64_t, uint8_t *const *, uint32_t);
struct iovec { ...; };
typedef int64_t (*multifd_native_scatter)(void *, uint64_t, uint8_t *const *, uint32_t, uint8_t *, struct iovec *,
                                          uint32_t);
typedef int64_t (*multifd_native_gather)(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t, struct iovec *,
                                         uint32_t);

#define MULTIFD_NATIVE_DECLINED ...
#define PUMP_MEMORY ...
#define PUMP_CHECKED ...
#define PUMP_WINDOW ...
#define PUMP_FILE ...
#define PUMP_ZERO ...
#define PUMP_FOREIGN ...
#define PUMP_DONE ...
#define PUMP_BOUND ...
#define PUMP_WAIT ...
#define PUMP_HEADER ...
#define PUMP_END ...
#define PUMP_BROKEN ...
#define PUMP_DECLINED ...
#define PUMP_FAILED ...
#define PUMP_STORE ...
#define PUMP_CLEAR ...
#define PUMP_IDSTR_BYTES ...

typedef struct {
    int32_t kind, file;
    int64_t start;
    uint8_t *base, *used;
    uint64_t used_length;
    const char *idstr;
    uint32_t idstr_bytes;
} pump_block;

typedef struct {
    int32_t socket, sink;
    uint32_t page_size, page_count, code;
    uint8_t zero_in_packets;
    uint64_t capacity;
    int64_t patience_ns;
    multifd_native_send hook;
    multifd_native_gather gather;
    void *hook_state;
    const uint8_t *abort;
    uint8_t *header, *out, *staging;
    const uint8_t **pages;
    struct iovec *iov;
    const pump_block *block;
    const int64_t *offsets;
    const uint32_t *counts;
    uint8_t *is_zero;
    uint32_t packets;
    uint64_t packet_num, budget;
    uint32_t packet, first_page;
    uint64_t bytes, normal_pages, zero_pages;
    int32_t error;
    int64_t hook_result;
    ...;
} pump_sender;

typedef struct {
    int32_t socket, sink;
    uint32_t page_size, page_count;
    uint64_t capacity;
    int64_t patience_ns;
    const uint8_t *abort;
    uint8_t *header, *staging;
    uint8_t **pages;
    struct iovec *iov;
    pump_block *blocks;
    uint32_t block_count;
    uint32_t log_room;
    uint32_t *log_block;
    int64_t *log_offset;
    uint8_t *log_is_zero;
    int32_t code;
    multifd_native_recv hook;
    multifd_native_scatter scatter;
    void *hook_state;
    uint8_t *payload;
    uint32_t header_got;
    uint8_t in_payload;
    uint64_t payload_due, payload_got;
    uint32_t log_count;
    uint64_t packets, bytes, normal_pages, zero_pages;
    int32_t error;
    int64_t hook_result;
    ...;
} pump_receiver;

typedef struct {
    int32_t source, destination;
    uint32_t page_size, page_count, header_bytes;
    uint32_t code_in, code_out;
    int64_t patience_ns;
    const uint8_t *abort;
    uint8_t *buffer;
    uint32_t capacity;
    uint32_t sent, due, at, end;
    uint32_t left;
    uint64_t packets, normal_pages, zero_pages, bytes_in, bytes_out;
    int32_t error;
    uint8_t has_failed_out;
} pump_splice;

int pump_send(pump_sender *);
void pump_skip(pump_sender *);
int pump_receive(pump_receiver *);
void pump_next(pump_receiver *);
int pump_pass_on(pump_splice *);

#define ZSTD_TOO_SHORT ...
#define ZSTD_TOO_LONG ...
#define ZSTD_LIBRARY ...

typedef struct { const void *src; size_t size, pos; } zstd_in;
typedef struct { void *dst; size_t size, pos; } zstd_out;

typedef struct {
    size_t (*compress)(void *, void *, size_t, const void *, size_t);
    unsigned (*is_error)(size_t);
    void *context;
    uint8_t *ring;
    uint64_t *ring_bytes, *at;
    uint32_t page_size;
} zstd_sender;

#define ZSTD_CHANGING ...
#define ZSTD_FRAME ...
#define ZSTD_RAW ...

typedef struct {
    int64_t left_ns, left_cpu_ns, hook_ns, hook_cpu_ns, gap_ns, gap_cpu_ns;
    uint64_t packets, page_bytes, payload_bytes;
} zstd_meter;

typedef struct {
    zstd_sender frame;
    zstd_meter meter;
    uint8_t stage, is_changing;
} zstd_adaptive;

typedef struct {
    size_t (*decompress)(void *, zstd_out *, zstd_in *);
    unsigned (*is_error)(size_t);
    void *context;
    uint8_t *is_inside;
    uint32_t page_size;
    uint64_t length;
} zstd_receiver;

int64_t multifd_zstd_send(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t);
int64_t multifd_zstd_adapt(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t);
int64_t multifd_zstd_gather(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t, struct iovec *, uint32_t);
int64_t multifd_zstd_recv(void *, const uint8_t *, uint64_t, uint8_t *const *, uint32_t);
int64_t multifd_zstd_scatter(void *, uint64_t, uint8_t *const *, uint32_t, uint8_t *, struct iovec *, uint32_t);
""")

_HERE = Path(__file__).parent
_SOURCES = ("memory.c", "send.c", "recv.c", "splice.c", "zstd.c")
_HEADERS = ("native.h", "pump.h", "zstd.h")

_MODE = os.environ.get("MULTIFD_BUILD", "")
if _MODE not in ("", "strict", "sanitize", "fuzz", "pure"):
    raise SystemExit(f"MULTIFD_BUILD={_MODE}: expected strict, sanitize, fuzz or pure")
_STRICT = ["-Wall", "-Wextra", "-Werror"] if _MODE in ("strict", "sanitize", "fuzz") else []
_SANITIZERS = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if _MODE in ("sanitize", "fuzz") else []
)
# Where branches are followed by the fuzzer, it brings the sanitizers' code with it: clang, `make fuzz-c`.
_FUZZED = ["-fsanitize=fuzzer-no-link"] if _MODE == "fuzz" else []
_DEBUG = ["-g", "-O1", "-fno-omit-frame-pointer"] if _SANITIZERS else ["-O3"]

# What cffi writes behind this does not use every argument.
_PREAMBLE = """
#include "pump.h"
#include "zstd.h"
#pragma GCC diagnostic ignored "-Wunused-parameter"
"""

ffibuilder.set_source(
    "multifd._pump",
    _PREAMBLE,
    sources=[f"multifd/pump/{name}" for name in _SOURCES],  # from setup.py, as setuptools wants it
    include_dirs=[str(_HERE)],
    depends=[str(_HERE / name) for name in (*_SOURCES, *_HEADERS)],
    extra_compile_args=["-std=c11", "-fvisibility=hidden", *_DEBUG, *_STRICT, *_SANITIZERS, *_FUZZED],
    extra_link_args=[] if _FUZZED else _SANITIZERS,
    optional=_MODE in ("", "pure"),
)
