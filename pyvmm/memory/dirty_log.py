# SPDX-License-Identifier: Apache-2.0
"""The dirty log: the pages of RAM that the guest or this process has changed.

`KvmDirtyLog` combines two logs. KVM logs the pages that the vCPUs write, and that KVM writes on
their behalf. `GuestMemory` logs the pages that this process changes: rings, buffers, discards.

With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_GET_DIRTY_LOG only reads; pages are cleared, and write
protected again, a chunk at a time just before they are copied. So a page that the guest writes
again in the meantime is copied once and not twice, and no call holds KVM's lock for all of RAM.
Without the capability, reading the log clears it. Reading our own log always clears it.

KVM API: KVM_SET_USER_MEMORY_REGION (4.35), KVM_GET_DIRTY_LOG (4.8), KVM_CLEAR_DIRTY_LOG (4.117),
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (7.18).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pykvm import abi
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pykvm import Vm
    from pyvmm.memory.ram import Ram

_PAGES_PER_WORD = 64


class DirtyLog(Protocol):
    """A dirty log that is switched on."""

    def collect(self) -> PageRuns:
        """Return the pages changed since the log was switched on and not cleared since.

        Implementations may clear pages here already; `clear` then does nothing.
        """

    def clear(self, start_pfn: int, pages: int) -> None:
        """Log further changes to those of the given pages that the last `collect` has named."""


class KvmDirtyLog:
    """Logs changes to `ram`, whose slots are those of `vm`; on while its `with` block runs.

    Satisfies `DirtyLog`.

    Threads: event loop, snapshot, migration; one at a time.
    """

    def __init__(self, vm: Vm, ram: Ram) -> None:
        self._vm = vm
        self._ram = ram
        supported = vm.check_extension(abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
        self._manual = bool(supported & abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
        self._bitmaps = [
            bytearray(-(-length // PAGE_BYTES // _PAGES_PER_WORD) * (_PAGES_PER_WORD // 8))
            for _, length in ram.memory.regions
        ]

    def __enter__(self) -> KvmDirtyLog:
        self._set_manual(abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
        self._ram.memory.log_dirty_pages(True)
        self._ram.attach(self._vm, abi.KVM_MEM_LOG_DIRTY_PAGES)
        return self

    def __exit__(self, *exc: object) -> None:
        self._ram.attach(self._vm)
        self._ram.memory.log_dirty_pages(False)
        self._set_manual(0)

    def collect(self) -> PageRuns:
        """Return the pages changed since the log was switched on and not cleared since."""
        changed = PageRuns()
        for start_pfn, bits in self._ram.memory.take_dirty_pages():
            changed = changed.union(PageRuns.from_bitmap(bits, start_pfn))
        for slot, (gpa, _) in enumerate(self._ram.memory.regions):
            self._vm.get_dirty_log(slot, self._bitmaps[slot])
            changed = changed.union(PageRuns.from_bitmap(self._bitmaps[slot], gpa // PAGE_BYTES))
        return changed

    def clear(self, start_pfn: int, pages: int) -> None:
        """Write protect those of the given pages again that KVM named in the last `collect`.

        `start_pfn` is in RAM, a multiple of 64 pages from the start of its region. The part of the
        range beyond the end of the region is ignored.
        """
        if not self._manual:
            return
        for slot, (gpa, length) in enumerate(self._ram.memory.regions):
            first_page = start_pfn - gpa // PAGE_BYTES
            count = min(pages, length // PAGE_BYTES - first_page)
            if first_page < 0 or count <= 0:
                continue
            bits = self._bitmaps[slot][first_page // 8 : -(-(first_page + count) // 8)]
            if any(bits):
                self._vm.clear_dirty_log(slot, first_page, count, bits)

    def _set_manual(self, flags: int) -> None:
        if self._manual:
            self._vm.enable_cap(abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags)
