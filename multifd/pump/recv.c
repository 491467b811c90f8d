/* Packets in: headers checked, payloads read straight to where they belong, or decoded there. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pump.h"

static size_t header_bytes(const pump_receiver *r)
{
    return PUMP_HEADER_BYTES + 8 * (size_t)r->page_count;
}

/* Read once. Positive: so many bytes. 0: the result is in `*why`. */
static size_t read_some(pump_receiver *r, struct iovec *iov, uint32_t pieces, int flags, int *why)
{
    for (;;) {
        if (pump_is_aborted(r->abort)) {
            *why = PUMP_WAIT;
            return 0;
        }
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = pieces};
        ssize_t got = recvmsg(r->socket, &message, flags);
        if (got > 0) {
            r->bytes += (uint64_t)got;
            return (size_t)got;
        }
        if (got < 0 && errno == EINTR)
            continue;
        if (!got)
            *why = pump_is_aborted(r->abort) ? PUMP_WAIT : PUMP_END; /* a tear-down shuts the socket, too */
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            *why = PUMP_WAIT;
        else
            *why = PUMP_BROKEN, r->error = errno;
        return 0;
    }
}

/* Whether the first bytes are those of a RAM packet of the method that is known; the reference says what else. */
static int is_ours(const pump_receiver *r)
{
    const uint8_t *h = r->header;
    return pump_get32(h) == PUMP_MAGIC && pump_get32(h + 4) == PUMP_VERSION && r->code >= 0
           && pump_get32(h + 8) == (uint32_t)r->code;
}

static const pump_block *find_block(pump_receiver *r)
{
    const uint8_t *idstr = r->header + PUMP_IDSTR;
    for (uint32_t i = 0; i < r->block_count; i++) {
        uint32_t at = (r->block + i) % r->block_count; /* mostly that of the packet before */
        const pump_block *b = &r->blocks[at];
        if (b->idstr_bytes < PUMP_IDSTR_BYTES && !memcmp(idstr, b->idstr, b->idstr_bytes) && !idstr[b->idstr_bytes]) {
            r->block = at;
            return b;
        }
    }
    return NULL;
}

/* Every bound of wire/packet.py. 0: the packet is the reference's, which finds the words if it is none. */
static int check(pump_receiver *r)
{
    const uint8_t *h = r->header;
    uint32_t alloc = pump_get32(h + 12), normal = pump_get32(h + 16), due = pump_get32(h + 20);
    uint32_t zero = pump_get32(h + 32);
    if (!is_ours(r) || alloc > r->page_count || normal > alloc || zero > alloc - normal || !(normal + zero))
        return 0;
    const pump_block *b = find_block(r);
    if (!b || b->kind == PUMP_FOREIGN || b->used_length < r->page_size)
        return 0;
    uint64_t limit = b->used_length - r->page_size, bits = 0, most = 0;
    for (uint32_t i = 0; i < normal + zero; i++) {
        uint64_t offset = pump_get64(h + PUMP_HEADER_BYTES + 8 * (size_t)i);
        bits |= offset;
        most = offset > most ? offset : most;
    }
    if (most > limit || bits & (r->page_size - 1))
        return 0;
    uint64_t nbytes = (uint64_t)normal * r->page_size;
    if (normal && r->hook && (!due || due > r->capacity))
        return 0;
    if (normal && !r->hook && due && due != nbytes)
        return 0;
    r->normal = normal, r->zero = zero;
    r->payload_due = !normal ? 0 : r->hook ? due : nbytes;
    return 1;
}

static int64_t offset_of(const pump_receiver *r, uint32_t i)
{
    return (int64_t)pump_get64(r->header + PUMP_HEADER_BYTES + 8 * (size_t)i);
}

/*
 * Set `pages`: where each normal page goes. In a file's staging they lie by rising offset, as they do in the file,
 * so that neighbours are written together: a QEMU moves zero pages to the end of a packet by swapping.
 */
static void place(pump_receiver *r, const pump_block *b)
{
    int in_order = 1;
    for (uint32_t i = 1; i < r->normal && in_order; i++)
        in_order = offset_of(r, i) > offset_of(r, i - 1);
    for (uint32_t i = 0; i < r->normal; i++) {
        if (b->kind != PUMP_FILE) {
            r->pages[i] = b->base + offset_of(r, i);
            continue;
        }
        uint32_t rank = i;
        if (!in_order) {
            rank = 0;
            for (uint32_t j = 0; j < r->normal; j++)
                rank += offset_of(r, j) < offset_of(r, i) || (offset_of(r, j) == offset_of(r, i) && j < i);
        }
        r->pages[i] = r->staging + (size_t)rank * r->page_size;
    }
}

/* Pieces of a verbatim payload from byte `from` on. */
static uint32_t aim(pump_receiver *r, uint64_t from)
{
    uint32_t pieces = 0;
    for (uint32_t i = (uint32_t)(from / r->page_size); i < r->normal;) {
        uint32_t first = i++;
        while (i < r->normal && r->pages[i] == r->pages[i - 1] + r->page_size)
            i++;
        size_t skip = pieces ? 0 : from % r->page_size;
        r->iov[pieces++] = (struct iovec){r->pages[first] + skip, (size_t)(i - first) * r->page_size - skip};
    }
    return pieces;
}

static void mark_used(pump_receiver *r, const pump_block *b)
{
    for (uint32_t i = 0; b->used && i < r->normal; i++)
        b->used[offset_of(r, i) / r->page_size] = 1;
}

/* Whether one of the packet's pages cannot be read; or, if all of them are to be written, cannot be written. */
static int is_gone(pump_receiver *r, const pump_block *b, int is_to_write)
{
    int64_t offsets[PUMP_MOST_PAGES];
    if (b->kind != PUMP_CHECKED)
        return 0;
    for (uint32_t i = 0; i < r->normal; i++)
        offsets[i] = offset_of(r, i);
    return (is_to_write ? pump_first_unwritable(r->sink, b->base, offsets, r->normal, r->page_size)
                        : pump_first_unreadable(r->sink, b->base, offsets, r->normal, r->page_size)) >= 0;
}

/* Copy what stands between the pages of the payload to `heads`, or compare it: 0 if it is the same. */
static int look_at_heads(pump_receiver *r, int is_copy)
{
    const struct iovec *piece = r->iov + 2 * r->page_count + 1;
    uint64_t at = 0, done = 0;
    int difference = 0;
    for (uint32_t i = 0; i < r->pieces; at += piece[i++].iov_len) {
        if (piece[i].iov_base != r->payload + at)
            continue;
        if (is_copy)
            memcpy(r->heads + done, r->payload + at, piece[i].iov_len);
        else
            difference |= memcmp(r->heads + done, r->payload + at, piece[i].iov_len);
        done += piece[i].iov_len;
    }
    return difference;
}

/*
 * Ask the method whether its payload, of which nothing is here yet, may go straight to the pages. Whether these can be
 * written to is the kernel's to say, when it does.
 */
static void scatter(pump_receiver *r)
{
    uint64_t page_bytes = (uint64_t)r->normal * r->page_size;
    r->pieces = 0;
    if (!r->normal || !r->hook || !r->scatter || r->payload_due < page_bytes
        || r->payload_due - page_bytes > sizeof r->heads)
        return;
    for (uint32_t i = 1; i < r->normal; i++)
        if (offset_of(r, i) <= offset_of(r, i - 1))
            return; /* a page that came twice could not be gathered again */
    struct iovec *pieces = r->iov + 2 * r->page_count + 1;
    uint32_t room = 2 * r->normal + 1;
    int64_t got = r->scatter(r->hook_state, r->payload_due, r->pages, r->normal, r->payload, pieces, room);
    if (got <= 0 || got > room)
        return;
    r->pieces = (uint32_t)got;
    look_at_heads(r, 1);
}

/* What was read straight to the pages comes to its place in the payload. */
static void gather(pump_receiver *r)
{
    const struct iovec *piece = r->iov + 2 * r->page_count + 1;
    uint64_t at = 0;
    for (uint32_t i = 0; i < r->pieces; at += piece[i++].iov_len)
        if (piece[i].iov_base != r->payload + at)
            memcpy(r->payload + at, piece[i].iov_base, piece[i].iov_len);
    r->pieces = 0;
}

/* Pieces of a scattered payload from byte `from` on. */
static uint32_t aim_scattered(pump_receiver *r, uint64_t from)
{
    const struct iovec *piece = r->iov + 2 * r->page_count + 1;
    uint32_t pieces = 0;
    for (uint32_t i = 0; i < r->pieces; i++) {
        size_t skip = from < piece[i].iov_len ? (size_t)from : piece[i].iov_len;
        from -= skip;
        if (skip < piece[i].iov_len)
            r->iov[pieces++] = (struct iovec){(uint8_t *)piece[i].iov_base + skip, piece[i].iov_len - skip};
    }
    return pieces;
}

static int read_payload(pump_receiver *r)
{
    while (r->payload_got < r->payload_due) {
        uint32_t pieces = 1;
        if (r->pieces)
            pieces = aim_scattered(r, r->payload_got);
        else if (r->hook)
            r->iov[0] = (struct iovec){r->payload + r->payload_got, (size_t)(r->payload_due - r->payload_got)};
        else
            pieces = aim(r, r->payload_got);
        int why = PUMP_DONE;
        size_t got = read_some(r, r->iov, pieces, MSG_WAITALL, &why);
        if (!got)
            return why;
        r->payload_got += got;
    }
    return PUMP_DONE;
}

static int write_all(int file, struct iovec *iov, uint32_t pieces, int64_t at)
{
    for (uint32_t i = 0; i < pieces; i++) {
        uint8_t *from = iov[i].iov_base;
        for (size_t left = iov[i].iov_len; left;) {
            ssize_t done = pwrite(file, from, left, at);
            if (done < 0 && errno == EINTR)
                continue;
            if (done <= 0)
                return 0;
            from += done, at += done, left -= (size_t)done;
        }
    }
    return 1;
}

/* From staging into the file, a write for each run of neighbours. The pages' ranks say which these are. */
static int store(pump_receiver *r, const pump_block *b)
{
    int64_t by_rank[PUMP_MOST_PAGES];
    for (uint32_t i = 0; i < r->normal; i++)
        by_rank[(size_t)(r->pages[i] - r->staging) / r->page_size] = offset_of(r, i);
    for (uint32_t i = 0; i < r->normal;) {
        uint32_t first = i++;
        while (i < r->normal && by_rank[i] == by_rank[i - 1] + r->page_size)
            i++;
        struct iovec run = {r->staging + (size_t)first * r->page_size, (size_t)(i - first) * r->page_size};
        if (!write_all(b->file, &run, 1, b->start + by_rank[first]))
            return 0;
    }
    return 1;
}

static int clear(pump_receiver *r, const pump_block *b)
{
    int64_t offsets[PUMP_MOST_PAGES] = {0};
    uint32_t count = 0;
    for (uint32_t i = 0; i < r->zero; i++) {
        int64_t offset = offset_of(r, r->normal + i);
        if (!b->used || b->used[offset / r->page_size])
            offsets[count++] = offset;
    }
    if (b->kind == PUMP_CHECKED && pump_first_unreadable(r->sink, b->base, offsets, count, r->page_size) >= 0)
        return 0;
    uint32_t dirty = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!pump_is_zero(b->base + offsets[i], r->page_size))
            offsets[dirty++] = offsets[i];
    if (b->kind == PUMP_CHECKED && pump_first_unwritable(r->sink, b->base, offsets, dirty, r->page_size) >= 0)
        return 0;
    for (uint32_t i = 0; i < dirty; i++)
        memset(b->base + offsets[i], 0, r->page_size);
    return 1;
}

/* The payload is here: put it where it belongs. */
static int take(pump_receiver *r, const pump_block *b)
{
    int is_scattered = r->pieces && !look_at_heads(r, 0);
    if (r->normal && r->hook && !is_scattered) {
        if (r->pieces && is_gone(r, b, 0)) {
            r->error = EFAULT; /* what arrived is lost with it: nobody else could finish the packet */
            return PUMP_BROKEN;
        }
        gather(r); /* before the pages are tried, which changes them */
        if (is_gone(r, b, 1))
            return PUMP_DECLINED;
        int64_t result = r->hook(r->hook_state, r->payload, r->payload_due, r->pages, r->normal);
        if (result) {
            r->hook_result = result;
            return result == MULTIFD_NATIVE_DECLINED ? PUMP_DECLINED : PUMP_FAILED;
        }
    }
    if (b->kind == PUMP_FILE) {
        if (!store(r, b))
            return PUMP_STORE;
        for (uint32_t i = 0; i < r->normal + r->zero; i++) {
            r->log_block[r->log_count] = r->block;
            r->log_offset[r->log_count] = offset_of(r, i);
            r->log_is_zero[r->log_count++] = i >= r->normal;
        }
    }
    return PUMP_DONE;
}

static int read_header(pump_receiver *r)
{
    while (r->header_got < header_bytes(r)) {
        struct iovec rest = {r->header + r->header_got, header_bytes(r) - r->header_got};
        int why = PUMP_DONE;
        size_t got = read_some(r, &rest, 1, 0, &why);
        if (!got)
            return why;
        r->header_got += (uint32_t)got;
        if (r->header_got >= PUMP_PREFIX_BYTES && !is_ours(r))
            return PUMP_HEADER; /* what is no packet may be shorter than one */
    }
    return PUMP_DONE;
}

/*
 * Receive until something is the caller's. After PUMP_HEADER, PUMP_DECLINED, PUMP_FAILED and PUMP_STORE the packet in
 * `header` is the caller's to finish, then pump_next.
 */
int pump_receive(pump_receiver *r)
{
    int64_t end = pump_now_ns() + r->patience_ns;
    for (;;) {
        int why;
        if (!r->in_payload) {
            if (r->log_count + r->page_count > r->log_room)
                return PUMP_BOUND;
            if ((why = read_header(r)) != PUMP_DONE)
                return why;
            if (!check(r))
                return PUMP_HEADER;
            const pump_block *b = &r->blocks[r->block];
            place(r, b);
            mark_used(r, b);
            r->payload_got = 0;
            r->in_payload = 1;
            scatter(r);
        }
        const pump_block *b = &r->blocks[r->block];
        if ((why = read_payload(r)) != PUMP_DONE)
            return why;
        if ((why = take(r, b)) != PUMP_DONE)
            return why;
        if (r->zero && b->kind != PUMP_FILE && !clear(r, b))
            return PUMP_CLEAR;
        r->normal_pages += r->normal;
        r->zero_pages += r->zero;
        r->packets++;
        pump_next(r);
        if (pump_now_ns() > end)
            return PUMP_BOUND;
    }
}

/* The packet is done, by whomever. */
void pump_next(pump_receiver *r)
{
    r->header_got = 0;
    r->in_payload = 0;
}
