/*
 * A stand-in for libqpl.so.1, written for these tests: the C ABI, the job layout and the statuses of the
 * real library's software path (1.6.0), and a hardware path that can be switched on.
 *
 * With -DBEHIND="PATH" the work is done by the software path of a real libqpl, so that the hardware path here is as
 * exact as that.
 *
 * It is strict where the real library would overrun memory: a job that was never made, was finished, or
 * whose init failed stops the process with a word on stderr.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const uint8_t *next_in;
    uint32_t available_in, total_in;
    uint8_t *next_out;
    uint32_t available_out, total_out;
    int32_t op;
    uint32_t flags, crc, xor_checksum, last_bit_offset;
    int32_t level;
    uint32_t statistics_mode;
    void *huffman_table, *dictionary;
    uint8_t other[108];
    int32_t numa_id;
    void *internal[5];
    int32_t path;
} job_t;

_Static_assert(offsetof(job_t, numa_id) == 188 && offsetof(job_t, path) == 232 && sizeof(job_t) == 240, "qpl_job");

enum { AUTO, HARDWARE, SOFTWARE };
enum { OK = 0, RUNNING = 1, NO_ROOM = 2, NOT_SUBMITTED = 7 };

/* What lies behind the head of a job. */
typedef struct {
    job_t head;
    uint64_t life;
    uint32_t looks_left, status;
} memory_t;

#define MADE 0x4d41444545444d00u
#define FAILED 0x4641494c4c494146u

static uint32_t hardware_status = 501;  /* no libaccel-config here */
static int live_jobs;
static int damaged_op = -1;  /* the operation whose results on hardware are wrong */

void standin_set_damage(int op) { damaged_op = op; }
void standin_set_hardware(uint32_t status) { hardware_status = status; }
int standin_live_jobs(void) { return live_jobs; }

/* By the definition; libqpl's crc field has the polynomial of zlib. */
static uint32_t crc32_of(const uint8_t *p, uint32_t length)
{
    uint32_t crc = 0xffffffff;
#ifdef NO_CRC
    return 0;
#endif
    while (length--) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

static void misuse(const char *what)
{
    fprintf(stderr, "stand-in libqpl: %s\n", what);
    abort();
}

static memory_t *made(job_t *job)
{
    memory_t *m = (memory_t *)job;
    if (m->life == FAILED)
        misuse("a job whose init failed is used");
    if (m->life != MADE)
        misuse("a job that was never made, or was finished, is used");
    return m;
}

const char *qpl_get_library_version(void) { return "1.6.0"; }

uint32_t qpl_get_job_size(int path, uint32_t *size)
{
    static const uint32_t sizes[] = {830784, 188736, 740864};  /* libqpl 1.6.0 */
    if (!size)
        return 50;
    if (path < AUTO || path > SOFTWARE)
        return 54;
    *size = sizes[path];
    return OK;
}

/* With -DSELF_TEST_...: a library with one fault, which the plugin's self-test must find. */
#ifdef SELF_TEST_SIZE
#undef qpl_get_job_size
uint32_t qpl_get_job_size(int path, uint32_t *size) { *size = path == SOFTWARE ? SELF_TEST_SIZE : 4096; return OK; }
#endif

uint32_t qpl_init_job(int path, job_t *job)
{
    memory_t *m = (memory_t *)job;
    if (!job)
        return 50;
    if (path < AUTO || path > SOFTWARE)
        return 54;
    memset(m, 0, sizeof *m);
    job->path = path;
#ifdef SELF_TEST_INIT
    return 101;
#endif
    if (path == HARDWARE && hardware_status) {
        m->life = FAILED;
        return hardware_status;
    }
    job->numa_id = path == SOFTWARE ? 0 : -1;
    m->life = MADE;
    m->status = path == SOFTWARE ? OK : NOT_SUBMITTED;
    __atomic_add_fetch(&live_jobs, 1, __ATOMIC_SEQ_CST);
    return OK;
}

uint32_t qpl_fini_job(job_t *job)
{
    if (!job)
        return 50;
    made(job)->life = 0;
    __atomic_sub_fetch(&live_jobs, 1, __ATOMIC_SEQ_CST);
    return OK;
}

/* -- deflate, fixed Huffman codes ---------------------------------------------------------------- */

typedef struct { uint8_t *out; uint32_t room, used; uint64_t bits; int count, full; } writer_t;

static void put(writer_t *w, uint32_t value, int count)
{
    w->bits |= (uint64_t)value << w->count;
    for (w->count += count; w->count >= 8; w->count -= 8, w->bits >>= 8) {
        if (w->used == w->room)
            w->full = 1;
        else
            w->out[w->used++] = (uint8_t)w->bits;
    }
}

static void put_code(writer_t *w, uint32_t code, int count)  /* Huffman codes go out highest bit first */
{
    uint32_t reversed = 0;
    for (int i = 0; i < count; i++)
        reversed |= (code >> i & 1) << (count - 1 - i);
    put(w, reversed, count);
}

static void put_symbol(writer_t *w, uint32_t s)  /* RFC 1951, 3.2.6 */
{
    if (s < 144)
        put_code(w, 0x30 + s, 8);
    else if (s < 256)
        put_code(w, 0x190 + s - 144, 9);
    else if (s < 280)
        put_code(w, s - 256, 7);
    else
        put_code(w, 0xc0 + s - 280, 8);
}

static const uint16_t length_base[] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83,
                                       99, 115, 131, 163, 195, 227, 258};
static const uint8_t length_extra[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
static const uint16_t distance_base[] = {1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025,
                                         1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
static const uint8_t distance_extra[] = {0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12,
                                         13, 13};

static uint32_t compress(job_t *job)
{
    const uint8_t *in = job->next_in;
    uint32_t n = job->available_in, head[4096];
    writer_t w = {job->next_out, job->available_out, 0, 0, 0, 0};

    memset(head, 0xff, sizeof head);
    put(&w, 1, 1);
    put(&w, 1, 2);
    for (uint32_t i = 0; i < n && !w.full;) {
        uint32_t length = 0, distance = 0;
        if (i + 4 <= n) {
            uint32_t word;
            memcpy(&word, in + i, 4);
            uint32_t *slot = head + (word * 2654435761u >> 20);
            if (*slot != 0xffffffff && i - *slot <= 4096) {
                while (length < 258 && i + length < n && in[*slot + length] == in[i + length])
                    length++;
                distance = i - *slot;
            }
            *slot = i;
        }
        if (length < 4) {
            put_symbol(&w, in[i++]);
            continue;
        }
        int k = 28;
        while (length_base[k] > length)
            k--;
        put_symbol(&w, 257 + (uint32_t)k);
        put(&w, length - length_base[k], length_extra[k]);
        for (k = 29; distance_base[k] > distance;)
            k--;
        put_code(&w, (uint32_t)k, 5);
        put(&w, distance - distance_base[k], distance_extra[k]);
        i += length;
    }
    put_symbol(&w, 256);
    put(&w, 0, 7);
    if (w.full && n <= 65535 && job->available_out >= n + 5) {  /* a stored block fits */
        uint8_t header[5] = {1, (uint8_t)n, (uint8_t)(n >> 8), (uint8_t)~n, (uint8_t)(~n >> 8)};
        memcpy(job->next_out, header, 5);
        memcpy(job->next_out + 5, in, n);
        w.used = n + 5;
    } else if (w.full) {
        return NO_ROOM;
    }
#ifdef SELF_TEST_STATUS
    return 101;
#endif
#ifdef SELF_TEST_BYTES
    job->next_out[0] |= 6;
#endif
#ifndef SELF_TEST_POINTER
    job->next_in += n;
#endif
    job->crc = crc32_of(in, n);
    job->available_in = 0;
    job->total_in = n;
    job->next_out += w.used;
    job->available_out -= w.used;
    job->total_out = w.used;
    return OK;
}

/* -- inflate, as leniently as the real library: a stream may end anywhere ------------------------- */

typedef struct { const uint8_t *in; uint32_t length, at; uint64_t bits; int count, over; } reader_t;

static uint32_t get(reader_t *r, int count)
{
    while (r->count < count) {
        if (r->at == r->length) {
            r->over = 1;
            return 0;
        }
        r->bits |= (uint64_t)r->in[r->at++] << r->count;
        r->count += 8;
    }
    uint32_t value = (uint32_t)(r->bits & ((1u << count) - 1));
    r->bits >>= count;
    r->count -= count;
    return value;
}

typedef struct { uint16_t count[16], symbol[320]; } code_t;

/* 0 if the lengths make a code; else how they fail: 1 too many codes, -1 too few. */
static int make_code(code_t *c, const uint8_t *lengths, int n)
{
    uint16_t start[16];
    int left = 1;
    memset(c->count, 0, sizeof c->count);
    for (int i = 0; i < n; i++)
        c->count[lengths[i]]++;
    c->count[0] = 0;
    for (int b = 1; b < 16; b++) {
        left = 2 * left - c->count[b];
        if (left < 0)
            return 1;
    }
    start[1] = 0;
    for (int b = 1; b < 15; b++)
        start[b + 1] = start[b] + c->count[b];
    for (int i = 0; i < n; i++)
        if (lengths[i])
            c->symbol[start[lengths[i]]++] = (uint16_t)i;
    return left ? -1 : 0;
}

static int get_symbol(reader_t *r, const code_t *c)
{
    int code = 0, first = 0, index = 0;
    for (int b = 1; b < 16; b++) {
        code |= (int)get(r, 1);
        if (r->over)
            return -1;
        if (code - c->count[b] < first)
            return c->symbol[index + code - first];
        index += c->count[b];
        first = (first + c->count[b]) << 1;
        code <<= 1;
    }
    return -2;
}

static uint32_t dynamic_codes(reader_t *r, code_t *literals, code_t *distances)
{
    static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[320] = {0};
    int nl = (int)get(r, 5) + 257, nd = (int)get(r, 5) + 1, nc = (int)get(r, 4) + 4;
    code_t c;
    for (int i = 0; i < nc; i++)
        lengths[order[i]] = (uint8_t)get(r, 3);
    if (r->over)
        return OK;
    if (nl > 286)
        return 206;
    if (make_code(&c, lengths, 19))
        return 208;
    memset(lengths, 0, sizeof lengths);
    for (int i = 0; i < nl + nd;) {
        int s = get_symbol(r, &c), repeat = 1, value = s;
        if (r->over)
            return OK;
        if (s < 0)
            return 202;
        if (s >= 16) {
            value = 0;
            if (s == 16) {
                if (i == 0)
                    return 203;
                value = lengths[i - 1];
                repeat = 3 + (int)get(r, 2);
            } else {
                repeat = s == 17 ? 3 + (int)get(r, 3) : 11 + (int)get(r, 7);
            }
        }
        if (i + repeat > nl + nd)
            return 207;
        while (repeat--)
            lengths[i++] = (uint8_t)value;
    }
    if (r->over)
        return OK;
    if (!lengths[256])
        return 205;
    if (make_code(literals, lengths, nl) > 0)
        return 209;
    if (make_code(distances, lengths + nl, nd) > 0)
        return 210;
    return OK;
}

static uint32_t inflate(reader_t *source, uint8_t *out, uint32_t room, uint32_t *produced)
{
    reader_t r = *source;
    uint32_t n = 0;
    source->at = r.length;
    int last = 0;
    while (!last) {
        code_t literals, distances;
        last = (int)get(&r, 1);
        uint32_t type = get(&r, 2);
        *produced = n;
        if (r.over)
            return OK;
        if (type == 3)
            return 213;
        if (type == 0) {
            get(&r, r.count & 7);
            uint32_t length = get(&r, 16), inverse = get(&r, 16);
            if (r.over)
                return OK;
            if (length != (inverse ^ 0xffff))
                return 214;
            while (length--) {
                uint32_t byte = get(&r, 8);
                *produced = n;
                if (r.over)
                    return OK;
                if (n == room && room >= 65536) {
                    /* As libqpl 1.6.0: its bit buffer goes out before the room is looked at, with status 0. */
                    out[n] = (uint8_t)byte;
                    for (int k = 1; k < 3 && length; k++, length--)
                        out[n + k] = (uint8_t)get(&r, 8);
                    source->at = r.at;
                    return OK;
                }
                if (n == room)
                    return NO_ROOM;
                out[n++] = (uint8_t)byte;
            }
            continue;
        }
        if (type == 2) {
            uint32_t status = dynamic_codes(&r, &literals, &distances);
            if (status || r.over)
                return status;
        } else {
            uint8_t lengths[288];
            for (int i = 0; i < 288; i++)
                lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
            make_code(&literals, lengths, 288);
            memset(lengths, 5, 32);
            make_code(&distances, lengths, 32);
        }
        for (;;) {
            int s = get_symbol(&r, &literals);
            *produced = n;
            if (r.over)
                return OK;
            if (s < 0)
                return 211;
            if (s == 256)
                break;
            if (s < 256) {
                if (n == room)
                    return NO_ROOM;
                out[n++] = (uint8_t)s;
                continue;
            }
            if (s > 285)
                return 216;
            uint32_t length = length_base[s - 257] + get(&r, length_extra[s - 257]);
            int d = get_symbol(&r, &distances);
            if (r.over)
                return OK;
            if (d < 0 || d > 29)
                return 212;
            uint32_t distance = distance_base[d] + get(&r, distance_extra[d]);
            if (r.over)
                return OK;
            if (distance > 4096)
                return 217;
            if (distance > n)
                return 218;
            for (; length; length--, n++) {
                *produced = n;
                if (n == room)
                    return NO_ROOM;
                out[n] = out[n - distance];
            }
        }
    }
    *produced = n;
    /* As libqpl 1.6.0: what it has read ahead counts as used, garbage behind the end too. */
    source->at = r.at + 6 < r.length ? r.at + 6 : r.length;
    return OK;
}

static uint32_t decompress(job_t *job)
{
    reader_t r = {job->next_in, job->available_in, 0, 0, 0, 0};
    uint32_t produced = 0, status = inflate(&r, job->next_out, job->available_out, &produced);
    if (status > NO_ROOM)
        return status;
    job->next_in += r.at;
    job->total_in = r.at;
    job->available_in -= r.at;
    job->crc = crc32_of(job->next_out, produced);
    job->next_out += produced;
    job->available_out -= produced;
    job->total_out = produced;
    return status;
}

#ifdef BEHIND
#include <dlfcn.h>
#include <pthread.h>

static struct {
    uint32_t (*size)(int, uint32_t *), (*init)(int, job_t *), (*execute)(job_t *);
} behind;

static void open_behind(void)
{
    void *library = dlopen(BEHIND, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        misuse(dlerror());
    *(void **)&behind.size = dlsym(library, "qpl_get_job_size");
    *(void **)&behind.init = dlsym(library, "qpl_init_job");
    *(void **)&behind.execute = dlsym(library, "qpl_execute_job");
}

/* The head of the job, but for what belongs to the library, goes there and back; a job for each thread. */
static uint32_t run_behind(job_t *job)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static _Thread_local job_t *real;
    uint32_t size = 0, status;
    pthread_once(&once, open_behind);
    if (!real) {
        if (behind.size(SOFTWARE, &size) || !(real = malloc(size)) || behind.init(SOFTWARE, real))
            misuse("the library behind makes no job");
    }
    memcpy(real, job, offsetof(job_t, statistics_mode));
    status = behind.execute(real);
    memcpy(job, real, offsetof(job_t, statistics_mode));
    return status;
}
#endif

static uint32_t run(job_t *job)
{
    job->total_in = job->total_out = 0;
#ifdef BEHIND
    return run_behind(job);
#endif
    if (job->level != 1 && job->level != 3)
        return 87;
    if (!(job->flags & 1))
        return 4;
    if (!job->next_in || !job->next_out)
        return 50;
    return job->op == 1 ? compress(job) : job->op == 0 ? decompress(job) : 51;
}

/* -- the calls ------------------------------------------------------------------------------------ */

uint32_t qpl_submit_job(job_t *job)
{
    if (!job)
        return 50;
    memory_t *m = made(job);
    if (job->path != HARDWARE)
        return run(job);  /* all the work, and its status, before it returns; a wait then says 0 */
    uint8_t *out = job->next_out;
    m->status = run(job);
    m->looks_left = 3;
    if (job->op == damaged_op && m->status == OK)
        out[job->total_out / 2] ^= 1;  /* after the CRC was taken, on the way to memory */
    return OK;
}

uint32_t qpl_check_job(job_t *job)
{
    if (!job)
        return 50;
    memory_t *m = made(job);
    if (m->looks_left) {
        m->looks_left--;
        return RUNNING;
    }
    return m->status;
}

uint32_t qpl_wait_job(job_t *job)
{
    uint32_t status;
    do
        status = qpl_check_job(job);
    while (status == RUNNING);
    return status;
}

uint32_t qpl_execute_job(job_t *job)
{
    uint32_t status = qpl_submit_job(job);
    return status ? status : qpl_wait_job(job);
}
