/* Between a process and its C library: counts the system calls of a migration, and lets one of them go wrong.
 *
 * Preloaded, and told by `fault_begin` what to do (tests/faults/shim.py). Counted are calls on files below a folder and on
 * sockets; whatever else the interpreter does is left alone. The rules are text, one a line:
 *
 *     SINCE CALL FIRST LAST EVERY ACTION VALUE
 *
 * CALL is a name of `names`, the rule holds for its calls number FIRST to LAST (from 1), each EVERY-th of them; they are
 * numbered from the first SINCE on, any for all. ACTION: errno (the call is not made and fails with VALUE), late (it is
 * made, and then fails with VALUE), signal (this process gets VALUE before the call), signalled (after it), short (VALUE
 * bytes at most are moved), clock (the wall clock jumps by VALUE seconds). The counts are in a file that is mapped, so
 * that they outlive the process: how often each call was made, and last how often a rule took effect.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum call { READ, WRITE, SYNC, CLOSE, RESIZE, NAME, MAKE, REMOVE, SEND, RECV, CONNECT, ACCEPT, ANY, CALLS };
static const char *const names[CALLS] = { "read", "write",  "sync", "close", "resize",  "name", "make",
                                          "remove", "send", "recv", "connect", "accept", "any" };
enum action { FAIL, LATE, SIGNAL, SIGNALLED, SHORT, CLOCK, ACTIONS };
static const char *const actions[ACTIONS] = { "errno", "late", "signal", "signalled", "short", "clock" };

struct rule {
    enum call since, call;
    unsigned first, last, every;
    _Atomic unsigned count; /* of its calls since then */
    enum action action;
    long value;
};

/* What is to be done at a call. */
struct fault {
    long most;     /* bytes that may be moved */
    int number;    /* errno instead of the call, 0 for none */
    int late;      /* errno after the call, 0 for none */
    int signalled; /* signal after the call, 0 for none */
};

#define RULES 16
#define IOV_MOST 1024 /* linux/uio.h, UIO_MAXIOV */
static struct rule rules[RULES];
static int rule_count;
static const char *folder = "";
static _Atomic unsigned own_counts[CALLS + 1];
static _Atomic unsigned *counts = own_counts;
static _Atomic long clock_offset_s;

#define REAL(name)                                                                                                     \
    ({                                                                                                                 \
        static __typeof__(&name) real;                                                                                 \
        if (!real)                                                                                                     \
            real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                                         \
        real;                                                                                                          \
    })

static int find(const char *const *list, int n, const char *word)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(list[i], word))
            return i;
    fprintf(stderr, "shim: unknown word %s\n", word);
    _exit(99);
}

/* From here on calls are counted and rules hold; called once, before any thread runs. */
void fault_begin(const char *text, const char *below, const char *path)
{
    while (*text && rule_count < RULES) {
        char since[16], call[16], action[16];
        struct rule *r = &rules[rule_count];
        if (sscanf(text, "%15s %15s %u %u %u %15s %ld", since, call, &r->first, &r->last, &r->every, action,
                   &r->value) != 7) {
            fprintf(stderr, "shim: not a rule: %s\n", text);
            _exit(99);
        }
        r->since = (enum call)find(names, CALLS, since);
        r->call = (enum call)find(names, CALLS, call);
        r->action = (enum action)find(actions, ACTIONS, action);
        rule_count++;
        text = strchr(text, '\n');
        text = text ? text + 1 : "";
    }
    int fd = REAL(open)(path, O_RDWR);
    void *shared = mmap(NULL, sizeof own_counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED) {
        fprintf(stderr, "shim: cannot map %s\n", path);
        _exit(99);
    }
    REAL(close)(fd);
    counts = shared;
    folder = strdup(below);
}

/* What stops at once must stop before this thread goes on; others are for whichever thread the kernel chooses. */
static void send_self(int number)
{
    if (number == SIGSTOP || number == SIGKILL)
        raise(number);
    else
        kill(getpid(), number);
}

static void look(enum call call, struct fault *f)
{
    atomic_fetch_add(&counts[call], 1);
    for (int i = 0; i < rule_count; i++) {
        struct rule *r = &rules[i];
        if (r->call != call || !atomic_load(&counts[r->since]))
            continue;
        unsigned n = atomic_fetch_add(&r->count, 1) + 1;
        if (n < r->first || n > r->last || (n - r->first) % r->every)
            continue;
        atomic_fetch_add(&counts[CALLS], 1);
        switch (r->action) {
        case FAIL: f->number = (int)r->value; break;
        case LATE: f->late = (int)r->value; break;
        case SIGNAL: send_self((int)r->value); break;
        case SIGNALLED: f->signalled = (int)r->value; break;
        case SHORT: f->most = r->value; break;
        case CLOCK: atomic_fetch_add(&clock_offset_s, r->value); break;
        default: break;
        }
    }
}

static struct fault at(enum call call)
{
    struct fault f = { 1L << 62, 0, 0, 0 };
    if (counts == own_counts) /* nothing has begun */
        return f;
    look(ANY, &f);
    look(call, &f);
    return f;
}

/* What becomes of a call that was made. */
static long after(struct fault f, long result)
{
    if (f.signalled)
        send_self(f.signalled);
    if (f.late) {
        errno = f.late;
        return -1;
    }
    return result;
}

static int is_below(const char *path) { return *folder && !strncmp(path, folder, strlen(folder)); }

static int is_watched(int fd)
{
    char link[32], path[4096];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_below(path);
}

/* As much of an iovec as `most` bytes; `into` holds it. */
static int cut(const struct iovec *iov, int count, long most, struct iovec *into)
{
    int n = 0;
    for (; n < count && n < IOV_MOST && most > 0; n++) {
        into[n] = iov[n];
        if ((long)into[n].iov_len > most)
            into[n].iov_len = (size_t)most;
        most -= (long)into[n].iov_len;
    }
    return n;
}

#define LESS(n, f) ((long)(n) > (f).most ? (size_t)(f).most : (size_t)(n))

/* What comes before every call. */
#define BEGIN(kind)                                                                                                    \
    struct fault f = at(kind);                                                                                         \
    if (f.number) {                                                                                                    \
        errno = f.number;                                                                                              \
        return -1;                                                                                                     \
    }

/* A call on a file that moves one buffer, and one that moves several. */
#define PLAIN(name, kind, parameters, arguments)                                                                       \
    ssize_t name parameters                                                                                            \
    {                                                                                                                  \
        if (!is_watched(fd))                                                                                           \
            return REAL(name) arguments;                                                                               \
        BEGIN(kind)                                                                                                    \
        n = LESS(n, f);                                                                                                \
        return after(f, REAL(name) arguments);                                                                         \
    }

#define VECTOR(name, kind, parameters, arguments)                                                                      \
    ssize_t name parameters                                                                                            \
    {                                                                                                                  \
        if (!is_watched(fd))                                                                                           \
            return REAL(name) arguments;                                                                               \
        BEGIN(kind)                                                                                                    \
        struct iovec part[IOV_MOST];                                                                                   \
        n = cut(iov, n, f.most, part);                                                                                 \
        iov = part;                                                                                                    \
        return after(f, REAL(name) arguments);                                                                         \
    }

/* A call that moves nothing. */
#define BARE(name, kind, is_concerned, parameters, arguments)                                                          \
    int name parameters                                                                                                \
    {                                                                                                                  \
        if (!is_concerned)                                                                                             \
            return REAL(name) arguments;                                                                               \
        BEGIN(kind)                                                                                                    \
        return (int)after(f, REAL(name) arguments);                                                                    \
    }

PLAIN(read, READ, (int fd, void *p, size_t n), (fd, p, n))
PLAIN(pread, READ, (int fd, void *p, size_t n, off_t o), (fd, p, n, o))
PLAIN(pread64, READ, (int fd, void *p, size_t n, off64_t o), (fd, p, n, o))
PLAIN(write, WRITE, (int fd, const void *p, size_t n), (fd, p, n))
PLAIN(pwrite, WRITE, (int fd, const void *p, size_t n, off_t o), (fd, p, n, o))
PLAIN(pwrite64, WRITE, (int fd, const void *p, size_t n, off64_t o), (fd, p, n, o))
VECTOR(preadv, READ, (int fd, const struct iovec *iov, int n, off_t o), (fd, iov, n, o))
VECTOR(preadv64v2, READ, (int fd, const struct iovec *iov, int n, off64_t o, int g), (fd, iov, n, o, g))
VECTOR(pwritev, WRITE, (int fd, const struct iovec *iov, int n, off_t o), (fd, iov, n, o))
VECTOR(pwritev64v2, WRITE, (int fd, const struct iovec *iov, int n, off64_t o, int g), (fd, iov, n, o, g))

BARE(fsync, SYNC, is_watched(fd), (int fd), (fd))
BARE(fdatasync, SYNC, is_watched(fd), (int fd), (fd))
BARE(ftruncate64, RESIZE, is_watched(fd), (int fd, off64_t n), (fd, n))
BARE(rename, NAME, is_below(from), (const char *from, const char *to), (from, to))
BARE(renameat, NAME, is_watched(fd), (int fd, const char *from, int other, const char *to), (fd, from, other, to))
BARE(mkdirat, MAKE, is_watched(fd), (int fd, const char *name, mode_t mode), (fd, name, mode))
BARE(unlinkat, REMOVE, is_watched(fd), (int fd, const char *name, int flags), (fd, name, flags))
BARE(unlink, REMOVE, is_below(name), (const char *name), (name))
BARE(connect, CONNECT, 1, (int fd, const struct sockaddr *to, socklen_t n), (fd, to, n))
BARE(accept4, ACCEPT, 1, (int fd, struct sockaddr *from, socklen_t *n, int flags), (fd, from, n, flags))

/* A file is made; one that is only opened is left alone. */
int openat64(int fd, const char *name, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    if (!(flags & O_CREAT) || !is_watched(fd))
        return REAL(openat64)(fd, name, flags, mode);
    BEGIN(MAKE)
    return (int)after(f, REAL(openat64)(fd, name, flags, mode));
}

/* Only a file that was open for writing has anything to say here. */
static int may_fail_late(int fd)
{
    int before = errno, mode = fcntl(fd, F_GETFL);
    errno = before;
    return mode >= 0 && (mode & O_ACCMODE) != O_RDONLY && is_watched(fd);
}

/* On Linux the number is free again whatever close says. */
int close(int fd)
{
    struct fault f = { 0, 0, 0, 0 };
    if (may_fail_late(fd))
        f = at(CLOSE);
    int result = REAL(close)(fd);
    if (f.number)
        f.late = f.number;
    return (int)after(f, result);
}

ssize_t send(int fd, const void *p, size_t n, int flags)
{
    BEGIN(SEND)
    return after(f, REAL(send)(fd, p, LESS(n, f), flags));
}

ssize_t recv(int fd, void *p, size_t n, int flags)
{
    BEGIN(RECV)
    return after(f, REAL(recv)(fd, p, LESS(n, f), flags));
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    BEGIN(SEND)
    struct iovec part[IOV_MOST];
    struct msghdr less = *message;
    less.msg_iovlen = (size_t)cut(message->msg_iov, (int)message->msg_iovlen, f.most, part);
    less.msg_iov = part;
    return after(f, REAL(sendmsg)(fd, &less, flags));
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    BEGIN(RECV)
    struct iovec part[IOV_MOST];
    struct msghdr less = *message;
    less.msg_iovlen = (size_t)cut(message->msg_iov, (int)message->msg_iovlen, f.most, part);
    less.msg_iov = part;
    ssize_t got = REAL(recvmsg)(fd, &less, flags);
    message->msg_flags = less.msg_flags;
    message->msg_controllen = less.msg_controllen;
    message->msg_namelen = less.msg_namelen;
    return after(f, got);
}

/* The wall clock; the monotonic one goes on. */
int clock_gettime(clockid_t which, struct timespec *now)
{
    int result = REAL(clock_gettime)(which, now);
    if (!result && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        now->tv_sec += atomic_load(&clock_offset_s);
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int result = REAL(gettimeofday)(now, zone);
    if (!result)
        now->tv_sec += atomic_load(&clock_offset_s);
    return result;
}

time_t time(time_t *to)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}
