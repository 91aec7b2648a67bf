# SPDX-License-Identifier: Apache-2.0
"""kvmclock and the time stamp counters of all vCPUs, saved and restored as of one moment.

A guest has both, and Linux compares them: if one has moved half a millisecond ahead of the other,
it marks the counter as unstable (kernel/time/clocksource.c), as it does with counters that differ
between vCPUs.

KVM reports the offset of a guest's counter from the host's (KVM_VCPU_TSC_OFFSET), and the host's
counter at the moment it read kvmclock (KVM_CLOCK_HOST_TSC). So one request captures a moment, and
offsets can be set at any time. To restore, set the clock, then read it together with the host's
counter, and compute from both the offset with which every counter has its value by that clock.
Nothing depends on how long a request takes.

Where KVM reports neither (Linux before 5.16, hosts whose own clock is not their counter, guests
whose counter runs at another rate than the host's, CPUs with counters far apart), the clock is read
between two reads of the counter, and the closest of several attempts counts. The counter was
restored with its vCPU then and has been running since; the clock is set to the value that the
counter implies, repeatedly until both are close.

KVM API: KVM_GET_CLOCK (4.29), KVM_SET_CLOCK (4.30); Documentation/virt/kvm/devices/vcpu.rst,
KVM_VCPU_TSC_CTRL.
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

_READS = 8
_ATTEMPTS = 32
_CLOSE_ENOUGH_NS = 50_000
_U64_VALUES = 1 << 64
_OFFSET = (abi.KVM_VCPU_TSC_CTRL, abi.KVM_VCPU_TSC_OFFSET)


def read_clocks(vm: Vm, vcpus: Sequence[Vcpu]) -> tuple[int, list[int]]:
    """Return kvmclock in ns, and the counter of each vCPU at that moment. Raises KvmError."""
    clocks = _Clocks(vm, vcpus[0])
    clock_ns, tsc = clocks.read_exactly() or clocks.read()
    return clock_ns, [(tsc + _tsc_difference(vcpu, vcpus[0])) % _U64_VALUES for vcpu in vcpus]


def set_clocks(
    vm: Vm, vcpus: Sequence[Vcpu], clock_ns: int, tsc: int, counters: Sequence[int]
) -> None:
    """Set the clock, and all counters to match it. Raises KvmError.

    `tsc` is the counter of the first vCPU at `clock_ns`; `counters` are those that have been
    written to the vCPUs. Counters that are within a second of each other without being of one
    moment, as KVM without offsets saves them, are meant to be equal; that is KVM's own rule.
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
        if clocks.offset() == offset:  # some KVMs show their guests the host's counter only
            return
    _set_repeatedly(clocks, clock_ns, tsc)


def _set_offsets(vcpus: Sequence[Vcpu], first: int, apart: Sequence[int]) -> None:
    for vcpu, ahead in zip(vcpus, apart, strict=True):
        vcpu.set_device_attr(*_OFFSET, (first + ahead) % _U64_VALUES)
        # KVM has set its timer according to the old counter.
        deadline = vcpu.get_msrs([TSC_DEADLINE])
        if deadline.get(TSC_DEADLINE):
            vcpu.set_msrs(deadline)


def _set_repeatedly(clocks: _Clocks, clock_ns: int, tsc: int) -> None:
    """Set the clock so that it was `clock_ns` when the running counter was `tsc`.

    A counter that is not near the value it was set to is ignored.
    """

    def due(now: int) -> int:
        return clock_ns + _signed(now - tsc) * 1_000_000 // clocks.khz

    if abs(due(clocks.tsc()) - clock_ns) > MAX_RESTORE_NS:
        tsc = clocks.tsc()
    late_ns: list[int] = []  # from reading the counter to setting the clock, each time
    for _ in range(_ATTEMPTS):
        ahead_ns = min(late_ns, default=0)  # on a busy host some take very long
        clocks.set(max(due(clocks.tsc()) + ahead_ns, 0))
        is_ns, now = clocks.read()
        off_ns = due(now) - is_ns
        if abs(off_ns) < _CLOSE_ENOUGH_NS:
            return
        late_ns.append(off_ns + ahead_ns)


def _tsc_difference(vcpu: Vcpu, first: Vcpu) -> int:
    """Return how far the counter of `vcpu` is ahead of that of the `first`."""
    if vcpu is first:
        return 0
    if vcpu.has_device_attr(*_OFFSET):
        return vcpu.get_device_attr(*_OFFSET) - first.get_device_attr(*_OFFSET)
    ahead = _signed(vcpu.get_msrs([TSC])[TSC] - first.get_msrs([TSC])[TSC])
    return 0 if abs(ahead) < first.get_tsc_khz() * 1000 else ahead


def _signed(number: int) -> int:
    """Return the number closest to 0 that equals `number` modulo 2^64."""
    half = _U64_VALUES // 2
    return (number + half) % _U64_VALUES - half


class _Clocks:
    """kvmclock, and the time stamp counter of one vCPU.

    Structures are allocated beforehand, so that requests follow each other quickly.
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
        """Return the counter."""
        self._vcpu.ioctl(ioctls.KVM_GET_MSRS, self._tsc)
        return int(self._tsc.entries[0].data)

    def offset(self) -> int:
        """Return how far the counter is ahead of the host's."""
        return self._vcpu.get_device_attr(*_OFFSET)

    def set(self, clock_ns: int) -> None:
        """Set the clock."""
        self._new_clock.clock = clock_ns
        self._vm.ioctl(ioctls.KVM_SET_CLOCK, self._new_clock)

    def read_exactly(self) -> tuple[int, int] | None:
        """Return the clock, and the counter at the same moment; None where KVM does not report it.

        Host counter plus offset is the guest's counter only if both run at the same rate; the
        guest's counter is read in between to verify that.
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
        """Return the clock, and the counter at about the same moment."""
        _, clock_ns, tsc = min(self._read_once() for _ in range(_READS))
        return clock_ns, tsc

    def _read_once(self) -> tuple[int, int, int]:
        """Return the cycles that the read took, the clock, and the counter halfway through."""
        before = self.tsc()
        self._vm.ioctl(ioctls.KVM_GET_CLOCK, self._clock)
        took = (self.tsc() - before) % _U64_VALUES
        return took, int(self._clock.clock), (before + took // 2) % _U64_VALUES
