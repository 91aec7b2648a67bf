# SPDX-License-Identifier: Apache-2.0
"""kvmclock and the time stamp counters of all vCPUs, read as of one moment and set as of one.

A guest has both, and Linux watches them: if after a move one has got half a millisecond ahead of
the other, it takes the counter for broken (kernel/time/clocksource.c), and for broken it takes
counters that differ between processors, too.

KVM says how far a guest's counter is ahead of the host's (KVM_VCPU_TSC_OFFSET), and what the host's
was when it read kvmclock (KVM_CLOCK_HOST_TSC). So a moment is one request, and offsets are numbers
that can be set at any time: first the clock is set, whenever that is carried out; then it is read,
with the host's counter; and from that follow the offsets with which every counter is where it must
be by that clock. Nothing depends on how long a request takes.

Where KVM says neither (Linux before 5.16, hosts whose own clock is not their counter, guests whose
counter runs at another rate than the host's, processors with counters far apart), the clock is read
between two looks at the counter, the closest of some. The counter was set with its vCPU then and
has been running since; the clock is set to what is due by it, and again until that is close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pykvm import abi, ioctls
from pyvmm.state.msrs import TSC, TSC_DEADLINE

if TYPE_CHECKING:
    from pykvm import Vcpu, Vm

MAX_RESTORE_NS = 600 * 10**9
"""Longest time between setting the counter and setting the clock."""

_LOOKS = 8
_ATTEMPTS = 32
_CLOSE_ENOUGH_NS = 50_000
_U64_VALUES = 1 << 64
_OFFSET = (abi.KVM_VCPU_TSC_CTRL, abi.KVM_VCPU_TSC_OFFSET)


def read_clocks(vm: Vm, vcpus: Sequence[Vcpu]) -> tuple[int, list[int]]:
    """kvmclock in ns, and the counter of each vCPU at that moment. Raises KvmError."""
    clocks = _Clocks(vm, vcpus[0])
    clock_ns, tsc = clocks.read_exactly() or clocks.read()
    return clock_ns, [(tsc + _apart(vcpu, vcpus[0])) % _U64_VALUES for vcpu in vcpus]


def set_clocks(
    vm: Vm, vcpus: Sequence[Vcpu], clock_ns: int, tsc: int, counters: Sequence[int]
) -> None:
    """Have all go on from where they were: the clock, the counter of the first vCPU at that moment
    and, written already, those of all. Raises KvmError.

    Counters that are within a second of each other without being of one moment, as KVM without
    offsets saves them, count as meant to be together; that is KVM's own rule.
    """
    clocks = _Clocks(vm, vcpus[0])
    apart = [_signed(counter - counters[0]) for counter in counters]
    if counters[0] != tsc:
        second = vcpus[0].get_tsc_khz() * 1000
        apart = [0 if abs(ahead) < second else ahead for ahead in apart]
    if clocks.has_offset:
        _set_offsets(vcpus, clocks.offset(), apart)
    clocks.set(clock_ns)
    now = clocks.read_exactly()
    if now is not None:
        now_ns, now_tsc = now
        due = tsc + (now_ns - clock_ns) * clocks.khz // 1_000_000
        offset = (clocks.offset() + due - now_tsc) % _U64_VALUES
        _set_offsets(vcpus, offset, apart)
        if clocks.offset() == offset:  # there are KVMs that only show the host's counter
            return
    _set_by_trials(clocks, clock_ns, tsc)


def _set_offsets(vcpus: Sequence[Vcpu], first: int, apart: Sequence[int]) -> None:
    for vcpu, ahead in zip(vcpus, apart, strict=True):
        vcpu.set_device_attr(*_OFFSET, (first + ahead) % _U64_VALUES)
        # KVM has set its timer by the counter as it was.
        deadline = vcpu.get_msrs([TSC_DEADLINE])
        if deadline.get(TSC_DEADLINE):
            vcpu.set_msrs(deadline)


def _set_by_trials(clocks: _Clocks, clock_ns: int, tsc: int) -> None:
    """Have the clock go on from `clock_ns`, as of when the running counter was at `tsc`.

    A counter that is not where it was set counts for nothing.
    """

    def due(now: int) -> int:
        return clock_ns + _signed(now - tsc) * 1_000_000 // clocks.khz

    if abs(due(clocks.tsc()) - clock_ns) > MAX_RESTORE_NS:
        tsc = clocks.tsc()
    late_ns: list[int] = []  # how long after looking at the counter the clock was set, each time
    for _ in range(_ATTEMPTS):
        ahead_ns = min(late_ns, default=0)  # on a busy host some are very late
        clocks.set(max(due(clocks.tsc()) + ahead_ns, 0))
        is_ns, now = clocks.read()
        off_ns = due(now) - is_ns
        if abs(off_ns) < _CLOSE_ENOUGH_NS:
            return
        late_ns.append(off_ns + ahead_ns)


def _apart(vcpu: Vcpu, first: Vcpu) -> int:
    """How far the counter of `vcpu` is ahead of that of the `first`."""
    if vcpu is first:
        return 0
    if vcpu.has_device_attr(*_OFFSET):
        return vcpu.get_device_attr(*_OFFSET) - first.get_device_attr(*_OFFSET)
    ahead = _signed(vcpu.get_msrs([TSC])[TSC] - first.get_msrs([TSC])[TSC])
    return 0 if abs(ahead) < first.get_tsc_khz() * 1000 else ahead


def _signed(number: int) -> int:
    """`number`, known modulo 2^64 only, as the one that is closest to 0."""
    half = _U64_VALUES // 2
    return (number + half) % _U64_VALUES - half


class _Clocks:
    """kvmclock, and the time stamp counter of one vCPU.

    What the requests need is made beforehand, to lose no time.
    """

    def __init__(self, vm: Vm, vcpu: Vcpu) -> None:
        self._vm = vm
        self._vcpu = vcpu
        self._tsc = abi.msrs([(TSC, 0)])
        self._clock = abi.kvm_clock_data()
        self._new_clock = abi.kvm_clock_data()
        self.khz = vcpu.get_tsc_khz()
        self.has_offset = vcpu.has_device_attr(*_OFFSET)

    def tsc(self) -> int:
        """The counter now."""
        self._vcpu.ioctl(ioctls.KVM_GET_MSRS, self._tsc)
        return int(self._tsc.entries[0].data)

    def offset(self) -> int:
        """How far the counter is ahead of the host's."""
        return self._vcpu.get_device_attr(*_OFFSET)

    def set(self, clock_ns: int) -> None:
        """Have the clock go on from there."""
        self._new_clock.clock = clock_ns
        self._vm.ioctl(ioctls.KVM_SET_CLOCK, self._new_clock)

    def read_exactly(self) -> tuple[int, int] | None:
        """The clock, and the counter at the same moment; None where KVM does not say.

        The host's counter and the offset are the counter unless that runs at another rate, so it
        is looked at in between.
        """
        if not self.has_offset:
            return None
        before, offset = self._vm.get_clock(), self.offset()
        tsc = self.tsc()
        after = self._vm.get_clock()
        if not before.flags & after.flags & abi.KVM_CLOCK_HOST_TSC:
            return None
        if (tsc - offset - before.host_tsc) % _U64_VALUES > after.host_tsc - before.host_tsc:
            return None
        return after.clock, (after.host_tsc + offset) % _U64_VALUES

    def read(self) -> tuple[int, int]:
        """The clock, and the counter at about the same moment."""
        _, clock_ns, tsc = min(self._look() for _ in range(_LOOKS))
        return clock_ns, tsc

    def _look(self) -> tuple[int, int, int]:
        """How long it took in cycles, the clock, and the counter halfway through."""
        before = self.tsc()
        self._vm.ioctl(ioctls.KVM_GET_CLOCK, self._clock)
        took = (self.tsc() - before) % _U64_VALUES
        return took, int(self._clock.clock), (before + took // 2) % _U64_VALUES
