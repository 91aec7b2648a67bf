# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Guest RAM that is loaded from a file when it is touched, block by block, each checked first.

The kernel reports the first access to a missing page through userfaultfd(2) and suspends the
thread that made it, a vCPU in KVM or any other. The block is then read into a buffer, each page at
its place in the block, and its checksum verified; only then are its pages put into RAM
(UFFDIO_COPY). The thread resumes when the block is no longer registered (UFFDIO_UNREGISTER). While
no thread waits, blocks are loaded in order. RAM stays private anonymous memory, so it can be
discarded as usual, but discarded pages must not be loaded from the file again: they are passed to
`skip` first. RAM in huge pages of hugetlbfs is loaded a huge page at a time, which is a block:
pages that are not in the file are zeros in it.

All of that happens without the GIL, which a thread that waits for a page may be holding.

When a block is damaged, no vCPU may continue, because the page it waits for does not exist. So
every vCPU is made to leave the guest at once, and only then are the waiting threads released; they
read zeros, but no vCPU enters the guest again to see them.

Documentation/admin-guide/mm/userfaultfd.rst.
"""

import os

from cpython.buffer cimport Py_buffer, PyBuffer_IsContiguous
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.types cimport off_t
from posix.unistd cimport close, getpid, read

from pyvmm_native.iovecs cimport iovec
from pyvmm_native.memory cimport PAGE_SHIFT, GuestMemory
from pyvmm_native.page_blocks cimport (
    BITMAP_BYTES, BLOCK_BYTES_, BLOCK_PAGES_, next_run, read_parts,
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
     * UFFDIO_UNREGISTER wakes waiting threads and only then stops reporting faults of this range,
     * where faults take no more than the lock of their own mapping (seen on Linux 6.18). A thread
     * that faults between the two stays asleep, forever if its page is not placed: so wake again.
     */
    static int release_range(int fd, void *start, size_t length)
    {
        struct uffdio_range range = { (uintptr_t)start, length };
        if (ioctl(fd, UFFDIO_UNREGISTER, &range) < 0)
            return -1;
        return ioctl(fd, UFFDIO_WAKE, &range);
    }

    /* Put missing pages in place without waking threads; return the bytes done, or -1. */
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

    #define load_acquire(flag) __atomic_load_n(flag, __ATOMIC_ACQUIRE)
    #define store_release(flag, value) __atomic_store_n(flag, value, __ATOMIC_RELEASE)
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
    bint load_acquire(bint *flag)
    void store_release(bint *flag, bint value)

cdef enum:
    MAX_VCPUS = 64
    MAX_RETRIES = 1000
    WRONG_CHECKSUM = -1    # beside errno values

cdef struct Block:
    uint64_t first_pfn
    uint8_t *hva
    size_t size_bytes
    off_t offset
    uint32_t crc
    bint done
    uint8_t stored[BITMAP_BYTES]
    uint8_t wanted[BITMAP_BYTES]    # those of `stored` that are not skipped

cdef struct Vcpu:
    int tid
    int signum
    kvm_run *run


cdef class LazyPages:
    """Guest RAM that is loaded, block by block, from the file `fd` when it is touched.

    With `whole_blocks`, RAM is in huge pages of 2 MiB, and a block is put in place as one of them.

    `blocks` are (first_pfn, bitmap, offset, crc) as in `pyvmm_native.page_blocks`; `memory`
    has not been touched yet. As soon as the object exists, a thread that touches a page of a block
    waits until `serve`, in a thread of its own, has loaded it. OSError where the kernel does not
    let this process watch page faults (EPERM without CAP_SYS_PTRACE, unless
    vm.unprivileged_userfaultfd is 1). ValueError for a block outside RAM or given twice.

    `serving` is True once `serve` runs without the GIL: until then no thread may touch the
    memory while it holds the GIL. `failed` is True once `serve` has met a block that cannot be
    used; it is set before any thread can read zeros instead.
    """

    cdef GuestMemory memory
    cdef int uffd, fd
    cdef Block *blocks
    cdef size_t count
    cdef Vcpu vcpus[MAX_VCPUS]
    cdef int vcpu_count
    cdef list exports             # of the run areas that `vcpus` point into
    cdef pthread_mutex_t mutex    # for `wanted` and `done` of the blocks, and the vCPUs
    cdef uint8_t *buffer
    cdef bint whole_blocks        # they are put in place as huge pages
    cdef bint finished            # `serve` has returned
    # Stored by one thread while others load them, with or without the GIL.
    cdef bint is_stopping
    cdef bint is_serving
    cdef bint has_failed

    def __cinit__(
        self, GuestMemory memory not None, blocks, int fd, *, bint whole_blocks=False
    ):
        self.memory = memory
        self.fd = fd
        self.uffd = -1
        self.exports = []
        pthread_mutex_init(&self.mutex, NULL)
        ordered = sorted(blocks)
        self.blocks = <Block *>calloc(max(len(ordered), 1), sizeof(Block))
        self.buffer = <uint8_t *>malloc(BLOCK_BYTES_)
        self.whole_blocks = whole_blocks
        if self.blocks == NULL or self.buffer == NULL:
            raise MemoryError
        for first_pfn, bitmap, offset, crc in ordered:
            self._append(first_pfn, bitmap, offset, crc)
        self.uffd = open_userfaultfd()
        if self.uffd < 0:
            raise OSError(errno, os.strerror(errno), "userfaultfd")
        self._watch_all()

    def __dealloc__(self):
        if self.uffd >= 0:
            close(self.uffd)
        free(self.blocks)
        free(self.buffer)

    cdef _append(self, uint64_t first_pfn, const uint8_t[::1] bitmap, off_t offset, uint32_t crc):
        cdef Block *block = &self.blocks[self.count]
        cdef uint64_t got
        if bitmap.shape[0] != BITMAP_BYTES or first_pfn % BLOCK_PAGES_ or first_pfn >> 40:
            raise ValueError(f"no block at page frame {first_pfn:#x}")
        if self.count and (block - 1).first_pfn >= first_pfn:
            raise ValueError(f"the block at page frame {first_pfn:#x} is given twice")
        block.hva = self.memory.span(first_pfn << PAGE_SHIFT, BLOCK_BYTES_, &got)
        if block.hva == NULL or last_page(&bitmap[0]) >= <int>(got >> PAGE_SHIFT):
            raise ValueError(f"the block at page frame {first_pfn:#x} is not inside guest RAM")
        if self.whole_blocks and got < BLOCK_BYTES_:
            raise ValueError(f"the block at page frame {first_pfn:#x} is not a whole huge page")
        block.first_pfn, block.size_bytes = first_pfn, got
        block.offset, block.crc = offset, crc
        memcpy(block.stored, &bitmap[0], BITMAP_BYTES)
        memcpy(block.wanted, &bitmap[0], BITMAP_BYTES)
        self.count += 1

    cdef _watch_all(self):
        cdef size_t i
        for i in range(self.count):
            if watch_range(self.uffd, self.blocks[i].hva, self.blocks[i].size_bytes) < 0:
                raise OSError(errno, os.strerror(errno), "userfaultfd")

    @property
    def serving(self):
        return load_acquire(&self.is_serving)

    @property
    def failed(self):
        return load_acquire(&self.has_failed)

    def add_vcpu(self, int tid, int signum, run_area):
        """Register a vCPU, which is stopped before waiting threads are released if a block is bad.

        `tid` is its thread's id, `signum` a signal whose only effect is that KVM_RUN returns,
        `run_area` the vCPU's mapping of `kvm_run`, which stays exported until `serve` returns.
        After `serve` has failed the vCPU is stopped at once. ValueError for more than 64 vCPUs and
        for a run area that is not a writable `kvm_run`.
        """
        export = PyMemoryView_FromObject(run_area)
        cdef Py_buffer *view = PyMemoryView_GET_BUFFER(export)
        if view.readonly or not PyBuffer_IsContiguous(view, c'C'):
            raise ValueError("the run area is not a writable contiguous buffer")
        if <size_t>view.len < sizeof(kvm_run):
            raise ValueError(f"run area of {view.len} bytes is smaller than kvm_run")
        cdef Vcpu vcpu = Vcpu(tid, signum, <kvm_run *>view.buf)
        with nogil:
            pthread_mutex_lock(&self.mutex)
        cdef bint full = self.vcpu_count == MAX_VCPUS
        if not full and not self.finished:
            self.exports.append(export)
            self.vcpus[self.vcpu_count] = vcpu
            self.vcpu_count += 1
        # Loaded with the mutex: either this is seen here, or the vCPU is in the list.
        cdef bint stopped = load_acquire(&self.has_failed)
        pthread_mutex_unlock(&self.mutex)
        if full:
            raise ValueError("too many vCPUs")
        if stopped:
            stop_vcpu(&vcpu)

    def skip(self, PageRuns pages not None):
        """Never load `pages`: they are about to be discarded."""
        cdef size_t i
        with nogil:
            pthread_mutex_lock(&self.mutex)
            for i in range(pages.list.count):
                self._skip_run(pages.list.items[i].start, pages.list.items[i].end)
            pthread_mutex_unlock(&self.mutex)

    def stop(self):
        """Make `serve` return soon, with RAM incomplete. Stop the guest first."""
        store_release(&self.is_stopping, True)

    def serve(self):
        """Load blocks, those that threads wait for first, and return when all are loaded.

        ChecksumError for a damaged block, OSError for one that cannot be read: by then every vCPU
        has been made to leave the guest, and RAM is incomplete. Runs without the GIL.
        """
        cdef int error
        with nogil:
            error = self._serve()
        self.finished = True
        self.vcpu_count = 0
        self.exports.clear()
        if error == WRONG_CHECKSUM:
            raise ChecksumError("wrong checksum of a block of pages")
        if error:
            raise OSError(error, os.strerror(error))

    cdef void _skip_run(self, uint64_t start, uint64_t end) noexcept nogil:
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
        """Load blocks until all are loaded, `stop` was called or one cannot be used."""
        cdef size_t next_block = 0
        cdef Block *block
        cdef int error = 0
        store_release(&self.is_serving, True)
        while not error and not load_acquire(&self.is_stopping):
            block = self._faulted_block()
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
            store_release(&self.has_failed, True)
            self._stop_vcpus()
        self._release_all()
        return error

    cdef Block *_faulted_block(self) noexcept nogil:
        """Return a block that a thread waits for, or NULL if none does."""
        cdef uffd_msg message
        cdef uintptr_t address = 0
        cdef size_t i
        while read(self.uffd, &message, sizeof(message)) == <ssize_t>sizeof(message):
            if not is_fault(&message, &address):
                continue
            for i in range(self.count):
                if (address - <uintptr_t>self.blocks[i].hva < self.blocks[i].size_bytes
                        and not self.blocks[i].done):
                    return &self.blocks[i]
        return NULL

    cdef int _load(self, Block *block) noexcept nogil:
        """Put a block in place; return 0, an errno or WRONG_CHECKSUM."""
        cdef int error
        if block.done:
            return 0
        error = self._read(block)
        if not error:
            error = self._place_whole(block) if self.whole_blocks else self._place_pages(block)
        if error:
            return error
        block.done = True
        if release_range(self.uffd, block.hva, block.size_bytes) < 0:
            return errno
        return 0

    cdef int _read(self, Block *block) noexcept nogil:
        """Read a block into the buffer, each page at its place, and check it."""
        cdef iovec parts[BLOCK_PAGES_]
        cdef int start, end = 0, count = 0, error
        cdef uint32_t crc = 0
        start = next_run(block.stored, 0, &end)
        while start < BLOCK_PAGES_:
            parts[count].iov_base = self.buffer + (<size_t>start << PAGE_SHIFT)
            parts[count].iov_len = <size_t>(end - start) << PAGE_SHIFT
            count += 1
            start = next_run(block.stored, end, &end)
        error = read_parts(self.fd, block.offset, parts, count, &crc)
        return error if error or crc == block.crc else WRONG_CHECKSUM

    cdef int _place_pages(self, Block *block) noexcept nogil:
        """Place the pages of a block, except skipped ones."""
        cdef int start, end = 0, error
        cdef size_t offset
        start = next_run(block.wanted, 0, &end)
        while start < BLOCK_PAGES_:
            offset = <size_t>start << PAGE_SHIFT
            error = place_all(
                self.uffd, block.hva + offset, self.buffer + offset,
                <size_t>(end - start) << PAGE_SHIFT,
            )
            if error:
                return error
            start = next_run(block.wanted, end, &end)
        return 0

    cdef int _place_whole(self, Block *block) noexcept nogil:
        """Place a block as one huge page, unless all of it is skipped."""
        cdef int start, end = 0, filled = 0
        start = next_run(block.wanted, 0, &end)
        if start == BLOCK_PAGES_:
            return 0
        while filled < BLOCK_PAGES_:
            memset(
                self.buffer + (<size_t>filled << PAGE_SHIFT), 0,
                <size_t>(start - filled) << PAGE_SHIFT,
            )
            filled = end
            start = next_run(block.wanted, end, &end)
        return place_all(self.uffd, block.hva, self.buffer, BLOCK_BYTES_)

    cdef void _stop_vcpus(self) noexcept nogil:
        cdef int i
        pthread_mutex_lock(&self.mutex)
        for i in range(self.vcpu_count):
            stop_vcpu(&self.vcpus[i])
        pthread_mutex_unlock(&self.mutex)

    cdef void _release_all(self) noexcept nogil:
        cdef size_t i
        for i in range(self.count):
            if not self.blocks[i].done:
                release_range(self.uffd, self.blocks[i].hva, self.blocks[i].size_bytes)


cdef int place_all(int uffd, uint8_t *target, uint8_t *source, size_t size) noexcept nogil:
    """Place missing pages; return 0 or an errno."""
    cdef int retries = MAX_RETRIES
    cdef size_t done = 0
    cdef long long got
    while done < size:
        got = place_pages(uffd, target + done, source + done, size - done)
        if got < 0:
            if errno not in (EAGAIN, EINTR) or retries == 0:
                return errno
            retries -= 1
        else:
            done += got
    return 0


cdef void stop_vcpu(const Vcpu *vcpu) noexcept nogil:
    leave_guest(vcpu.run)
    tgkill(getpid(), vcpu.tid, vcpu.signum)


cdef int last_page(const uint8_t *bitmap) noexcept nogil:
    """Return the number of the last page whose bit is set, or -1."""
    cdef int page = BLOCK_PAGES_ - 1
    while page >= 0 and not bitmap[page >> 3] >> (page & 7) & 1:
        page -= 1
    return page
