# SPDX-License-Identifier: Apache-2.0
"""Which pages of RAM a guest writes to, as KVM logs them.

    with WriteLog(vm, ram) as log:
        ...
        pages = log.take()      # written since the block began, or since the last call

KVM logs what the guest's processors write and what KVM itself writes into guest memory for them. It
does not see what device models write. Whoever leaves pages out of a copy because the guest did not
use them need not mind: of our devices these writes are used rings, which a driver has zeroed when
it allocated them (VIRTIO 1.2, 4.1.5.1.3), so they are in the log, and the question for unused pages
itself, whose buffer was in use before it could be answered.

KVM API: KVM_SET_USER_MEMORY_REGION (4.35), KVM_GET_DIRTY_LOG (4.8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm import abi
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pykvm import Vm
    from pyvmm.memory import Ram

PAGE_BYTES = 4096
_PAGES_PER_WORD = 64


class WriteLog:
    """Logs writes to `ram`, whose slots are those of `vm`, while the block it is used in runs."""

    def __init__(self, vm: Vm, ram: Ram) -> None:
        self._vm = vm
        self._ram = ram

    def __enter__(self) -> WriteLog:
        self._ram.attach(self._vm, abi.KVM_MEM_LOG_DIRTY_PAGES)
        return self

    def __exit__(self, *exc: object) -> None:
        self._ram.attach(self._vm)

    def take(self) -> PageRuns:
        """Pages written since the last call; complete if the guest does not run meanwhile."""
        written = PageRuns()
        for slot, (gpa, length) in enumerate(self._ram.memory.regions):
            pages = length // PAGE_BYTES
            bits = bytearray(-(-pages // _PAGES_PER_WORD) * (_PAGES_PER_WORD // 8))
            self._vm.get_dirty_log(slot, bits)
            written = written.union(PageRuns.from_bitmap(bits, gpa // PAGE_BYTES))
        return written.intersect(self._ram.pages)
