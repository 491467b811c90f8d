/*
 * Channels at the same time, as threads have them, and an abort in the middle: for ThreadSanitizer, which the
 * interpreter cannot be run under everywhere. Linked with the plugin's C files and the stand-in libqpl.
 *
 * Each thread has a sender's and a receiver's channel; the table of functions and the abort flag are shared.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "_batch.h"

enum { THREADS = 4, PAGE = 4096, COUNT = 16, PACKETS = 40, MOST_PACKETS = 100000 };

uint32_t qpl_get_job_size(int path, uint32_t *size);
uint32_t qpl_init_job(int path, qpl_job *job);
uint32_t qpl_fini_job(qpl_job *job);
uint32_t qpl_execute_job(qpl_job *job);
uint32_t qpl_submit_job(qpl_job *job);
uint32_t qpl_check_job(qpl_job *job);
void standin_set_hardware(uint32_t status);
int standin_live_jobs(void);

static mq_table table = {
    .get_job_size = qpl_get_job_size,
    .init_job = qpl_init_job,
    .fini_job = qpl_fini_job,
    .execute_job = qpl_execute_job,
    .submit_job = qpl_submit_job,
    .check_job = qpl_check_job,
};
static uint8_t abort_flag;

typedef struct {
    mq_channel channel;
    qpl_job *hardware[COUNT];
    uint8_t slots[COUNT], *pages[COUNT], *memory;
    uint32_t lengths[COUNT];
    mq_doubt doubts[COUNT];
} side_t;

static void need(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

static qpl_job *make(int path)
{
    uint32_t size = 0;
    need(qpl_get_job_size(path, &size) == 0, "job size");
    qpl_job *job = malloc(size);
    need(job && qpl_init_job(path, job) == 0, "job");
    return job;
}

static void open_side(side_t *s)
{
    const size_t part = COUNT * mq_slot_bytes(PAGE);
    memset(s, 0, sizeof *s);
    s->memory = mq_map(3 * part);
    need(s->memory != NULL, "mapping");
    for (int i = 0; i < COUNT; i++)
        s->hardware[i] = make(MQ_HARDWARE);
    s->channel = (mq_channel){
        .table = &table, .software = make(MQ_SOFTWARE), .hardware = s->hardware, .slots = s->slots,
        .abort = &abort_flag, .silence_ns = 60000000000, .page_size = PAGE, .page_count = COUNT, .retries = 3,
        .verify = 1, .out = s->memory, .source = s->memory + part, .proof = s->memory + 2 * part,
        .pages = s->pages, .lengths = s->lengths, .doubts = s->doubts, .owner = getpid(),
    };
}

static void close_side(side_t *s)
{
    for (int i = 0; i < COUNT; i++) {
        /* Given up 10 ms after the abort, which is short on a busy machine: until it ends, its memory stays. */
        while (s->slots[i] == MQ_STUCK && qpl_check_job(s->hardware[i]) == ST_RUNNING)
            usleep(100);
        qpl_fini_job(s->hardware[i]);
        free(s->hardware[i]);
    }
    qpl_fini_job(s->channel.software);
    free(s->channel.software);
    mq_unmap(s->memory, 3 * COUNT * mq_slot_bytes(PAGE));
}

/* The same by native hooks. */
static int native_packet(side_t *sender, side_t *receiver, uint8_t *source, uint8_t *target, uint8_t *payload)
{
    const uint64_t capacity = COUNT * (PAGE + 4);
    const uint8_t *from[COUNT];
    uint8_t *to[COUNT];
    for (int i = 0; i < COUNT; i++) {
        from[i] = source + i * PAGE;
        to[i] = target + i * PAGE;
    }
    int64_t length = mq_native_send(&sender->channel, from, COUNT, payload, capacity);
    int64_t result = length > 0 ? mq_native_recv(&receiver->channel, payload, (uint64_t)length, to, COUNT) : length;
    need(length != MQ_DECLINED && result != MQ_DECLINED, "declined");
    need(result != 0 || !memcmp(source, target, PAGE * COUNT), "bytes of a native hook");
    return result ? MQ_ABORTED : MQ_OK;
}

/* A packet there and back; what the second batch returned, or the first if it was not MQ_OK. */
static int packet(side_t *sender, side_t *receiver, uint8_t *source, uint8_t *target, uint8_t *payload)
{
    mq_run from = {source, COUNT}, to = {target, COUNT};
    mq_piece pieces[COUNT];
    uint32_t piece_count, length = 4 * COUNT;
    int result = mq_compress(&sender->channel, &from, 1, payload, pieces, &piece_count);
    if (result != MQ_OK)
        return result;
    for (uint32_t k = 0; k < piece_count; k++) {
        const uint8_t *start = pieces[k].run < 0 ? sender->channel.out : source;
        memcpy(payload + length, start + pieces[k].start, pieces[k].length);
        length += pieces[k].length;
    }
    result = mq_decompress(&receiver->channel, &to, 1, payload, length);
    need(result != MQ_OK || (receiver->channel.doubt_count == 0 && !memcmp(source, target, PAGE * COUNT)), "bytes");
    return result;
}

static void *run(void *argument)
{
    static _Thread_local side_t sender, receiver;
    uint8_t *source = malloc(PAGE * COUNT), *target = malloc(PAGE * COUNT), *payload = malloc(PAGE * COUNT + 4 * COUNT);
    unsigned seed = (unsigned)(size_t)argument;
    int result = MQ_OK;

    need(source && target && payload, "memory");
    for (int i = 0; i < PAGE * COUNT; i++)
        source[i] = (uint8_t)(i / PAGE % 4 ? i / 40 * (int)seed : rand_r(&seed));
    open_side(&sender);
    open_side(&receiver);
    for (int k = 0; k < PACKETS; k++) {
        need(packet(&sender, &receiver, source, target, payload) != MQ_MISUSE, "counts");
        native_packet(&sender, &receiver, source, target, payload);
    }
    if (argument == NULL)
        __atomic_store_n(&abort_flag, 1, __ATOMIC_RELAXED);
    for (int k = 0; result != MQ_ABORTED; k++) {
        need(k < MOST_PACKETS, "the abort is not seen");
        result = (k % 2 ? packet : native_packet)(&sender, &receiver, source, target, payload);
    }
    close_side(&sender);
    close_side(&receiver);
    free(source);
    free(target);
    free(payload);
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    mq_real_time(&table);
    standin_set_hardware(0);
    for (size_t i = 0; i < THREADS; i++)
        need(pthread_create(&threads[i], NULL, run, (void *)i) == 0, "thread");
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    need(standin_live_jobs() == 0, "a job was not finished");
    puts("done");
    return 0;
}
