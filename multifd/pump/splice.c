/* A relay's channel: packets whose payload is the pages go on from one socket to another as they come. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "pump.h"

/* Write what may go on. */
static int flush(pump_splice *p)
{
    while (p->sent < p->due) {
        if (pump_is_aborted(p->abort))
            return PUMP_WAIT;
        ssize_t done = send(p->destination, p->buffer + p->sent, p->due - p->sent, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return PUMP_WAIT;
        if (done < 0) {
            p->error = errno, p->has_failed_out = 1;
            return PUMP_BROKEN;
        }
        p->sent += (uint32_t)done;
        p->bytes_out += (uint64_t)done;
    }
    return PUMP_DONE;
}

/* Have more to look at than now; everything before it has gone on. */
static int read_more(pump_splice *p)
{
    int why = flush(p);
    if (why != PUMP_DONE)
        return why;
    memmove(p->buffer, p->buffer + p->at, p->end - p->at);
    p->end -= p->at;
    p->sent = p->due = p->at = 0;
    for (;;) {
        if (pump_is_aborted(p->abort))
            return PUMP_WAIT;
        ssize_t got = recv(p->source, p->buffer + p->end, p->capacity - p->end, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return PUMP_WAIT;
        if (got < 0) {
            p->error = errno, p->has_failed_out = 0;
            return PUMP_BROKEN;
        }
        if (!got)
            return PUMP_END;
        p->end += (uint32_t)got;
        p->bytes_in += (uint64_t)got;
        return PUMP_DONE;
    }
}

/* Whether the first bytes are those of a RAM packet of the method that is known; the reference says what else. */
static int is_ours(const pump_splice *p)
{
    const uint8_t *h = p->buffer + p->at;
    return pump_get32(h) == PUMP_MAGIC && pump_get32(h + 4) == PUMP_VERSION && pump_get32(h + 8) == p->code_in;
}

/* A header of pages by the method that is known, whatever blocks and offsets, which are the destination's to check. */
static int take_header(pump_splice *p)
{
    uint8_t *h = p->buffer + p->at;
    uint32_t alloc = pump_get32(h + 12), normal = pump_get32(h + 16);
    uint32_t due = pump_get32(h + 20), zero = pump_get32(h + 32);
    if (!is_ours(p) || alloc > p->page_count || !normal || normal > alloc || zero > alloc - normal)
        return 0;
    uint32_t nbytes = normal * p->page_size; /* at most 512 KiB */
    if (due && due != nbytes)
        return 0;
    pump_put32(h + 8, p->code_out);
    pump_put32(h + 20, nbytes);
    p->at += p->header_bytes;
    p->due = p->at;
    p->left = nbytes;
    p->packets++;
    p->normal_pages += normal;
    p->zero_pages += zero;
    return 1;
}

/* PUMP_HEADER: what comes next in the buffer, and nothing of it has gone on, is the reference's. */
int pump_pass_on(pump_splice *p)
{
    int64_t end = pump_now_ns() + p->patience_ns;
    for (;;) {
        uint32_t have = p->end - p->at;
        int why = PUMP_DONE;
        if (p->left && have) {
            uint32_t step = p->left < have ? p->left : have;
            p->at += step, p->due = p->at, p->left -= step;
        } else if (!p->left && have >= p->header_bytes) {
            if (!take_header(p))
                return PUMP_HEADER;
        } else if (!p->left && have >= PUMP_PREFIX_BYTES && !is_ours(p)) {
            return PUMP_HEADER; /* what is no packet may be shorter than one */
        } else if ((why = read_more(p)) != PUMP_DONE) {
            return why;
        } else if (pump_now_ns() > end) {
            return PUMP_BOUND;
        }
    }
}
