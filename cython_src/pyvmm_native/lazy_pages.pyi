# SPDX-License-Identifier: Apache-2.0
"""Guest RAM that is filled from a file when it is touched."""

from collections.abc import Iterable
from typing import final

from typing_extensions import Buffer

from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

@final
class LazyPages:
    """`blocks` of the file `fd`, on their way into `memory`, which nobody has touched yet.

    A block is (first_pfn, bitmap, offset, crc) as in `pyvmm_native.page_blocks`. From here on
    whoever touches a page of one waits until `serve`, in a thread of its own, has fetched it.
    OSError where the kernel does not let us watch page faults (EPERM without CAP_SYS_PTRACE, unless
    vm.unprivileged_userfaultfd is 1). ValueError for a block outside RAM or twice the same.
    """

    serving: bool
    """`serve` does without the GIL from here on. Nobody may touch the memory with the GIL before."""
    failed: bool
    """`serve` has met a block that cannot be used. True before anybody finds zeros instead."""

    def __init__(
        self, memory: GuestMemory, blocks: Iterable[tuple[int, Buffer, int, int]], fd: int
    ) -> None: ...
    def watch(self, tid: int, signum: int, run_area: Buffer) -> None:
        """Let a vCPU be stopped before it could run on without a block that cannot be used.

        `tid` is its thread, `signum` a signal that makes KVM_RUN return and does nothing else,
        `run_area` the area it shares with the kernel.
        """

    def forget(self, pages: PageRuns) -> None:
        """Never put `pages` in place any more: they are about to be discarded."""

    def serve(self) -> None:
        """Fetch what is touched, and meanwhile everything else; returns when all is there.

        ChecksumError for a damaged block, OSError for one that cannot be read: all vCPUs have been
        made to leave the guest then, and RAM is incomplete. Holds no GIL.
        """

    def stop(self) -> None:
        """Have `serve` return soon, with RAM incomplete. Stop the guest first."""
