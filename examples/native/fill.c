/* Hooks in native code of the method in multifd_fill.py: a page that is one byte over and over becomes that byte. */
#include <string.h>

#include "native.h" /* multifd/pump/native.h */

typedef struct {
    uint32_t page_size;
    uint64_t filled; /* pages that became one byte, counted up */
} fill_state;

enum { WHOLE = 0, FILLED = 1 }; /* what stands before each page in a payload */
enum { CUT = -2, UNKNOWN = -3, TOO_LONG = -4 };

int64_t fill_send(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity)
{
    fill_state *s = state;
    uint8_t *at = out;
    if (capacity < (uint64_t)count * (1 + s->page_size))
        return MULTIFD_NATIVE_DECLINED;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *copy = at + 1;
        memcpy(copy, pages[i], s->page_size); /* read once: the guest may be writing to it */
        *at = memcmp(copy, copy + 1, s->page_size - 1) ? WHOLE : FILLED;
        s->filled += *at;
        at = copy + (*at == FILLED ? 1 : s->page_size);
    }
    return at - out;
}

int64_t fill_recv(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages, uint32_t count)
{
    const fill_state *s = state;
    const uint8_t *at = payload, *end = payload + length;
    for (uint32_t i = 0; i < count; i++) {
        if (at == end)
            return CUT;
        uint8_t kind = *at++;
        if (kind > FILLED)
            return UNKNOWN;
        size_t bytes = kind == FILLED ? 1 : s->page_size;
        if ((size_t)(end - at) < bytes)
            return CUT;
        if (kind == FILLED)
            memset(pages[i], *at, s->page_size);
        else
            memcpy(pages[i], at, bytes);
        at += bytes;
    }
    return at == end ? 0 : TOO_LONG;
}
