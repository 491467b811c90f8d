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
    uint8_t *ring; /* of `ring_bytes`: what the channel sent last, private; at `*at` the next packet goes in */
    uint64_t ring_bytes, *at;
    uint32_t page_size;
} zstd_sender;

typedef struct {
    size_t (*decompress)(void *context, zstd_out *out, zstd_in *in);
    unsigned (*is_error)(size_t code);
    void *context;
    uint32_t page_size;
    uint64_t length; /* of the last payload, for the words of an error */
} zstd_receiver;

int64_t multifd_zstd_send(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity);
int64_t multifd_zstd_recv(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages, uint32_t count);

#endif
