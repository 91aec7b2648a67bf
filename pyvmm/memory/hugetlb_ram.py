# SPDX-License-Identifier: Apache-2.0
"""Guest RAM in huge pages of hugetlbfs, reserved before the guest starts.

A huge page is the host's page: only the whole of it can be discarded. It then returns to the host's
pool with its reservation, and ordinary memory takes its place (`pyvmm_native.huge_pages`), so an
access never finds the pool empty. `restore_backing` takes huge pages from the pool again, as far as
there are any; the rest of RAM stays in ordinary memory, with transparent huge pages.

Reports of free pages take the same way, but a guest uses those again without notice: they stay
in ordinary memory until they have been in the balloon.

The dirty log, copies and snapshots work on pages of 4 KiB as ever. A page that is touched makes its
whole huge page resident, all of whose parts count as populated from then on.
"""

from __future__ import annotations

import errno
import mmap
from typing import TYPE_CHECKING

from pyvmm.memory.errors import HugePagesUnavailable
from pyvmm.memory.huge_page_pool import read_pool
from pyvmm.memory.ram import Ram
from pyvmm.units import HUGE_PAGE_BYTES
from pyvmm_native import PAGE_BYTES
from pyvmm_native.huge_pages import HugePageBacking
from pyvmm_native.pages import touched

if TYPE_CHECKING:
    from pyvmm.memory.errors import HostMemoryUnavailable
    from pyvmm_native.runs import PageRuns

MAP_HUGETLB, MAP_HUGE_2MB = 0x40000, 21 << 26  # <asm-generic/mman.h>, <linux/mman.h>
_HUGE_PAGE_PAGES = HUGE_PAGE_BYTES // PAGE_BYTES
_ZEROS = bytes(HUGE_PAGE_BYTES)


class HugetlbRam(Ram):
    """RAM in huge pages; `size_bytes` is a multiple of their size.

    Raises `HugePagesUnavailable` if the host's pool has too few.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.host_page_pages = _HUGE_PAGE_PAGES
        self._backing = HugePageBacking(self.memory)

    def discard(self, runs: PageRuns) -> int:
        """Return whole huge pages to the pool; return how many bytes that were.

        ValueError, with nothing discarded, for parts of huge pages.
        """
        self.before_discard(runs)
        return self._backing.release(runs)

    def zero(self, runs: PageRuns) -> None:
        """Make pages zero, and keep their memory."""
        for start_pfn, pages in touched(self.memory, runs):
            for page in range(start_pfn, start_pfn + pages, _HUGE_PAGE_PAGES):
                size = min(start_pfn + pages - page, _HUGE_PAGE_PAGES) * PAGE_BYTES
                self.memory.write(page * PAGE_BYTES, _ZEROS[:size])

    def restore_backing(self, runs: PageRuns) -> None:
        """Take huge pages from the pool again, as far as it has any."""
        self._backing.acquire(runs)

    def _map(self, length: int) -> memoryview:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB
        area = mmap.mmap(-1, length, flags=flags)
        # A child of a fork would share the pages, and need others to write to.
        area.madvise(mmap.MADV_DONTFORK)
        area.madvise(mmap.MADV_DONTDUMP)
        return memoryview(area)

    def _unavailable(self, error: OSError) -> HostMemoryUnavailable:
        pool, needed = read_pool(), self.size_bytes // HUGE_PAGE_BYTES
        if pool is None:
            return HugePagesUnavailable("this kernel has no huge pages of 2 MiB")
        if error.errno != errno.ENOMEM or pool.available >= needed:
            return HugePagesUnavailable(
                f"the host cannot reserve {needed} huge pages of 2 MiB: {error.strerror}"
            )
        return HugePagesUnavailable(
            f"the guest needs {needed} huge pages of 2 MiB, the host has {pool.available} that are"
            " neither in use nor reserved",
            pool.total + needed - pool.available,
        )
