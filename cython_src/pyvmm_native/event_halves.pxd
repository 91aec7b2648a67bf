# SPDX-License-Identifier: Apache-2.0
# The two halves of an `EventBuffer`, in C: emitters append to one while the reader has the other.
#
# Events are appended under a mutex, which is held for the copy of a few bytes, by threads with or
# without the GIL. The reader exchanges the halves under the mutex, in constant time, and reads the
# full one without it. A half keeps its events until the reader has cleared it, so a reader that
# fails for want of memory loses none: `next_half` returns the same half again.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from pyvmm_native.clock cimport monotonic_ns

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *data, size_t size)
    int close(int fd)

cdef enum:
    MAX_KINDS = 512
    MAX_STRINGS = 4096
    MAX_NUMBER_BYTES = 10   # of a 64-bit number in LEB128

# Consecutive events, and which entries of the tables they refer to. Its reader sets `first_seq`,
# the number of the first event.
cdef struct Half:
    uint8_t *data
    size_t length
    uint64_t first_seq
    uint64_t base_ns
    uint64_t last_ns
    uint64_t count
    uint64_t dropped
    uint8_t kinds[MAX_KINDS]
    uint8_t strings[MAX_STRINGS]

# There are halves, and an eventfd, while events are kept; the event that is appended to an empty
# `filling` has the number `next_seq`.
cdef struct Halves:
    pthread_mutex_t mutex
    Half *filling
    Half *taken
    size_t half_bytes
    uint64_t next_seq
    int wake_fd
    bint woken

# An event of which `values` has the fields. Field i is a string if bit i of `string_fields` is set:
# its value is then its number in the table, or 0 with its text in `texts`, if there are any.
cdef struct Event:
    int kind
    uint32_t string_fields
    int count
    const uint64_t *values
    const char **texts
    const size_t *lengths

cdef extern from *:
    """
    #define NOT_KEPT UINT64_MAX
    """
    const uint64_t NOT_KEPT


cdef inline Half *new_half(size_t size) noexcept nogil:
    """Return an empty half, or NULL if there is no memory."""
    cdef Half *half = <Half *>calloc(1, sizeof(Half))
    if half == NULL:
        return NULL
    half.data = <uint8_t *>malloc(size)
    if half.data == NULL:
        free(half)
        return NULL
    return half


cdef inline void free_half(Half *half) noexcept nogil:
    if half != NULL:
        free(half.data)
        free(half)


cdef inline void clear_half(Half *half) noexcept nogil:
    half.length = half.count = half.dropped = half.base_ns = half.last_ns = 0
    memset(half.kinds, 0, sizeof(half.kinds))
    memset(half.strings, 0, sizeof(half.strings))


cdef inline bint is_empty(const Half *half) noexcept nogil:
    return half.count == 0 and half.dropped == 0


cdef inline void start_halves(
    Halves *halves, Half *filling, Half *taken, size_t half_bytes, int wake_fd
) noexcept nogil:
    """Keep events from now on; native code may still be emitting one that it began before."""
    pthread_mutex_lock(&halves.mutex)
    halves.filling, halves.taken = filling, taken
    halves.half_bytes, halves.wake_fd = half_bytes, wake_fd
    halves.next_seq = 0
    halves.woken = False
    pthread_mutex_unlock(&halves.mutex)


cdef inline void stop_halves(Halves *halves) noexcept nogil:
    """Keep no further events, and forget those that wait."""
    cdef Half *filling
    cdef Half *taken
    cdef int wake_fd
    pthread_mutex_lock(&halves.mutex)
    filling, taken, wake_fd = halves.filling, halves.taken, halves.wake_fd
    halves.filling = halves.taken = NULL
    pthread_mutex_unlock(&halves.mutex)
    if filling != NULL:
        close(wake_fd)
    free_half(filling)
    free_half(taken)


cdef inline Half *next_half(Halves *halves) noexcept nogil:
    """Return the oldest events, for the reader to clear; NULL if there are none."""
    cdef Half *half
    if halves.filling == NULL:
        return NULL
    if is_empty(halves.taken):
        pthread_mutex_lock(&halves.mutex)
        half, halves.filling = halves.filling, halves.taken
        halves.taken = half
        half.first_seq = halves.next_seq
        halves.next_seq += half.count + half.dropped
        halves.woken = False
        pthread_mutex_unlock(&halves.mutex)
    return NULL if is_empty(halves.taken) else halves.taken


cdef inline uint64_t append(Halves *halves, const Event *event) noexcept nogil:
    """Append an event, or count it as dropped if there is no room or its `kind` is negative.

    Return its sequence number, NOT_KEPT while no events are kept.
    """
    cdef size_t most = most_bytes(event)
    cdef Half *half
    cdef uint64_t seq = NOT_KEPT
    pthread_mutex_lock(&halves.mutex)
    half = halves.filling
    if half != NULL:
        seq = halves.next_seq + half.count + half.dropped
        if is_empty(half):
            half.base_ns = half.last_ns = monotonic_ns()
        # Once one was dropped all are, so that those that are kept have consecutive numbers.
        if event.kind < 0 or half.dropped or half.length + most > halves.half_bytes:
            half.dropped += 1
        else:
            put_event(half, event)
            if half.length > halves.half_bytes // 2 and not halves.woken:
                halves.woken = True
                wake(halves.wake_fd)
    pthread_mutex_unlock(&halves.mutex)
    return seq


cdef inline size_t most_bytes(const Event *event) noexcept nogil:
    cdef size_t most = MAX_NUMBER_BYTES * (2 + <size_t>event.count)
    cdef int i
    if event.texts != NULL:
        for i in range(event.count):
            if event.texts[i] != NULL:
                most += MAX_NUMBER_BYTES + event.lengths[i]
    return most


cdef inline void wake(int fd) noexcept nogil:
    """Make the eventfd readable; under the mutex, which keeps it open. It does not block here."""
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))


cdef inline void put_event(Half *half, const Event *event) noexcept nogil:
    cdef uint8_t *end = half.data + half.length
    cdef uint64_t ns = monotonic_ns() if half.count else half.base_ns
    cdef int i
    end = put_number(end, event.kind)
    end = put_number(end, ns - half.last_ns)
    half.last_ns = ns
    for i in range(event.count):
        end = put_number(end, event.values[i])
        if event.string_fields >> i & 1:
            if event.values[i]:
                half.strings[event.values[i]] = 1
            elif event.texts != NULL and event.texts[i] != NULL:
                end = put_number(end, event.lengths[i])
                memcpy(end, event.texts[i], event.lengths[i])
                end += event.lengths[i]
            else:
                end = put_number(end, 0)
    half.kinds[event.kind] = 1
    half.length = end - half.data
    half.count += 1


cdef inline uint8_t *put_number(uint8_t *target, uint64_t value) noexcept nogil:
    while value >= 0x80:
        target[0] = <uint8_t>(value | 0x80)
        value >>= 7
        target += 1
    target[0] = <uint8_t>value
    return target + 1
