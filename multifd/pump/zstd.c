/* zstd's hooks: pages into the channel's endless frame, and out of it. */
#include "zstd.h"

#include <string.h>

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
    if (bytes > s->ring_bytes)
        return MULTIFD_NATIVE_DECLINED;
    if (bytes > s->ring_bytes - *s->at)
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
        if (target.pos)
            return ZSTD_TOO_LONG;
        if (in.pos == before || in.pos == in.size)
            return 0;
    }
}
