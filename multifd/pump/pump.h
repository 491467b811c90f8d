/*
 * The packet pump: many packets of a channel in one call, without the interpreter.
 *
 * Rules of these files (memory.c, send.c, recv.c, splice.c):
 *  - The Python path (multifd/engine) is the reference. Here is only what goes well: whatever is out of the ordinary,
 *    a header that is not plainly right, a page that cannot be read, a hook that declines, is left untouched and
 *    given back, and the reference does it or finds the words for it.
 *  - A call moves as much as it can until it is told to stop: nothing left, a packet for the reference, the abort byte,
 *    a deadline, a budget of bytes, or a socket that has nothing for as long as its timeout.
 *  - All progress is in the structure, so the next call goes on in the middle of a packet.
 *  - Each structure belongs to one channel and thread. Nothing is allocated here.
 *  - Memory that may have gone is touched only after the kernel was asked (pump_first_unreadable, pump_first_unwritable).
 */
#ifndef MULTIFD_PUMP_H
#define MULTIFD_PUMP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "native.h"

/* The wire: multifd/wire/packet.py has the sources. */
enum {
    PUMP_MAGIC = 0x11223344,
    PUMP_VERSION = 1,
    PUMP_FLAG_SYNC = 0x01,
    PUMP_METHOD_MASK = 0x3e,
    PUMP_PREFIX_BYTES = 12,
    PUMP_HEADER_BYTES = 320, /* before the offsets */
    PUMP_IDSTR = 64,
    PUMP_IDSTR_BYTES = 256,
    PUMP_MOST_PAGES = 128 /* in a packet: 512 KiB of pages of 4 KiB */
};

/* Where the pages of a block lie. */
enum {
    PUMP_MEMORY,  /* at `base`, and its pages are there to stay */
    PUMP_CHECKED, /* at `base`, but a page may be protected or gone: the kernel is asked before it is touched */
    PUMP_WINDOW,  /* at `base`, for system calls alone */
    PUMP_FILE,    /* in `file` from `start` on */
    PUMP_ZERO,    /* nowhere: all are zero */
    PUMP_FOREIGN  /* where only the reference gets at them */
};

typedef struct {
    int32_t kind;
    int32_t file;
    int64_t start;
    uint8_t *base;
    uint8_t *used; /* a receiver's: one byte a page, 0 if it was never touched, so is zero; NULL: not known */
    uint64_t used_length;
    const char *idstr;
    uint32_t idstr_bytes;
} pump_block;

/* Why a call returned. */
enum {
    PUMP_DONE,     /* sender: all packets of the batch are out */
    PUMP_BOUND,    /* the deadline, the budget or the log is used up: call again */
    PUMP_WAIT,     /* the socket was silent for its timeout, or the abort byte is set: look around, call again */
    PUMP_HEADER,   /* receiver: `header` has `header_got` bytes for the reference to look at */
    PUMP_END,      /* receiver: the peer has closed, with `header_got` bytes of a header or `payload_got` of a payload */
    PUMP_BROKEN,   /* the socket has failed with `error` */
    PUMP_DECLINED, /* the packet, of which nothing was done, is the reference's; receiver: its payload is here */
    PUMP_FAILED,   /* the hook said `hook_result` */
    PUMP_STORE,    /* receiver: the packet's pages are in `staging`, the file did not take them */
    PUMP_CLEAR     /* receiver: the packet's normal pages are in place, its zero pages could not be looked at */
};

typedef struct {
    /* Set once. */
    int32_t socket, sink; /* sink: a memfd of its own for pump_first_unreadable, -1 without need */
    uint32_t page_size, page_count;
    uint32_t code;
    uint8_t zero_in_packets; /* whether the destination takes zero pages in packets */
    uint64_t capacity;       /* of `out` */
    int64_t patience_ns;     /* how long a call may take before it looks for an end */
    multifd_native_send hook; /* NULL: the payload is the pages */
    multifd_native_gather gather; /* NULL: the hook copies every payload */
    void *hook_state;
    const uint8_t *abort;
    uint8_t *header, *out, *staging;
    const uint8_t **pages; /* page_count */
    struct iovec *iov;     /* 2 * page_count + 2 */
    /* Set for each batch: packets of one block, `counts` pages each, one after the other in `offsets`. */
    const pump_block *block;
    const int64_t *offsets;
    const uint32_t *counts;
    uint8_t *is_zero; /* one byte a page, written here */
    uint32_t packets;
    uint64_t packet_num; /* of the first */
    uint64_t budget;     /* bytes that may still be sent in this call */
    /* Progress. */
    uint32_t packet, first_page; /* of the batch: which is next, and where its pages begin */
    uint32_t iov_at, iov_count;  /* what is still to be sent of it */
    uint32_t packet_normal, packet_zero;
    /* For the caller. */
    uint64_t bytes, normal_pages, zero_pages; /* counted up */
    int32_t error;
    int64_t hook_result;
} pump_sender;

typedef struct {
    /* Set once. */
    int32_t socket, sink;
    uint32_t page_size, page_count;
    uint64_t capacity; /* of `payload` */
    int64_t patience_ns;
    const uint8_t *abort;
    uint8_t *header, *staging;
    uint8_t **pages;   /* page_count */
    struct iovec *iov; /* 4 * page_count + 2 */
    pump_block *blocks;
    uint32_t block_count;
    /* What arrives in files: an entry a page, for the owner of the file. */
    uint32_t log_room;
    uint32_t *log_block;
    int64_t *log_offset;
    uint8_t *log_is_zero;
    /* Set when the method is known; code -1: not yet. */
    int32_t code;
    multifd_native_recv hook; /* NULL: the payload is the pages */
    multifd_native_scatter scatter; /* NULL: every payload is read to `payload` */
    void *hook_state;
    uint8_t *payload;
    /* Progress. */
    uint32_t header_got;
    uint8_t in_payload;
    uint32_t block; /* of the packet */
    uint32_t normal, zero;
    uint64_t payload_due, payload_got;
    uint32_t pieces; /* in the second half of `iov`, of a payload that goes straight to the pages; 0: it does not */
    uint8_t heads[MULTIFD_NATIVE_HEADS]; /* what has to stand between the pages then */
    uint32_t log_count;
    /* For the caller. */
    uint64_t packets, bytes, normal_pages, zero_pages; /* counted up */
    int32_t error;
    int64_t hook_result;
} pump_receiver;

typedef struct {
    int32_t source, destination;
    uint32_t page_size, page_count, header_bytes;
    uint32_t code_in, code_out; /* of methods whose payload is the pages */
    int64_t patience_ns;
    const uint8_t *abort;
    uint8_t *buffer;
    uint32_t capacity; /* at least header_bytes */
    /* buffer[sent:due] may go on, buffer[due:at] was taken out, buffer[at:end] is still to be looked at. */
    uint32_t sent, due, at, end;
    uint32_t left; /* of the payload of the packet that is going on */
    /* For the caller. */
    uint64_t packets, normal_pages, zero_pages, bytes_in, bytes_out; /* counted up */
    int32_t error;
    uint8_t has_failed_out; /* the error is the destination's */
} pump_splice;

int pump_send(pump_sender *s);
void pump_skip(pump_sender *s);
int pump_receive(pump_receiver *r);
void pump_next(pump_receiver *r);
int pump_pass_on(pump_splice *p);

/* memory.c */
int pump_is_zero(const uint8_t *page, size_t bytes);
ssize_t pump_first_unreadable(int sink, const uint8_t *base, const int64_t *offsets, uint32_t count,
                              uint32_t page_size);
ssize_t pump_first_unwritable(int sink, uint8_t *base, const int64_t *offsets, uint32_t count, uint32_t page_size);
int64_t pump_now_ns(void);

/* Whether the migration is torn down: another thread sets the byte. */
static inline int pump_is_aborted(const uint8_t *abort)
{
    return __atomic_load_n(abort, __ATOMIC_RELAXED) != 0;
}

static inline uint32_t pump_get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint64_t pump_get64(const uint8_t *p)
{
    return (uint64_t)pump_get32(p) << 32 | pump_get32(p + 4);
}

static inline void pump_put32(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 24), p[1] = (uint8_t)(value >> 16), p[2] = (uint8_t)(value >> 8), p[3] = (uint8_t)value;
}

static inline void pump_put64(uint8_t *p, uint64_t value)
{
    pump_put32(p, (uint32_t)(value >> 32));
    pump_put32(p + 4, (uint32_t)value);
}

#endif
