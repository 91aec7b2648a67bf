# SPDX-License-Identifier: Apache-2.0
"""Throttle a guest: keep all of its vCPUs from running for a share of the time.

While the guest is throttled, a thread closes the gate of the vCPU threads and kicks them out of the
guest, sleeps, opens the gate, and sleeps again. vCPUs run for `RUN_S` at a time, as with QEMU, or
longer on a busy host; the stopped time is computed from the time for which they ran.
All are stopped together, so none spins for a lock that a stopped one holds. They wait at the gate,
outside KVM_RUN and without any lock, so devices, the event loop, pausing and ending the machine are
not delayed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.blocking.thread_limit import thread_limit_reported

if TYPE_CHECKING:
    from pyvmm.machine.vcpu_thread import VcpuGate

RUN_S = 0.01
MAX_STOP_S = 1.0
LEAVE_S = 0.1
"""A vCPU that has not left the guest by then is serving a device access, and writes no memory."""
MAX_PERCENTAGE = 99


class VcpuThrottle:
    """Throttles the threads that pass through `gate`; `kick` makes them check it soon.

    Not throttled at first.

    Threads: event loop; `kick` is also called by the throttle thread.
    """

    def __init__(self, gate: VcpuGate, kick: Callable[[], None]) -> None:
        self._gate = gate
        self._kick = kick
        self._percentage = 0
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def percentage(self) -> int:
        """The share of the time for which vCPUs are stopped."""
        return self._percentage

    def set(self, percentage: int) -> None:
        """Stop the vCPUs for `percentage` of the time, from now on; 0 ends throttling.

        Raises `ThreadNotStarted`.
        """
        if not 0 <= percentage <= MAX_PERCENTAGE:
            raise ValueError(f"vCPUs cannot be throttled for {percentage} % of the time")
        self._percentage = percentage
        if percentage and self._thread is None:
            self._released.clear()
            thread = threading.Thread(target=self._run, name="vcpu-throttle", daemon=True)
            with thread_limit_reported():
                thread.start()
            self._thread = thread
        elif not percentage and self._thread is not None:
            self._released.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            begin = time.monotonic()
            while not self._released.is_set():
                self._gate.set_throttled(True)
                self._kick()
                self._gate.wait_until_empty(LEAVE_S)
                ran_s = time.monotonic() - begin
                stop_s = ran_s * self._percentage / (100 - self._percentage)
                self._released.wait(min(stop_s, MAX_STOP_S))
                self._gate.set_throttled(False)
                begin = time.monotonic()
                self._released.wait(RUN_S)
        finally:
            self._gate.set_throttled(False)
