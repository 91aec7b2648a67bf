# SPDX-License-Identifier: Apache-2.0
"""pykvm on a real KVM: each ioctl takes effect, and names itself in its error."""

from __future__ import annotations

import errno
import mmap
import os
import textwrap

import pytest

import pykvm
from pykvm import KvmError, System, abi, address_of
from tests.kvm.bare_metal import CODE_GPA, Devices, enter_real_mode, guest

pytestmark = pytest.mark.kvm

HALT = "f4  hlt"
MSR_STAR, MSR_LSTAR, MSR_NO_SUCH = 0xC000_0081, 0xC000_0082, 0x1234_5678


def test_the_example_in_the_package_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert pykvm.__doc__ is not None
    source = textwrap.dedent(pykvm.__doc__.split("halts:\n", 1)[1])
    assert len(source.splitlines()) < 45
    exec(source, {})
    assert capsys.readouterr().out == "Hello from ring 0!\n"


def test_system_reports_the_capabilities_of_kvm() -> None:
    with System() as kvm:
        assert kvm.get_api_version() == abi.KVM_API_VERSION
        assert kvm.check_extension(abi.KVM_CAP_USER_MEMORY) > 0
        assert kvm.check_extension(abi.KVM_CAP_IMMEDIATE_EXIT) > 0
        assert kvm.check_extension(100_000) == 0
        assert kvm.get_vcpu_mmap_size() >= 0x2000
        assert MSR_STAR in kvm.get_msr_index_list()
        leaves = {entry.function for entry in kvm.get_supported_cpuid().entries}
        assert {0, 1, 0x8000_0000, 0x4000_0000} <= leaves


def test_close_frees_everything_and_may_be_repeated() -> None:
    before = os.listdir("/proc/self/fd")
    kvm = System()
    vm = kvm.create_vm()
    vcpu = vm.create_vcpu(0)
    handles = [kvm, vm, vcpu]
    assert not any(os.get_inheritable(handle.fileno()) for handle in handles)
    for handle in [*handles, *handles]:
        handle.close()
        assert handle.closed
        with pytest.raises(ValueError, match="is closed"):
            handle.fileno()
    assert os.listdir("/proc/self/fd") == before


def test_a_view_of_the_run_area_outlives_its_vcpu() -> None:
    with guest(HALT) as machine:
        view = machine.vcpu.kvm_run
        machine.vcpu.run()
        machine.vcpu.close()
        assert view.exit_reason == abi.KVM_EXIT_HLT


def test_registers_are_read_back_as_set() -> None:
    with guest(HALT) as machine:
        vcpu = machine.vcpu
        regs = abi.kvm_regs(rax=1, r15=0xFFFF_FFFF_FFFF_FFFF, rip=CODE_GPA, rflags=2)
        vcpu.set_regs(regs)
        assert bytes(vcpu.get_regs()) == bytes(regs)
        fpu = vcpu.get_fpu()
        fpu.xmm[3][:] = range(16)
        vcpu.set_fpu(fpu)
        assert bytes(vcpu.get_fpu().xmm[3]) == bytes(range(16))
        sregs = vcpu.get_sregs()
        sregs.gs.base = 0x1230
        vcpu.set_sregs(sregs)
        assert vcpu.get_sregs().gs.base == 0x1230


def test_msrs_are_set_up_to_the_first_that_kvm_refuses() -> None:
    with guest(HALT) as machine:
        values = {MSR_STAR: 0x0023_0010_0000_0000, MSR_LSTAR: 0xFFFF_FFFF_8100_0000}
        assert machine.vcpu.set_msrs(values) == 2
        assert machine.vcpu.get_msrs(values) == values
        assert machine.vcpu.get_msrs([MSR_STAR, MSR_NO_SUCH, MSR_LSTAR]) == {
            MSR_STAR: values[MSR_STAR]
        }
        assert machine.vcpu.set_msrs({MSR_NO_SUCH: 0, MSR_STAR: 1}) == 0


def test_run_returns_at_a_port_access_and_completes_it_later() -> None:
    read_port = """
        e4 40       in al, 0x40
        f4          hlt
    """
    with guest(read_port) as machine:
        vcpu = machine.vcpu
        assert vcpu.run() == abi.KVM_EXIT_IO
        io = vcpu.kvm_run.io
        assert (io.direction, io.size, io.port, io.count) == (abi.KVM_EXIT_IO_IN, 1, 0x40, 1)
        vcpu.run_area[io.data_offset] = 0x5A
        assert vcpu.run() == abi.KVM_EXIT_HLT
        assert vcpu.get_regs().rax & 0xFF == 0x5A


CPUID = """
    66 b8 00 00 00 40       mov eax, 0x40000000
    0f a2                   cpuid
    66 89 1e 00 20          mov [0x2000], ebx
    f4                      hlt
"""


def test_the_guest_sees_the_cpuid_it_was_given() -> None:
    with guest(CPUID) as machine, System() as kvm:
        table = kvm.get_supported_cpuid()
        for entry in table.entries:
            if entry.function == 0x4000_0000:
                entry.ebx = int.from_bytes(b"mine", "little")
        machine.vcpu.set_cpuid2(table)
        assert machine.run(Devices()) == abi.KVM_EXIT_HLT
        assert machine.memory[0x2000:0x2004] == b"mine"


def test_accesses_to_a_removed_slot_are_mmio() -> None:
    read_0x3000 = """
        a1 00 30        mov ax, [0x3000]
        f4              hlt
    """
    high = mmap.mmap(-1, 0x1000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    high[:2] = b"\x34\x12"
    with guest(read_0x3000) as machine:
        vm, vcpu = machine.vm, machine.vcpu
        vm.set_user_memory_region(0, 0, 0, 0)
        vm.set_user_memory_region(0, 0, 0x3000, address_of(machine.memory))
        vm.set_user_memory_region(1, 0x3000, 0x1000, address_of(high))
        assert vcpu.run() == abi.KVM_EXIT_HLT
        assert vcpu.get_regs().rax == 0x1234
        vm.set_user_memory_region(1, 0x3000, 0, 0)
        enter_real_mode(vcpu, machine.memory)
        devices = Devices(answers=[0x5678])
        assert machine.run(devices) == abi.KVM_EXIT_HLT
        assert devices.accesses == [("read", 0x3000, 2)]
        assert vcpu.get_regs().rax == 0x5678


def test_the_interrupt_controllers_come_with_a_timer() -> None:
    with System() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        vm.create_pit2(abi.KVM_PIT_SPEAKER_DUMMY)
        with pytest.raises(KvmError, match="KVM_CREATE_PIT2: File exists"):
            vm.create_pit2()
        with vm.create_vcpu(0) as first, vm.create_vcpu(1) as second:
            assert first.get_mp_state() == abi.KVM_MP_STATE_RUNNABLE
            assert second.get_mp_state() == abi.KVM_MP_STATE_UNINITIALIZED
            second.set_mp_state(abi.KVM_MP_STATE_HALTED)
            assert second.get_mp_state() == abi.KVM_MP_STATE_HALTED


@pytest.mark.parametrize(
    ("request_name", "code", "call"),
    [
        ("KVM_CREATE_VCPU", errno.EEXIST, lambda vm: vm.create_vcpu(0)),
        (
            "KVM_SET_USER_MEMORY_REGION",
            errno.EINVAL,
            lambda vm: vm.set_user_memory_region(1, 0x1_0000, 0x123, 0x1000),
        ),
        (
            "KVM_SET_USER_MEMORY_REGION",
            errno.EEXIST,
            lambda vm: vm.set_user_memory_region(1, 0x1000, 0x1000, 0x10_0000),
        ),
        ("KVM_IOEVENTFD", errno.EBADF, lambda vm: vm.ioeventfd(9999, 0x1234, 2)),
        ("KVM_IOEVENTFD", errno.EINVAL, lambda vm: vm.ioeventfd(0, 0x1234, 3)),
        ("KVM_ENABLE_CAP", errno.EINVAL, lambda vm: vm.enable_cap(100_000)),
        ("KVM_SET_GSI_ROUTING", errno.EINVAL, lambda vm: vm.set_gsi_routing([bad_route()])),
        ("KVM_CREATE_IRQCHIP", errno.EINVAL, lambda vm: vm.create_irqchip()),
        ("KVM_SET_IDENTITY_MAP_ADDR", errno.EINVAL, lambda vm: vm.set_identity_map_addr(0x1000)),
    ],
)
def test_a_failed_ioctl_names_itself_and_the_reason(request_name, code, call) -> None:  # type: ignore[no-untyped-def]
    with guest(HALT) as machine:
        with pytest.raises(KvmError) as raised:
            call(machine.vm)
        assert raised.value.request == request_name
        assert raised.value.errno == code
        assert str(raised.value).startswith(f"{request_name}: ")
        assert errno.errorcode[code] in str(raised.value)


def bad_route() -> abi.kvm_irq_routing_entry:
    return abi.kvm_irq_routing_entry(gsi=1, type=99)


def test_capabilities_are_checked_and_enabled_per_vm() -> None:
    with System() as kvm, kvm.create_vm() as vm:
        assert vm.check_extension(abi.KVM_CAP_MAX_VCPUS) >= 1
        vm.set_identity_map_addr(0xFFFB_C000)
        if vm.check_extension(abi.KVM_CAP_X2APIC_API):
            vm.enable_cap(abi.KVM_CAP_X2APIC_API, 0)
