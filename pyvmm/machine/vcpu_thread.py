# SPDX-License-Identifier: Apache-2.0
"""One host thread for each vCPU: enter the guest, serve exits, stop on request.

The thread runs `pyvmm_native.kvm_run.run`, which releases the GIL while the guest runs and passes
port and memory-mapped accesses to `GuestBuses`, except those that the console's `SerialFastPath`
serves. It returns here only when the run ends or is interrupted. To interrupt it, another thread
changes `VcpuGate` and kicks the vCPU: KVM_RUN then returns at once, even if the kick arrives just
before it is entered (`immediate_exit`, Documentation/virt/kvm/api.rst, section 5).
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pykvm import exits
from pyvmm_native import gil_request, kvm_run

if TYPE_CHECKING:
    from devices.bus import Bus
    from pykvm import Vcpu
    from pyvmm_native.kvm_run import ExitCounters
    from pyvmm_native.serial import SerialFastPath

KICK_SIGNAL = signal.SIGRTMIN
GIL_SIGNAL = signal.SIGRTMIN + 1
"""Sent to the main thread by a vCPU that needs the GIL (`pyvmm_native.gil_request`)."""

SWITCH_INTERVAL_S = 0.0005
"""For `sys.setswitchinterval`: the time that a device access may wait for the GIL.

An access waits this long while a thread other than the main one runs Python code, and now and then
while the main thread does (`pyvmm_native.gil_request`). Python's default of 5 ms is too long for a
guest; a tenth of that slows the event loop by a few per cent.
"""


def accept_gil_requests() -> None:
    """Let vCPUs interrupt the Python code of this thread, if it is the main thread.

    With one processor nothing changes: thread and vCPU do not run at the same time there, and would
    only take turns more often.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread and len(os.sched_getaffinity(0)) > 1:
        gil_request.install_request_handler(GIL_SIGNAL)


class GuestBuses:
    """Forwards the guest's accesses to the two buses, one at a time.

    `lock` is the machine's device lock. `after_write` runs after the lock is released, so that
    it can wait for a slow console without blocking other vCPUs.
    """

    def __init__(
        self, pio: Bus, mmio: Bus, lock: threading.Lock, after_write: Callable[[], None]
    ) -> None:
        self._pio_read, self._pio_write = pio.read, pio.write
        self._mmio_read, self._mmio_write = mmio.read, mmio.write
        self._lock = lock
        self._after_write = after_write

    def pio_read(self, port: int, size: int) -> int:
        with self._lock:
            return self._pio_read(port, size)

    def pio_write(self, port: int, size: int, value: int) -> None:
        with self._lock:
            self._pio_write(port, size, value)
        self._after_write()

    def mmio_read(self, gpa: int, size: int) -> int:
        with self._lock:
            return self._mmio_read(gpa, size)

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        with self._lock:
            self._mmio_write(gpa, size, value)


class VcpuGate:
    """Lets all vCPU threads run, keeps them outside the guest, or ends them.

    It is closed while the machine is paused, held at an event or throttled, and permanently once a
    condition of `bar_when` holds. A thread that waits here holds no lock.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = False
        self._throttled = False
        self._held = False
        self._stopping = False
        self._inside = 0
        self._bars: list[Callable[[], bool]] = []

    @property
    def stopping(self) -> bool:
        return self._stopping

    def enter(self) -> bool:
        """Wait until the guest may run; return False if the thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or not self._shut())
            if self._stopping:
                return False
            self._inside += 1
            return True

    def _shut(self) -> bool:
        return (
            self._paused or self._throttled or self._held or any(barred() for barred in self._bars)
        )

    def bar_when(self, barred: Callable[[], bool]) -> None:
        """Keep all threads out permanently once `barred()`; called before any has entered."""
        self._bars.append(barred)

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def set_paused(self, paused: bool) -> None:
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    @property
    def held(self) -> bool:
        """True while the guest is held at an event."""
        return self._held

    def set_held(self, held: bool) -> None:
        with self._changed:
            self._held = held
            self._changed.notify_all()

    def set_throttled(self, throttled: bool) -> None:
        with self._changed:
            self._throttled = throttled
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until no thread is inside the guest; return False after a time-out."""
        with self._changed:
            return self._changed.wait_for(lambda: self._inside == 0, timeout_s)


class VcpuThread(threading.Thread):
    """Runs `vcpu` until the gate is stopped or KVM reports an exit that ends the machine.

    `exits` counts its exits; any thread may read it.
    `on_end(description)` is called, in this thread, with the description of a fatal exit;
    `on_bug(exception)` with an exception of a device model.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        index: int,
        buses: GuestBuses,
        serial: SerialFastPath,
        exits: ExitCounters,
        gate: VcpuGate,
        on_end: Callable[[str], None],
        on_bug: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name=f"vcpu{index}", daemon=True)
        self.vcpu = vcpu
        self._buses = buses
        self._serial = serial
        self.exits = exits
        self._gate = gate
        self._on_end = on_end
        self._on_bug = on_bug

    def run(self) -> None:
        try:
            while self._gate.enter():
                try:
                    reason = kvm_run.run(
                        self.vcpu.fileno(),
                        self.vcpu.run_area,
                        self._buses,
                        self._serial,
                        self.exits,
                    )
                finally:
                    self._gate.leave()
                if reason != -errno.EINTR:
                    self._on_end(exits.describe(self.vcpu.kvm_run))
                    return
                kvm_run.clear_kick(self.vcpu.run_area)
        except BaseException as error:
            self._on_bug(error)

    def kick(self) -> None:
        """Make KVM_RUN return soon; the thread then checks its gate again."""
        if self.native_id is not None:
            kvm_run.kick(self.native_id, self.vcpu.run_area)
