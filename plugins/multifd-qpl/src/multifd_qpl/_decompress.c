/* A packet at the receiver: streams to pages. */
#include <string.h>

#include "_jobs.h"

static uint32_t length_of(const uint8_t *payload, uint32_t i)
{
    const uint8_t *p = payload + 4 * (size_t)i;
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Whether the table says of the payload what is so, and no page has more than a page. */
static int is_table_right(const mq_channel *c, uint32_t n, const uint8_t *payload, size_t payload_length)
{
    size_t total = 4 * (size_t)n;
    if (payload_length < total)
        return 0;
    for (uint32_t i = 0; i < n; i++) {
        if (length_of(payload, i) > c->page_size)
            return 0;
        total += length_of(payload, i);
    }
    return total == payload_length;
}

/*
 * A page by the software job, through a slot with room to spare unless it keeps to its room. In doubt is what is no
 * page, and what leaves input: libqpl reads up to eight bytes behind an end mark and counts them as used, so more than
 * that is left.
 */
static uint32_t restore(mq_channel *c, uint32_t i, const uint8_t *stream, uint32_t length)
{
    const qpl_job *job = c->software;
    const int is_direct = c->table->keeps_room;
    uint8_t *out = is_direct ? c->pages[i] : mq_slot(c, c->out, c->hardware ? i : 0);
    uint32_t status = ST_OK, made = 0;

    if (length) {
        status = mq_execute(c, MQ_DECOMPRESS, stream, length, out, c->page_size + (is_direct ? 0 : MQ_ROOM_TO_SPARE));
        made = job->total_out;
        if (status == ST_OK && made == c->page_size && job->total_in == length) {
            if (!is_direct)
                memcpy(c->pages[i], out, c->page_size);
            return 1;
        }
    }
    c->doubts[c->doubt_count++] = (mq_doubt){i, status, made};
    return 0;
}

/* Whether the device takes a stream; what it refuses is decompressed here meanwhile. */
static int offer(mq_channel *c, uint32_t i, const uint8_t *stream, uint32_t length)
{
    uint8_t *in = mq_slot(c, c->source, i);
    uint32_t status;

    memcpy(in, stream, length);
    status = mq_submit(c, i, MQ_DECOMPRESS, in, length, mq_slot(c, c->out, i), c->page_size + MQ_ROOM_TO_SPARE);
    if (status == ST_OK)
        c->counters[SUBMITTED]++;
    else
        mq_fall_back(c, status);
    return status == ST_OK;
}

/*
 * Decompress a packet into the n pages of c->pages. `payload` begins with the length table.
 *
 * MQ_OK: all pages are filled but those of c->doubts, in no order, which the caller decodes by other means; the
 * counters do not count them. MQ_SILENT: some pages are filled; the slots and all jobs marked MQ_STUCK must stay
 * for ever, the packet can be done again with other slots and without hardware.
 */
int mq_decompress_found(mq_channel *c, uint32_t n, const uint8_t *payload, size_t payload_length)
{
    const uint8_t *in = payload + 4 * (size_t)n;
    uint64_t completed = 0, software = 0, raw = 0;

    c->doubt_count = 0;
    if (n == 0 || !is_table_right(c, n, payload, payload_length))
        return MQ_MISUSE;
    mq_begin(c, n);
    for (uint32_t i = 0; i < n && !mq_is_aborted(c); i++) {
        uint32_t length = length_of(payload, i);
        if (length == c->page_size) {
            memcpy(c->pages[i], in, length);
            raw++;
        } else if (!length || !mq_may_use_hardware(c, i) || !offer(c, i, in, length)) {
            software += restore(c, i, in, length);
        }
        in += length;
    }
    in = payload + 4 * (size_t)n;
    for (uint32_t i = 0; c->hardware && i < n && !mq_is_aborted(c) && !c->has_stuck; i++) {
        uint32_t length = length_of(payload, i);
        uint8_t *slot = mq_slot(c, c->out, i);
        if (c->slots[i] == MQ_IN_FLIGHT) {
            uint32_t status = mq_await(c, i);
            if (c->has_stuck || mq_is_aborted(c))
                break;
            if (mq_is_sound(c, i, status, slot)) {
                memcpy(c->pages[i], slot, c->page_size);
                completed++;
            } else {
                software += restore(c, i, in, length);
            }
        }
        in += length;
    }
    if (mq_is_aborted(c) || (c->hardware && c->has_stuck)) {
        mq_await_rest(c, n);
        return mq_is_aborted(c) ? MQ_ABORTED : MQ_SILENT;
    }
    c->counters[COMPLETED] += completed;
    c->counters[SOFTWARE] += software;
    c->counters[RAW] += raw;
    return MQ_OK;
}

/* The same with the pages of these runs. */
int mq_decompress(mq_channel *c, const mq_run *runs, uint32_t run_count, const uint8_t *payload,
                  size_t payload_length)
{
    return mq_decompress_found(c, mq_find_pages(c, runs, run_count), payload, payload_length);
}
