# SPDX-License-Identifier: Apache-2.0
"""One host thread for each virtual processor: enter the guest, serve exits, stop when told.

The thread spends its life in `pyvmm_native.kvm_run.run`, which holds no GIL while the guest runs
and hands port and memory-mapped accesses to `GuestBuses`, other than the few that it serves by the
console's `SerialFastPath`. It comes back here only when something
ends or interrupts the run. To interrupt, another thread changes `VcpuGate` and kicks: KVM_RUN then
returns at once, even when the kick came just before it was entered (`immediate_exit`,
Documentation/virt/kvm/api.rst, section 5).
"""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pykvm import exits
from pyvmm_native import kvm_run

if TYPE_CHECKING:
    from devices.bus import Bus
    from pykvm import Vcpu
    from pyvmm_native.serial import SerialFastPath

KICK_SIGNAL = signal.SIGRTMIN

SWITCH_INTERVAL_S = 0.0005
"""For `sys.setswitchinterval`: how long an access to a device may have to wait for the GIL.

While the event loop computes in Python, each such access waits for this long; Python's own 5 ms are
an age for a guest, and a tenth of them costs the event loop a few per cent meanwhile.
"""


class GuestBuses:
    """Carries the guest's accesses to the two buses, one at a time.

    `lock` is the machine's device lock. `after_write` runs when the lock has been released again:
    the place to wait for a slow console without keeping the others from their devices.
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
    """Lets all vCPU threads run, or holds them outside the guest, or sends them home.

    It is shut for either of two reasons, which do not know of each other: the machine is paused, or
    the processors rest because they are throttled. A thread that waits here holds no lock.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = False
        self._throttled = False
        self._stopping = False
        self._inside = 0
        self._bars: list[Callable[[], bool]] = []

    @property
    def stopping(self) -> bool:
        return self._stopping

    def enter(self) -> bool:
        """Wait until the guest may run; False means the thread shall end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or not self._shut())
            if self._stopping:
                return False
            self._inside += 1
            return True

    def _shut(self) -> bool:
        return self._paused or self._throttled or any(barred() for barred in self._bars)

    def bar_when(self, barred: Callable[[], bool]) -> None:
        """Keep all threads out for good once `barred()` is true; called before any has entered."""
        self._bars.append(barred)

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def set_paused(self, paused: bool) -> None:
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    def set_throttled(self, resting: bool) -> None:
        with self._changed:
            self._throttled = resting
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until no thread is inside the guest; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: self._inside == 0, timeout_s)


class VcpuThread(threading.Thread):
    """Runs `vcpu` until the gate closes or the guest does something that ends the machine.

    `on_end(description)` is called, in this thread, with what KVM said about an exit that no
    machine survives; `on_bug(exception)` when a device model raised.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        index: int,
        buses: GuestBuses,
        serial: SerialFastPath,
        gate: VcpuGate,
        on_end: Callable[[str], None],
        on_bug: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name=f"vcpu{index}", daemon=True)
        self.vcpu = vcpu
        self._buses = buses
        self._serial = serial
        self._gate = gate
        self._on_end = on_end
        self._on_bug = on_bug

    def run(self) -> None:
        try:
            while self._gate.enter():
                try:
                    reason = kvm_run.run(
                        self.vcpu.fileno(), self.vcpu.run_area, self._buses, self._serial
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
        """Make KVM_RUN return soon; the thread then looks at its gate again."""
        if self.native_id is not None:
            kvm_run.kick(self.native_id, self.vcpu.run_area)
