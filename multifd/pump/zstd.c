/* zstd's hooks: pages into the channel's endless frame, and out of it. */
#define _GNU_SOURCE
#include "zstd.h"

#include <string.h>
#include <time.h>

#include "native.h"

/* libzstd's error codes are small negative numbers in a size_t (zstd_errors.h). */
static int64_t library_error(size_t code)
{
    return ZSTD_LIBRARY + (int64_t)code;
}

/* How many pages from `first` on lie side by side. */
static uint32_t run_length(const uint8_t *const *pages, uint32_t first, uint32_t count, uint32_t page_size)
{
    uint32_t i = first + 1;
    while (i < count && pages[i] == pages[i - 1] + page_size)
        i++;
    return i - first;
}

int64_t multifd_zstd_send(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity)
{
    zstd_sender *s = state;
    size_t bytes = (size_t)count * s->page_size;
    if (bytes > *s->ring_bytes)
        return MULTIFD_NATIVE_DECLINED;
    if (bytes > *s->ring_bytes - *s->at)
        *s->at = 0;
    uint8_t *start = s->ring + *s->at, *to = start;
    for (uint32_t i = 0; i < count;) {
        uint32_t run = run_length(pages, i, count, s->page_size);
        memcpy(to, pages[i], (size_t)run * s->page_size);
        to += (size_t)run * s->page_size;
        i += run;
    }
    *s->at += bytes;
    size_t made = s->compress(s->context, out, (size_t)capacity, start, bytes);
    return s->is_error(made) ? library_error(made) : (int64_t)made;
}

static int64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* RFC 8878: magic, a descriptor that promises a single segment of four bytes' size, which follows: libzstd then writes
 * straight into a buffer that holds it; and of a block's three bytes, the bit of the last. Type 0 is raw. */
static const uint8_t raw_header[] = {0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0};
static const uint8_t end_block[] = {1, 0, 0};
enum { BLOCK_HEADER = 3, MOST_BLOCK = 128 * 1024 };

static void put_block_header(uint8_t *at, size_t bytes, int is_last)
{
    at[0] = (uint8_t)(bytes << 3 | (unsigned)is_last), at[1] = (uint8_t)(bytes >> 5), at[2] = (uint8_t)(bytes >> 13);
}

static void put_content_size(uint8_t *header, uint32_t bytes)
{
    for (int i = 0; i < 4; i++)
        header[5 + i] = (uint8_t)(bytes >> 8 * i);
}

/* Bytes of a frame of so many pages as they are, beside the pages. */
static uint64_t raw_heads(uint64_t page_bytes)
{
    return sizeof raw_header + (page_bytes + MOST_BLOCK - 1) / MOST_BLOCK * BLOCK_HEADER;
}

/*
 * A frame of the pages as they are, where they lie: as many as fit share a block. The heads go into `out`, one after the
 * other, or `apart`: as far from its beginning as in the frame.
 */
static int64_t raw_frame(uint32_t page_size, const uint8_t *const *pages, uint32_t count, uint8_t *out, int apart,
                         struct iovec *pieces)
{
    uint32_t in_block = MOST_BLOCK / page_size, made = 0;
    memcpy(out, raw_header, sizeof raw_header);
    put_content_size(out, count * page_size);
    uint8_t *head = out, *to = out + sizeof raw_header;
    for (uint32_t i = 0; i < count;) {
        uint32_t here = count - i < in_block ? count - i : in_block;
        put_block_header(to, (size_t)here * page_size, i + here == count);
        to += BLOCK_HEADER;
        pieces[made++] = (struct iovec){head, (size_t)(to - head)};
        if (apart)
            to += (size_t)here * page_size;
        head = to;
        for (uint32_t end = i + here; i < end;) {
            uint32_t run = run_length(pages, i, end, page_size);
            pieces[made++] = (struct iovec){(void *)(uintptr_t)pages[i], (size_t)run * page_size};
            i += run;
        }
    }
    return made;
}

static void enter(zstd_meter *m)
{
    int64_t now = now_ns(CLOCK_MONOTONIC), now_cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
    if (m->left_ns) {
        m->gap_ns += now - m->left_ns;
        m->gap_cpu_ns += now_cpu - m->left_cpu_ns;
    }
    m->left_ns = now, m->left_cpu_ns = now_cpu;
}

static void leave(zstd_meter *m, uint64_t page_bytes, uint64_t payload_bytes)
{
    int64_t now = now_ns(CLOCK_MONOTONIC), now_cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
    m->hook_ns += now - m->left_ns;
    m->hook_cpu_ns += now_cpu - m->left_cpu_ns;
    m->left_ns = now, m->left_cpu_ns = now_cpu;
    m->packets++;
    m->page_bytes += page_bytes;
    m->payload_bytes += payload_bytes;
}

int64_t multifd_zstd_gather(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity,
                            struct iovec *pieces, uint32_t room)
{
    zstd_adaptive *s = state;
    uint64_t page_bytes = (uint64_t)count * s->frame.page_size;
    uint64_t heads = raw_heads(page_bytes);
    if (s->stage != ZSTD_RAW || heads + page_bytes > capacity || 2 * count > room)
        return MULTIFD_NATIVE_DECLINED;
    enter(&s->meter);
    int64_t made = raw_frame(s->frame.page_size, pages, count, out, 0, pieces);
    if (s->is_changing)
        s->stage = ZSTD_CHANGING;
    leave(&s->meter, page_bytes, heads + page_bytes);
    return made;
}

int64_t multifd_zstd_adapt(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity)
{
    zstd_adaptive *s = state;
    if (s->stage != ZSTD_FRAME || capacity < sizeof end_block)
        return MULTIFD_NATIVE_DECLINED;
    enter(&s->meter);
    int64_t made = multifd_zstd_send(&s->frame, pages, count, out, capacity - sizeof end_block);
    if (made < 0)
        return made;
    if (s->is_changing) {
        memcpy(out + made, end_block, sizeof end_block);
        made += (int64_t)sizeof end_block;
        s->stage = ZSTD_CHANGING;
    }
    leave(&s->meter, (uint64_t)count * s->frame.page_size, (uint64_t)made);
    return made;
}

/* libzstd says 0 at a frame's end; without input it then asks for the next one. */
static void note_place(zstd_receiver *s, size_t code, size_t taken)
{
    if (taken)
        *s->is_inside = code != 0;
}

int64_t multifd_zstd_recv(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages, uint32_t count)
{
    zstd_receiver *s = state;
    zstd_in in = {payload, (size_t)length, 0};
    s->length = length;
    for (uint32_t i = 0; i < count;) {
        uint32_t run = run_length((const uint8_t *const *)pages, i, count, s->page_size);
        zstd_out target = {pages[i], (size_t)run * s->page_size, 0};
        i += run;
        while (target.pos < target.size) {
            size_t in_before = in.pos, out_before = target.pos;
            size_t code = s->decompress(s->context, &target, &in);
            if (s->is_error(code))
                return library_error(code);
            note_place(s, code, in.pos - in_before);
            if (in.pos == in_before && target.pos == out_before)
                return ZSTD_TOO_SHORT;
        }
    }
    /* What is left may be a block's or a frame's end, which gives no bytes. */
    for (;;) {
        uint8_t spare;
        zstd_out target = {&spare, 1, 0};
        size_t before = in.pos;
        size_t code = s->decompress(s->context, &target, &in);
        if (s->is_error(code))
            return library_error(code);
        note_place(s, code, in.pos - before);
        if (target.pos)
            return ZSTD_TOO_LONG;
        if (in.pos == before || in.pos == in.size)
            return 0;
    }
}

/* What `multifd_zstd_gather` makes, told by its length: a frame that holds anything else is shorter, or longer. */
int64_t multifd_zstd_scatter(void *state, uint64_t length, uint8_t *const *pages, uint32_t count, uint8_t *payload,
                             struct iovec *pieces, uint32_t room)
{
    zstd_receiver *s = state;
    uint64_t page_bytes = (uint64_t)count * s->page_size;
    if (*s->is_inside || length != raw_heads(page_bytes) + page_bytes || 2 * count > room)
        return MULTIFD_NATIVE_DECLINED;
    return raw_frame(s->page_size, (const uint8_t *const *)pages, count, payload, 1, pieces);
}
