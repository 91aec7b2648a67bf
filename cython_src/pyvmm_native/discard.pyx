# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Returning guest memory to the host.

`madvise(MADV_DONTNEED)` frees private anonymous pages at once and lets them read as zeros when
they are touched again. One call costs about half a microsecond beside the freeing itself, which
is most of the cost when single pages are discarded. `process_madvise(2)`, applied to this process,
takes 1024 ranges in one call. PIDFD_SELF_THREAD names the process without a file descriptor that
would have to be opened for each request and checked after a fork; kernels accept it since 6.15, and
MADV_DONTNEED there since 6.13. Seccomp filters may also refuse the call, and the version number
shows neither: it is tried once on two pages of our own, and used only if their contents are gone.

On a shared or file-backed mapping the same `madvise` succeeds and frees nothing, or restores
the file's contents. A trial on a region would destroy the guest's data there, so the whole region
must be listed in /proc/self/maps as private and without an inode. That is looked up once per
`GuestMemory`, which holds its buffers and so its mappings.

All ranges are checked before the first is discarded.
"""

from collections import namedtuple

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.mman cimport (
    MADV_DONTNEED, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap,
    munmap,
)

from pyvmm_native.iovecs cimport advance, iovec
from pyvmm_native.memory cimport PAGE_BYTES, PAGE_SHIFT, GuestMemory, Region
from pyvmm_native.run_list cimport Run
from pyvmm_native.runs cimport PageRuns

cdef extern from * nogil:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef SYS_process_madvise
    #define SYS_process_madvise 440
    #endif
    #ifndef PIDFD_SELF_THREAD
    #define PIDFD_SELF_THREAD -10000  /* <linux/pidfd.h> */
    #endif
    """
    long syscall(long number, ...)
    long SYS_process_madvise
    int PIDFD_SELF_THREAD

cdef enum:
    BATCH_RANGES = 1024    # IOV_MAX: the kernel takes no more at once
    # After this many retries EINTR and EAGAIN are errors like any other.
    MAX_RETRIES = 1000

# Runs may name frames whose address does not fit 64 bits; RAM ends below 2**52 bytes.
cdef uint64_t PFN_LIMIT = <uint64_t>1 << 40

cdef struct Work:
    bint batched           # one call for many ranges, else one for each
    size_t count           # ranges waiting
    uint64_t size_bytes    # discarded so far
    uint64_t calls
    iovec ranges[BATCH_RANGES]

Discarded = namedtuple("Discarded", ["bytes", "calls"], module=__name__)
Discarded.__doc__ = "Result of a discard: its size in bytes and the number of system calls."
Discarded.bytes.__doc__ = "Bytes whose contents were discarded, resident before or not."
Discarded.calls.__doc__ = "System calls it took."

cdef object process_madvise_works = None


def have_process_madvise():
    """Return whether process_madvise(2) can discard memory of this process.

    It is tried once, on pages mapped for the purpose.
    """
    global process_madvise_works
    if process_madvise_works is None:
        process_madvise_works = probe_process_madvise()
    return process_madvise_works


def discard(GuestMemory memory not None, PageRuns runs not None):
    """Free the host memory behind `runs`; the guest reads zeros there until it writes again.

    Return a `Discarded` once the memory is free. Ranges go to the kernel 1024 at a time if
    `have_process_madvise`, one at a time otherwise, without the GIL. ValueError, with nothing
    discarded, when a run is not wholly inside RAM, or when a region of `memory` is not private
    anonymous memory at page-aligned host addresses (a `bytearray`, a file, a shared mapping:
    `mmap.mmap(-1, n)` is shared unless given `flags=mmap.MAP_PRIVATE`). OSError when the kernel
    refuses a range, for example locked memory; the ranges before it have been discarded then.
    """
    cdef Work work
    cdef const Run *outside
    cdef int error = 0
    if not memory.discardable:
        check_discardable(memory)
        memory.discardable = True
    work.count = work.size_bytes = work.calls = 0
    work.batched = runs.list.count > 1 and have_process_madvise()
    with nogil:
        outside = find_outside(memory, runs)
        if outside == NULL:
            error = discard_runs(memory, runs, &work)
            if memory.logs_dirty_pages():
                mark_runs_dirty(memory, runs)
    if outside != NULL:
        raise ValueError(f"{outside.end - outside.start} page frames from {outside.start:#x} on "
                         "are not wholly inside guest RAM")
    if error:
        raise OSError(error, "madvise(MADV_DONTNEED) on guest RAM")
    # As Discarded(...), without a call of Python.
    return tuple.__new__(Discarded, (work.size_bytes, work.calls))


cdef check_discardable(GuestMemory memory):
    cdef Py_ssize_t i
    cdef uintptr_t hva
    private = private_anonymous_ranges()
    for i in range(memory._count):
        region = f"the region at gpa {memory._regions[i].gpa:#x}"
        hva = <uintptr_t>memory._regions[i].hva
        if hva % PAGE_BYTES:
            raise ValueError(f"{region} does not start at a page of host memory")
        if not is_within(private, hva, hva + memory._regions[i].size_bytes):
            raise ValueError(f"{region} is not private anonymous memory: it cannot be discarded")


def private_anonymous_ranges():
    """Return the host address ranges (start, end) of this process that a discard would free,
    ascending.

    They are the private mappings without a file (proc_pid_maps(5)).
    """
    ranges = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, permissions, _, _, inode = line.split(maxsplit=5)[:5]
            if permissions[3] == "p" and inode == "0":
                ranges.append(tuple([int(address, 16) for address in addresses.split("-")]))
    return ranges


def is_within(ranges, start, end):
    """Return whether ascending, disjoint `ranges` cover [start, end) without a gap."""
    for range_start, range_end in ranges:
        if range_start <= start < range_end:
            start = range_end
    return start >= end


cdef const Run *find_outside(GuestMemory memory, PageRuns runs) noexcept nogil:
    """Return the first run that is not wholly RAM, or NULL."""
    cdef size_t i
    cdef uint64_t gpa, end
    cdef const Run *run
    # Runs and regions both ascend: most runs lie in the region of the one before.
    cdef const Region *region = memory._regions
    cdef const Region *behind = memory._regions + memory._count
    for i in range(runs.list.count):
        run = &runs.list.items[i]
        if run.end > PFN_LIMIT:
            return run
        gpa = run.start << PAGE_SHIFT
        end = run.end << PAGE_SHIFT
        while region < behind and region.gpa + region.size_bytes <= gpa:
            region += 1
        if region == behind or gpa < region.gpa:
            return run
        if end > region.gpa + region.size_bytes and not memory.covers(gpa, end - gpa):
            return run
    return NULL


cdef int discard_runs(GuestMemory memory, PageRuns runs, Work *work) noexcept nogil:
    """Discard runs that are inside RAM; return an errno or 0."""
    cdef size_t i
    cdef uint64_t gpa, left, got
    cdef int error
    for i in range(runs.list.count):
        gpa = runs.list.items[i].start << PAGE_SHIFT
        left = (runs.list.items[i].end << PAGE_SHIFT) - gpa
        while left:
            work.ranges[work.count].iov_base = memory.span(gpa, left, &got)
            work.ranges[work.count].iov_len = got
            work.count += 1
            gpa += got
            left -= got
            if work.count == BATCH_RANGES:
                error = flush(work)
                if error:
                    return error
    return flush(work)


cdef void mark_runs_dirty(GuestMemory memory, PageRuns runs) noexcept nogil:
    cdef size_t i
    cdef uint64_t gpa, left, got
    for i in range(runs.list.count):
        gpa = runs.list.items[i].start << PAGE_SHIFT
        left = (runs.list.items[i].end << PAGE_SHIFT) - gpa
        while left:
            memory.span(gpa, left, &got)
            memory.mark_dirty(gpa, got)
            gpa += got
            left -= got


cdef int flush(Work *work) noexcept nogil:
    """Discard the waiting ranges; return an errno or 0."""
    cdef size_t i, done = 0
    cdef int error
    if work.batched:
        done = advise_batch(work)
    # Ranges that the batched call refused are discarded one by one, or the error is final.
    for i in range(done, work.count):
        error = advise_one(work, &work.ranges[i])
        if error:
            return error
    work.count = 0
    return 0


cdef size_t advise_batch(Work *work) noexcept nogil:
    """Discard waiting ranges; return how many are done, leaving the rest of a partly done one."""
    cdef size_t first = 0
    cdef int retries = MAX_RETRIES
    cdef long got
    cdef size_t advised
    while first < work.count:
        got = syscall(SYS_process_madvise, PIDFD_SELF_THREAD, &work.ranges[first],
                      work.count - first, MADV_DONTNEED, 0)
        work.calls += 1
        if got < 0 and errno in (EINTR, EAGAIN) and retries:
            retries -= 1
            continue
        if got <= 0:
            break
        # It stops early at 2 GiB in total, at a signal, and before a range it refuses.
        advised = got
        work.size_bytes += advised
        while first < work.count and advised >= work.ranges[first].iov_len:
            advised -= work.ranges[first].iov_len
            first += 1
        if advised:
            advance(&work.ranges[first], advised)
    return first


cdef int advise_one(Work *work, const iovec *memory) noexcept nogil:
    cdef int retries = MAX_RETRIES
    while True:
        work.calls += 1
        if madvise(memory.iov_base, memory.iov_len, MADV_DONTNEED) == 0:
            work.size_bytes += memory.iov_len
            return 0
        if errno not in (EINTR, EAGAIN) or retries == 0:
            return errno
        retries -= 1


cdef bint probe_process_madvise() noexcept:
    cdef size_t size = 2 * PAGE_BYTES
    cdef uint8_t *pages = <uint8_t *>mmap(NULL, size, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    cdef iovec ranges[2]
    cdef long got
    cdef bint gone
    cdef int i
    if <void *>pages == MAP_FAILED:
        return False
    memset(pages, 1, size)
    for i in range(2):
        ranges[i].iov_base = pages + i * PAGE_BYTES
        ranges[i].iov_len = PAGE_BYTES
    got = syscall(SYS_process_madvise, PIDFD_SELF_THREAD, ranges, 2, MADV_DONTNEED, 0)
    gone = got == <long>size and pages[0] == 0 and pages[PAGE_BYTES] == 0
    munmap(pages, size)
    return gone
