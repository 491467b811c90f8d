/* What both directions ask of memory: whether a page can be read, whether it is zero. */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pump.h"

enum { KERNEL_PAGE = 4096, PIECES = 128 };

int64_t pump_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Whether `bytes`, a multiple of 256, are all zero. A page that is not mostly shows it in its first word. */
int pump_is_zero(const uint8_t *page, size_t bytes)
{
    uint64_t word;
    memcpy(&word, page, sizeof word);
    if (word)
        return 0;
    for (size_t at = 0; at < bytes; at += 256) {
        uint64_t words[32], any = 0;
        memcpy(words, page + at, sizeof words);
        for (int i = 0; i < 32; i++)
            any |= words[i];
        if (any)
            return 0;
    }
    return 1;
}

/* The first of `count` pages of which the kernel does not take, or write, a byte of each kernel page now, or -1. */
static ssize_t first_refused(ssize_t (*call)(int, const struct iovec *, int, off_t), int sink, const uint8_t *base,
                             const int64_t *offsets, uint32_t count, uint32_t page_size)
{
    uint32_t per_page = page_size / KERNEL_PAGE, total = count * per_page;
    for (uint32_t at = 0; at < total;) {
        struct iovec iov[PIECES];
        uint32_t some = total - at < PIECES ? total - at : PIECES;
        for (uint32_t i = 0; i < some; i++) {
            uint32_t piece = at + i;
            const uint8_t *page = base + offsets[piece / per_page];
            iov[i].iov_base = (uint8_t *)(uintptr_t)page + (size_t)(piece % per_page) * KERNEL_PAGE;
            iov[i].iov_len = 1;
        }
        ssize_t done = call(sink, iov, (int)some, 0);
        if (done != (ssize_t)some)
            return (ssize_t)((at + (done > 0 ? (uint32_t)done : 0)) / per_page);
        at += some;
    }
    return -1;
}

/* `sink` is a memfd, as pump/library.py opens it; multifd/ram/probe.py says why, and what else was tried. */
ssize_t pump_first_unreadable(int sink, const uint8_t *base, const int64_t *offsets, uint32_t count,
                              uint32_t page_size)
{
    return first_refused(pwritev, sink, base, offsets, count, page_size);
}

/* The same of pages that cannot be written; a byte of each is something else afterwards. */
ssize_t pump_first_unwritable(int sink, uint8_t *base, const int64_t *offsets, uint32_t count, uint32_t page_size)
{
    return first_refused(preadv, sink, base, offsets, count, page_size);
}
