/*
 * A method's hooks in native code, beside those in Python: what the packet pump calls without the interpreter.
 *
 * Rules:
 *  - A hook is called by one thread at a time for each state, never with the interpreter lock. It calls nothing of
 *    Python.
 *  - Nothing that it is given is kept: pages, payload and output are valid until it returns.
 *  - It gives exactly what the method's Python hook gives: the same payloads, the same pages, the same refusals. Both
 *    work on the same state, packet by packet, in any mixture.
 *  - A page that somebody writes during the call may come out as anything of its length; it must harm nothing else.
 *  - It returns soon: a wait for a device polls the channel's abort byte.
 */
#ifndef MULTIFD_NATIVE_H
#define MULTIFD_NATIVE_H

#include <stdint.h>
#include <sys/uio.h>

/*
 * Nothing was done, the state is as it was: the engine calls the Python hook for this packet. Every other negative
 * result is an error, which the hook's `explain` turns into an exception.
 */
enum { MULTIFD_NATIVE_DECLINED = -1 };

/*
 * Encode `count` pages, at least 1, into `out`. `pages` has a pointer for each, in wire order; neighbours may lie side
 * by side. Returns the payload's bytes, from 1 to `capacity`, which is the method's max_payload; or a negative number.
 */
typedef int64_t (*multifd_native_send)(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out,
                                       uint64_t capacity);

/*
 * Before `multifd_native_send`, if a hook offers it: a payload most of which is the pages themselves, without a copy.
 * Sets `pieces`, in wire order, to parts of `out` and of the pages; what stands there goes out after the return, and is
 * free again at the next call. The pages are not touched: only the kernel may be able to read them. Returns how many
 * pieces there are, at most `room`, which is 2 * count + 1, of 1 to `capacity` bytes together; or
 * MULTIFD_NATIVE_DECLINED: this packet is `multifd_native_send`'s.
 */
typedef int64_t (*multifd_native_gather)(void *state, const uint8_t *const *pages, uint32_t count, uint8_t *out,
                                         uint64_t capacity, struct iovec *pieces, uint32_t room);

/*
 * Decode `length` bytes of payload, at least 1, which a peer sent and nobody has checked, into `count` pages. Returns 0 or a
 * negative number.
 */
typedef int64_t (*multifd_native_recv)(void *state, const uint8_t *payload, uint64_t length, uint8_t *const *pages,
                                       uint32_t count);

/*
 * Before a payload of `length` bytes is read, if a hook offers it: whether it may be the pages themselves with at most
 * MULTIFD_NATIVE_HEADS bytes between them, and so be read straight to where it belongs. Sets `pieces`, in wire order
 * and `length` bytes together: parts of the pages, and parts of `payload`, each as far from its beginning as in the
 * payload; these it sets to what they have to be. The pages are not touched. Returns how many pieces there are, at most
 * `room`, which is 2 * count + 1, or MULTIFD_NATIVE_DECLINED. If the bytes between the pages come as they have to be,
 * the packet is done; else `multifd_native_recv` gets the whole payload.
 */
enum { MULTIFD_NATIVE_HEADS = 64 };
typedef int64_t (*multifd_native_scatter)(void *state, uint64_t length, uint8_t *const *pages, uint32_t count,
                                          uint8_t *payload, struct iovec *pieces, uint32_t room);

#endif
