/*
 * Channels at the same time, each a sender, a relay and a receiver in threads of their own, and an abort in the middle:
 * for ThreadSanitizer, which the interpreter cannot be run under everywhere. Linked with the pump's C files.
 *
 * What threads share is what they share in an engine: the abort byte, the guest's memory (each channel its own pages)
 * and the receiver's table of blocks with one byte a page. Every second channel goes by hooks.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "pump.h"

enum { CHANNELS = 3, PAGE = 4096, PAGES = 64, PACKETS = 8, COUNT = PAGES / PACKETS, ROUNDS = 6, AHEAD = 1 << 16 };
enum { HEADER = PUMP_HEADER_BYTES + 8 * COUNT, PATIENCE_NS = 5000000 };

static uint8_t abort_flag, source_memory[CHANNELS * PAGES * PAGE], target_memory[CHANNELS * PAGES * PAGE];
static uint8_t used[CHANNELS * PAGES];
static int done; /* channels that have sent more rounds than sockets and relays hold: the last one aborts */

typedef struct {
    int to_relay, from_sender, to_receiver, from_relay, sink;
    size_t first; /* byte of the channel's pages in the memory */
    int has_hooks;
} channel;

static void need(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

/* The pages, each byte with the state added. */
static int64_t shift_out(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity)
{
    if (capacity < (uint64_t)count * PAGE)
        return MULTIFD_NATIVE_DECLINED;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < PAGE; k++)
            out[i * PAGE + k] = (uint8_t)(pages[i][k] + *(uint8_t *)state);
    return (int64_t)count * PAGE;
}

static int64_t shift_in(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages, uint32_t count)
{
    if (length != (uint64_t)count * PAGE)
        return -2;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < PAGE; k++)
            pages[i][k] = (uint8_t)(payload[i * PAGE + k] - *(uint8_t *)state);
    return 0;
}

static void *run_sender(void *argument)
{
    const channel *c = argument;
    static _Thread_local uint8_t header[HEADER], out[COUNT * PAGE], staging[COUNT * PAGE], is_zero[PAGES];
    static _Thread_local const uint8_t *pages[COUNT];
    static _Thread_local struct iovec iov[2 * COUNT + 2];
    static _Thread_local int64_t offsets[PAGES];
    static _Thread_local uint32_t counts[PACKETS];
    uint8_t state = 3;
    pump_block block = {.kind = PUMP_CHECKED, .base = source_memory, .idstr = "ram", .idstr_bytes = 3};
    pump_sender s = {
        .socket = c->to_relay, .sink = c->sink, .page_size = PAGE, .page_count = COUNT, .zero_in_packets = 1,
        .capacity = sizeof out, .patience_ns = PATIENCE_NS, .hook = c->has_hooks ? shift_out : NULL,
        .hook_state = &state, .abort = &abort_flag, .header = header, .out = out, .staging = staging, .pages = pages,
        .iov = iov, .block = &block, .offsets = offsets, .counts = counts, .is_zero = is_zero,
    };
    for (int i = 0; i < PAGES; i++)
        offsets[i] = (int64_t)c->first + i * PAGE;
    for (int i = 0; i < PACKETS; i++)
        counts[i] = COUNT;
    for (int round = 0;; round++) {
        s.packets = PACKETS, s.packet = s.first_page = 0;
        for (int why = PUMP_BOUND; why != PUMP_DONE;) {
            s.budget = 100000;
            why = pump_send(&s);
            need(why == PUMP_DONE || why == PUMP_BOUND || why == PUMP_WAIT || why == PUMP_BROKEN, "sender");
            if (why == PUMP_BROKEN || (why == PUMP_WAIT && pump_is_aborted(&abort_flag)))
                return NULL;
        }
        if (round == ROUNDS && __atomic_add_fetch(&done, 1, __ATOMIC_RELAXED) == CHANNELS)
            __atomic_store_n(&abort_flag, 1, __ATOMIC_RELAXED);
    }
}

static void *run_relay(void *argument)
{
    const channel *c = argument;
    uint8_t *buffer = malloc(AHEAD);
    need(buffer != NULL, "memory");
    pump_splice p = {
        .source = c->from_sender, .destination = c->to_receiver, .page_size = PAGE, .page_count = COUNT,
        .header_bytes = HEADER, .patience_ns = PATIENCE_NS, .abort = &abort_flag, .buffer = buffer, .capacity = AHEAD,
    };
    for (;;) {
        int why = pump_pass_on(&p);
        need(why != PUMP_HEADER, "a packet that the relay does not know");
        if (why == PUMP_END || why == PUMP_BROKEN || (why == PUMP_WAIT && pump_is_aborted(&abort_flag)))
            break;
    }
    free(buffer);
    return NULL;
}

static void *run_receiver(void *argument)
{
    const channel *c = argument;
    static _Thread_local uint8_t header[HEADER], staging[COUNT * PAGE], payload[COUNT * PAGE];
    static _Thread_local uint8_t *pages[COUNT];
    static _Thread_local struct iovec iov[4 * COUNT + 2];
    uint8_t state = 3;
    pump_block block = {
        .kind = PUMP_CHECKED, .base = target_memory, .used = used, .used_length = sizeof target_memory,
        .idstr = "ram", .idstr_bytes = 3,
    };
    pump_receiver r = {
        .socket = c->from_relay, .sink = c->sink, .page_size = PAGE, .page_count = COUNT, .capacity = sizeof payload,
        .patience_ns = PATIENCE_NS, .abort = &abort_flag, .header = header, .staging = staging, .pages = pages,
        .iov = iov, .blocks = &block, .block_count = 1, .log_room = COUNT, .hook = c->has_hooks ? shift_in : NULL,
        .hook_state = &state, .payload = payload,
    };
    for (;;) {
        int why = pump_receive(&r);
        need(why == PUMP_BOUND || why == PUMP_WAIT || why == PUMP_END || why == PUMP_BROKEN, "receiver");
        if (why == PUMP_END || why == PUMP_BROKEN || (why == PUMP_WAIT && pump_is_aborted(&abort_flag)))
            break;
    }
    need(r.packets >= PACKETS, "packets");
    return NULL;
}

static void join_sockets(int *a, int *b)
{
    int pair[2];
    struct timeval slice = {.tv_usec = 20000};
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    for (int i = 0; i < 2; i++) {
        need(setsockopt(pair[i], SOL_SOCKET, SO_RCVTIMEO, &slice, sizeof slice) == 0, "timeout");
        need(setsockopt(pair[i], SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof slice) == 0, "timeout");
    }
    *a = pair[0], *b = pair[1];
}

int main(void)
{
    pthread_t threads[3 * CHANNELS];
    channel channels[CHANNELS];
    void *(*const runs[3])(void *) = {run_sender, run_relay, run_receiver};
    for (size_t i = 0; i < sizeof source_memory; i++) /* every fourth page is zero */
        source_memory[i] = i / PAGE % 4 ? (uint8_t)(i / 7 + 1) : 0;
    for (int i = 0; i < CHANNELS; i++) {
        channels[i] = (channel){.first = (size_t)i * PAGES * PAGE, .has_hooks = i % 2};
        join_sockets(&channels[i].to_relay, &channels[i].from_sender);
        join_sockets(&channels[i].to_receiver, &channels[i].from_relay);
        channels[i].sink = memfd_create("sink", 0);
        need(channels[i].sink >= 0, "memfd");
    }
    for (int i = 0; i < 3 * CHANNELS; i++)
        need(pthread_create(&threads[i], NULL, runs[i % 3], &channels[i / 3]) == 0, "thread");
    for (int i = 0; i < 3 * CHANNELS; i++)
        pthread_join(threads[i], NULL);
    /* Every page has arrived; the abort cut others short, of the same bytes. */
    need(!memcmp(source_memory, target_memory, sizeof source_memory), "bytes");
    puts("done");
    return 0;
}
