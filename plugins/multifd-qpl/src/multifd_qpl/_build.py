"""Builds ``multifd_qpl._batch`` from the C files beside this with a C compiler alone: no QPL headers, no libqpl.

The extension is optional: without a compiler the installation succeeds, qpl runs on ISA-L, and the method's
availability says so. MULTIFD_QPL_BUILD=strict makes it necessary and warnings errors, as for whoever publishes a
wheel; MULTIFD_QPL_BUILD=sanitize adds ASan and UBSan (`make sanitize`), MULTIFD_QPL_BUILD=fuzz what the fuzzer needs
besides; MULTIFD_QPL_BUILD=pure leaves it out.
"""

import os
from pathlib import Path

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef("""
typedef struct {
    const uint8_t *next_in_ptr;
    uint32_t available_in, total_in;
    uint8_t *next_out_ptr;
    uint32_t available_out, total_out;
    int32_t op;
    uint32_t flags;
    uint32_t crc;
    int32_t level;
    ...;
} qpl_job;

typedef uint32_t (*mq_size_fn)(int, uint32_t *);
typedef uint32_t (*mq_init_fn)(int, qpl_job *);
typedef uint32_t (*mq_job_fn)(qpl_job *);

typedef struct {
    mq_size_fn get_job_size;
    mq_init_fn init_job;
    mq_job_fn fini_job, execute_job, submit_job, check_job;
    uint64_t (*now_ns)(void);
    void (*relax)(void);
    uint8_t keeps_room;
} mq_table;

typedef struct {
    void (*deflate_stateless_init)(void *);
    int (*deflate_stateless)(void *);
    void (*inflate_init)(void *);
    void (*inflate_reset)(void *);
    int (*inflate)(void *);
    int (*inflate_stateless)(void *);
} mq_isal;

typedef struct { uint8_t *start; uint32_t page_count; } mq_run;
typedef struct { int32_t run; uint32_t start, length; } mq_piece;

typedef struct { uint32_t page, status, length; } mq_doubt;

typedef struct {
    const mq_table *table;
    qpl_job *software, **hardware;
    uint8_t *slots;
    const uint8_t *abort;
    uint64_t silence_ns;
    uint32_t page_size, page_count, retries;
    uint8_t wait_for_queue, verify, hardware_off, silent, has_stuck;
    uint8_t is_troubled;
    uint32_t troubled_pages, clean_packets;
    int32_t owner;
    uint64_t counters[...];
    uint8_t *source, *out, *proof;
    uint8_t **pages;
    uint32_t *lengths;
    mq_doubt *doubts;
    uint32_t doubt_count;
    ...;
} mq_channel;

#define MQ_IDLE ...
#define MQ_IN_FLIGHT ...
#define MQ_DONE ...
#define MQ_FINISHED ...
#define MQ_STUCK ...
#define MQ_OK ...
#define MQ_ABORTED ...
#define MQ_SILENT ...
#define MQ_MISUSE ...
#define MQ_DECLINED ...
#define MQ_TORN_DOWN ...
#define MQ_ROOM_TO_SPARE ...
#define SOFTWARE ...
#define MQ_AUTO ...
#define MQ_HARDWARE ...
#define MQ_SOFTWARE ...
#define MQ_PAGE_FLAGS ...
#define MQ_LEVEL ...
#define MQ_COMPRESS ...
#define MQ_DECOMPRESS ...

size_t mq_slot_bytes(uint32_t page_size);
void *mq_map(size_t bytes);
void mq_unmap(void *start, size_t bytes);
void mq_real_time(mq_table *table);
int mq_compress(mq_channel *c, const mq_run *runs, uint32_t run_count, uint8_t *lengths, mq_piece *pieces,
                uint32_t *piece_count);
int mq_decompress(mq_channel *c, const mq_run *runs, uint32_t run_count, const uint8_t *payload,
                  size_t payload_length);
void mq_isal_table(const mq_isal *functions, int place, mq_table *table);
void mq_isal_set_guards(qpl_job *job);
size_t mq_isal_count_damage(const qpl_job *job);
int mq_isal_knows_code(const qpl_job *job);
int mq_is_noise(const uint8_t *page, uint32_t page_size);
int64_t mq_native_send(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity);
int64_t mq_native_recv(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages, uint32_t count);
uint32_t mq_crc(const uint8_t *p, size_t length);
uint32_t mq_crc_by_table(uint32_t crc, const uint8_t *p, size_t length);
""")

_HERE = Path(__file__).parent
_SOURCES = ("_jobs.c", "_compress.c", "_decompress.c", "_native.c", "_isal.c", "_noise.c", "_crc.c")
_HEADERS = ("_batch.h", "_jobs.h", "_isal.h", "_noise.h")

_MODE = os.environ.get("MULTIFD_QPL_BUILD", "")
if _MODE not in ("", "strict", "sanitize", "fuzz", "pure"):
    raise SystemExit(f"MULTIFD_QPL_BUILD={_MODE}: expected strict, sanitize, fuzz or pure")
_STRICT = ["-Wall", "-Wextra", "-Werror"] if _MODE in ("strict", "sanitize", "fuzz") else []
_SANITIZERS = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if _MODE in ("sanitize", "fuzz") else []
)
# Where branches are followed by the fuzzer, it brings the sanitizers' code with it: clang, `make fuzz-c`.
_FUZZED = ["-fsanitize=fuzzer-no-link"] if _MODE == "fuzz" else []
_DEBUG = ["-g", "-O1", "-fno-omit-frame-pointer"] if _SANITIZERS else ["-O2"]

# What cffi writes behind this does not use every argument.
_PREAMBLE = """
#include "_batch.h"
#include "_noise.h"
#pragma GCC diagnostic ignored "-Wunused-parameter"
"""

ffibuilder.set_source(
    "multifd_qpl._batch",
    _PREAMBLE,
    sources=[f"src/multifd_qpl/{name}" for name in _SOURCES],  # from setup.py, as setuptools wants it
    include_dirs=[str(_HERE)],
    depends=[str(_HERE / name) for name in _HEADERS],
    extra_compile_args=["-fvisibility=hidden", *_DEBUG, *_STRICT, *_SANITIZERS, *_FUZZED],
    extra_link_args=[] if _FUZZED else _SANITIZERS,
    optional=not _MODE,
)
