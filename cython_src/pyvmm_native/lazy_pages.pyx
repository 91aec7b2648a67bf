# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Guest RAM that is filled from a file when it is touched, block by block, each checked before.

The kernel tells of the first access to a missing page through userfaultfd(2) and lets the thread
that made it wait, be it a vCPU in KVM or one of ours. The block is then read into a buffer, its
checksum verified, and only then are its pages put in place (UFFDIO_COPY); what waits goes on when
the block is no longer watched (UFFDIO_UNREGISTER). Whenever nobody waits, the next block follows
without being asked for. RAM stays private anonymous memory, so it can be discarded as ever, but
pages must not come back from the file after they were: `forget` is told of them first.

All of that happens without the GIL, which a thread that waits for a page may be holding.

When a block is damaged no processor may run on, as what it waits for cannot be had. So every vCPU
is made to leave the guest at once, and only then those who wait are let go; they find zeros, which
the guest does not live to see.

Documentation/admin-guide/mm/userfaultfd.rst.
"""

import os

from cpython.buffer cimport Py_buffer, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.types cimport off_t
from posix.unistd cimport close, getpid, read

from pyvmm_native.memory cimport GuestMemory
from pyvmm_native.page_blocks cimport (
    BITMAP_BYTES, BLOCK_BYTES_, BLOCK_PAGES_, WRONG_CHECKSUM, next_run, read_block,
)
from pyvmm_native.runs cimport PageRuns

from pyvmm_native.page_blocks import ChecksumError

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef extern from "<signal.h>" nogil:
    int tgkill(int tgid, int tid, int signum)

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <stdint.h>
    #include <linux/kvm.h>
    #include <linux/userfaultfd.h>
    #include <sys/ioctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* All faults, those inside the kernel and KVM included: not UFFD_USER_MODE_ONLY. */
    static int open_userfaultfd(void)
    {
        struct uffdio_api api = { .api = UFFD_API };
        int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0) {
            close(fd);
            fd = -1;
        }
        return fd;
    }

    static int watch_range(int fd, void *start, size_t length)
    {
        struct uffdio_register request = {
            .range = { (uintptr_t)start, length }, .mode = UFFDIO_REGISTER_MODE_MISSING,
        };
        return ioctl(fd, UFFDIO_REGISTER, &request);
    }

    /*
     * UFFDIO_UNREGISTER wakes those who wait and only then shuts the faults of this range out,
     * where they take no more than their mapping's own lock (seen on Linux 6.18). One that falls
     * between the two sleeps on, for ever if its page is not among those placed: so wake again.
     */
    static int release_range(int fd, void *start, size_t length)
    {
        struct uffdio_range range = { (uintptr_t)start, length };
        if (ioctl(fd, UFFDIO_UNREGISTER, &range) < 0)
            return -1;
        return ioctl(fd, UFFDIO_WAKE, &range);
    }

    /* Puts missing pages in place and leaves sleepers asleep; returns the bytes done, or -1. */
    static long long place_pages(int fd, void *target, void *source, size_t length)
    {
        struct uffdio_copy copy = {
            .dst = (uintptr_t)target, .src = (uintptr_t)source, .len = length,
            .mode = UFFDIO_COPY_MODE_DONTWAKE,
        };
        if (ioctl(fd, UFFDIO_COPY, &copy) == 0)
            return length;
        return copy.copy > 0 ? copy.copy : -1;
    }

    static int is_fault(const struct uffd_msg *message, uintptr_t *address)
    {
        *address = message->arg.pagefault.address;
        return message->event == UFFD_EVENT_PAGEFAULT;
    }

    static void leave_guest(struct kvm_run *run)
    {
        __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_RELEASE);
    }
    """
    struct uffd_msg:
        pass
    struct kvm_run:
        pass
    int open_userfaultfd()
    int watch_range(int fd, void *start, size_t length)
    int release_range(int fd, void *start, size_t length)
    long long place_pages(int fd, void *target, void *source, size_t length)
    bint is_fault(const uffd_msg *message, uintptr_t *address)
    void leave_guest(kvm_run *run)

cdef enum:
    PAGE_SHIFT = 12
    MAX_VCPUS = 64
    MAX_RETRIES = 1000

cdef struct Block:
    uint64_t first_pfn
    uint8_t *hva
    size_t size_bytes
    off_t offset
    uint32_t crc
    bint done
    uint8_t stored[BITMAP_BYTES]
    uint8_t wanted[BITMAP_BYTES]    # those of `stored` that were not forgotten

cdef struct Processor:
    int tid
    int signum
    kvm_run *run


cdef class LazyPages:
    cdef GuestMemory memory
    cdef int fd, file
    cdef Block *blocks
    cdef size_t count
    cdef Processor processors[MAX_VCPUS]
    cdef int processor_count
    cdef list run_areas
    cdef pthread_mutex_t mutex    # for `wanted` and `done` of the blocks, and the processors
    cdef uint8_t *buffer
    cdef volatile bint stopping
    cdef readonly bint serving
    cdef readonly bint failed

    def __cinit__(self, GuestMemory memory not None, blocks, int file):
        self.memory = memory
        self.file = file
        self.fd = -1
        self.run_areas = []
        pthread_mutex_init(&self.mutex, NULL)
        ordered = sorted(blocks)
        self.blocks = <Block *>calloc(max(len(ordered), 1), sizeof(Block))
        self.buffer = <uint8_t *>malloc(BLOCK_BYTES_)
        if self.blocks == NULL or self.buffer == NULL:
            raise MemoryError
        for first_pfn, bitmap, offset, crc in ordered:
            self._append(first_pfn, bitmap, offset, crc)
        self.fd = open_userfaultfd()
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno), "userfaultfd")
        self._watch_all()

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        free(self.blocks)
        free(self.buffer)

    cdef _append(self, uint64_t first_pfn, const uint8_t[::1] bitmap, off_t offset, uint32_t crc):
        cdef Block *block = &self.blocks[self.count]
        cdef uint64_t got
        if bitmap.shape[0] != BITMAP_BYTES or first_pfn % BLOCK_PAGES_ or first_pfn >> 40:
            raise ValueError(f"no block at page frame {first_pfn:#x}")
        if self.count and (block - 1).first_pfn >= first_pfn:
            raise ValueError(f"the block at page frame {first_pfn:#x} is there twice")
        block.hva = self.memory.span(first_pfn << PAGE_SHIFT, BLOCK_BYTES_, &got)
        if block.hva == NULL:
            raise ValueError(f"the block at page frame {first_pfn:#x} is not inside guest RAM")
        block.first_pfn, block.size_bytes = first_pfn, got
        block.offset, block.crc = offset, crc
        memcpy(block.stored, &bitmap[0], BITMAP_BYTES)
        memcpy(block.wanted, &bitmap[0], BITMAP_BYTES)
        self.count += 1

    cdef _watch_all(self):
        cdef size_t i
        for i in range(self.count):
            if watch_range(self.fd, self.blocks[i].hva, self.blocks[i].size_bytes) < 0:
                raise OSError(errno, os.strerror(errno), "userfaultfd")

    def watch(self, int tid, int signum, run_area):
        cdef Py_buffer view
        if self.processor_count == MAX_VCPUS:
            raise ValueError("too many vCPUs")
        PyObject_GetBuffer(run_area, &view, PyBUF_WRITABLE)
        self.run_areas.append(run_area)
        with nogil:
            pthread_mutex_lock(&self.mutex)
        self.processors[self.processor_count] = Processor(tid, signum, <kvm_run *>view.buf)
        self.processor_count += 1
        pthread_mutex_unlock(&self.mutex)
        PyBuffer_Release(&view)

    def forget(self, PageRuns pages not None):
        cdef size_t i
        with nogil:
            pthread_mutex_lock(&self.mutex)
            for i in range(pages.list.count):
                self._forget_run(pages.list.items[i].start, pages.list.items[i].end)
            pthread_mutex_unlock(&self.mutex)

    def stop(self):
        self.stopping = True

    def serve(self):
        cdef int error
        with nogil:
            error = self._serve()
        if error == WRONG_CHECKSUM:
            raise ChecksumError("wrong checksum of a block of pages")
        if error:
            raise OSError(error, os.strerror(error))

    cdef void _forget_run(self, uint64_t start, uint64_t end) noexcept nogil:
        cdef size_t low = 0, high = self.count, middle
        cdef uint64_t pfn, bit
        while low < high:    # the first block that ends after `start`
            middle = (low + high) // 2
            if self.blocks[middle].first_pfn + BLOCK_PAGES_ <= start:
                low = middle + 1
            else:
                high = middle
        while low < self.count and self.blocks[low].first_pfn < end:
            if not self.blocks[low].done:
                pfn = max(start, self.blocks[low].first_pfn)
                while pfn < min(end, self.blocks[low].first_pfn + BLOCK_PAGES_):
                    bit = pfn - self.blocks[low].first_pfn
                    self.blocks[low].wanted[bit >> 3] &= ~(1 << (bit & 7))
                    pfn += 1
            low += 1

    cdef int _serve(self) noexcept nogil:
        """Everything until all is there, `stop` was called or something is wrong."""
        cdef size_t next_block = 0
        cdef Block *block
        cdef int error = 0
        self.serving = True
        while not error and not self.stopping:
            block = self._asked_for()
            if block == NULL:
                while next_block < self.count and self.blocks[next_block].done:
                    next_block += 1
                if next_block == self.count:
                    return 0
                block = &self.blocks[next_block]
            pthread_mutex_lock(&self.mutex)
            error = self._load(block)
            pthread_mutex_unlock(&self.mutex)
        if error:
            self.failed = True
            self._stop_processors()
        self._release_all()
        return error

    cdef Block *_asked_for(self) noexcept nogil:
        """The block that somebody waits for, or NULL if nobody does."""
        cdef uffd_msg message
        cdef uintptr_t address = 0
        cdef size_t i
        while read(self.fd, &message, sizeof(message)) == <ssize_t>sizeof(message):
            if not is_fault(&message, &address):
                continue
            for i in range(self.count):
                if (address - <uintptr_t>self.blocks[i].hva < self.blocks[i].size_bytes
                        and not self.blocks[i].done):
                    return &self.blocks[i]
        return NULL

    cdef int _load(self, Block *block) noexcept nogil:
        """Put a block in place; 0, an errno or WRONG_CHECKSUM."""
        cdef int start, end = 0, error
        cdef uint8_t *source = self.buffer
        if block.done:
            return 0
        error = read_block(self.file, block.offset, block.stored, block.crc, self.buffer)
        if error:
            return error
        start = next_run(block.stored, 0, &end)
        while start < BLOCK_PAGES_:
            error = self._place(block, start, end, source)
            if error:
                return error
            source += <size_t>(end - start) << PAGE_SHIFT
            start = next_run(block.stored, end, &end)
        block.done = True
        if release_range(self.fd, block.hva, block.size_bytes) < 0:
            return errno
        return 0

    cdef int _place(self, Block *block, int start, int end, uint8_t *source) noexcept nogil:
        """Place the pages from `start` to `end` of a block, less those that were forgotten."""
        cdef int first = start, stop = start
        cdef size_t size, done
        cdef long long got
        cdef int retries = MAX_RETRIES
        first = next_run(block.wanted, start, &stop)
        while first < end:
            stop = min(stop, end)
            size = <size_t>(stop - first) << PAGE_SHIFT
            done = 0
            while done < size:
                got = place_pages(
                    self.fd, block.hva + (<size_t>first << PAGE_SHIFT) + done,
                    source + (<size_t>(first - start) << PAGE_SHIFT) + done, size - done,
                )
                if got < 0:
                    if errno not in (EAGAIN, EINTR) or retries == 0:
                        return errno
                    retries -= 1
                else:
                    done += got
            first = next_run(block.wanted, stop, &stop)
        return 0

    cdef void _stop_processors(self) noexcept nogil:
        cdef int i
        pthread_mutex_lock(&self.mutex)
        for i in range(self.processor_count):
            leave_guest(self.processors[i].run)
            tgkill(getpid(), self.processors[i].tid, self.processors[i].signum)
        pthread_mutex_unlock(&self.mutex)

    cdef void _release_all(self) noexcept nogil:
        cdef size_t i
        for i in range(self.count):
            if not self.blocks[i].done:
                release_range(self.fd, self.blocks[i].hva, self.blocks[i].size_bytes)
