"""Builds ``multifd_qpl._batch`` from ``_batch.c`` with a C compiler alone: no QPL headers, no libqpl.

The extension is optional: without a compiler the installation succeeds and qpl runs on ISA-L.
"""

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
} mq_table;

typedef struct { uint8_t *start; uint32_t page_count; } mq_run;
typedef struct { int32_t run; uint32_t start, length; } mq_piece;

typedef struct {
    const mq_table *table;
    qpl_job *software, **hardware;
    uint8_t *slots;
    const uint8_t *abort;
    uint64_t silence_ns;
    uint32_t page_size, retries;
    uint8_t wait_for_queue, verify, hardware_off, silent;
    uint64_t counters[...];
    uint32_t bad_page, bad_status, bad_length;
    uint8_t **pages;
    uint32_t *lengths;
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
#define MQ_BAD_PAGE ...
#define MQ_AUTO ...
#define MQ_HARDWARE ...
#define MQ_SOFTWARE ...
#define MQ_PAGE_FLAGS ...
#define MQ_LEVEL ...
#define MQ_COMPRESS ...
#define MQ_DECOMPRESS ...

uint32_t crc_of(const uint8_t *p, size_t length);
uint32_t crc_by_table(uint32_t crc, const uint8_t *p, size_t length);
void mq_real_time(mq_table *table);
int mq_compress(mq_channel *c, const mq_run *runs, uint32_t run_count,
                uint8_t *out, uint8_t *lengths, mq_piece *pieces, uint32_t *piece_count);
int mq_decompress(mq_channel *c, const mq_run *runs, uint32_t run_count, const uint8_t *payload);

extern "Python" {
    uint32_t mq_sim_get_job_size(int, uint32_t *);
    uint32_t mq_sim_init_job(int, qpl_job *);
    uint32_t mq_sim_fini_job(qpl_job *);
    uint32_t mq_sim_execute_job(qpl_job *);
    uint32_t mq_sim_submit_job(qpl_job *);
    uint32_t mq_sim_check_job(qpl_job *);
    uint64_t mq_sim_now_ns(void);
    void mq_sim_relax(void);
}
""")

_HERE = Path(__file__).parent

ffibuilder.set_source(
    "multifd_qpl._batch",
    (_HERE / "_batch.c").read_text(),
    include_dirs=[str(_HERE)],
    depends=[str(_HERE / "_crc.h")],
    extra_compile_args=["-O2"],
    optional=True,
)
