/* Packets out: pages looked at, encoded, and written with their headers. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pump.h"

static int pread_all(int file, uint8_t *to, size_t bytes, int64_t at)
{
    while (bytes) {
        ssize_t got = pread(file, to, bytes, at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        to += got, at += got, bytes -= (size_t)got;
    }
    return 1;
}

/* The pages of a packet from a file into `staging`: 1, 0 if they cannot be read, -1 if all lie in a hole. */
static int read_file(pump_sender *s, const int64_t *offsets, uint32_t count)
{
    const pump_block *b = s->block;
    int64_t end = b->start + offsets[count - 1] + s->page_size;
    off_t data = lseek(b->file, b->start + offsets[0], SEEK_DATA);
    if (data >= end)
        return -1;
    if (data < 0 && errno == ENXIO)
        return lseek(b->file, 0, SEEK_END) < end ? 0 : -1; /* the file may have become shorter */
    for (uint32_t i = 0; i < count;) {
        uint32_t first = i++;
        while (i < count && offsets[i] == offsets[i - 1] + s->page_size)
            i++;
        if (!pread_all(b->file, s->staging + (size_t)first * s->page_size, (size_t)(i - first) * s->page_size,
                       b->start + offsets[first]))
            return 0;
    }
    return 1;
}

/* Set `pages`, and `is_zero` for each; 0 if the reference must look at them. */
static int load(pump_sender *s, const int64_t *offsets, uint32_t count, uint8_t *is_zero)
{
    const pump_block *b = s->block;
    int has_pages = 1;
    switch (b->kind) {
    case PUMP_CHECKED:
        if (pump_first_unreadable(s->sink, b->base, offsets, count, s->page_size) >= 0)
            return 0;
        break;
    case PUMP_MEMORY:
    case PUMP_WINDOW:
        break;
    case PUMP_FILE:
        if (!(has_pages = read_file(s, offsets, count)))
            return 0;
        break;
    case PUMP_ZERO:
        has_pages = -1;
        break;
    default:
        return 0;
    }
    if (has_pages < 0) {
        memset(is_zero, 1, count);
        return 1;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *page = b->kind == PUMP_FILE ? s->staging + (size_t)i * s->page_size : b->base + offsets[i];
        is_zero[i] = b->kind != PUMP_WINDOW && (uint8_t)pump_is_zero(page, s->page_size);
        s->pages[i] = page;
    }
    return 1;
}

static void encode(pump_sender *s, const int64_t *offsets, uint32_t count, const uint8_t *is_zero, uint64_t payload)
{
    uint8_t *h = s->header;
    const pump_block *b = s->block;
    uint32_t zero = s->zero_in_packets ? s->packet_zero : 0;
    memset(h, 0, PUMP_HEADER_BYTES + 8 * (size_t)s->page_count);
    pump_put32(h, PUMP_MAGIC);
    pump_put32(h + 4, PUMP_VERSION);
    pump_put32(h + 8, s->code);
    pump_put32(h + 12, s->page_count);
    pump_put32(h + 16, s->packet_normal);
    pump_put32(h + 20, (uint32_t)payload);
    pump_put64(h + 24, s->packet_num + s->packet);
    pump_put32(h + 32, zero);
    memcpy(h + PUMP_IDSTR, b->idstr, b->idstr_bytes);
    uint8_t *normal_at = h + PUMP_HEADER_BYTES, *zero_at = normal_at + 8 * (size_t)s->packet_normal;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t **at = is_zero[i] ? &zero_at : &normal_at;
        if (is_zero[i] && !zero)
            continue;
        pump_put64(*at, (uint64_t)offsets[i]);
        *at += 8;
    }
}

/* The pages themselves. */
static uint32_t gather_pages(pump_sender *s, uint32_t count)
{
    uint32_t pieces = 1;
    for (uint32_t i = 0; i < count;) {
        uint32_t first = i++;
        while (i < count && s->pages[i] == s->pages[i - 1] + s->page_size)
            i++;
        s->iov[pieces++] = (struct iovec){(void *)(uintptr_t)s->pages[first], (size_t)(i - first) * s->page_size};
    }
    return pieces;
}

/* The method's payload of `normal` pages, behind the place of the header: PUMP_DONE, or why not. */
static int run_hook(pump_sender *s, uint32_t normal, uint32_t *pieces)
{
    uint32_t room = 2 * normal + 1;
    if (s->gather) {
        int64_t got = s->gather(s->hook_state, s->pages, normal, s->out, s->capacity, s->iov + 1, room);
        if (got != MULTIFD_NATIVE_DECLINED) {
            *pieces = 1 + (uint32_t)got;
            s->hook_result = got;
            return got > 0 && got <= room ? PUMP_DONE : PUMP_FAILED;
        }
    }
    if (s->block->kind == PUMP_CHECKED)
        for (uint32_t i = 0; i < normal; i++) {
            /* Somebody writes to it, and may protect it, while the hook is at work. */
            uint8_t *copy = s->staging + (size_t)i * s->page_size;
            memcpy(copy, s->pages[i], s->page_size);
            s->pages[i] = copy;
        }
    int64_t made = s->hook(s->hook_state, s->pages, normal, s->out, s->capacity);
    if (made == MULTIFD_NATIVE_DECLINED)
        return PUMP_DECLINED;
    s->hook_result = made;
    s->iov[1] = (struct iovec){s->out, (size_t)made};
    *pieces = 2;
    return made > 0 ? PUMP_DONE : PUMP_FAILED;
}

/* Make the next packet ready in `iov`, which stays empty if there is nothing to send of it. */
static int prepare(pump_sender *s)
{
    const int64_t *offsets = s->offsets + s->first_page;
    uint8_t *is_zero = s->is_zero + s->first_page;
    uint32_t count = s->counts[s->packet];
    if (!count || count > s->page_count || s->block->idstr_bytes >= PUMP_IDSTR_BYTES
        || !load(s, offsets, count, is_zero))
        return PUMP_DECLINED;
    uint32_t normal = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!is_zero[i])
            s->pages[normal++] = s->pages[i];
    s->packet_normal = normal, s->packet_zero = count - normal;
    s->iov_at = s->iov_count = 0;
    if (!normal && !s->zero_in_packets)
        return PUMP_DONE;
    uint32_t pieces = 1;
    if (normal && s->hook) {
        int result = run_hook(s, normal, &pieces);
        if (result != PUMP_DONE)
            return result;
    } else {
        pieces = gather_pages(s, normal);
    }
    uint64_t payload = 0;
    for (uint32_t i = 1; i < pieces; i++)
        payload += s->iov[i].iov_len;
    if (normal && s->hook && (!payload || payload > s->capacity)) {
        s->hook_result = (int64_t)payload;
        return PUMP_FAILED;
    }
    encode(s, offsets, count, is_zero, payload);
    s->iov[0] = (struct iovec){s->header, PUMP_HEADER_BYTES + 8 * (size_t)s->page_count};
    s->iov_count = pieces;
    return PUMP_DONE;
}

/* Write what is ready. PUMP_DONE: all of it. */
static int flush(pump_sender *s)
{
    while (s->iov_at < s->iov_count) {
        if (pump_is_aborted(s->abort))
            return PUMP_WAIT;
        if (!s->budget)
            return PUMP_BOUND;
        struct msghdr message = {.msg_iov = s->iov + s->iov_at, .msg_iovlen = s->iov_count - s->iov_at};
        size_t kept = 0;
        struct iovec *cut = NULL;
        uint64_t sum = 0;
        for (uint32_t i = s->iov_at; i < s->iov_count; i++) {
            sum += s->iov[i].iov_len;
            if (sum > s->budget) { /* the rest waits for its share of the bandwidth */
                cut = &s->iov[i];
                kept = (size_t)(sum - s->budget);
                cut->iov_len -= kept;
                message.msg_iovlen = i + 1 - s->iov_at;
                break;
            }
        }
        ssize_t sent = sendmsg(s->socket, &message, MSG_NOSIGNAL);
        int error = errno;
        if (cut)
            cut->iov_len += kept;
        if (sent < 0) {
            if (error == EINTR)
                continue;
            if (error == EAGAIN || error == EWOULDBLOCK)
                return PUMP_WAIT;
            s->error = error;
            return PUMP_BROKEN;
        }
        s->bytes += (uint64_t)sent;
        s->budget -= (uint64_t)sent;
        size_t left = (size_t)sent;
        while (s->iov_at < s->iov_count && left >= s->iov[s->iov_at].iov_len)
            left -= s->iov[s->iov_at++].iov_len;
        if (left) {
            struct iovec *piece = &s->iov[s->iov_at];
            piece->iov_base = (uint8_t *)piece->iov_base + left;
            piece->iov_len -= left;
        }
    }
    return PUMP_DONE;
}

/*
 * Send the batch on from where the last call stopped. After PUMP_DECLINED and PUMP_FAILED nothing of `packet` is out;
 * the caller goes on with the next by pump_skip.
 */
int pump_send(pump_sender *s)
{
    int64_t end = pump_now_ns() + s->patience_ns;
    while (s->packet < s->packets) {
        if (s->iov_at == s->iov_count) {
            if (pump_is_aborted(s->abort))
                return PUMP_WAIT;
            int result = prepare(s);
            if (result != PUMP_DONE)
                return result;
        }
        int result = flush(s);
        if (result != PUMP_DONE)
            return result;
        s->normal_pages += s->packet_normal;
        s->zero_pages += s->packet_zero;
        pump_skip(s);
        if (s->packet < s->packets && pump_now_ns() > end)
            return PUMP_BOUND;
    }
    return PUMP_DONE;
}

/* The packet is done, by whomever. */
void pump_skip(pump_sender *s)
{
    s->first_page += s->counts[s->packet++];
    s->iov_at = s->iov_count = 0;
}
