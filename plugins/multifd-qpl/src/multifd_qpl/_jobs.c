/* Jobs: offered to a device, waited for, given up; memory that they may write to; the clock. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "_jobs.h"

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

/* After an abort, what is in flight gets this long to end: several times the slowest page fault
   published for the device (0.56 ms, QEMU's docs/devel/migration/qpl-compression.rst). */
#define ABORT_GRACE_NS 10000000

/* Bytes from one slot to the next; a multiple of a cache line for every page size. */
size_t mq_slot_bytes(uint32_t page_size)
{
    return (size_t)page_size + MQ_SLOT_EXTRA;
}

uint8_t *mq_slot(const mq_channel *c, uint8_t *slots, uint32_t i)
{
    return slots + i * mq_slot_bytes(c->page_size);
}

/* Zeroed memory that takes no room until it is touched, and that a forked child has a copy of; NULL if there is none. */
void *mq_map(size_t bytes)
{
    void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return start == MAP_FAILED ? NULL : start;
}

void mq_unmap(void *start, size_t bytes)
{
    munmap(start, bytes);
}

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

/* Another thread sets the flag. */
int mq_is_aborted(const mq_channel *c)
{
    return __atomic_load_n(c->abort, __ATOMIC_RELAXED) != 0;
}

/* The packet's pages, into c->pages; how many, or 0 if there are none or more than there is room for. */
uint32_t mq_find_pages(mq_channel *c, const mq_run *runs, uint32_t run_count)
{
    uint32_t n = 0;
    if (run_count > c->page_count)
        return 0;
    for (uint32_t r = 0; r < run_count; r++) {
        if (runs[r].page_count == 0 || runs[r].page_count > c->page_count - n)
            return 0;
        for (uint32_t k = 0; k < runs[r].page_count; k++)
            c->pages[n++] = runs[r].start + (size_t)k * c->page_size;
    }
    return n;
}

void mq_begin(mq_channel *c, uint32_t n)
{
    for (uint32_t i = 0; c->hardware && i < n; i++)
        if (c->slots[i] == MQ_DONE)
            c->slots[i] = MQ_IDLE;
}

int mq_may_use_hardware(const mq_channel *c, uint32_t i)
{
    return c->hardware && !c->hardware_off && c->slots[i] == MQ_IDLE;
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

/*
 * Offer a job to the device; the status is 0 if it took it. A refused job is offered again, c->retries times or
 * with c->wait_for_queue until there is room; an abort or silence_ns ends both.
 */
uint32_t mq_submit(mq_channel *c, uint32_t i, int op, const uint8_t *in, uint32_t in_length, uint8_t *out,
                   uint32_t room)
{
    const mq_table *t = c->table;
    qpl_job *job = c->hardware[i];
    uint64_t since = 0;

    for (uint64_t refusals = 0;; refusals++) {
        prepare(job, op, in, in_length, out, room);
        uint32_t status = t->submit_job(job);
        if (status == ST_OK)
            c->slots[i] = MQ_IN_FLIGHT;
        if (status != ST_BUSY)
            return status;
        c->counters[BUSY]++;
        if (mq_is_aborted(c) || (refusals >= c->retries && !c->wait_for_queue))
            return ST_BUSY;
        if (refusals == 0) {
            since = t->now_ns();
            c->counters[WAITED] += c->wait_for_queue;
        } else if (t->now_ns() - since >= c->silence_ns) {
            c->hardware_off = 1;
            return ST_BUSY;
        }
        if (c->wait_for_queue)
            t->relax();
        c->counters[RETRIED]++;
    }
}

/* The page goes to software; a device that is only busy has not failed. */
void mq_fall_back(mq_channel *c, uint32_t status)
{
    c->counters[FELL_BACK]++;
    if (status != ST_BUSY)
        c->counters[FAILED]++;
}

/* Wait as long as is due, once for all jobs that do not end: c->has_stuck. */
static uint32_t poll(mq_channel *c, qpl_job *job)
{
    const mq_table *t = c->table;
    uint32_t status = t->check_job(job);
    uint64_t since;

    if (status != ST_RUNNING || c->has_stuck)
        return status;
    since = t->now_ns();
    while (status == ST_RUNNING && t->now_ns() - since < (mq_is_aborted(c) ? ABORT_GRACE_NS : c->silence_ns)) {
        t->relax();
        status = t->check_job(job);
    }
    return status;
}

/* The final status of a job in flight, or ST_RUNNING if it had to be given up. */
uint32_t mq_await(mq_channel *c, uint32_t i)
{
    const mq_table *t = c->table;
    qpl_job *job = c->hardware[i];
    uint32_t status = poll(c, job);

    if (status == ST_RUNNING) {
        c->slots[i] = MQ_STUCK;
        c->has_stuck = c->hardware_off = 1;
        c->silent |= !mq_is_aborted(c);  /* an abort waits less: that says nothing of the device */
        mq_fall_back(c, ST_LOST);
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

void mq_await_rest(mq_channel *c, uint32_t n)
{
    for (uint32_t i = 0; c->hardware && i < n; i++)
        if (c->slots[i] == MQ_IN_FLIGHT)
            mq_await(c, i);
}

/* Whether a decompression ended with the page's bytes; if not, the page goes to software. */
int mq_is_sound(mq_channel *c, uint32_t i, uint32_t status, const uint8_t *page)
{
    const qpl_job *job = c->hardware[i];
    int is_page = status == ST_OK && job->total_out == c->page_size;

    if (is_page && (!c->verify || job->crc == mq_crc(page, c->page_size)))
        return 1;
    c->counters[CORRUPT] += is_page;
    mq_fall_back(c, status == ST_BUSY ? ST_LOST : status);
    return 0;
}

uint32_t mq_execute(mq_channel *c, int op, const uint8_t *in, uint32_t in_length, uint8_t *out, uint32_t room)
{
    prepare(c->software, op, in, in_length, out, room);
    return c->table->execute_job(c->software);
}
