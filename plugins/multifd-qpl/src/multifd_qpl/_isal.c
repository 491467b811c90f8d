/*
 * ISA-L in libqpl's place: a table whose software jobs ISA-L does, page by page, by its stateless functions.
 *
 * A stream has the code that ISA-L's level 0 begins with and distances of at most 4096, as QPL's and the device's. Level
 * 1 takes twice to three times the time for 7 % fewer bytes, the fixed code as much time for as many (`software.py`).
 */
#include <string.h>

#include "_isal.h"
#include "_noise.h"

enum { NO_SUCH_PATH = 54, BAD_BLOCK = 213, BAD_END = 215 };  /* qpl_status */
enum { WINDOW_BITS = 12 };

/* Of the process; a job keeps what it was made with. */
static mq_isal current;

static uint32_t get_job_size(int path, uint32_t *size)
{
    (void)path;
    *size = sizeof(isal_job);
    return ST_OK;
}

static uint32_t init_job(int path, qpl_job *job)
{
    isal_job *j = (isal_job *)job;
    if (path != MQ_SOFTWARE)
        return NO_SUCH_PATH;
    j->isal = current;
    j->isal.deflate_stateless_init(&j->stream);
    j->isal.inflate_init(&j->state);
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

static uint32_t inflate(isal_job *j)
{
    qpl_job *job = &j->job;
    isal_state *s = &j->state;
    int result;

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

static uint32_t execute_job(qpl_job *job)
{
    isal_job *j = (isal_job *)job;
    return job->op == MQ_COMPRESS ? deflate(j) : inflate(j);
}

/* Fill a table with ISA-L's jobs. Of several ISA-Ls in a process the last one given does the jobs made from then on. */
void mq_isal_table(const mq_isal *functions, mq_table *table)
{
    current = *functions;
    *table = (mq_table){get_job_size, init_job, fini_job, execute_job, refuse_job, refuse_job, NULL, NULL, 1};
    mq_real_time(table);
}

/* Fill the guards of a job, or count their bytes that were written to since. */
void mq_isal_set_guards(qpl_job *job)
{
    isal_job *j = (isal_job *)job;
    memset(j->stream_guard, 0xa5, sizeof j->stream_guard);
    memset(j->state_guard, 0xa5, sizeof j->state_guard);
}

size_t mq_isal_count_damage(const qpl_job *job)
{
    const isal_job *j = (const isal_job *)job;
    size_t damage = 0;
    for (size_t i = 0; i < ISAL_GUARD_BYTES; i++)
        damage += (j->stream_guard[i] != 0xa5) + (j->state_guard[i] != 0xa5);
    return damage;
}
