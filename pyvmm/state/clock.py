# SPDX-License-Identifier: Apache-2.0
"""kvmclock and the time stamp counter, read as one and set as one.

A guest has both, and Linux watches them: if after a move one has got half a millisecond ahead of
the other, it takes the counter for broken (kernel/time/clocksource.c). KVM reads and sets each by
a request of its own, so reading takes the clock between two looks at the counter, the closest of
some, and setting looks at what came of it and tries again with that in mind.

The counter was set with its vCPU and has been running since. So the clock is set to what it was
when it stopped, and as much more as the counter has gone on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm import abi, ioctls
from pyvmm.state.msrs import TSC

if TYPE_CHECKING:
    from pykvm import Vcpu, Vm

MAX_RESTORE_NS = 600 * 10**9
"""Longest time between setting the counter and setting the clock."""

_LOOKS = 8
_ATTEMPTS = 32
_CLOSE_ENOUGH_NS = 50_000
_U64_VALUES = 1 << 64


def read_clock(vm: Vm, vcpu: Vcpu) -> tuple[int, int]:
    """kvmclock in ns, and the time stamp counter of `vcpu` at that moment. Raises KvmError."""
    return _Clocks(vm, vcpu).read()


def set_clock(vm: Vm, vcpu: Vcpu, clock_ns: int, tsc: int) -> None:
    """Have kvmclock go on from `clock_ns`, as of when the counter was at `tsc`. Raises KvmError.

    A counter that is not where it was set (there are KVMs that only show the host's) counts for
    nothing.
    """
    clocks = _Clocks(vm, vcpu)
    khz = vcpu.get_tsc_khz()

    def due(now: int) -> int:
        return clock_ns + (now - tsc) % _U64_VALUES * 1_000_000 // khz

    if due(clocks.tsc()) - clock_ns > MAX_RESTORE_NS:
        tsc = clocks.tsc()
    late_ns: list[int] = []  # how long after looking at the counter the clock was set, each time
    for _ in range(_ATTEMPTS):
        ahead_ns = min(late_ns, default=0)  # on a busy host some are very late
        clocks.set(max(due(clocks.tsc()) + ahead_ns, clock_ns))
        is_ns, now = clocks.read()
        off_ns = due(now) - is_ns
        if abs(off_ns) < _CLOSE_ENOUGH_NS:
            return
        late_ns.append(off_ns + ahead_ns)


class _Clocks:
    """Both clocks of a machine; what the requests need is made beforehand, to lose no time."""

    def __init__(self, vm: Vm, vcpu: Vcpu) -> None:
        self._vm = vm
        self._vcpu = vcpu
        self._tsc = abi.msrs([(TSC, 0)])
        self._clock = abi.kvm_clock_data()
        self._new_clock = abi.kvm_clock_data()

    def tsc(self) -> int:
        """The time stamp counter now."""
        self._vcpu.ioctl(ioctls.KVM_GET_MSRS, self._tsc)
        return int(self._tsc.entries[0].data)

    def set(self, clock_ns: int) -> None:
        """Have the clock go on from there."""
        self._new_clock.clock = clock_ns
        self._vm.ioctl(ioctls.KVM_SET_CLOCK, self._new_clock)

    def read(self) -> tuple[int, int]:
        """The clock, and the counter at the same moment."""
        _, clock_ns, tsc = min(self._look() for _ in range(_LOOKS))
        return clock_ns, tsc

    def _look(self) -> tuple[int, int, int]:
        """How long it took in cycles, the clock, and the counter halfway through."""
        before = self.tsc()
        self._vm.ioctl(ioctls.KVM_GET_CLOCK, self._clock)
        took = (self.tsc() - before) % _U64_VALUES
        return took, int(self._clock.clock), (before + took // 2) % _U64_VALUES
