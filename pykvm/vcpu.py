# SPDX-License-Identifier: Apache-2.0
"""A vCPU: its registers, the area it shares with the kernel, and running it.

Implements the vCPU ioctls of Documentation/virt/kvm/api.rst, section 4. Each method is one ioctl,
named after it in lower case. Calls for one vCPU come from one thread at a time, the one that runs
it; while that thread is inside `run`, others wait.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from ctypes import Structure, addressof, c_uint64, sizeof
from errno import EAGAIN, EINTR, EINVAL, ENOTTY, ENXIO
from itertools import repeat
from typing import TypeVar

from pykvm import abi, ioctls
from pykvm.handle import KvmError, KvmHandle

_S = TypeVar("_S", bound=Structure)

_CPUID_ENTRY_BYTES = sizeof(abi.kvm_cpuid_entry2)
_MAX_CPUID_ENTRIES = 256  # KVM_MAX_CPUID_ENTRIES of the kernel, which no header exports


class Vcpu(KvmHandle):
    """A vCPU, created by `Vm.create_vcpu`.

    `run_area` is the mmap shared with the kernel; `kvm_run` is the structure at its start.
    """

    run_area: mmap.mmap
    kvm_run: abi.kvm_run

    def __init__(self, fd: int, mmap_size_bytes: int) -> None:
        """Take ownership of `fd` and map the `mmap_size_bytes` shared with the kernel."""
        super().__init__(fd)
        try:
            self.run_area = mmap.mmap(fd, mmap_size_bytes, mmap.MAP_SHARED)
        except BaseException:
            self.close()
            raise
        self.kvm_run = abi.kvm_run.from_buffer(self.run_area)

    def close(self) -> None:
        """Unmap the shared area and close the file descriptor; `kvm_run` is removed.

        If another view of the area is still held, it is unmapped when that view is released.
        """
        if hasattr(self, "kvm_run"):
            del self.kvm_run
            with contextlib.suppress(BufferError):
                self.run_area.close()
        super().close()

    def run(self) -> int:
        """KVM_RUN: run guest code; return the exit reason, KVM_EXIT_*.

        KVM_EXIT_INTR when a signal or `kvm_run.immediate_exit` ended it. For KVM_EXIT_IO and
        KVM_EXIT_MMIO the guest's access is complete only after `run` was called again.
        """
        runnable = False
        while True:
            result = self._ioctl_once(ioctls.KVM_RUN)
            if result >= 0:
                return int(self.kvm_run.exit_reason)
            if result == -EINTR:
                return abi.KVM_EXIT_INTR
            # EAGAIN: the vCPU was waiting for its start-up IPI and received it; it has not run yet.
            # If it was runnable before, the host lets KVM start no thread, and a retry is endless.
            if result != -EAGAIN or runnable:
                raise KvmError(ioctls.name_of(ioctls.KVM_RUN), -result)
            if self.kvm_run.immediate_exit:
                return abi.KVM_EXIT_INTR
            runnable = self.get_mp_state() == abi.KVM_MP_STATE_RUNNABLE

    def get_regs(self) -> abi.kvm_regs:
        """KVM_GET_REGS: the general registers."""
        return self._get(ioctls.KVM_GET_REGS, abi.kvm_regs())

    def set_regs(self, regs: abi.kvm_regs) -> None:
        """KVM_SET_REGS; bit 1 of `rflags` is always 1 on x86."""
        self.ioctl(ioctls.KVM_SET_REGS, regs)

    def get_sregs(self) -> abi.kvm_sregs:
        """KVM_GET_SREGS: segment, table and control registers."""
        return self._get(ioctls.KVM_GET_SREGS, abi.kvm_sregs())

    def set_sregs(self, sregs: abi.kvm_sregs) -> None:
        """KVM_SET_SREGS; usually a changed result of `get_sregs`."""
        self.ioctl(ioctls.KVM_SET_SREGS, sregs)

    def get_fpu(self) -> abi.kvm_fpu:
        """KVM_GET_FPU: x87 and SSE registers."""
        return self._get(ioctls.KVM_GET_FPU, abi.kvm_fpu())

    def set_fpu(self, fpu: abi.kvm_fpu) -> None:
        """KVM_SET_FPU."""
        self.ioctl(ioctls.KVM_SET_FPU, fpu)

    def get_sregs2(self) -> abi.kvm_sregs2:
        """KVM_GET_SREGS2 (4.131): as `get_sregs`, with the PDPTRs of 32-bit PAE paging."""
        return self._get(ioctls.KVM_GET_SREGS2, abi.kvm_sregs2())

    def set_sregs2(self, sregs: abi.kvm_sregs2) -> None:
        """KVM_SET_SREGS2 (4.132); unlike `set_sregs` it names no pending interrupt."""
        self.ioctl(ioctls.KVM_SET_SREGS2, sregs)

    def get_xsave(self, size_bytes: int = 4096) -> abi.kvm_xsave:
        """KVM_GET_XSAVE (4.42) or, for more than 4096 bytes, KVM_GET_XSAVE2 (4.134).

        x87, SSE and all other extended state, in XSAVE's standard format. `size_bytes` is at
        least the result of `Vm.check_extension(KVM_CAP_XSAVE2)`, so that KVM's data fits.
        """
        request = ioctls.KVM_GET_XSAVE if size_bytes == 4096 else ioctls.KVM_GET_XSAVE2
        return self._get(request, abi.xsave(size_bytes))

    def set_xsave(self, xsave: abi.kvm_xsave) -> None:
        """KVM_SET_XSAVE (4.43): KVM reads 4096 bytes, or what KVM_CAP_XSAVE2 reports."""
        self.ioctl(ioctls.KVM_SET_XSAVE, xsave)

    def get_xcrs(self) -> abi.kvm_xcrs:
        """KVM_GET_XCRS (4.44): XCR0; needs KVM_CAP_XCRS, that is, a processor with XSAVE."""
        return self._get(ioctls.KVM_GET_XCRS, abi.kvm_xcrs())

    def set_xcrs(self, xcrs: abi.kvm_xcrs) -> None:
        """KVM_SET_XCRS (4.45): only bits that the guest's CPUID offers."""
        self.ioctl(ioctls.KVM_SET_XCRS, xcrs)

    def get_debugregs(self) -> abi.kvm_debugregs:
        """KVM_GET_DEBUGREGS (4.33)."""
        return self._get(ioctls.KVM_GET_DEBUGREGS, abi.kvm_debugregs())

    def set_debugregs(self, debugregs: abi.kvm_debugregs) -> None:
        """KVM_SET_DEBUGREGS (4.34)."""
        self.ioctl(ioctls.KVM_SET_DEBUGREGS, debugregs)

    def get_vcpu_events(self) -> abi.kvm_vcpu_events:
        """KVM_GET_VCPU_EVENTS (4.31): pending exceptions, interrupts and NMIs."""
        return self._get(ioctls.KVM_GET_VCPU_EVENTS, abi.kvm_vcpu_events())

    def set_vcpu_events(self, events: abi.kvm_vcpu_events) -> None:
        """KVM_SET_VCPU_EVENTS (4.32); `flags` selects the optional parts that apply."""
        self.ioctl(ioctls.KVM_SET_VCPU_EVENTS, events)

    def get_nested_state(self, size_bytes: int) -> abi.kvm_nested_state:
        """KVM_GET_NESTED_STATE (4.114): state of a guest that runs guests of its own.

        `size_bytes` is the result of `check_extension(KVM_CAP_NESTED_STATE)`; the `size` of the
        structure returned is the part in use.
        """
        return self._get(ioctls.KVM_GET_NESTED_STATE, abi.nested_state(size_bytes))

    def set_nested_state(self, state: abi.kvm_nested_state) -> None:
        """KVM_SET_NESTED_STATE (4.115), after `set_cpuid2` and `set_sregs2`."""
        self.ioctl(ioctls.KVM_SET_NESTED_STATE, state)

    def get_lapic(self) -> abi.kvm_lapic_state:
        """KVM_GET_LAPIC: the in-kernel local APIC's register page."""
        return self._get(ioctls.KVM_GET_LAPIC, abi.kvm_lapic_state())

    def set_lapic(self, lapic: abi.kvm_lapic_state) -> None:
        """KVM_SET_LAPIC."""
        self.ioctl(ioctls.KVM_SET_LAPIC, lapic)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: one of KVM_MP_STATE_*."""
        state: int = self._get(ioctls.KVM_GET_MP_STATE, abi.kvm_mp_state()).mp_state
        return state

    def set_mp_state(self, mp_state: int) -> None:
        """KVM_SET_MP_STATE: one of KVM_MP_STATE_*."""
        self.ioctl(ioctls.KVM_SET_MP_STATE, abi.kvm_mp_state(mp_state=mp_state))

    def set_cpuid2(self, cpuid: abi.kvm_cpuid2) -> None:
        """KVM_SET_CPUID2: the CPUID leaves that the guest sees; before the first `run`."""
        self.ioctl(ioctls.KVM_SET_CPUID2, cpuid)

    def get_cpuid2(self) -> abi.kvm_cpuid2:
        """KVM_GET_CPUID2: the leaves that were set, as KVM has adjusted them."""
        table = abi.sized(abi.kvm_cpuid2, _MAX_CPUID_ENTRIES)(nent=_MAX_CPUID_ENTRIES)
        self.ioctl(ioctls.KVM_GET_CPUID2, table)
        leaves = bytes(table.entries)[: table.nent * _CPUID_ENTRY_BYTES]
        # Linux 6.1, among others, does not set nent: entries of zeros follow.
        count = -(-len(leaves.rstrip(b"\0")) // _CPUID_ENTRY_BYTES)
        return abi.cpuid2_of_bytes(leaves[: count * _CPUID_ENTRY_BYTES])

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ (4.56): the frequency of the guest's time stamp counter."""
        return self.ioctl(ioctls.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ (4.55); other rates than the host's need KVM_CAP_TSC_CONTROL."""
        self.ioctl(ioctls.KVM_SET_TSC_KHZ, khz)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: MSR index → value, up to the first index that KVM does not know."""
        table = abi.msrs(zip(indices, repeat(0)))
        return abi.msr_values(table, self.ioctl(ioctls.KVM_GET_MSRS, table))

    def set_msrs(self, values: dict[int, int]) -> int:
        """KVM_SET_MSRS, in order; return how many were set before the first that KVM refused."""
        return self.ioctl(ioctls.KVM_SET_MSRS, abi.msrs(values.items()))

    def has_device_attr(self, group: int, attr: int) -> bool:
        """KVM_HAS_DEVICE_ATTR (4.81): whether this KVM knows the attribute of a vCPU."""
        try:
            self.ioctl(ioctls.KVM_HAS_DEVICE_ATTR, abi.kvm_device_attr(group=group, attr=attr))
        except KvmError as error:
            if error.errno in (ENXIO, EINVAL, ENOTTY):  # the last two: a KVM without any
                return False
            raise
        return True

    def get_device_attr(self, group: int, attr: int) -> int:
        """KVM_GET_DEVICE_ATTR (4.80), of 64 bits, such as KVM_VCPU_TSC_OFFSET.

        That one is the time stamp counter of the guest minus that of the host, modulo 2^64 (the
        kernel's Documentation/virt/kvm/devices/vcpu.rst).
        """
        value = c_uint64()
        where = abi.kvm_device_attr(group=group, attr=attr, addr=addressof(value))
        self.ioctl(ioctls.KVM_GET_DEVICE_ATTR, where)
        return value.value

    def set_device_attr(self, group: int, attr: int, value: int) -> None:
        """KVM_SET_DEVICE_ATTR (4.80), of 64 bits."""
        number = c_uint64(value)
        where = abi.kvm_device_attr(group=group, attr=attr, addr=addressof(number))
        self.ioctl(ioctls.KVM_SET_DEVICE_ATTR, where)

    def kvmclock_ctrl(self) -> None:
        """KVM_KVMCLOCK_CTRL: tell the guest's kvmclock that the vCPU was paused.

        Keeps the guest's watchdogs quiet; EINVAL if the guest does not use kvmclock.
        """
        self.ioctl(ioctls.KVM_KVMCLOCK_CTRL)

    def _get(self, request: int, structure: _S) -> _S:
        self.ioctl(request, structure)
        return structure
