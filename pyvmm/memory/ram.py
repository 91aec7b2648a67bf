# SPDX-License-Identifier: Apache-2.0
"""Guest RAM: private anonymous memory, which is KVM's memory slots and the devices' `GuestRam`.

RAM is one mapping below the PCI hole and, if it does not fit there, a second one from 4 GiB up
(see `pyvmm.memory.layout`). It is allocated on demand: a page costs host memory only once the
guest, or the boot loader on its behalf, has touched it, and `discard` undoes that. Transparent huge
pages are enabled, as every page fault avoided is a nested fault avoided. KVM can use them only
where host-virtual and guest-physical addresses agree modulo 2 MiB, so the mappings are aligned. A
discard of part of a huge page makes the kernel split it: the page leaves RSS at once, and the
kernel frees the memory when it needs some.

KVM API: KVM_SET_USER_MEMORY_REGION (Documentation/virt/kvm/api.rst, 4.35).
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from devices.listeners import Listeners
from pykvm import address_of
from pyvmm.memory import layout
from pyvmm.memory.errors import HostMemoryUnavailable
from pyvmm.units import HUGE_PAGE_BYTES, MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.discard import discard
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pykvm import Vm

MAP_NORESERVE = 0x4000  # <asm-generic/mman.h>; Python's mmap module names it from 3.12 on
MADV_POPULATE_WRITE = 23  # <asm-generic/mman-common.h>; Python's mmap module does not name it


class Ram:
    """All RAM of one guest; satisfies `devices.ports.GuestRam`.

    `size_bytes` is a multiple of 1 MiB between `config.MIN_RAM_BYTES` and `config.MAX_RAM_BYTES`.
    `transparent` enables transparent huge pages. Raises `HostMemoryUnavailable` if the host does
    not map that much.

    Threads: any for `memory`; event loop, vCPU and migration for `discard`.
    """

    def __init__(self, size_bytes: int, *, transparent: bool = True) -> None:
        self.size_bytes = size_bytes
        self._advice = mmap.MADV_HUGEPAGE if transparent else mmap.MADV_NOHUGEPAGE
        self.host_page_pages = mmap.PAGESIZE // PAGE_BYTES
        self.before_discard: Listeners[PageRuns] = Listeners()
        """Called with pages that are about to be discarded."""
        self._maps: list[tuple[int, memoryview]] = []
        try:
            for gpa, length in layout.ram_ranges(size_bytes):
                self._maps.append((gpa, self._map(length)))
        except OSError as error:
            self._maps.clear()
            raise self._unavailable(error) from error
        self.memory = GuestMemory(self._maps)
        self.pages = PageRuns(
            (gpa // PAGE_BYTES, len(area) // PAGE_BYTES) for gpa, area in self._maps
        )

    @property
    def areas(self) -> list[tuple[int, memoryview]]:
        """The mappings of RAM, by guest-physical address."""
        return list(self._maps)

    def attach(self, vm: Vm, flags: int = 0) -> None:
        """Make this RAM the memory slots of `vm`, numbered from 0 in address order.

        Another call changes the `flags` (KVM_MEM_*) of the slots.
        """
        for slot, (gpa, area) in enumerate(self._maps):
            vm.set_user_memory_region(slot, gpa, len(area), address_of(area), flags)

    def detach(self, vm: Vm) -> None:
        """Remove the memory slots of `vm` that `attach` has made."""
        for slot, (gpa, area) in enumerate(self._maps):
            vm.set_user_memory_region(slot, gpa, 0, address_of(area))

    def discard(self, runs: PageRuns) -> int:
        """Free the host memory behind `runs` and return how many bytes that were."""
        self.before_discard(runs)
        return discard(self.memory, runs).bytes

    def zero(self, runs: PageRuns) -> None:
        """Make pages zero, which may be parts of host pages, and free what can be freed."""
        self.discard(runs)

    def restore_backing(self, runs: PageRuns) -> None:
        """As `GuestRam.restore_backing`: without effect, as all memory is backed alike."""

    def populate(self) -> None:
        """Make all of RAM resident; pages that nothing has touched are zeros then.

        OSError if the host does not have that much, or is older than Linux 5.14.
        """
        for _, area in self._maps:
            mapping = area.obj
            assert isinstance(mapping, mmap.mmap)
            start = address_of(area) - address_of(mapping)
            mapping.madvise(MADV_POPULATE_WRITE, start, len(area))

    def close(self) -> None:
        """Free all host memory; readers that are left find zeros."""
        self.discard(self.pages)

    def _map(self, length: int) -> memoryview:
        """Map `length` bytes of memory, allocated on demand and aligned to a huge page."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        area = mmap.mmap(-1, length + HUGE_PAGE_BYTES, flags=flags)
        area.madvise(self._advice)
        area.madvise(mmap.MADV_DONTDUMP)
        start = -address_of(area) % HUGE_PAGE_BYTES
        return memoryview(area)[start : start + length]

    def _unavailable(self, error: OSError) -> HostMemoryUnavailable:
        """Return the error for RAM that the host does not map."""
        return HostMemoryUnavailable(
            f"the host cannot map {self.size_bytes // MIB} MiB for the guest: {error.strerror}"
        )
