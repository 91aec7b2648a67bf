/* SPDX-License-Identifier: Apache-2.0
 *
 * CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), the register not inverted.
 *
 * x86 has an instruction for it since SSE4.2, which takes 3 cycles but can begin in each cycle. So
 * three parts of a block are computed side by side: appending n zero bytes to a message is a linear
 * map of the register, which four tables apply for n = PART_BYTES, and the register after a whole
 * block is the sum of the parts' registers, each moved over the bytes that follow it.
 *
 * Where the instruction is missing, or slower because the processor is emulated (QEMU's TCG computes
 * it bit by bit), eight tables of 256 entries are used: byte n of a word is looked up in the table of
 * its contribution n bytes further on. The faster of the two is chosen once, by measuring.
 */
#include <stdint.h>
#include <string.h>
#include <time.h>

#define CASTAGNOLI_REVERSED 0x82F63B78u
#define PART_BYTES 1360 /* three in a page, with 16 bytes left */

static uint32_t crc32c_table[8][256];
static uint32_t crc32c_over_part[4][256];
static int crc32c_in_hardware;

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
    for (; length >= 3 * PART_BYTES; length -= 3 * PART_BYTES, data += 3 * PART_BYTES) {
        second = third = 0;
        for (size_t at = 0; at < PART_BYTES; at += sizeof(words[0])) {
            memcpy(&words[0], data + at, sizeof(words[0]));
            memcpy(&words[1], data + PART_BYTES + at, sizeof(words[1]));
            memcpy(&words[2], data + 2 * PART_BYTES + at, sizeof(words[2]));
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
}

static double crc32c_seconds(uint32_t (*by)(uint32_t, const uint8_t *, size_t))
{
    static const uint8_t data[4096];
    volatile uint32_t crc;
    struct timespec begin, end;
    double least = 1, took;
    for (int attempt = 0; attempt < 3; attempt++) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        crc = by(0, data, sizeof(data));
        clock_gettime(CLOCK_MONOTONIC, &end);
        took = (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9;
        least = took < least ? took : least;
    }
    (void)crc;
    return least;
}

static void crc32c_prepare(void)
{
    crc32c_fill_tables();
    crc32c_in_hardware = __builtin_cpu_supports("sse4.2") &&
        crc32c_seconds(crc32c_by_instruction) < crc32c_seconds(crc32c_by_table);
}
