/*
 * The layout of ISA-L's two structures, and a job that has them.
 *
 * Facts from include/igzip_lib.h of ISA-L 2.30.0 to 2.32.1 (BSD-3-Clause), the same in all of them; nothing of ISA-L is
 * included or linked. isal_library.py tries them on every ISA-L before it is used, with guards behind each structure.
 */
#ifndef MULTIFD_QPL_ISAL_H
#define MULTIFD_QPL_ISAL_H

#include "_batch.h"

enum {
    ISAL_HEADER_BYTES = 328,   /* the most of a block's header */
    ISAL_STREAM_BYTES = 82384, /* sizeof(struct isal_zstream) */
    ISAL_STATE_BYTES = 87368   /* sizeof(struct inflate_state) */
};

enum { ISAL_OK = 0, ISAL_END_INPUT = 1, ISAL_OUT_OVERFLOW = 2 };  /* results of both directions that are acted on */
enum { ISAL_BLOCK_CODED = 3, ISAL_BLOCK_FINISH = 5 };             /* enum isal_block_state, those that are needed */

/* The head of struct isal_hufftables: a block's header, of `count` whole bytes and `extra_bits` of the next one. */
typedef struct {
    uint8_t header[ISAL_HEADER_BYTES];
    uint32_t count, extra_bits;
} isal_code;

/* struct isal_zstream */
typedef struct {
    const uint8_t *next_in;
    uint32_t avail_in, total_in;
    uint8_t *next_out;
    uint32_t avail_out, total_out;
    const isal_code *hufftables;
    uint32_t level, level_buf_size;
    uint8_t *level_buf;
    uint16_t end_of_stream, flush, gzip_flag;
    uint16_t hist_bits;  /* log2 of the longest distance, 0 for 15 */
    uint8_t internal[ISAL_STREAM_BYTES - 64];
} isal_stream;

/* struct inflate_state */
typedef struct {
    uint8_t *next_out;
    uint32_t avail_out, total_out;
    const uint8_t *next_in;
    uint64_t read_in;
    uint32_t avail_in;
    int32_t read_in_length;
    uint8_t tables[21160 - 40];
    int32_t block_state;
    uint32_t dict_length, bfinal, crc_flag, crc, hist_bits;
    uint8_t internal[ISAL_STATE_BYTES - 21184];
} isal_state;

_Static_assert(sizeof(void *) != 8
                   || (offsetof(isal_stream, next_out) == 16 && offsetof(isal_stream, level) == 40
                       && offsetof(isal_stream, hist_bits) == 62 && sizeof(isal_stream) == ISAL_STREAM_BYTES),
               "the layout of isal_zstream");
_Static_assert(sizeof(void *) != 8
                   || (offsetof(isal_state, next_in) == 16 && offsetof(isal_state, read_in) == 24
                       && offsetof(isal_state, avail_in) == 32 && offsetof(isal_state, read_in_length) == 36
                       && offsetof(isal_state, block_state) == 21160 && sizeof(isal_state) == ISAL_STATE_BYTES),
               "the layout of inflate_state");

/*
 * What a structure that is larger than this says writes to, as a self-test shows. Never touched else, so that it takes
 * no memory.
 */
enum { ISAL_GUARD_BYTES = 64 * 1024 };

/* What a job learns `code` by; here, since what an ISA-L that is not as this says writes too much harms nothing here. */
enum { ISAL_SAMPLE_BYTES = 1024 };
typedef struct {
    uint8_t page[ISAL_SAMPLE_BYTES], stream[ISAL_SAMPLE_BYTES], again[ISAL_SAMPLE_BYTES], guard[ISAL_SAMPLE_BYTES];
} isal_sample;

/* A job that ISA-L does; made in zeroed memory. */
typedef struct {
    qpl_job job;
    mq_isal isal;
    isal_code code;  /* that streams of this ISA-L begin with; count 0 if there is none to be known by */
    isal_sample sample;
    _Alignas(64) isal_stream stream;
    uint8_t stream_guard[ISAL_GUARD_BYTES];
    _Alignas(64) isal_state state;  /* for any stream */
    uint8_t state_guard[ISAL_GUARD_BYTES];
    _Alignas(64) isal_state after;  /* for streams that begin with `code`: its tables are that code's */
    uint8_t after_guard[ISAL_GUARD_BYTES];
} isal_job;

#endif
