# SPDX-License-Identifier: Apache-2.0
"""pykvm on a real KVM: the ioctls that save, restore and dirty-log a guest."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterator

import pytest

from pykvm import KvmError, System, Vcpu, Vm, abi, address_of
from tests.kvm.bare_metal import Devices, Guest, guest

pytestmark = pytest.mark.kvm

HALT = "f4  hlt"
PAGE = 4096
YEAR_NS = 365 * 24 * 3600 * 10**9


@pytest.fixture
def machine() -> Iterator[Guest]:
    with guest(HALT, irqchip=True) as machine:
        machine.vm.create_pit2()
        yield machine


@pytest.fixture
def vcpu(machine: Guest) -> Vcpu:
    return machine.vcpu


@pytest.fixture
def vm(machine: Guest) -> Vm:
    return machine.vm


def test_segments_are_read_and_set_without_an_interrupt(vcpu: Vcpu) -> None:
    sregs = vcpu.get_sregs2()
    sregs.fs.base = 0x1234_0000
    vcpu.set_sregs2(sregs)
    assert vcpu.get_sregs2().fs.base == vcpu.get_sregs().fs.base == 0x1234_0000


def test_xsave_holds_the_vector_registers(vcpu: Vcpu, vm: Vm) -> None:
    area = vcpu.get_xsave(max(4096, vm.check_extension(abi.KVM_CAP_XSAVE2)))
    area.region[128] |= 0b11  # XSTATE_BV: x87 and SSE
    xmm5 = (160 + 5 * 16) // 4
    area.region[xmm5 : xmm5 + 4] = [1, 2, 3, 4]
    vcpu.set_xsave(area)
    assert bytes(vcpu.get_fpu().xmm[5]) == struct.pack("<4I", 1, 2, 3, 4)
    assert vcpu.get_xsave().region[xmm5 : xmm5 + 4] == [1, 2, 3, 4]
    area.region[130] = 1  # the header's reserved part
    if vm.check_extension(abi.KVM_CAP_XCRS):
        with pytest.raises(KvmError, match="KVM_SET_XSAVE: Invalid argument"):
            vcpu.set_xsave(area)


def test_xcr0_exists_with_xsave(vcpu: Vcpu, vm: Vm) -> None:
    if not vm.check_extension(abi.KVM_CAP_XCRS):
        assert not any(entry.function == 1 and entry.ecx >> 26 & 1 for entry in leaves(vcpu))
        return
    xcrs = vcpu.get_xcrs()
    assert (xcrs.nr_xcrs, xcrs.xcrs[0].xcr, xcrs.xcrs[0].value) == (1, 0, 1)
    xcrs.xcrs[0].value = 0b11
    vcpu.set_xcrs(xcrs)
    assert vcpu.get_xcrs().xcrs[0].value == 0b11
    xcrs.xcrs[0].value = 1 << 40
    with pytest.raises(KvmError, match="KVM_SET_XCRS"):
        vcpu.set_xcrs(xcrs)


def leaves(vcpu: Vcpu) -> list[abi.kvm_cpuid_entry2]:
    return list(vcpu.get_cpuid2().entries)


def test_cpuid_is_read_back(vcpu: Vcpu) -> None:
    with System() as kvm:
        table = kvm.get_supported_cpuid()
    for entry in table.entries:
        if entry.function == 0x4000_0000:
            entry.ebx = 0x1234_5678
    vcpu.set_cpuid2(table)
    entries = leaves(vcpu)
    assert [(e.function, e.index) for e in entries] == [
        (e.function, e.index) for e in table.entries
    ]
    assert [e.ebx for e in entries if e.function == 0x4000_0000] == [0x1234_5678]


def test_events_and_debug_registers(vcpu: Vcpu) -> None:
    events = vcpu.get_vcpu_events()
    assert events.flags & abi.KVM_VCPUEVENT_VALID_NMI_PENDING
    events.nmi.masked = 1
    events.interrupt.shadow = abi.KVM_X86_SHADOW_INT_STI
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events().nmi.masked == 1
    debug = vcpu.get_debugregs()
    debug.db[1] = 0x1234
    vcpu.set_debugregs(debug)
    assert vcpu.get_debugregs().db[1] == 0x1234
    events.flags = 1 << 31
    with pytest.raises(KvmError, match="KVM_SET_VCPU_EVENTS: Invalid argument"):
        vcpu.set_vcpu_events(events)


def test_the_tsc_frequency_is_reported(vcpu: Vcpu) -> None:
    khz = vcpu.get_tsc_khz()
    assert 100_000 < khz < 10_000_000
    vcpu.set_tsc_khz(khz)
    assert vcpu.get_tsc_khz() == khz


def test_nested_state_is_read_and_set(vcpu: Vcpu, vm: Vm) -> None:
    size = vm.check_extension(abi.KVM_CAP_NESTED_STATE)
    if not size:
        with pytest.raises(KvmError, match="KVM_GET_NESTED_STATE"):
            vcpu.get_nested_state(4096)
        return
    state = vcpu.get_nested_state(size)
    assert 128 <= state.size <= size
    vcpu.set_nested_state(state)
    state.flags = 0xFFFF
    with pytest.raises(KvmError, match="KVM_SET_NESTED_STATE: Invalid argument"):
        vcpu.set_nested_state(state)


def test_interrupt_controllers_and_timer(vm: Vm) -> None:
    for number in (abi.KVM_IRQCHIP_PIC_MASTER, abi.KVM_IRQCHIP_PIC_SLAVE):
        chip = vm.get_irqchip(number)
        assert chip.chip_id == number
        chip.chip.pic.imr = 0x5A + number
        vm.set_irqchip(chip)
    chip = vm.get_irqchip(abi.KVM_IRQCHIP_IOAPIC)
    assert chip.chip.ioapic.base_address == 0xFEC0_0000
    chip.chip.ioapic.redirtbl[7].bits = 1 << 16 | 0x37
    vm.set_irqchip(chip)
    assert vm.get_irqchip(abi.KVM_IRQCHIP_PIC_MASTER).chip.pic.imr == 0x5A
    assert vm.get_irqchip(abi.KVM_IRQCHIP_PIC_SLAVE).chip.pic.imr == 0x5B
    assert vm.get_irqchip(abi.KVM_IRQCHIP_IOAPIC).chip.ioapic.redirtbl[7].bits == 0x1_0037
    with pytest.raises(KvmError, match="KVM_GET_IRQCHIP"):
        vm.get_irqchip(abi.KVM_NR_IRQCHIPS)
    pit = vm.get_pit2()
    pit.channels[2].count = 0x4321
    vm.set_pit2(pit)
    assert vm.get_pit2().channels[2].count == 0x4321


def test_the_clock_continues_from_the_value_set(vm: Vm) -> None:
    assert vm.get_clock().clock < YEAR_NS
    vm.set_clock(abi.kvm_clock_data(clock=YEAR_NS))
    first = vm.get_clock().clock
    time.sleep(0.05)
    second = vm.get_clock().clock
    assert YEAR_NS <= first < second - 40_000_000
    assert second < YEAR_NS + 600 * 10**9
    with pytest.raises(KvmError, match="KVM_SET_CLOCK"):
        vm.set_clock(abi.kvm_clock_data(clock=1, flags=1 << 30))


# Dirty log.

WRITES = """
    b8 00 30        mov ax, 0x3000
    8e d8           mov ds, ax
    c6 06 00 00 01  mov byte [0x0000], 1
    c6 06 00 20 01  mov byte [0x2000], 1
    f4              hlt
    c6 06 00 20 02  mov byte [0x2000], 2
    f4              hlt
    c6 06 00 30 03  mov byte [0x3000], 3
    f4              hlt
"""
LOGGED_GPA, LOGGED_PAGES = 0x3_0000, 128


@pytest.fixture
def logged() -> Iterator[Guest]:
    """Run a guest with a second slot, at 192 KiB, whose writes are logged."""
    memory = mmap.mmap(-1, LOGGED_PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with guest(WRITES) as machine:
        attach(machine.vm, memory)
        yield machine


def attach(vm: Vm, memory: mmap.mmap) -> None:
    flags = abi.KVM_MEM_LOG_DIRTY_PAGES
    vm.set_user_memory_region(1, LOGGED_GPA, LOGGED_PAGES * PAGE, address_of(memory), flags)


def written(vm: Vm) -> list[int]:
    bitmap = bytearray(LOGGED_PAGES // 8)
    vm.get_dirty_log(1, bitmap)
    bits = int.from_bytes(bitmap, "little")
    return [page for page in range(LOGGED_PAGES) if bits >> page & 1]


def run_to_halt(machine: Guest) -> None:
    assert machine.run(Devices()) == abi.KVM_EXIT_HLT


def test_a_log_is_cleared_by_reading_it(logged: Guest) -> None:
    run_to_halt(logged)
    assert written(logged.vm) == [0, 2]
    assert written(logged.vm) == []
    run_to_halt(logged)
    assert written(logged.vm) == [2]


def test_with_manual_dirty_log_protect_a_log_is_cleared_in_parts() -> None:
    memory = mmap.mmap(-1, LOGGED_PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with guest(WRITES) as machine:
        vm = machine.vm
        protect = abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
        assert vm.check_extension(protect) & abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
        vm.enable_cap(protect, abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
        attach(vm, memory)
        run_to_halt(machine)
        assert written(vm) == [0, 2]
        assert written(vm) == [0, 2]
        vm.clear_dirty_log(1, 0, 64, bytearray(b"\x04" + bytes(7)))
        assert written(vm) == [0]
        run_to_halt(machine)
        assert written(vm) == [0, 2]
        with pytest.raises(ValueError, match="bitmap of 8 bytes for 128 pages"):
            vm.clear_dirty_log(1, 0, 128, bytearray(8))
        with pytest.raises(KvmError, match="KVM_CLEAR_DIRTY_LOG: Invalid argument"):
            vm.clear_dirty_log(1, 1, 64, bytearray(8))


def test_a_log_may_be_initially_all_set() -> None:
    memory = mmap.mmap(-1, LOGGED_PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with guest(WRITES) as machine:
        vm = machine.vm
        both = abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | abi.KVM_DIRTY_LOG_INITIALLY_SET
        vm.enable_cap(abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, both)
        attach(vm, memory)
        assert written(vm) == list(range(LOGGED_PAGES))
        vm.clear_dirty_log(1, 0, LOGGED_PAGES, bytearray(b"\xff" * (LOGGED_PAGES // 8)))
        run_to_halt(machine)
        assert written(vm) == [0, 2]


def test_a_slot_that_is_not_logged_has_no_log(logged: Guest) -> None:
    with pytest.raises(KvmError, match="KVM_GET_DIRTY_LOG: No such file"):
        logged.vm.get_dirty_log(0, bytearray(16))


def test_logging_can_be_switched_on_and_off(logged: Guest) -> None:
    memory = mmap.mmap(-1, LOGGED_PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    vm = logged.vm
    vm.set_user_memory_region(1, 0, 0, 0)
    where = (1, LOGGED_GPA, LOGGED_PAGES * PAGE, address_of(memory))
    vm.set_user_memory_region(*where)
    run_to_halt(logged)
    vm.set_user_memory_region(*where, abi.KVM_MEM_LOG_DIRTY_PAGES)
    assert written(vm) == []
    run_to_halt(logged)
    assert written(vm) == [2]
    vm.set_user_memory_region(*where)
    run_to_halt(logged)
    assert memory[0x3000] == 3
