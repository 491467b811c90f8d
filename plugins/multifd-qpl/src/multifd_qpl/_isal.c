/*
 * ISA-L in libqpl's place: a table whose software jobs ISA-L does, page by page, by its stateless functions.
 *
 * A stream has the code of ISA-L's level 0 and distances of at most 4096, as QPL's and the device's; isal_library.py has
 * the measurements behind that.
 */
#include <string.h>

#include "_isal.h"
#include "_noise.h"

enum { NO_SUCH_PATH = 54, BAD_BLOCK = 213, BAD_END = 215 };  /* qpl_status */
enum { WINDOW_BITS = 12 };
/* Bytes of a page up to which reading a header costs more than the copy that isal_inflate makes of what it decodes. */
enum { MOST_AFTER_CODE = 8192 };

/* Of the process, two of them; a job keeps what it was made with. */
static mq_isal given[2];

static uint32_t get_job_size(int path, uint32_t *size)
{
    (void)path;
    *size = sizeof(isal_job);
    return ST_OK;
}

static uint32_t fini_job(qpl_job *job)
{
    (void)job;
    return ST_OK;
}

static uint32_t refuse_job(qpl_job *job)
{
    (void)job;
    return NO_SUCH_PATH;
}

static void prepare(qpl_job *job, const uint8_t *in, uint32_t length, uint8_t *out, uint32_t room)
{
    job->next_in_ptr = in;
    job->available_in = length;
    job->next_out_ptr = out;
    job->available_out = room;
}

static uint32_t deflate(isal_job *j)
{
    qpl_job *job = &j->job;
    isal_stream *s = &j->stream;

    if (mq_is_noise(job->next_in_ptr, job->available_in))
        return ST_NO_ROOM;
    j->isal.deflate_stateless_init(s);
    s->hist_bits = WINDOW_BITS;
    s->next_in = job->next_in_ptr;
    s->avail_in = job->available_in;
    s->next_out = job->next_out_ptr;
    s->avail_out = job->available_out;
    if (j->isal.deflate_stateless(s) != ISAL_OK)
        return ST_NO_ROOM;
    job->total_in = job->available_in;
    job->total_out = s->total_out;
    return ST_OK;
}

/* Whether a stream begins with the known code. */
static int begins_with_code(const isal_job *j, const uint8_t *stream, uint32_t length)
{
    const isal_code *c = &j->code;
    const uint8_t mask = (uint8_t)((1u << c->extra_bits) - 1);

    return c->count && length > c->count && !((stream[c->count] ^ c->header[c->count]) & mask)
           && !memcmp(stream, c->header, c->count);
}

/*
 * A stream that begins with the known code, from behind that on: the state is as if the header had been read, and the
 * tables are those of `after`, which no other stream changes. Whether it gives exactly what there is room for.
 */
static int inflate_after_code(isal_job *j)
{
    qpl_job *job = &j->job;
    isal_state *s = &j->after;
    const uint32_t at = j->code.count;

    j->isal.inflate_reset(s);
    s->block_state = ISAL_BLOCK_CODED;
    s->bfinal = 1;
    s->read_in = (uint64_t)job->next_in_ptr[at] >> j->code.extra_bits;
    s->read_in_length = 8 - (int32_t)j->code.extra_bits;
    s->next_in = job->next_in_ptr + at + 1;
    s->avail_in = job->available_in - at - 1;
    s->next_out = job->next_out_ptr;
    s->avail_out = job->available_out;
    if (j->isal.inflate(s) != ISAL_OK || s->block_state != ISAL_BLOCK_FINISH || s->avail_out)
        return 0;
    job->total_in = job->available_in - s->avail_in - (uint32_t)s->read_in_length / 8;
    job->total_out = job->available_out;
    return 1;
}

static uint32_t inflate(isal_job *j)
{
    qpl_job *job = &j->job;
    isal_state *s = &j->state;
    int result;

    if (job->available_out <= MOST_AFTER_CODE && begins_with_code(j, job->next_in_ptr, job->available_in)
        && inflate_after_code(j))
        return ST_OK;
    s->next_in = job->next_in_ptr;
    s->avail_in = job->available_in;
    s->next_out = job->next_out_ptr;
    s->avail_out = job->available_out;
    result = j->isal.inflate_stateless(s);
    job->total_in = job->available_in - s->avail_in;
    job->total_out = job->available_out - s->avail_out;
    switch (result) {
    case ISAL_OK:
        return ST_OK;
    case ISAL_END_INPUT:
        return BAD_END;
    case ISAL_OUT_OVERFLOW:
        return ST_NO_ROOM;
    default:
        return BAD_BLOCK;
    }
}

/*
 * Learn the code that streams begin with from one of them: decoding it leaves the code's tables in `after`. The code is
 * known if the stream can be decoded once more by them.
 */
static void learn_code(isal_job *j)
{
    const isal_code *found = j->stream.hufftables;
    isal_sample *t = &j->sample;

    if (!found || !found->count || found->count >= ISAL_HEADER_BYTES || found->extra_bits >= 8)
        return;
    for (uint32_t i = 0; i < sizeof t->page; i++)
        t->page[i] = (uint8_t)(i % 7 * i % 50);
    prepare(&j->job, t->page, sizeof t->page, t->stream, sizeof t->stream);
    if (deflate(j) != ST_OK)
        return;
    j->after.next_in = t->stream;
    j->after.avail_in = j->job.total_out;
    j->after.next_out = t->again;
    j->after.avail_out = sizeof t->again;
    if (j->isal.inflate_stateless(&j->after) != ISAL_OK)
        return;
    j->code = *found;
    memset(t->again, 0, sizeof t->again);
    prepare(&j->job, t->stream, j->job.total_out, t->again, sizeof t->again);
    if (!begins_with_code(j, t->stream, j->job.available_in) || !inflate_after_code(j)
        || memcmp(t->again, t->page, sizeof t->page))
        j->code.count = 0;
}

static uint32_t init_job(const mq_isal *functions, int path, qpl_job *job)
{
    isal_job *j = (isal_job *)job;
    if (path != MQ_SOFTWARE)
        return NO_SUCH_PATH;
    j->isal = *functions;
    j->isal.deflate_stateless_init(&j->stream);
    j->isal.inflate_init(&j->state);
    j->isal.inflate_init(&j->after);
    learn_code(j);
    return ST_OK;
}

static uint32_t init_first(int path, qpl_job *job)
{
    return init_job(&given[0], path, job);
}

static uint32_t init_second(int path, qpl_job *job)
{
    return init_job(&given[1], path, job);
}

static uint32_t execute_job(qpl_job *job)
{
    isal_job *j = (isal_job *)job;
    return job->op == MQ_COMPRESS ? deflate(j) : inflate(j);
}

/* Fill a table with the jobs of an ISA-L, whose functions are kept at place 0 or 1. */
void mq_isal_table(const mq_isal *functions, int place, mq_table *table)
{
    if (memcmp(&given[place != 0], functions, sizeof *functions))
        given[place != 0] = *functions;
    *table = (mq_table){get_job_size, place ? init_second : init_first, fini_job, execute_job, refuse_job, refuse_job,
                        NULL, NULL, 1};
    mq_real_time(table);
}

/* Fill the guards of a job, or count their bytes that were written to since. */
void mq_isal_set_guards(qpl_job *job)
{
    isal_job *j = (isal_job *)job;
    memset(j->stream_guard, 0xa5, sizeof j->stream_guard);
    memset(j->state_guard, 0xa5, sizeof j->state_guard);
    memset(j->after_guard, 0xa5, sizeof j->after_guard);
}

size_t mq_isal_count_damage(const qpl_job *job)
{
    const isal_job *j = (const isal_job *)job;
    size_t damage = 0;
    for (size_t i = 0; i < ISAL_GUARD_BYTES; i++)
        damage += (j->stream_guard[i] != 0xa5) + (j->state_guard[i] != 0xa5) + (j->after_guard[i] != 0xa5);
    return damage;
}

/* Whether the job knows the code that its own streams begin with. */
int mq_isal_knows_code(const qpl_job *job)
{
    return ((const isal_job *)job)->code.count != 0;
}
