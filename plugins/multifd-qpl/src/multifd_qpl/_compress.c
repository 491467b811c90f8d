/* A packet at the sender: pages to streams. */
#include <string.h>

#include "_jobs.h"

/* Where the packet's payload grows: streams are packed at `packed`; raw pages stand in `pieces`, or are copied there. */
typedef struct {
    uint8_t *lengths;  /* the table, big-endian */
    uint8_t *packed;
    uint32_t used;
    const mq_run *runs;
    mq_piece *pieces;
    uint32_t piece_count;
} payload_t;

/*
 * A page by the software job into `out`; its length, or page_size if it goes raw. It does unless a quarter is saved, as
 * what saves less takes longest at both ends: with 49408 pages of files, a third of them incompressible, that is a
 * tenth of both ends' time for 2.9 % more bytes (ISA-L 2.32.1, 2026-11-30).
 */
static uint32_t shrink(mq_channel *c, uint32_t i, uint8_t *out)
{
    uint32_t room = c->page_size - c->page_size / 4;
    uint32_t status = mq_execute(c, MQ_COMPRESS, c->pages[i], c->page_size, out, room);
    uint32_t length = c->software->total_out;
    return status == ST_OK && length - 1 < room ? length : c->page_size;
}

/* What the device made of a page: the stream's length, page_size if it must go raw, 0 if it goes to software. */
static uint32_t stream_length(mq_channel *c, uint32_t i, uint32_t status)
{
    uint32_t length = c->hardware[i]->total_out;
    if (status == ST_NO_ROOM)
        return c->page_size;
    if (status == ST_OK && length - 1 < c->page_size - 1)
        return length;
    mq_fall_back(c, status == ST_BUSY ? ST_LOST : status);
    return 0;
}

/* Offer every page to the device. What it refuses is compressed here meanwhile. */
static void offer(mq_channel *c, uint32_t n, uint64_t *software)
{
    for (uint32_t i = 0; i < n && !mq_is_aborted(c); i++) {
        uint8_t *in = mq_slot(c, c->source, i), *out = mq_slot(c, c->out, i);
        uint32_t status;
        c->lengths[i] = 0;
        if (!mq_may_use_hardware(c, i))
            continue;
        memcpy(in, c->pages[i], c->page_size);
        status = mq_submit(c, i, MQ_COMPRESS, in, c->page_size, out, c->page_size - 1);
        if (status == ST_OK) {
            c->counters[SUBMITTED]++;
        } else if (status == ST_NO_ROOM) {
            c->lengths[i] = c->page_size;
        } else {
            mq_fall_back(c, status);
            c->lengths[i] = shrink(c, i, out);
            *software += c->lengths[i] < c->page_size;
        }
    }
}

/* Have the device decompress the stream that it made of a page; nobody reads what it writes, the CRC is enough. */
static int submit_proof(mq_channel *c, uint32_t i)
{
    uint32_t status = ST_LOST;
    if (!c->hardware_off)
        status = mq_submit(c, i, MQ_DECOMPRESS, mq_slot(c, c->out, i), c->lengths[i], mq_slot(c, c->proof, i),
                           c->page_size);
    if (status != ST_OK)
        mq_fall_back(c, status);
    return status == ST_OK;
}

/* Take what the device has compressed, and have it verified. */
static void prove(mq_channel *c, uint32_t n, uint64_t *software)
{
    for (uint32_t i = 0; i < n && !mq_is_aborted(c); i++) {
        uint32_t status;
        if (c->slots[i] != MQ_IN_FLIGHT)
            continue;
        status = mq_await(c, i);
        if (c->has_stuck)
            return;
        c->lengths[i] = stream_length(c, i, status);
        if (c->lengths[i] && c->lengths[i] < c->page_size && !submit_proof(c, i))
            c->lengths[i] = 0;
        if (!c->lengths[i]) {
            c->lengths[i] = shrink(c, i, mq_slot(c, c->out, i));
            *software += c->lengths[i] < c->page_size;
        }
    }
}

/* The end of a job in flight: the page's length, from the device or from software. */
static uint32_t take(mq_channel *c, uint32_t i, uint32_t status, uint64_t *completed, uint64_t *software)
{
    uint32_t length;
    if (c->verify)
        length = mq_is_sound(c, i, status, mq_slot(c, c->source, i)) ? c->lengths[i] : 0;
    else
        length = stream_length(c, i, status);
    if (length) {
        *completed += length < c->page_size;
        return length;
    }
    length = shrink(c, i, mq_slot(c, c->out, i));
    *software += length < c->page_size;
    return length;
}

static void add_piece(payload_t *p, int32_t run, uint32_t start, uint32_t length)
{
    mq_piece *last = p->piece_count ? p->pieces + p->piece_count - 1 : NULL;
    if (last && last->run == run && last->start + last->length == start)
        last->length += length;
    else
        p->pieces[p->piece_count++] = (mq_piece){run, start, length};
}

/* A stream, which is at the end of what is packed or in its slot. */
static void add_stream(payload_t *p, const uint8_t *stream, uint32_t length)
{
    uint8_t *end = p->packed + p->used;
    if (stream != end)
        memmove(end, stream, length);
    if (p->pieces)
        add_piece(p, -1, p->used, length);
    p->used += length;
}

static void add_raw(payload_t *p, const mq_channel *c, uint32_t i, uint32_t run, uint32_t page_of_run)
{
    if (p->pieces) {
        add_piece(p, (int32_t)run, page_of_run * c->page_size, c->page_size);
        return;
    }
    memcpy(p->packed + p->used, c->pages[i], c->page_size);
    p->used += c->page_size;
}

static void put_length(payload_t *p, uint32_t i, uint32_t length)
{
    uint8_t *entry = p->lengths + 4 * (size_t)i;
    entry[0] = (uint8_t)(length >> 24);
    entry[1] = (uint8_t)(length >> 16);
    entry[2] = (uint8_t)(length >> 8);
    entry[3] = (uint8_t)length;
}

/* No job may be in flight when a batch ends. */
static int end_early(mq_channel *c, uint32_t n)
{
    mq_await_rest(c, n);
    return mq_is_aborted(c) ? MQ_ABORTED : MQ_SILENT;
}

/* Compress the n pages of c->pages. */
static int fill(mq_channel *c, uint32_t n, payload_t *p)
{
    uint64_t completed = 0, software = 0, raw = 0;

    if (c->hardware) {
        mq_begin(c, n);
        offer(c, n, &software);
        if (c->verify)
            prove(c, n, &software);
        if (c->has_stuck || mq_is_aborted(c))
            return end_early(c, n);
    }
    for (uint32_t r = 0, k = 0, i = 0; i < n; i++, k++) {
        uint8_t *stream = mq_slot(c, c->out, i);
        uint32_t length;

        if (mq_is_aborted(c))
            return end_early(c, n);
        if (c->hardware && c->slots[i] == MQ_IN_FLIGHT) {
            uint32_t status = mq_await(c, i);
            if (c->has_stuck || mq_is_aborted(c))
                return end_early(c, n);
            length = take(c, i, status, &completed, &software);
        } else if (c->hardware && c->lengths[i]) {
            length = c->lengths[i];
        } else {
            stream = p->packed + p->used;
            length = shrink(c, i, stream);
            software += length < c->page_size;
        }
        while (p->runs && k == p->runs[r].page_count)
            r++, k = 0;
        if (length < c->page_size) {
            add_stream(p, stream, length);
        } else {
            add_raw(p, c, i, r, k);
            raw++;
        }
        put_length(p, i, length);
    }
    c->counters[COMPLETED] += completed;
    c->counters[SOFTWARE] += software;
    c->counters[RAW] += raw;
    return MQ_OK;
}

/*
 * Compress a packet. Streams are packed at the start of c->out, `lengths` (room for page_count entries) gets the
 * big-endian table, `pieces` (room for page_count) the payload behind it. Packing costs a move of the compressed
 * bytes (about 0.04 us a page here) and saves a buffer for each page, which costs more.
 *
 * MQ_SILENT: nothing was made; the slots and all jobs marked MQ_STUCK must stay for ever, the packet can be done
 * again with other slots and without hardware.
 */
int mq_compress(mq_channel *c, const mq_run *runs, uint32_t run_count, uint8_t *lengths, mq_piece *pieces,
                uint32_t *piece_count)
{
    const uint32_t n = mq_find_pages(c, runs, run_count);
    payload_t p = {.lengths = lengths, .packed = c->out, .runs = runs, .pieces = pieces};
    int result = n ? fill(c, n, &p) : MQ_MISUSE;

    *piece_count = result == MQ_OK ? p.piece_count : 0;
    return result;
}

/*
 * Compress the n pages of c->pages into one piece of n times a page and 4 bytes at most: the table, then every page; its
 * length is in `used`. Otherwise as mq_compress.
 */
int mq_compress_whole(mq_channel *c, uint32_t n, uint8_t *out, size_t *used)
{
    payload_t p = {.lengths = out, .packed = out + 4 * (size_t)n};
    int result = fill(c, n, &p);

    *used = 4 * (size_t)n + p.used;
    return result;
}
