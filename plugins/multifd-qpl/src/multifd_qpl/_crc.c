/*
 * CRC-32 of a page as a qpl job reports it (the polynomial of zlib and gzip): by carry-less multiplication
 * where the processor has it, else by table.
 *
 * The constants are powers of x modulo the polynomial, bits reflected: x^544, x^480 (a fold by 64 bytes)
 * and x^160, x^96 (by 16); the method is Gopal et al., "Fast CRC Computation for Generic Polynomials Using
 * PCLMULQDQ Instruction", Intel 2009.
 */
#include "_batch.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static uint32_t crc_table[8][256];

__attribute__((constructor)) static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xedb88320 & -(crc & 1));
        crc_table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            crc_table[k][i] = crc_table[k - 1][i] >> 8 ^ crc_table[0][crc_table[k - 1][i] & 0xff];
}

/* Without the inversions at both ends. */
uint32_t mq_crc_by_table(uint32_t crc, const uint8_t *p, size_t length)
{
    const uint8_t *end = p + length;
    for (; end - p >= 8; p += 8) {
        crc ^= p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        crc = crc_table[7][crc & 0xff] ^ crc_table[6][crc >> 8 & 0xff] ^ crc_table[5][crc >> 16 & 0xff]
              ^ crc_table[4][crc >> 24] ^ crc_table[3][p[4]] ^ crc_table[2][p[5]] ^ crc_table[1][p[6]]
              ^ crc_table[0][p[7]];
    }
    for (; p < end; p++)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *p) & 0xff];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("pclmul"))) static __m128i crc_fold(__m128i a, __m128i by, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(a, by, 0x00), high = _mm_clmulepi64_si128(a, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

__attribute__((target("pclmul"))) static uint32_t crc_by_multiplication(uint32_t crc, const uint8_t *p,
                                                                       size_t length)
{
    const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const __m128i *v = (const __m128i *)p, *end = v + length / 16;
    __m128i a[4];
    uint8_t rest[16];

#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        a[k] = _mm_loadu_si128(v + k);
    a[0] = _mm_xor_si128(a[0], _mm_cvtsi32_si128((int)crc));
    for (v += 4; v < end; v += 4)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            a[k] = crc_fold(a[k], by_64, _mm_loadu_si128(v + k));
    for (int k = 1; k < 4; k++)
        a[k] = crc_fold(a[k - 1], by_16, a[k]);
    _mm_storeu_si128((__m128i *)rest, a[3]);
    return mq_crc_by_table(0, rest, sizeof rest);
}
#endif

uint32_t mq_crc(const uint8_t *p, size_t length)
{
#if defined(__x86_64__)
    if (length && length % 64 == 0 && __builtin_cpu_supports("pclmul"))
        return ~crc_by_multiplication(0xffffffff, p, length);
#endif
    return ~mq_crc_by_table(0xffffffff, p, length);
}
