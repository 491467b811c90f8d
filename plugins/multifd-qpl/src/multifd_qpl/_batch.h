/*
 * A whole packet of pages through qpl jobs in one call, without the interpreter.
 *
 * Rules of these files (_jobs.c, _compress.c, _decompress.c, _native.c):
 *  - libqpl is reached through mq_table alone, so a simulated device can stand in for it, with its own
 *    clock (now_ns, relax), and ISA-L for its software path (_isal.c). Nothing here links to libqpl or ISA-L or
 *    includes their headers.
 *  - A device sees the channel's private slots only, never the guest's pages or the payload: a job that is
 *    never answered can harm nothing that is freed. The owner of the slots must let them live for ever
 *    once a job is marked MQ_STUCK.
 *  - A job is waited for only if its submission returned 0; the status of the submission is final else.
 *  - Every wait ends: by the job, by *c->abort, or after silence_ns. No loop runs longer than its bound.
 *  - No call returns with a job in flight, except jobs marked MQ_STUCK.
 *  - With c->verify no page is taken from the device before a job that decompressed it has reported the
 *    CRC-32 of the page's bytes.
 *  - Counts of the caller are checked (MQ_MISUSE): page_count says what every array has room for.
 */
#ifndef MULTIFD_QPL_BATCH_H
#define MULTIFD_QPL_BATCH_H

#include <stddef.h>
#include <stdint.h>

/* The head of a job, as libqpl 0.2.0 to 1.6.0 lay it out on x86-64; a job's memory is larger. */
typedef struct {
    const uint8_t *next_in_ptr;
    uint32_t available_in, total_in;
    uint8_t *next_out_ptr;
    uint32_t available_out, total_out;
    int32_t op;
    uint32_t flags;
    uint32_t crc, xor_checksum, last_bit_offset;
    int32_t level;
    uint32_t statistics_mode;
    void *huffman_table, *dictionary;
    uint8_t unused[160];
} qpl_job;

_Static_assert(sizeof(void *) != 8
                   || (offsetof(qpl_job, next_out_ptr) == 16 && offsetof(qpl_job, op) == 32
                       && offsetof(qpl_job, level) == 52 && offsetof(qpl_job, huffman_table) == 64
                       && sizeof(qpl_job) == 240),
               "the layout of qpl_job");

enum { MQ_AUTO, MQ_HARDWARE, MQ_SOFTWARE };  /* qpl_path_t */
enum { MQ_DECOMPRESS, MQ_COMPRESS };         /* qpl_operation */
enum {
    MQ_LEVEL = 1,           /* qpl_default_level: the only one that the device has */
    MQ_PAGE_FLAGS = 0x4003  /* FIRST | LAST | OMIT_VERIFY: what QEMU 9.1 to 10.0 gives a page */
};

/* qpl_status, as in libqpl's status.h; those that are acted on. */
enum {
    ST_OK = 0,
    ST_RUNNING = 1,
    ST_NO_ROOM = 2,
    ST_BUSY = 5,
    ST_FAULT_READ = 303,
    ST_FAULT_WRITE = 431,
    ST_LOST = 0xffffffff  /* ours: a failure after the submission, whatever libqpl calls it */
};

enum { MQ_OK, MQ_ABORTED, MQ_SILENT, MQ_MISUSE };                /* what a batch returns */
enum { MQ_IDLE, MQ_IN_FLIGHT, MQ_DONE, MQ_FINISHED, MQ_STUCK };  /* a hardware job's state */

/*
 * What a decoder is offered beyond a page, so that a stream of more than a page shows itself by its length.
 * libqpl 1.6.0 copies its bit buffer out before it looks at the room: a stream can have 1 to 3 bytes written
 * behind a room of 64 KiB. So a slot has as much again behind what is offered.
 */
enum { MQ_ROOM_TO_SPARE = 64, MQ_SLOT_EXTRA = 128 };

/* The order of jobs.COUNTERS. */
enum { SUBMITTED, COMPLETED, BUSY, RETRIED, WAITED, FAILED, CORRUPT, FELL_BACK, SOFTWARE, RAW, COUNTER_COUNT };

typedef uint32_t (*mq_size_fn)(int path, uint32_t *size);
typedef uint32_t (*mq_init_fn)(int path, qpl_job *job);
typedef uint32_t (*mq_job_fn)(qpl_job *job);

/* libqpl's functions, or a simulator's, and the clock that belongs to them. */
typedef struct {
    mq_size_fn get_job_size;
    mq_init_fn init_job;
    mq_job_fn fini_job, execute_job, submit_job, check_job;
    uint64_t (*now_ns)(void);
    void (*relax)(void);  /* called between two looks at a job or a queue */
    uint8_t keeps_room;   /* execute_job writes nothing behind available_out, whatever the stream */
} mq_table;

/* ISA-L's functions (igzip_lib.h); what they take are its structures, see _isal.h. */
typedef struct {
    void (*deflate_stateless_init)(void *stream);
    int (*deflate_stateless)(void *stream);
    void (*inflate_init)(void *state);
    void (*inflate_reset)(void *state);
    int (*inflate)(void *state);
    int (*inflate_stateless)(void *state);
} mq_isal;

typedef struct { uint8_t *start; uint32_t page_count; } mq_run;

/* A part of a payload: bytes of the channel's `out` (run -1), or of a run of raw pages. */
typedef struct { int32_t run; uint32_t start, length; } mq_piece;

/* A page that libqpl does not decode to exactly a page, or whose stream it does not use up. */
typedef struct { uint32_t page, status, length; } mq_doubt;

/* One channel and direction; used by one thread at a time. */
typedef struct {
    const mq_table *table;
    qpl_job *software;
    qpl_job **hardware;  /* one for each page of a packet, NULL without hardware */
    uint8_t *slots;      /* the state of each */
    const uint8_t *abort;
    uint64_t silence_ns;
    uint32_t page_size;
    uint32_t page_count;    /* of a packet at most */
    uint32_t retries;       /* after a refusal, unless wait_for_queue */
    uint8_t wait_for_queue;
    uint8_t verify;         /* what the device writes is checked; its library must report CRCs */
    uint8_t hardware_off;   /* set here: the device has been silent or busy for silence_ns */
    uint8_t silent;         /* set here: a job did not end within silence_ns */
    uint8_t has_stuck;      /* set here: a job is marked MQ_STUCK */
    /* Of native hooks. */
    uint8_t is_troubled;      /* set here: a device did not do a packet whole, so Python does the next ones */
    uint32_t troubled_pages;  /* of that packet */
    uint32_t clean_packets;   /* done before it */
    int32_t owner;            /* the process that the jobs belong to */
    uint64_t counters[COUNTER_COUNT];
    /* page_count slots of mq_slot_bytes each: what a job reads, what it writes, what a verification writes.
       Without hardware only `out` is used, by a decoder its first slot. */
    uint8_t *source, *out, *proof;
    uint8_t **pages;    /* scratch, page_count each */
    uint32_t *lengths;
    mq_doubt *doubts;   /* what mq_decompress leaves to another decoder */
    uint32_t doubt_count;
} mq_channel;

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

/*
 * What native hooks return but payload bytes and 0: the first two are the caller's contract (multifd/pump/native.h).
 * MQ_DECLINED: nothing was done that counts; the hook in Python does the packet, and whatever is to be done first.
 */
enum { MQ_DECLINED = -1, MQ_TORN_DOWN = -2 };
int64_t mq_native_send(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity);
int64_t mq_native_recv(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages, uint32_t count);
uint32_t mq_crc(const uint8_t *p, size_t length);
uint32_t mq_crc_by_table(uint32_t crc, const uint8_t *p, size_t length);

#endif
