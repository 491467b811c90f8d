/*
 * A whole packet of pages through qpl jobs in one call, without the interpreter.
 *
 * Rules of this file:
 *  - libqpl is reached through mq_table alone, so a simulated device can stand in for it, with its own
 *    clock (now_ns, relax). Nothing here links to libqpl or includes its headers.
 *  - A job is waited for only if its submission returned 0; the status of the submission is final else.
 *  - Every wait ends: by the job, by c->abort, or after silence_ns.
 *  - No call returns with a job in flight, except jobs marked MQ_STUCK: the device may still write to
 *    their memory and output, so the caller must let both live for ever.
 *  - With c->verify no page is taken from the device before a job that decompressed it has reported the
 *    CRC-32 of the page's bytes as the processor sees them.
 *  - qpl counts statuses as in its own status.h; those that are acted on are named below.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "_crc.h"

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

/* qpl_status */
enum {
    ST_OK = 0,
    ST_RUNNING = 1,
    ST_NO_ROOM = 2,
    ST_BUSY = 5,
    ST_FAULT_READ = 303,
    ST_FAULT_WRITE = 431,
    ST_LOST = 0xffffffff  /* ours: a failure after the submission, whatever libqpl calls it */
};

enum { MQ_OK, MQ_ABORTED, MQ_SILENT, MQ_BAD_PAGE };                       /* what a batch returns */
enum { MQ_IDLE, MQ_IN_FLIGHT, MQ_DONE, MQ_FINISHED, MQ_STUCK };           /* a hardware job's state */

/* The order of jobs.COUNTERS. */
enum { SUBMITTED, COMPLETED, BUSY, RETRIED, WAITED, FAILED, CORRUPT, FELL_BACK, SOFTWARE, RAW, COUNTER_COUNT };

/* After an abort, what is in flight gets this long to end: several times the slowest page fault
   published for the device (0.56 ms, QEMU's docs/devel/migration/qpl-compression.rst). */
#define ABORT_GRACE_NS 10000000


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
} mq_table;

typedef struct { uint8_t *start; uint32_t page_count; } mq_run;

/* A part of a payload: bytes of the output buffer (run -1), or of a run of raw pages. */
typedef struct { int32_t run; uint32_t start, length; } mq_piece;

/* One channel and direction; used by one thread at a time. */
typedef struct {
    const mq_table *table;
    qpl_job *software;
    qpl_job **hardware;  /* one for each page of a packet, NULL without hardware */
    uint8_t *slots;      /* the state of each */
    const uint8_t *abort;
    uint64_t silence_ns;
    uint32_t page_size;
    uint32_t retries;       /* after a refusal, unless wait_for_queue */
    uint8_t wait_for_queue;
    uint8_t verify;         /* what the device writes is checked; its library must report CRCs */
    uint8_t hardware_off;   /* set here: the device has been silent or busy for silence_ns */
    uint8_t silent;         /* set here: a job never ended */
    uint64_t counters[COUNTER_COUNT];
    uint32_t bad_page, bad_status, bad_length;  /* with MQ_BAD_PAGE */
    uint8_t **pages;    /* scratch, one for each page of a packet */
    uint32_t *lengths;  /* scratch */
} mq_channel;

static uint64_t real_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void real_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

/* Give the table this machine's clock. */
void mq_real_time(mq_table *table)
{
    table->now_ns = real_now_ns;
    table->relax = real_relax;
}

static int is_aborted(const mq_channel *c)
{
    return *(const volatile uint8_t *)c->abort != 0;
}

static uint32_t find_pages(mq_channel *c, const mq_run *runs, uint32_t run_count)
{
    uint32_t n = 0;
    for (uint32_t r = 0; r < run_count; r++)
        for (uint32_t k = 0; k < runs[r].page_count; k++)
            c->pages[n++] = runs[r].start + (size_t)k * c->page_size;
    return n;
}

/* A job advances its pointers and counts, so every attempt starts from these. */
static void prepare(qpl_job *job, int op, const uint8_t *in, uint32_t in_length, uint8_t *out, uint32_t room)
{
    job->op = op;
    job->level = MQ_LEVEL;
    job->flags = MQ_PAGE_FLAGS;
    job->huffman_table = NULL;
    job->dictionary = NULL;
    job->next_in_ptr = in;
    job->available_in = in_length;
    job->total_in = 0;
    job->next_out_ptr = out;
    job->available_out = room;
    job->total_out = 0;
}

/* Offer a job to the device; the status is 0 if it took it. */
static uint32_t submit(mq_channel *c, uint32_t i, int op, const uint8_t *in, uint32_t in_length,
                       uint8_t *out, uint32_t room)
{
    const mq_table *t = c->table;
    qpl_job *job = c->hardware[i];
    uint32_t left = c->retries;
    uint64_t since = 0;
    int is_waiting = 0;

    for (;;) {
        prepare(job, op, in, in_length, out, room);
        uint32_t status = t->submit_job(job);
        if (status == ST_OK)
            c->slots[i] = MQ_IN_FLIGHT;
        if (status != ST_BUSY)
            return status;
        c->counters[BUSY]++;
        if (c->wait_for_queue) {
            if (!is_waiting) {
                is_waiting = 1;
                since = t->now_ns();
                c->counters[WAITED]++;
            } else if (t->now_ns() - since >= c->silence_ns) {
                c->hardware_off = 1;
                return ST_BUSY;
            }
            if (is_aborted(c))
                return ST_BUSY;
            t->relax();
        } else if (left-- == 0) {
            return ST_BUSY;
        }
        c->counters[RETRIED]++;
    }
}

/* The page goes to software; a device that is only busy has not failed. */
static void fall_back(mq_channel *c, uint32_t status)
{
    c->counters[FELL_BACK]++;
    if (status != ST_BUSY)
        c->counters[FAILED]++;
}

/* The final status of a job in flight, or ST_RUNNING if it had to be given up. */
static uint32_t await(mq_channel *c, uint32_t i)
{
    const mq_table *t = c->table;
    qpl_job *job = c->hardware[i];
    uint32_t status = t->check_job(job);

    if (status == ST_RUNNING && !c->silent) {
        uint64_t since = t->now_ns();
        do {
            t->relax();
            status = t->check_job(job);
        } while (status == ST_RUNNING
                 && t->now_ns() - since < (is_aborted(c) ? ABORT_GRACE_NS : c->silence_ns));
    }
    if (status == ST_RUNNING) {
        c->slots[i] = MQ_STUCK;
        c->silent = c->hardware_off = 1;
        fall_back(c, ST_LOST);
        return status;
    }
    c->slots[i] = MQ_DONE;
    if (status == ST_FAULT_READ || status == ST_FAULT_WRITE) {
        /* libqpl repairs one fault in the life of a job: begin a new life. A job whose init failed
           must never run again (libqpl switches it to a path that its memory is too small for). */
        t->fini_job(job);
        if (t->init_job(MQ_HARDWARE, job) != ST_OK)
            c->slots[i] = MQ_FINISHED;
    }
    return status;
}

static void await_rest(mq_channel *c, uint32_t n)
{
    for (uint32_t i = 0; c->hardware && i < n; i++)
        if (c->slots[i] == MQ_IN_FLIGHT)
            await(c, i);
}

static void begin(mq_channel *c, uint32_t n)
{
    for (uint32_t i = 0; c->hardware && i < n; i++)
        if (c->slots[i] == MQ_DONE)
            c->slots[i] = MQ_IDLE;
}

static int may_use_hardware(const mq_channel *c, uint32_t i)
{
    return c->hardware && !c->hardware_off && c->slots[i] == MQ_IDLE;
}

static uint32_t execute(mq_channel *c, int op, const uint8_t *in, uint32_t in_length, uint8_t *out, uint32_t room)
{
    prepare(c->software, op, in, in_length, out, room);
    return c->table->execute_job(c->software);
}

/* A page by the software job; its length, or page_size if it must go raw. */
static uint32_t shrink(mq_channel *c, uint32_t i, uint8_t *out)
{
    uint32_t room = c->page_size - 1;
    uint32_t status = execute(c, MQ_COMPRESS, c->pages[i], c->page_size, out, room);
    uint32_t length = c->software->total_out;
    return status == ST_OK && length - 1 < room ? length : c->page_size;
}

/* What the device made of a page: the stream's length, page_size if it must go raw, 0 if it goes to software. */
static uint32_t stream_length(mq_channel *c, uint32_t i, uint32_t status)
{
    uint32_t length = c->hardware[i]->total_out;
    if (status == ST_NO_ROOM)
        return c->page_size;
    if (status == ST_OK && length - 1 < c->page_size - 1)
        return length;
    fall_back(c, status == ST_BUSY ? ST_LOST : status);
    return 0;
}

/* Have the device decompress the stream that it made of a page; nobody reads `out`, the CRC is enough. */
static int submit_proof(mq_channel *c, uint32_t i, const uint8_t *stream, uint8_t *out)
{
    uint32_t status = ST_LOST;
    if (!c->hardware_off)
        status = submit(c, i, MQ_DECOMPRESS, stream, c->lengths[i], out, c->page_size);
    if (status != ST_OK)
        fall_back(c, status);
    return status == ST_OK;
}

/* Whether a decompression ended with the page's bytes; if not, the page goes to software, as does one that
   a live guest has written since. */
static int is_sound(mq_channel *c, uint32_t i, uint32_t status)
{
    const qpl_job *job = c->hardware[i];
    int is_page = status == ST_OK && job->total_out == c->page_size;

    if (is_page && (!c->verify || job->crc == crc_of(c->pages[i], c->page_size)))
        return 1;
    c->counters[CORRUPT] += is_page;
    fall_back(c, status == ST_BUSY ? ST_LOST : status);
    return 0;
}

static void add_piece(mq_piece *pieces, uint32_t *count, int32_t run, uint32_t start, uint32_t length)
{
    mq_piece *last = pieces + *count - 1;
    if (*count && last->run == run && last->start + last->length == start)
        last->length += length;
    else
        pieces[(*count)++] = (mq_piece){run, start, length};
}

/*
 * Compress a packet. Streams are packed at the start of `out` (room for all pages; with c->verify for as many
 * again), `lengths` gets the big-endian table, `pieces` (room for all pages) the payload behind it. Packing
 * costs a move of the compressed bytes (about 0.04 us a page here) and saves a buffer for each page, which
 * costs more.
 *
 * MQ_SILENT: nothing was made; `out` and all jobs marked MQ_STUCK must stay untouched for ever, the
 * packet can be done again with another `out` and without hardware.
 */
int mq_compress(mq_channel *c, const mq_run *runs, uint32_t run_count, uint8_t *out, uint8_t *lengths,
                mq_piece *pieces, uint32_t *piece_count)
{
    const uint32_t page_size = c->page_size, n = find_pages(c, runs, run_count);
    uint64_t completed = 0, software = 0, raw = 0;
    uint32_t used = 0, i = 0;

    *piece_count = 0;
    begin(c, n);
    for (i = 0; c->hardware && i < n; i++) {
        uint8_t *slot = out + (size_t)i * page_size;
        uint32_t status;
        c->lengths[i] = 0;
        if (!may_use_hardware(c, i))
            continue;
        if (is_aborted(c))
            break;
        status = submit(c, i, MQ_COMPRESS, c->pages[i], page_size, slot, page_size - 1);
        if (status == ST_OK) {
            c->counters[SUBMITTED]++;
        } else if (status == ST_NO_ROOM) {
            c->lengths[i] = page_size;
        } else {
            fall_back(c, status);
            c->lengths[i] = shrink(c, i, slot);
            software += c->lengths[i] < page_size;
        }
    }
    for (i = 0; c->verify && c->hardware && i < n && !is_aborted(c); i++) {
        uint8_t *slot = out + (size_t)i * page_size;
        if (c->slots[i] != MQ_IN_FLIGHT)
            continue;
        uint32_t status = await(c, i);
        if (c->silent)
            break;
        c->lengths[i] = stream_length(c, i, status);
        if (c->lengths[i] && c->lengths[i] < page_size && !submit_proof(c, i, slot, slot + (size_t)n * page_size))
            c->lengths[i] = 0;
        if (!c->lengths[i]) {
            c->lengths[i] = shrink(c, i, slot);
            software += c->lengths[i] < page_size;
        }
    }
    if ((c->hardware && c->silent) || is_aborted(c)) {
        await_rest(c, n);
        return is_aborted(c) ? MQ_ABORTED : MQ_SILENT;
    }

    for (uint32_t r = 0, k = 0, j = 0; j < n; j++, k++) {
        uint8_t *slot = out + (size_t)j * page_size, *packed = out + used;
        uint32_t length;

        if (c->hardware && c->slots[j] == MQ_IN_FLIGHT) {
            uint32_t status = await(c, j);
            if (c->silent || is_aborted(c)) {
                await_rest(c, n);
                return is_aborted(c) ? MQ_ABORTED : MQ_SILENT;
            }
            if (c->verify)
                length = is_sound(c, j, status) ? c->lengths[j] : 0;
            else
                length = stream_length(c, j, status);
            if (length) {
                completed += length < page_size;
            } else {
                length = shrink(c, j, slot);
                software += length < page_size;
            }
        } else if (c->hardware && c->lengths[j]) {
            length = c->lengths[j];
        } else {
            if (is_aborted(c)) {
                await_rest(c, n);
                return MQ_ABORTED;
            }
            length = shrink(c, j, packed);
            slot = packed;
            software += length < page_size;
        }

        while (k == runs[r].page_count)
            r++, k = 0;
        if (length < page_size) {
            if (slot != packed)
                memmove(packed, slot, length);
            add_piece(pieces, piece_count, -1, used, length);
            used += length;
        } else {
            add_piece(pieces, piece_count, (int32_t)r, k * page_size, page_size);
            raw++;
        }
        lengths[4 * j] = (uint8_t)(length >> 24);
        lengths[4 * j + 1] = (uint8_t)(length >> 16);
        lengths[4 * j + 2] = (uint8_t)(length >> 8);
        lengths[4 * j + 3] = (uint8_t)length;
    }
    c->counters[COMPLETED] += completed;
    c->counters[SOFTWARE] += software;
    c->counters[RAW] += raw;
    return MQ_OK;
}

static int bad_page(mq_channel *c, uint32_t i, uint32_t status)
{
    c->bad_page = i;
    c->bad_status = status;
    c->bad_length = c->software->total_out;
    return MQ_BAD_PAGE;
}

/* A page by the software job, from the intact input. */
static int restore(mq_channel *c, uint32_t i, const uint8_t *in, uint32_t length)
{
    uint32_t status = execute(c, MQ_DECOMPRESS, in, length, c->pages[i], c->page_size);
    if (status != ST_OK || c->software->total_out != c->page_size)
        return bad_page(c, i, status);
    c->counters[SOFTWARE]++;
    return MQ_OK;
}

static uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/*
 * Decompress a packet straight into its pages. `payload` begins with the length table, which the
 * caller has checked against the payload's size.
 *
 * MQ_SILENT: the device may still write to pages whose jobs are marked MQ_STUCK, at any time.
 */
int mq_decompress(mq_channel *c, const mq_run *runs, uint32_t run_count, const uint8_t *payload)
{
    const uint32_t page_size = c->page_size, n = find_pages(c, runs, run_count);
    const uint8_t *in = payload + 4 * (size_t)n;
    int result = MQ_OK;

    begin(c, n);
    for (uint32_t i = 0; i < n && result == MQ_OK; i++) {
        uint32_t length = big_endian(payload + 4 * (size_t)i);
        if (is_aborted(c)) {
            result = MQ_ABORTED;
        } else if (length == page_size) {
            memcpy(c->pages[i], in, page_size);
            c->counters[RAW]++;
        } else if (may_use_hardware(c, i)) {
            uint32_t status = submit(c, i, MQ_DECOMPRESS, in, length, c->pages[i], page_size);
            if (status == ST_OK) {
                c->counters[SUBMITTED]++;
            } else {
                fall_back(c, status);
                result = restore(c, i, in, length);
            }
        } else {
            result = restore(c, i, in, length);
        }
        in += length;
    }

    in = payload + 4 * (size_t)n;
    for (uint32_t i = 0; c->hardware && i < n && result == MQ_OK; i++) {
        uint32_t length = big_endian(payload + 4 * (size_t)i);
        if (c->slots[i] == MQ_IN_FLIGHT) {
            uint32_t status = await(c, i);
            if (is_aborted(c)) {
                result = MQ_ABORTED;
            } else if (c->silent) {
                result = MQ_SILENT;
            } else if (is_sound(c, i, status)) {
                c->counters[COMPLETED]++;
            } else {
                result = restore(c, i, in, length);
            }
        }
        in += length;
    }
    if (result != MQ_OK)
        await_rest(c, n);
    return result;
}
