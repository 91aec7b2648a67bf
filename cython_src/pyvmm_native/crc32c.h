/* SPDX-License-Identifier: Apache-2.0
 *
 * CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), the register not inverted.
 *
 * Three implementations, of which the fastest is chosen once, by measuring:
 *
 * By table: eight tables of 256 entries; byte n of a word is looked up in the table of its
 * contribution n bytes further on. The only one where the processor is emulated: QEMU's TCG executes
 * the instructions below bit by bit, or does not have them.
 *
 * By instruction: x86 has one for it since SSE4.2, which takes 3 cycles but can begin in each cycle.
 * So three parts of a block are computed side by side: appending n zero bytes to a message is a
 * linear map of the register, which four tables apply for n = PART_BYTES, and the register after a
 * whole block is the sum of the parts' registers, each moved over the bytes that follow it. No
 * processor foresees three streams within a page, so the next block is prefetched in order meanwhile.
 *
 * By folding: bytes are a polynomial over GF(2), and D bits further on they are the same polynomial
 * times x^D, of which the remainder is enough. VPCLMULQDQ multiplies four halves of a vector of
 * AVX-512 by such remainders at a time, so that 256 bytes are added to those that follow them until
 * 16 are left, whose CRC is the result's.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define CASTAGNOLI_REVERSED 0x82F63B78u
#define PART_BYTES 1360 /* three in a page, with 16 bytes left */

static uint32_t crc32c_table[8][256];
static uint32_t crc32c_over_part[4][256];

typedef uint32_t crc32c_function(uint32_t crc, const uint8_t *data, size_t length);

static uint32_t crc32c_by_table(uint32_t crc, const uint8_t *data, size_t length)
{
    const uint32_t (*table)[256] = crc32c_table;
    uint64_t word;
    for (; length >= sizeof(word); length -= sizeof(word), data += sizeof(word)) {
        memcpy(&word, data, sizeof(word));
        word ^= crc;
        crc = table[7][word & 0xFF] ^ table[6][word >> 8 & 0xFF] ^
              table[5][word >> 16 & 0xFF] ^ table[4][word >> 24 & 0xFF] ^
              table[3][word >> 32 & 0xFF] ^ table[2][word >> 40 & 0xFF] ^
              table[1][word >> 48 & 0xFF] ^ table[0][word >> 56];
    }
    while (length--)
        crc = crc >> 8 ^ table[0][(crc ^ *data++) & 0xFF];
    return crc;
}

static uint32_t crc32c_move_over_part(uint32_t crc)
{
    const uint32_t (*table)[256] = crc32c_over_part;
    return table[0][crc & 0xFF] ^ table[1][crc >> 8 & 0xFF] ^
           table[2][crc >> 16 & 0xFF] ^ table[3][crc >> 24];
}

__attribute__((target("sse4.2")))
static uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t *data, size_t length)
{
    uint64_t words[3], first = crc, second, third;
    const uint8_t *ahead;
    for (; length >= 3 * PART_BYTES; length -= 3 * PART_BYTES, data += 3 * PART_BYTES) {
        second = third = 0;
        ahead = length >= 6 * PART_BYTES ? data + 3 * PART_BYTES : data;
        for (size_t at = 0; at < PART_BYTES; at += sizeof(words[0])) {
            memcpy(&words[0], data + at, sizeof(words[0]));
            memcpy(&words[1], data + PART_BYTES + at, sizeof(words[1]));
            memcpy(&words[2], data + 2 * PART_BYTES + at, sizeof(words[2]));
            __builtin_prefetch(ahead + 3 * at);
            first = __builtin_ia32_crc32di(first, words[0]);
            second = __builtin_ia32_crc32di(second, words[1]);
            third = __builtin_ia32_crc32di(third, words[2]);
        }
        second ^= crc32c_move_over_part((uint32_t)first);
        first = third ^ crc32c_move_over_part((uint32_t)second);
    }
    for (; length >= sizeof(words[0]); length -= sizeof(words[0]), data += sizeof(words[0])) {
        memcpy(&words[0], data, sizeof(words[0]));
        first = __builtin_ia32_crc32di(first, words[0]);
    }
    crc = (uint32_t)first;
    while (length--)
        crc = __builtin_ia32_crc32qi(crc, *data++);
    return crc;
}

#define FOLDED_BYTES 256 /* four vectors */

/* x^(D + 63) and x^(D - 1), which move the first and the second half of 16 bytes on by D bits: the
 * product of two reflected polynomials of 64 bits is already multiplied by x. */
struct crc32c_fold {
    uint64_t first, second;
};
static struct crc32c_fold crc32c_over_folded, crc32c_over_vector, crc32c_over_lane;

static uint64_t crc32c_power(unsigned exponent)
{
    uint32_t power = 0x80000000u;
    while (exponent--)
        power = power >> 1 ^ (power & 1 ? CASTAGNOLI_REVERSED : 0);
    return (uint64_t)power << 32;
}

static struct crc32c_fold crc32c_fold_over(unsigned bytes)
{
    return (struct crc32c_fold){ crc32c_power(8 * bytes + 63), crc32c_power(8 * bytes - 1) };
}

#define FOLDING __attribute__((target("avx512f,pclmul,vpclmulqdq,sse4.2")))

FOLDING static inline __m512i crc32c_fold(__m512i vector, __m512i by, __m512i onto)
{
    __m512i first = _mm512_clmulepi64_epi128(vector, by, 0x00);
    __m512i second = _mm512_clmulepi64_epi128(vector, by, 0x11);
    return _mm512_ternarylogic_epi64(first, second, onto, 0x96); /* their sum */
}

FOLDING static inline __m512i crc32c_fold_constant(struct crc32c_fold by)
{
    return _mm512_broadcast_i32x4(_mm_set_epi64x((long long)by.second, (long long)by.first));
}

FOLDING static inline __m128i crc32c_fold_lane(__m128i lane, __m128i by, __m128i onto)
{
    __m128i first = _mm_clmulepi64_si128(lane, by, 0x00);
    __m128i second = _mm_clmulepi64_si128(lane, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(first, second), onto);
}

FOLDING static uint32_t crc32c_by_folding(uint32_t crc, const uint8_t *data, size_t length)
{
    __m512i sums[4], by = crc32c_fold_constant(crc32c_over_folded);
    __m128i lane, lane_by;
    if (length < 2 * FOLDED_BYTES)
        return crc32c_by_instruction(crc, data, length);
    for (int n = 0; n < 4; n++)
        sums[n] = _mm512_loadu_si512(data + 64 * n);
    sums[0] = _mm512_xor_si512(sums[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (data += FOLDED_BYTES, length -= FOLDED_BYTES; length >= FOLDED_BYTES;
         data += FOLDED_BYTES, length -= FOLDED_BYTES)
        for (int n = 0; n < 4; n++)
            sums[n] = crc32c_fold(sums[n], by, _mm512_loadu_si512(data + 64 * n));
    by = crc32c_fold_constant(crc32c_over_vector);
    for (int n = 1; n < 4; n++)
        sums[n] = crc32c_fold(sums[n - 1], by, sums[n]);
    lane_by = _mm_set_epi64x((long long)crc32c_over_lane.second, (long long)crc32c_over_lane.first);
    lane = _mm512_extracti32x4_epi32(sums[3], 0);
    lane = crc32c_fold_lane(lane, lane_by, _mm512_extracti32x4_epi32(sums[3], 1));
    lane = crc32c_fold_lane(lane, lane_by, _mm512_extracti32x4_epi32(sums[3], 2));
    lane = crc32c_fold_lane(lane, lane_by, _mm512_extracti32x4_epi32(sums[3], 3));
    crc = (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_extract_epi64(lane, 0));
    crc = (uint32_t)_mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(lane, 1));
    return crc32c_by_instruction(crc, data, length);
}

static void crc32c_fill_tables(void)
{
    static const uint8_t zeros[PART_BYTES];
    uint32_t moved[32];
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? CASTAGNOLI_REVERSED : 0);
        crc32c_table[0][byte] = crc;
    }
    for (int n = 1; n < 8; n++)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = crc32c_table[n - 1][byte];
            crc32c_table[n][byte] = crc >> 8 ^ crc32c_table[0][crc & 0xFF];
        }
    for (int bit = 0; bit < 32; bit++)
        moved[bit] = crc32c_by_table(1u << bit, zeros, PART_BYTES);
    for (int n = 0; n < 4; n++)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t sum = 0;
            for (int bit = 0; bit < 8; bit++)
                sum ^= byte >> bit & 1 ? moved[8 * n + bit] : 0;
            crc32c_over_part[n][byte] = sum;
        }
    crc32c_over_folded = crc32c_fold_over(FOLDED_BYTES);
    crc32c_over_vector = crc32c_fold_over(FOLDED_BYTES / 4);
    crc32c_over_lane = crc32c_fold_over(FOLDED_BYTES / 16);
}

static double crc32c_seconds(crc32c_function *by)
{
    static const uint8_t data[4096];
    volatile uint32_t crc;
    struct timespec begin, end;
    double least = 1, took;
    for (int attempt = 0; attempt < 8; attempt++) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        crc = by(0, data, sizeof(data));
        clock_gettime(CLOCK_MONOTONIC, &end);
        took = (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9;
        least = took < least ? took : least;
    }
    (void)crc;
    return least;
}

/* The implementations that this processor has. */
struct crc32c_implementation {
    const char *name;
    crc32c_function *function;
};
static struct crc32c_implementation crc32c_implementations[3];
static int crc32c_count;
static crc32c_function *crc32c_fastest;

static void crc32c_add_implementation(const char *name, crc32c_function *function)
{
    static double least = 1;
    double seconds = crc32c_seconds(function);
    crc32c_implementations[crc32c_count].name = name;
    crc32c_implementations[crc32c_count++].function = function;
    if (seconds < least) {
        least = seconds;
        crc32c_fastest = function;
    }
}

static void crc32c_prepare(void)
{
    crc32c_fill_tables();
    crc32c_add_implementation("table", crc32c_by_table);
    if (!__builtin_cpu_supports("sse4.2"))
        return;
    crc32c_add_implementation("instruction", crc32c_by_instruction);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("pclmul") &&
        __builtin_cpu_supports("vpclmulqdq"))
        crc32c_add_implementation("folding", crc32c_by_folding);
}
