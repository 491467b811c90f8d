/*
 * The hooks that multifd's packet pump calls instead of those in Python (multifd/pump/native.h); `state` is a mq_channel.
 *
 * They do what goes well, and leave to Python whatever has a consequence there: payloads that are refused or in doubt,
 * devices that fail, refuse or do not answer, a forked child. So both refuse the same, with the same words.
 */
#include "_jobs.h"

#include <string.h>
#include <unistd.h>

/* Whether this process, with a channel that nothing is to be said of, may do a packet of so many pages. */
static int may_go_on(const mq_channel *c, uint32_t count)
{
    return !c->is_troubled && count - 1 < c->page_count && getpid() == c->owner;
}

/* What a batch came to for the caller; `before` is what the counters were. */
static int64_t settle(mq_channel *c, uint32_t count, int result, const uint64_t *before)
{
    if (result == MQ_ABORTED)
        return MQ_TORN_DOWN;
    if (result == MQ_SILENT)
        return MQ_DECLINED;  /* what has happened stays counted: Python gives the device up and does the packet without */
    if (result != MQ_OK || c->doubt_count) {
        memcpy(c->counters, before, sizeof c->counters);
        return MQ_DECLINED;
    }
    if (c->counters[FELL_BACK] != before[FELL_BACK]) {
        c->is_troubled = 1;
        c->troubled_pages = count;
    } else {
        c->clean_packets++;
    }
    return 0;
}

/* A multifd_native_send. */
int64_t mq_native_send(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity)
{
    mq_channel *c = state;
    uint64_t before[COUNTER_COUNT];
    int64_t result;
    size_t used;

    if (!may_go_on(c, count) || capacity < (uint64_t)count * (c->page_size + 4))
        return MQ_DECLINED;
    memcpy(before, c->counters, sizeof before);
    memcpy(c->pages, pages, count * sizeof *pages);  /* jobs that compress read them only */
    result = settle(c, count, mq_compress_whole(c, count, out, &used), before);
    return result ? result : (int64_t)used;
}

/* A multifd_native_recv. */
int64_t mq_native_recv(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages, uint32_t count)
{
    mq_channel *c = state;
    uint64_t before[COUNTER_COUNT];

    if (!may_go_on(c, count))
        return MQ_DECLINED;
    memcpy(before, c->counters, sizeof before);
    memcpy(c->pages, pages, count * sizeof *pages);
    return settle(c, count, mq_decompress_found(c, count, payload, length), before);
}
