# SPDX-License-Identifier: Apache-2.0
# Decoders of 64-bit records, which name pages in the balloon's `hybrid` and `ranges` dialects.
#
# A record is one little-endian word, with a second one in its long form. The runs of all records
# are appended in the order of the records, then sorted unless they ascend already, and merged. Free
# lists are in no order at all, and their largest blocks come first; an encoder that scans a bitmap
# ascends. The list is allocated once: a pass over the records counts the runs before they are
# decoded. If the records change meanwhile, the list grows as needed.
#
# Sorting is by radix, on those bytes of the start that differ between runs: two or three, as guests
# have some GiB of RAM.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from pyvmm_native.run_list cimport Run, RunList, append, count_ones, count_trailing_zeros, resize

cdef enum:
    WORD_BYTES = 8
    PAGE_SHIFT = 12
    MAX_PAGE_SHIFT = 30      # the largest page of a guest, 1 GiB
    BITMAP_PAGES = 64
    COUNT_BITS = 12
    FIRST_LONG_COUNT = 1 << COUNT_BITS
    LAST_LONG_COUNT = 1 << 24

# Why records are not decoded; the order of the messages in runs.pyx.
cdef enum Fault:
    NO_FAULT
    NO_MEMORY
    TRUNCATED
    INVALID_PAGE_SHIFT
    INVALID_BITMAP_LENGTH
    INVALID_LONG_COUNT
    BEYOND_LIMIT
    NAMED_TWICE

# Decode the whole words of `records` into the empty list `out`; on a fault, set `at` to the offset
# of its record. No frame reaches `limit`, 2**52.
ctypedef Fault (*Decoder)(
    RunList *out, const uint8_t *records, size_t length, uint64_t limit, size_t *at
) noexcept nogil


cdef inline uint64_t word_at(const uint8_t *records, size_t offset) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, records + offset, WORD_BYTES)
    return word


# The fields of a hybrid record.

cdef inline uint64_t start_of(uint64_t record) noexcept nogil:
    return record & ((<uint64_t>1 << 52) - 1)


cdef inline unsigned page_shift_of(uint64_t record) noexcept nogil:
    return record >> 52 & 63


cdef inline unsigned bitmap_length_of(uint64_t record) noexcept nogil:
    return record >> 58


cdef inline size_t count_hybrid_runs(const uint8_t *records, size_t length) noexcept nogil:
    """Return at least the number of runs of valid records, and at most 32 for each pair of words.
    """
    cdef size_t offset = 0, count = 0
    cdef uint64_t bits
    while offset < length:
        if bitmap_length_of(word_at(records, offset)) and length - offset > WORD_BYTES:
            bits = word_at(records, offset + WORD_BYTES)
            count += count_ones(bits & ~(bits << 1))
            offset += 2 * WORD_BYTES
        else:
            count += 1
            offset += WORD_BYTES
    return count


cdef inline Fault decode_hybrid(
    RunList *out, const uint8_t *records, size_t length, uint64_t limit, size_t *at
) noexcept nogil:
    """Decode blocks and bitmaps of 64 pages; `start_pfn` counts 4 KiB frames and has no alignment.
    """
    cdef uint64_t record, start, pages
    cdef unsigned shift, bitmap_length
    cdef size_t offset = 0
    if not resize(out, count_hybrid_runs(records, length)):
        return NO_MEMORY
    while offset < length:
        at[0] = offset
        record = word_at(records, offset)
        offset += WORD_BYTES
        start = start_of(record)
        shift = page_shift_of(record)
        bitmap_length = bitmap_length_of(record)
        if not PAGE_SHIFT <= shift <= MAX_PAGE_SHIFT:
            return INVALID_PAGE_SHIFT
        if bitmap_length != 0 and bitmap_length != WORD_BYTES:
            return INVALID_BITMAP_LENGTH
        shift -= PAGE_SHIFT
        pages = (<uint64_t>BITMAP_PAGES if bitmap_length else <uint64_t>1) << shift
        if pages > limit - start:
            return BEYOND_LIMIT
        if bitmap_length == 0:
            if not add_in_order(out, start, start + pages):
                return NO_MEMORY
        elif offset == length:
            return TRUNCATED
        else:
            if not add_bits(out, start, shift, word_at(records, offset)):
                return NO_MEMORY
            offset += WORD_BYTES
    return NO_FAULT


cdef inline bint add_bits(
    RunList *out, uint64_t start, unsigned shift, uint64_t bits
) noexcept nogil:
    """Append the runs of ones in `bits`, of which each stands for 2**shift frames."""
    cdef unsigned first, end
    cdef uint64_t zeros
    while bits:
        first = count_trailing_zeros(bits)
        zeros = ~(bits >> first)
        end = first + (count_trailing_zeros(zeros) if zeros else BITMAP_PAGES)
        if not add_in_order(
            out, start + (<uint64_t>first << shift), start + (<uint64_t>end << shift)
        ):
            return False
        if end >= BITMAP_PAGES:
            break
        bits &= ~<uint64_t>0 << end
    return True


cdef inline Fault decode_ranges(
    RunList *out, const uint8_t *records, size_t length, uint64_t limit, size_t *at
) noexcept nogil:
    """Decode ranges of frames; a count of 0 stands for the next word.

    The long form is for counts that do not fit the short one, and ends at 2**24 frames, 64 GiB. So
    a record that names no page is no record: the one after it is not its count.
    """
    cdef uint64_t record, start, pages
    cdef size_t offset = 0
    if not resize(out, length // WORD_BYTES):
        return NO_MEMORY
    while offset < length:
        at[0] = offset
        record = word_at(records, offset)
        offset += WORD_BYTES
        start = record >> COUNT_BITS
        pages = record & (FIRST_LONG_COUNT - 1)
        if pages == 0:
            if offset == length:
                return TRUNCATED
            pages = word_at(records, offset)
            offset += WORD_BYTES
            if not FIRST_LONG_COUNT <= pages <= LAST_LONG_COUNT:
                return INVALID_LONG_COUNT
        if pages > limit - start:
            return BEYOND_LIMIT
        if not add_in_order(out, start, start + pages):
            return NO_MEMORY
    return NO_FAULT


cdef inline bint add_in_order(RunList *out, uint64_t start, uint64_t end) noexcept nogil:
    """Append a run in the order of the records; only one that continues the last is merged."""
    if out.count and out.items[out.count - 1].end == start:
        out.items[out.count - 1].end = end
        return True
    return append(out, start, end)


cdef inline Fault sort_and_merge(RunList *out, bint distinct) noexcept nogil:
    """Make the list ascending and its runs separate; with `distinct`, overlapping is a fault."""
    cdef size_t i, last = 0
    cdef uint64_t differing = 0
    cdef bint ascending = True
    if out.count == 0:
        return NO_FAULT
    for i in range(1, out.count):
        differing |= out.items[i].start ^ out.items[0].start
        if out.items[i].start < out.items[i - 1].start:
            ascending = False
    if not ascending and not sort_by_start(out, differing):
        return NO_MEMORY
    for i in range(1, out.count):
        if out.items[i].start > out.items[last].end:
            last += 1
            out.items[last] = out.items[i]
            continue
        if distinct and out.items[i].start < out.items[last].end:
            return NAMED_TWICE
        out.items[last].end = max(out.items[last].end, out.items[i].end)
    out.count = last + 1
    return NO_FAULT


cdef inline bint sort_by_start(RunList *out, uint64_t differing) noexcept nogil:
    """Sort by one byte at a time, least significant first, leaving out bytes that are all equal."""
    cdef size_t place[256]
    cdef size_t i, here, total, values = 256
    cdef int shift
    cdef Run *items = out.items
    cdef Run *spare = <Run *>malloc(out.count * sizeof(Run))
    if spare == NULL:
        return False
    for shift in range(0, 52, 8):
        if not differing >> shift & 0xFF:
            continue
        memset(place, 0, sizeof(place))
        for i in range(out.count):
            place[items[i].start >> shift & 0xFF] += 1
        total = 0
        for i in range(values):
            here = place[i]
            place[i] = total
            total += here
        for i in range(out.count):
            here = items[i].start >> shift & 0xFF
            spare[place[here]] = items[i]
            place[here] += 1
        items, spare = spare, items
    if items != out.items:
        out.capacity = out.count
        out.items = items
    free(spare)
    return True
