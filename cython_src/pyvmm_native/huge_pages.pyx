# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Guest RAM in huge pages of hugetlbfs: returning whole ones to the host's pool, and taking them.

A private hugetlbfs mapping reserves its pages when it is made, so that no access can fail. A page
that is freed loses its reservation, or keeps it so that no other process can use it, depending on
the kernel (adjust_reservation in mm/hugetlb.c, 6.9). Without one, a later access may find the pool
empty and ends in SIGBUS. So a huge page is not freed but replaced: mmap(MAP_FIXED) puts ordinary
memory, which nothing has touched, in its place, and the page with its reservation goes back to the
pool. The guest reads zeros there, and whatever touches the memory gets ordinary pages.

The way back needs a reservation first. A new hugetlbfs mapping is made elsewhere, which fails with
ENOMEM if the pool has too few pages, and is then moved to its place with mremap (possible since
Linux 5.16). An mmap(MAP_FIXED) of huge pages that fails may leave a hole, into which another thread
could map anything.

Documentation/mm/hugetlbfs_reserv.rst, mmap(2), mremap(2).
"""

from libc.stdint cimport uint8_t, uint64_t, uintptr_t

from pyvmm_native.memory cimport PAGE_SHIFT, GuestMemory
from pyvmm_native.runs cimport PageRuns

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <stddef.h>
    #include <sys/mman.h>

    #ifndef MAP_HUGE_SHIFT
    #define MAP_HUGE_SHIFT 26
    #endif
    #define HUGE_PAGE_SHIFT 21
    #define READ_WRITE (PROT_READ | PROT_WRITE)
    #define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)

    /* Return an errno, or 0; the old mapping is still there after ENOMEM. */
    static int map_ordinary(void *start, size_t length)
    {
        if (mmap(start, length, READ_WRITE, PRIVATE | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
            MAP_FAILED)
            return errno;
        madvise(start, length, MADV_HUGEPAGE);
        madvise(start, length, MADV_DONTDUMP);
        return 0;
    }

    /* Return an errno, or 0; there is ordinary memory at `start` after a failure. */
    static int map_huge(void *start, size_t length)
    {
        int flags = PRIVATE | MAP_HUGETLB | HUGE_PAGE_SHIFT << MAP_HUGE_SHIFT;
        void *fresh = mmap(NULL, length, READ_WRITE, flags, -1, 0);
        int error;
        if (fresh == MAP_FAILED)
            return errno;
        madvise(fresh, length, MADV_DONTDUMP);
        madvise(fresh, length, MADV_DONTFORK);
        if (mremap(fresh, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, start) != MAP_FAILED)
            return 0;
        error = errno;
        munmap(fresh, length);
        map_ordinary(start, length);    /* mremap may have removed what was there */
        return error;
    }
    """
    int map_ordinary(void *start, size_t length)
    int map_huge(void *start, size_t length)

cdef enum:
    HUGE_PAGE_BYTES = 2 << 20

_NAME = "/anon_hugepage"


cdef class HugePageBacking:
    """The huge pages behind `memory`.

    Every region of it is private memory of this process without a file, huge or ordinary, and
    aligned to 2 MiB at both ends and in guest-physical addresses; ValueError otherwise.
    """

    cdef GuestMemory memory

    def __cinit__(self, GuestMemory memory not None):
        cdef Py_ssize_t i
        self.memory = memory
        mappings = private_mappings()
        for i in range(memory._count):
            start = <uintptr_t>memory._regions[i].hva
            end = start + memory._regions[i].size_bytes
            gpa = memory._regions[i].gpa
            if (start | end | gpa) % HUGE_PAGE_BYTES:
                raise ValueError(f"the region at gpa {gpa:#x} is not aligned to huge pages")
            for mapping_start, mapping_end in mappings:
                if mapping_start <= start < mapping_end:
                    start = mapping_end
            if start < end:
                raise ValueError(f"the region at gpa {gpa:#x} is not private memory without a file")

    def release(self, PageRuns runs not None):
        """Replace the memory behind `runs` by ordinary memory, all zeros; return its size in bytes.

        `runs` are whole huge pages; ValueError otherwise. Less than all is replaced where the
        process has as many mappings as the kernel allows it (vm.max_map_count).
        """
        return self._replace(runs, map_ordinary)

    def acquire(self, PageRuns runs not None):
        """Replace the memory behind `runs` by huge pages, all zeros; return their size in bytes.

        `runs` are whole huge pages; ValueError otherwise. It is less than all when the pool has too
        few pages; the rest is ordinary memory.
        """
        return self._replace(runs, map_huge)

    cdef _replace(self, PageRuns runs, int (*replace)(void *, size_t) noexcept nogil):
        cdef size_t i
        cdef uint64_t gpa, size, done = 0
        cdef bint possible = True
        for i in range(runs.list.count):
            gpa = runs.list.items[i].start << PAGE_SHIFT
            size = (runs.list.items[i].end - runs.list.items[i].start) << PAGE_SHIFT
            if (
                runs.list.items[i].end > <uint64_t>1 << 40 or (gpa | size) % HUGE_PAGE_BYTES
                or not self.memory.covers(gpa, size)
            ):
                raise ValueError(f"the pages from {runs.list.items[i].start:#x} on are not whole"
                                 " huge pages of RAM")
        with nogil:
            for i in range(runs.list.count):
                gpa = runs.list.items[i].start << PAGE_SHIFT
                size = (runs.list.items[i].end - runs.list.items[i].start) << PAGE_SHIFT
                if possible:
                    done += self._replace_run(gpa, size, replace, &possible)
        return done

    cdef uint64_t _replace_run(
        self, uint64_t gpa, uint64_t left, int (*replace)(void *, size_t) noexcept nogil,
        bint *possible,
    ) noexcept nogil:
        """Replace memory, at once if possible, else huge page by huge page until that fails.

        All that was tried is logged as dirty: where mremap fails, memory is zero though it is not
        what was wanted.
        """
        cdef uint64_t span, step, done = 0
        cdef uint8_t *hva
        while left:
            hva = self.memory.span(gpa, left, &span)
            step = span
            if replace(hva, step):
                step = HUGE_PAGE_BYTES
                while step <= span and replace(hva + step - HUGE_PAGE_BYTES, HUGE_PAGE_BYTES) == 0:
                    step += HUGE_PAGE_BYTES
                step -= HUGE_PAGE_BYTES
                possible[0] = step == span
            self.memory.mark_dirty(gpa, span)
            done += step
            if not possible[0]:
                break
            gpa += span
            left -= span
        return done


cdef list private_mappings():
    """Return (start, end) of the private mappings without a file, ascending (proc_pid_maps(5))."""
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
            if permissions[3] == "p" and (inode == "0" or name and name[0].startswith(_NAME)):
                start, end = addresses.split("-")
                found.append((int(start, 16), int(end, 16)))
    return found
