# SPDX-License-Identifier: Apache-2.0
"""Makes a guest slower: all of its processors rest for a share of their time.

While there is something to throttle, a thread shuts the gate of the vCPU threads and kicks them out
of the guest, waits, opens the gate, and waits again. Processors run for `RUN_S` at a time, as with
QEMU, or longer on a host that is busy; how long they rest follows from how long they ran. All rest
together, so none of them spins for a lock that a resting one holds. They rest at the gate, outside
KVM_RUN and without any lock: devices, the event loop and whoever pauses or ends the machine are as
quick as ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.machine.vcpu_thread import VcpuGate

RUN_S = 0.01
MAX_REST_S = 1.0
LEAVE_S = 0.1
"""Who has not left the guest after that serves a device, and changes no memory meanwhile."""
MAX_PERCENTAGE = 99


class VcpuThrottle:
    """Throttles the threads that pass through `gate`; `kick` makes all of them come to it soon.

    Not throttled at first. Every call comes from the event loop's thread.
    """

    def __init__(self, gate: VcpuGate, kick: Callable[[], None]) -> None:
        self._gate = gate
        self._kick = kick
        self._percentage = 0
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def percentage(self) -> int:
        """How much of their time processors rest."""
        return self._percentage

    def set(self, percentage: int) -> None:
        """Have them rest for so much of their time; 0 lets them run, from this moment on."""
        if not 0 <= percentage <= MAX_PERCENTAGE:
            raise ValueError(f"processors cannot rest {percentage} % of their time")
        self._percentage = percentage
        if percentage and self._thread is None:
            self._released.clear()
            self._thread = threading.Thread(target=self._run, name="vcpu-throttle", daemon=True)
            self._thread.start()
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
                rest_s = ran_s * self._percentage / (100 - self._percentage)
                self._released.wait(min(rest_s, MAX_REST_S))
                self._gate.set_throttled(False)
                begin = time.monotonic()
                self._released.wait(RUN_S)
        finally:
            self._gate.set_throttled(False)
