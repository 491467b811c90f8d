/*
 * The hooks that multifd's packet pump calls instead of those in Python (multifd/pump/native.h has their contract), with
 * LZ4's own functions, which native.py finds. `state` is a `channel`.
 *
 * They do what goes well. What does not decode is left to Python, which finds the words for it.
 */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <stdint.h>
#include <string.h>

enum { DECLINED = -1 };         /* MULTIFD_NATIVE_DECLINED */
enum { RAW_PAGES, LZ4_BLOCK };  /* what a payload begins with */

/* native.py has the same fields. */
typedef struct {
    void (*reset)(void *stream);  /* LZ4_resetStream */
    /* LZ4_compress_fast_continue on a new stream, which is what the lz4 package calls: others make other bytes. */
    int (*compress)(void *stream, const char *in, char *out, int bytes, int room, int acceleration);
    int (*decompress)(const char *in, char *out, int bytes, int room);  /* LZ4_decompress_safe */
    uint8_t *copy;   /* room for a packet's pages */
    uint8_t *block;  /* a sender's: room for what they may become */
    void *stream;    /* a sender's */
    int32_t block_room, acceleration;
    uint32_t page_size, page_count;
} channel;

/* How many pages from `first` on lie side by side. */
static uint32_t run_length(const channel *c, const uint8_t *const *pages, uint32_t first, uint32_t count)
{
    uint32_t i = first + 1;
    while (i < count && pages[i] == pages[i - 1] + c->page_size)
        i++;
    return i - first;
}

static void gather(const channel *c, const uint8_t *const *pages, uint32_t count, uint8_t *to)
{
    for (uint32_t i = 0, run; i < count; i += run) {
        run = run_length(c, pages, i, count);
        memcpy(to + (size_t)i * c->page_size, pages[i], (size_t)run * c->page_size);
    }
}

static void scatter(const channel *c, const uint8_t *from, uint8_t *const *pages, uint32_t count)
{
    for (uint32_t i = 0, run; i < count; i += run) {
        run = run_length(c, (const uint8_t *const *)pages, i, count);
        memcpy(pages[i], from + (size_t)i * c->page_size, (size_t)run * c->page_size);
    }
}

/* From a private copy: LZ4 looks back into its input, and a live guest writes to it. */
static int64_t send_pages(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out, uint64_t capacity)
{
    const channel *c = state;
    const size_t bytes = (size_t)count * c->page_size;
    if (count - 1 >= c->page_count || capacity < 1 + bytes)
        return DECLINED;
    gather(c, pages, count, c->copy);
    c->reset(c->stream);
    int made = c->compress(c->stream, (const char *)c->copy, (char *)c->block, (int)bytes, c->block_room,
                           c->acceleration);
    int shrinks = made > 0 && (size_t)made < bytes;
    size_t length = shrinks ? (size_t)made : bytes;
    out[0] = shrinks ? LZ4_BLOCK : RAW_PAGES;
    memcpy(out + 1, shrinks ? c->block : c->copy, length);
    return 1 + (int64_t)length;
}

static int64_t recv_pages(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages, uint32_t count)
{
    const channel *c = state;
    const uint8_t *body = payload + 1;
    const uint64_t bytes = (uint64_t)count * c->page_size, body_bytes = length - 1;
    if (count - 1 >= c->page_count || !length || body_bytes > bytes)
        return DECLINED;
    if (payload[0] == RAW_PAGES && body_bytes == bytes) {
        scatter(c, body, pages, count);
        return 0;
    }
    if (payload[0] != LZ4_BLOCK)
        return DECLINED;
    int is_one_run = run_length(c, (const uint8_t *const *)pages, 0, count) == count;
    uint8_t *to = is_one_run ? pages[0] : c->copy;
    if (c->decompress((const char *)body, (char *)to, (int)body_bytes, (int)bytes) != (int)bytes)
        return DECLINED;
    if (!is_one_run)
        scatter(c, to, pages, count);
    return 0;
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1};

/* The module has nothing but the hooks' addresses. */
PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *send = PyLong_FromVoidPtr((void *)(uintptr_t)send_pages);
    PyObject *recv = PyLong_FromVoidPtr((void *)(uintptr_t)recv_pages);
    if (!module || !send || !recv || PyModule_AddObjectRef(module, "SEND", send)
        || PyModule_AddObjectRef(module, "RECV", recv))
        Py_CLEAR(module);
    Py_XDECREF(send);
    Py_XDECREF(recv);
    return module;
}
