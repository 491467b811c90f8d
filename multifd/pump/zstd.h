/*
 * zstd's hooks in native code (native.h): what multifd/methods/_libzstd.py does for a packet, without the interpreter.
 *
 * libzstd is not linked: its functions come as pointers, from the library that the Python hooks call, so both work on
 * one context, packet by packet in any mixture.
 */
#ifndef MULTIFD_ZSTD_H
#define MULTIFD_ZSTD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Negative results; libzstd's own error codes, which are from -1 on downwards, lie below ZSTD_LIBRARY. */
enum {
    ZSTD_TOO_SHORT = -2, /* the payload ends before its pages do */
    ZSTD_TOO_LONG = -3,  /* it holds more than its pages */
    ZSTD_LIBRARY = -1000
};

/* ZSTD_inBuffer and ZSTD_outBuffer, zstd.h 1.4. */
typedef struct {
    const void *src;
    size_t size, pos;
} zstd_in;

typedef struct {
    void *dst;
    size_t size, pos;
} zstd_out;

typedef struct {
    size_t (*compress)(void *context, void *out, size_t capacity, const void *pages, size_t bytes);
    unsigned (*is_error)(size_t code);
    void *context;
    uint8_t *ring; /* of `*ring_bytes`: what the channel sent last, private; at `*at` the next packet goes in */
    uint64_t *ring_bytes, *at;
    uint32_t page_size;
} zstd_sender;

/* What the packets of one level took, until `settle` takes it: nanoseconds and bytes. */
typedef struct {
    int64_t left_ns, left_cpu_ns; /* when the last hook returned, by the clock and of the thread; 0: none has */
    int64_t hook_ns, hook_cpu_ns, gap_ns, gap_cpu_ns;
    uint64_t packets, page_bytes, payload_bytes;
} zstd_meter;

enum {
    ZSTD_CHANGING, /* the Python hook opens what comes next: every packet is declined */
    ZSTD_FRAME,    /* in an endless frame */
    ZSTD_RAW       /* each packet is a frame of its own, of blocks that are not compressed */
};

/* A channel whose level is chosen while it goes: between calls of the pump, by multifd/methods/_adaptive.py. */
typedef struct {
    zstd_sender frame;
    zstd_meter meter;
    uint8_t stage;       /* one of the above */
    uint8_t is_changing; /* the next packet is the last of its kind, and ends the frame: it may end only inside of one */
} zstd_adaptive;

typedef struct {
    size_t (*decompress)(void *context, zstd_out *out, zstd_in *in);
    unsigned (*is_error)(size_t code);
    void *context;
    uint8_t *is_inside; /* a frame that has not ended: what comes next is not another's beginning */
    uint32_t page_size;
    uint64_t length; /* of the last payload, for the words of an error */
} zstd_receiver;

int64_t multifd_zstd_send(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity);
int64_t multifd_zstd_adapt(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity);
int64_t multifd_zstd_gather(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity,
                            struct iovec *pieces, uint32_t room);
int64_t multifd_zstd_recv(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages, uint32_t count);
int64_t multifd_zstd_scatter(void *state, uint64_t length, uint8_t *const *pages, uint32_t count, uint8_t *payload,
                             struct iovec *pieces, uint32_t room);

#endif
