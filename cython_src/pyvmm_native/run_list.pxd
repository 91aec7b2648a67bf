# SPDX-License-Identifier: Apache-2.0
# Arrays of page runs, and the two decoders that fill them.
#
# A bitmap is read in 64-bit words. Beside the word shifted up by one bit, with the last bit of the
# word before shifted in, it shows where runs start and where they end; counting trailing zeros
# visits those places only, and words of all zeros or all ones inside a run cost two comparisons.
# After the first few runs the rest are counted, so that the list is reallocated once, to its final
# size: moving a long list repeatedly would cost more than the decoding. If the bitmap changes
# meanwhile, they are counted again.
#
# A driver may list PFNs in any order, since it picks pages one at a time (VIRTIO 1.2, 5.5.6).
# Ascending and descending arrays, the usual kinds, are merged directly; others are sorted by radix
# first.
#
# Functions that allocate return false when there is no memory.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    /* Guest-physical addresses have at most 52 bits; page frame numbers have fewer. */
    #define PYVMM_FRAME_LIMIT ((uint64_t)1 << 52)
    """
    const uint64_t FRAME_LIMIT "PYVMM_FRAME_LIMIT"
    int count_trailing_zeros "__builtin_ctzll"(unsigned long long word) noexcept nogil
    int count_ones "__builtin_popcountll"(unsigned long long word) noexcept nogil


cdef enum:
    WORD_RUNS = 32    # runs that can start in one word
    FEW_RUNS = 256


# Page frames from `start` up to, not including, `end`.
cdef struct Run:
    uint64_t start
    uint64_t end


cdef struct RunList:
    Run *items
    size_t count
    size_t capacity


cdef inline bint resize(RunList *out, size_t capacity) noexcept nogil:
    cdef Run *items
    if capacity == 0:
        free(out.items)
        out.items = NULL
    else:
        items = <Run *>realloc(out.items, capacity * sizeof(Run))
        if items == NULL:
            return False
        out.items = items
    out.capacity = capacity
    return True


cdef inline bint append(RunList *out, uint64_t start, uint64_t end) noexcept nogil:
    """Append a run that starts after, not at, the end of the last one."""
    if out.count == out.capacity and not resize(out, 2 * out.capacity + 16):
        return False
    out.items[out.count].start = start
    out.items[out.count].end = end
    out.count += 1
    return True


cdef inline bint add_run(RunList *out, uint64_t start, uint64_t end) noexcept nogil:
    """Append a run that starts no earlier than the last one, merging the two if they touch."""
    cdef Run *last
    if out.count == 0:
        return append(out, start, end)
    last = &out.items[out.count - 1]
    if start > last.end:
        return append(out, start, end)
    last.end = max(last.end, end)
    return True


cdef inline uint64_t load_word(const uint8_t *bitmap, size_t length, size_t offset) noexcept nogil:
    """Return the 64 bits at `offset`; those beyond the end of the bitmap are 0."""
    cdef uint64_t word = 0
    if length - offset >= sizeof(word):
        memcpy(&word, bitmap + offset, sizeof(word))  # of known size, so one instruction
    else:
        memcpy(&word, bitmap + offset, length - offset)
    return word


cdef inline size_t count_runs(const uint8_t *bitmap, size_t length) noexcept nogil:
    cdef uint64_t word, starts, carry = 0
    cdef size_t count = 0, offset
    for offset in range(0, length, 8):
        word = load_word(bitmap, length, offset)
        starts = word & ~(word << 1 | carry)
        carry = word >> 63
        if starts:  # not in most words; without POPCNT counting is a function call
            count += count_ones(starts)
    return count


cdef inline bint decode_bitmap(
    RunList *out, const uint8_t *bitmap, size_t length, uint64_t pfn
) noexcept nogil:
    """Fill the empty list `out`."""
    cdef uint64_t word, below, starts, ends, carry = 0
    cdef size_t offset, started = 0, ended = 0
    cdef size_t capacity
    for offset in range(0, length, 8):
        word = load_word(bitmap, length, offset)
        below = word << 1 | carry
        carry = word >> 63
        starts = word & ~below
        if starts and out.capacity - started < WORD_RUNS:
            capacity = FEW_RUNS
            if out.capacity:
                capacity = started + count_runs(bitmap + offset, length - offset) + WORD_RUNS
            if not resize(out, capacity):
                return False
        while starts:
            out.items[started].start = pfn + <unsigned>count_trailing_zeros(starts)
            started += 1
            starts &= starts - 1
        ends = below & ~word
        while ends:
            out.items[ended].end = pfn + <unsigned>count_trailing_zeros(ends)
            ended += 1
            ends &= ends - 1
        pfn += 64
    if carry:
        out.items[ended].end = pfn
    out.count = started
    return True


cdef inline bint decode_pfns(RunList *out, const void *pfns, size_t count) noexcept nogil:
    # Sorting alternates between two arrays. Both are copies: the caller's array may be unaligned,
    # and may change.
    cdef uint32_t *frames
    cdef bint complete
    if count == 0:
        return True
    frames = <uint32_t *>malloc(2 * count * sizeof(uint32_t))
    if frames == NULL:
        return False
    memcpy(frames, pfns, count * sizeof(uint32_t))
    if not is_ascending(frames, count):
        reverse(frames, count)
        if not is_ascending(frames, count):
            radix_sort(frames, frames + count, count)
    complete = merge_frames(out, frames, count)
    free(frames)
    return complete


cdef inline bint is_ascending(const uint32_t *frames, size_t count) noexcept nogil:
    cdef size_t i
    for i in range(1, count):
        if frames[i] < frames[i - 1]:
            return False
    return True


cdef inline void reverse(uint32_t *frames, size_t count) noexcept nogil:
    cdef size_t i
    for i in range(count // 2):
        frames[i], frames[count - 1 - i] = frames[count - 1 - i], frames[i]


cdef inline void radix_sort(uint32_t *frames, uint32_t *spare, size_t count) noexcept nogil:
    """Sort by one byte at a time, least significant first; four passes end in `frames`."""
    cdef size_t place[256]
    cdef size_t i, here, total, values = 256
    cdef int shift
    for shift in range(0, 32, 8):
        memset(place, 0, sizeof(place))
        for i in range(count):
            place[frames[i] >> shift & 0xFF] += 1
        total = 0
        for i in range(values):
            here = place[i]
            place[i] = total
            total += here
        for i in range(count):
            here = frames[i] >> shift & 0xFF
            spare[place[here]] = frames[i]
            place[here] += 1
        frames, spare = spare, frames


cdef inline bint merge_frames(RunList *out, const uint32_t *frames, size_t count) noexcept nogil:
    cdef size_t i
    cdef uint64_t start = frames[0], end = start + 1
    for i in range(1, count):
        if frames[i] > end:
            if not append(out, start, end):
                return False
            start = frames[i]
        end = <uint64_t>frames[i] + 1
    return append(out, start, end)
