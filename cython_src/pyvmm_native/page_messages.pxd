# SPDX-License-Identifier: Apache-2.0
# Messages that name pages, in the four formats of the balloon's dialects, checked and decoded.
#
# `devices.balloon` describes the formats and says why they are as strict as they are. Callers pass
# copies, which no driver can change meanwhile. `Why` says what is wrong with a message, `Header`
# what it said; page_requests.pyx has the words for both.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

from pyvmm_native.record_list cimport (
    BITMAP_PAGES, MAX_PAGE_SHIFT, NO_FAULT, NO_MEMORY, PAGE_SHIFT, WORD_BYTES, Decoder, Fault,
    decode_hybrid, decode_ranges, sort_and_merge,
)
from pyvmm_native.run_list cimport FRAME_LIMIT, RunList, decode_bitmap, decode_pfns

cdef enum:
    PFN_BYTES = 4
    BITMAP_HEADER_BYTES = 32
    RECORD_HEADER_BYTES = 8

cdef enum:
    STANDARD
    BITMAP
    HYBRID
    RANGES

# Why a message is not decoded; `explain` has the words.
cdef enum Why:
    VALID
    OUT_OF_MEMORY
    NO_ARRAY
    TWICE_IN_ARRAY
    TOO_SHORT
    COMMAND
    FLAG
    ID
    EMPTY
    PAGE_SIZE
    START
    LENGTH
    SUPPLIED
    ADDRESS
    RECORDS

# The header of a message of any format, and the first fault of its records.
cdef struct Header:
    uint64_t command, flag, id, page_shift, start_pfn, length
    uint64_t supplied_bytes
    Fault record_fault
    size_t record_at


cdef inline Why decode_array(RunList *out, const uint8_t *array, uint64_t length) noexcept nogil:
    cdef uint64_t pages = 0
    cdef size_t i
    if length == 0 or length % PFN_BYTES:
        return NO_ARRAY
    if not decode_pfns(out, array, length // PFN_BYTES):
        return OUT_OF_MEMORY
    for i in range(out.count):
        pages += out.items[i].end - out.items[i].start
    return VALID if pages == length // PFN_BYTES else TWICE_IN_ARRAY


cdef inline Why decode_bits(
    RunList *out, bint request, const uint8_t *message, uint64_t length, Header *header
) noexcept nogil:
    cdef uint16_t fields[4]   # cmd, page_shift, flag, reserved
    cdef uint64_t words[3]    # req_id, start_pfn, bmap_len
    cdef unsigned shift
    cdef size_t i
    if length < BITMAP_HEADER_BYTES:
        return TOO_SHORT
    memcpy(fields, message, sizeof(fields))
    memcpy(words, message + sizeof(fields), sizeof(words))
    header.command, header.page_shift, header.flag = fields[0], fields[1], fields[2]
    header.start_pfn, header.length = words[1], words[2]
    header.supplied_bytes = length - BITMAP_HEADER_BYTES
    if request and header.command:
        return COMMAND
    if request and header.flag:
        return FLAG
    if not PAGE_SHIFT <= header.page_shift <= MAX_PAGE_SHIFT:
        return PAGE_SIZE
    if header.start_pfn % BITMAP_PAGES:
        return START
    if header.length == 0 or header.length % WORD_BYTES:
        return LENGTH
    if header.length > header.supplied_bytes:
        return SUPPLIED
    shift = header.page_shift - PAGE_SHIFT
    # No overflow: each of the two terms is far below 2**63.
    if header.start_pfn > FRAME_LIMIT or (
            header.start_pfn + header.length * 8 > FRAME_LIMIT >> shift):
        return ADDRESS
    if not decode_bitmap(out, message + BITMAP_HEADER_BYTES, header.length, header.start_pfn):
        return OUT_OF_MEMORY
    if shift:
        for i in range(out.count):
            out.items[i].start <<= shift
            out.items[i].end <<= shift
    return VALID


cdef inline Why decode_records(
    RunList *out, int format, bint request, const uint8_t *message, uint64_t length,
    Header *header,
) noexcept nogil:
    cdef uint64_t fields
    cdef const uint8_t *records = message + RECORD_HEADER_BYTES
    cdef Decoder decoder = decode_hybrid if format == HYBRID else decode_ranges
    if length < RECORD_HEADER_BYTES:
        return TOO_SHORT
    memcpy(&fields, message, sizeof(fields))
    header.command, header.flag = fields & 0xFF, fields >> 8 & 0xFF
    header.id, header.length = fields >> 16 & 0xFFFF, fields >> 32
    header.supplied_bytes = length - RECORD_HEADER_BYTES
    if request and header.command:
        return COMMAND
    if request and header.flag:
        return FLAG
    if request and header.id:
        return ID
    if request and header.length == 0:
        return EMPTY
    if header.length % WORD_BYTES:
        return LENGTH
    if header.length > header.supplied_bytes:
        return SUPPLIED
    header.record_fault = decoder(out, records, header.length, FRAME_LIMIT, &header.record_at)
    if header.record_fault == NO_FAULT:
        header.record_fault = sort_and_merge(out, request)
    if header.record_fault == NO_MEMORY:
        return OUT_OF_MEMORY
    return VALID if header.record_fault == NO_FAULT else RECORDS


cdef inline Why decode_message(
    RunList *out, int format, bint request, const uint8_t *message, uint64_t length,
    Header *header,
) noexcept nogil:
    """Fill the empty list `out`, ascending and merged; `header` says more about a fault."""
    header.supplied_bytes = length
    if format == STANDARD:
        return decode_array(out, message, length)
    if format == BITMAP:
        return decode_bits(out, request, message, length, header)
    return decode_records(out, format, request, message, length, header)
