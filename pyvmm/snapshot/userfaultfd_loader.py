# SPDX-License-Identifier: Apache-2.0
"""Load a guest's memory from a snapshot while the guest runs (userfaultfd(2)).

A thread loads the blocks that are touched, as they are touched, and all others in between, each
checked before it enters RAM (`pyvmm_native.lazy_pages`). It ends within seconds, and memory is
like any other from then on. A damaged block ends the machine: no vCPU enters the guest any more, so
the guest never sees missing memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.errors import UserError
from pyvmm.snapshot.errors import SnapshotDamaged
from pyvmm_native.lazy_pages import LazyPages
from pyvmm_native.page_blocks import ChecksumError

if TYPE_CHECKING:
    from pyvmm.machine.vcpu_thread import VcpuThread
    from pyvmm.memory.ram import Ram
    from pyvmm.snapshot.reader import SnapshotFile

_POLL_S = 0.001
STOP_TIMEOUT_S = 5.0
"""Longest time for the block that is being read."""


class UserfaultfdLoader(threading.Thread):
    """Fills `ram`, which has not been touched, from `snapshot`, which may be closed meanwhile.

    If that fails, `on_failure` is called in this thread, with the `UserError`. Raises
    PermissionError where the kernel does not allow userfaultfd.

    Threads: `run` is the userfaultfd loader; the rest event loop, `failed` also vCPU.
    """

    def __init__(
        self, snapshot: SnapshotFile, ram: Ram, on_failure: Callable[[UserError], None]
    ) -> None:
        super().__init__(name="userfaultfd-loader", daemon=True)
        self._path = snapshot.path
        self._on_failure = on_failure
        self.error: UserError | None = None
        self._fd = os.dup(snapshot.fileno())
        try:
            blocks = ((b.first_pfn, b.bitmap, b.offset, b.crc) for b in snapshot.blocks)
            self._pages = LazyPages(
                ram.memory, blocks, self._fd, whole_blocks=ram.host_page_pages > 1
            )
        except BaseException:
            os.close(self._fd)
            raise
        ram.before_discard.add(self._pages.skip)

    def start(self) -> None:
        """Start; memory may be touched from then on. Raises `ThreadNotStarted`."""
        try:
            with thread_limit_reported():
                super().start()
        except BaseException:
            os.close(self._fd)
            raise
        while not self._pages.serving:
            time.sleep(_POLL_S)

    def run(self) -> None:
        try:
            self._pages.serve()
        except (ChecksumError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.error = SnapshotDamaged(f"the snapshot {self._path} cannot be used: {reason}")
            self._on_failure(self.error)
        finally:
            os.close(self._fd)

    @property
    def failed(self) -> bool:
        """Memory will never be complete, so no vCPU may enter the guest."""
        return self._pages.failed

    def watch(self, thread: VcpuThread, signum: int) -> None:
        """Stop the vCPU of `thread`, which has started, at once after a failure."""
        assert thread.native_id is not None
        self._pages.add_vcpu(thread.native_id, signum, thread.vcpu.run_area)

    def stop(self) -> None:
        """Stop loading and wait for the thread; no vCPU is in the guest or about to leave it.

        A thread that waits for a file system that does not respond is left behind.
        """
        self._pages.stop()
        self.join(STOP_TIMEOUT_S)
