# SPDX-License-Identifier: Apache-2.0
"""A guest of a few instructions on this host's KVM, for tests of the state that KVM holds."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from devices.state import Fields, Payload, decode, encode
from pykvm import System, abi, address_of
from pyvmm.cpuid.policy import guest_cpuid
from pyvmm.state import kvm_vcpu, kvm_vm, msrs
from pyvmm.state.capabilities import Capabilities
from pyvmm.state.clock import read_clocks
from tests.kvm.bare_metal import RAM_BYTES

LSTAR, KERNEL_GS_BASE, TSC, MTRR_FIXED = 0xC000_0082, 0xC000_0102, 0x10, 0x250
LVT_TIMER, LVT_TSC_DEADLINE, SPURIOUS = 0x320, 2 << 17, 0xF0


class Tiny:
    """A machine with one vCPU, an interrupt controller and a timer, over some memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._stack = ExitStack()
        self.system = self._stack.enter_context(System())
        self.vm = self._stack.enter_context(self.system.create_vm())
        self.vm.set_tss_addr(0xFFFB_D000)
        self.vm.create_irqchip()
        self.vm.create_pit2()
        self.vm.set_user_memory_region(0, 0, RAM_BYTES, address_of(memory))
        self.vcpu = self._stack.enter_context(self.vm.create_vcpu(0))
        self.capabilities = Capabilities.of(self.system, self.vm)
        self.cpuid = guest_cpuid(self.system, 0)

    def save(self) -> dict[str, bytes]:
        clock_ns, (tsc,) = read_clocks(self.vm, [self.vcpu])
        return {
            "kvm-vcpu": encode(kvm_vcpu.save_vcpu(self.vcpu, self.capabilities, tsc)),
            "kvm-vm": encode(kvm_vm.save_vm(self.vm, clock_ns, tsc)),
        }

    def restore(self, saved: dict[str, bytes]) -> None:
        tsc = self.restore_vcpu(decode(saved["kvm-vcpu"]))
        self.restore_vm(decode(saved["kvm-vm"]), tsc)

    def restore_vcpu(self, payload: Payload) -> int:
        host = self.capabilities
        fresh = kvm_vcpu.fresh_vcpu(self.vcpu, host)
        return kvm_vcpu.restore_vcpu(self.vcpu, Fields("kvm-vcpu", payload), host, fresh)

    def restore_vm(self, payload: Payload, tsc: int = 0) -> None:
        kvm_vm.restore_vm(self.vm, Fields("kvm-vm", payload), [self.vcpu], [tsc])

    def close(self) -> None:
        self._stack.close()


@contextmanager
def tiny(memory: mmap.mmap | None = None) -> Iterator[Tiny]:
    machine = Tiny(memory if memory is not None else blank())
    try:
        yield machine
    finally:
        machine.close()


def blank() -> mmap.mmap:
    return mmap.mmap(-1, RAM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def fill(machine: Tiny) -> None:
    vcpu, vm = machine.vcpu, machine.vm
    vcpu.set_cpuid2(machine.cpuid)
    values = {LSTAR: 0xFFFF_8000_0000_1234, KERNEL_GS_BASE: 0x5678, MTRR_FIXED: 0x0606_0606_0606}
    assert vcpu.set_msrs(values) == len(values)
    vcpu.set_regs(abi.kvm_regs(rax=1, rip=0x1000, rflags=0x46, r15=15))
    sregs = vcpu.get_sregs2()
    sregs.cr2, sregs.gdt.base, sregs.fs.base = 0x1234_5000, 0x7000, 0x8000
    vcpu.set_sregs2(sregs)
    area = vcpu.get_xsave(machine.capabilities.xsave_bytes)
    area.region[128] |= 0b11
    area.region[40:104] = range(64)  # XMM0 to XMM15
    if machine.capabilities.xcrs:
        xcrs = vcpu.get_xcrs()
        xcrs.xcrs[0].value = avx(machine.cpuid)
        vcpu.set_xcrs(xcrs)
        area.region[128] |= avx(machine.cpuid)
        area.region[144:208] = range(100, 164)  # upper halves of YMM0 to YMM15
    vcpu.set_xsave(area)
    debug = vcpu.get_debugregs()
    debug.db[0], debug.dr7 = 0x1000, 0x401
    vcpu.set_debugregs(debug)
    lapic = vcpu.get_lapic()
    lapic.regs[SPURIOUS : SPURIOUS + 4] = (0x1FF).to_bytes(4, "little")
    lapic.regs[LVT_TIMER : LVT_TIMER + 4] = (LVT_TSC_DEADLINE | 0x33).to_bytes(4, "little")
    vcpu.set_lapic(lapic)
    assert vcpu.set_msrs({msrs.TSC_DEADLINE: 1 << 60}) == 1
    events = vcpu.get_vcpu_events()
    events.nmi.masked, events.nmi.pending = 1, 1
    vcpu.set_vcpu_events(events)
    vcpu.set_mp_state(abi.KVM_MP_STATE_HALTED)
    for number, imr in ((0, 0x12), (1, 0x34)):
        chip = vm.get_irqchip(number)
        chip.chip.pic.imr = imr
        vm.set_irqchip(chip)
    chip = vm.get_irqchip(abi.KVM_IRQCHIP_IOAPIC)
    chip.chip.ioapic.redirtbl[9].bits = 0x0100_0000_0001_A044
    vm.set_irqchip(chip)
    pit = vm.get_pit2()
    pit.channels[0].count, pit.channels[0].mode = 0x4242, 2
    vm.set_pit2(pit)


def avx(cpuid: abi.kvm_cpuid2) -> int:
    """Return a valid XCR0: with AVX, if the CPU has it."""
    has = any(entry.function == 1 and entry.ecx >> 28 & 1 for entry in cpuid.entries)
    return 0b111 if has else 0b11


def msrs_of(payload: Payload) -> dict[int, int]:
    indices: Any = payload["msr_indices"]
    values: Any = payload["msr_values"]
    return dict(zip(indices, values, strict=True))


@contextmanager
def filled() -> Iterator[tuple[Tiny, dict[str, Any]]]:
    """Yield a machine to restore into, and the payload of a vCPU that it accepts."""
    with tiny() as machine, tiny() as copy:
        fill(machine)
        yield copy, {**decode(machine.save()["kvm-vcpu"])}


def with_msr(payload: dict[str, Any], index: int, value: int) -> dict[str, Any]:
    values = {**msrs_of(payload), index: value}
    return {**payload, "msr_indices": list(values), "msr_values": list(values.values())}
