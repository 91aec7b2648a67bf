# SPDX-License-Identifier: Apache-2.0
"""The parts of pykvm, and of the KVM_RUN loop, that can be tested without KVM."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import subprocess
import sys
from ctypes import sizeof

import pytest

from pykvm import KvmError, System, abi, address_of, exits, ioctls, irqchip_route, msi_route
from pyvmm_native import kvm_run


class NoDevices:
    """An `IoHandler` that is never called."""

    def pio_read(self, port: int, size: int) -> int:
        raise AssertionError

    def pio_write(self, port: int, size: int, value: int) -> None:
        raise AssertionError

    def mmio_read(self, gpa: int, size: int) -> int:
        raise AssertionError

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        raise AssertionError


def test_a_missing_device_is_named_in_the_error() -> None:
    with pytest.raises(KvmError, match=r"^open /dev/no-kvm: .*ENOENT") as raised:
        System("/dev/no-kvm")
    assert raised.value.errno == errno.ENOENT


def test_a_device_that_is_not_kvm_refuses_the_request_by_name() -> None:
    with System("/dev/null") as not_kvm, pytest.raises(KvmError) as raised:
        not_kvm.get_api_version()
    assert raised.value.request == "KVM_GET_API_VERSION"
    assert raised.value.errno == errno.ENOTTY
    assert isinstance(raised.value, OSError)


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(KvmError("KVM_CREATE_VM", errno.EPERM)))
    assert str(error) == "KVM_CREATE_VM: Operation not permitted (EPERM)"
    assert error.errno == errno.EPERM


def test_an_unknown_request_number_still_gives_an_error_message() -> None:
    assert str(KvmError("KVM_RUN", 9999)).endswith("(9999)")
    assert ioctls.name_of(ioctls.KVM_RUN) == "KVM_RUN"
    assert ioctls.name_of(0x1234) == "ioctl 0x00001234"


def test_sized_structures_keep_their_header_and_hold_their_elements() -> None:
    table = abi.msrs([(0x10, 1), (0x11, 1 << 63)])
    assert isinstance(table, abi.kvm_msrs)
    assert sizeof(table) == sizeof(abi.kvm_msrs) + 2 * sizeof(abi.kvm_msr_entry)
    assert table.nmsrs == 2
    assert [(entry.index, entry.data) for entry in table.entries] == [(0x10, 1), (0x11, 1 << 63)]
    assert bytes(table)[8:12] == b"\x10\0\0\0"
    assert abi.msr_values(table, 2) == {0x10: 1, 0x11: 1 << 63}
    assert abi.msr_values(table, 1) == {0x10: 1}
    assert abi.msr_values(table, 0) == {}
    assert sizeof(abi.cpuid2([])) == sizeof(abi.kvm_cpuid2)
    leaves = [abi.kvm_cpuid_entry2(function=1, eax=2), abi.kvm_cpuid_entry2(function=7, index=1)]
    cpuid = abi.cpuid2_of_bytes(b"".join(map(bytes, leaves)))
    assert bytes(cpuid) == bytes(abi.cpuid2(leaves))
    assert len(abi.msr_list(7).indices) == 7


def test_routes_are_laid_out_as_kvm_expects() -> None:
    table = abi.irq_routing(
        [irqchip_route(4, abi.KVM_IRQCHIP_IOAPIC, 4), msi_route(24, 0x1_FEE0_1000, 0x4031)]
    )
    assert (table.nr, table.flags) == (2, 0)
    pin, message = table.entries
    assert (pin.gsi, pin.type) == (4, abi.KVM_IRQ_ROUTING_IRQCHIP)
    assert (pin.u.irqchip.irqchip, pin.u.irqchip.pin) == (abi.KVM_IRQCHIP_IOAPIC, 4)
    assert (message.gsi, message.type) == (24, abi.KVM_IRQ_ROUTING_MSI)
    assert (message.u.msi.address_hi, message.u.msi.address_lo) == (1, 0xFEE0_1000)
    assert message.u.msi.data == 0x4031


def test_address_of_returns_the_address_of_the_bytes() -> None:
    buffer = bytearray(b"abc")
    assert ctypes.string_at(address_of(buffer), 3) == b"abc"
    assert address_of(memoryview(buffer)[1:]) == address_of(buffer) + 1
    buffer += b"d"  # no export is left behind


def exit_of(reason: int, **members: dict[str, int]) -> abi.kvm_run:
    run = abi.kvm_run(exit_reason=reason)
    for member, fields in members.items():
        for name, value in fields.items():
            setattr(getattr(run, member), name, value)
    return run


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (exit_of(abi.KVM_EXIT_HLT), "KVM_EXIT_HLT"),
        (exit_of(99), "exit reason 99"),
        (
            exit_of(abi.KVM_EXIT_UNKNOWN, hw={"hardware_exit_reason": 0x42}),
            "KVM_EXIT_UNKNOWN: hardware exit reason 0x42",
        ),
        (
            exit_of(
                abi.KVM_EXIT_FAIL_ENTRY,
                fail_entry={"hardware_entry_failure_reason": 0x8000_0021, "cpu": 3},
            ),
            "KVM_EXIT_FAIL_ENTRY: the processor refused the guest's state, "
            "hardware reason 0x80000021, on host CPU 3",
        ),
        (
            exit_of(abi.KVM_EXIT_IO, io={"direction": 1, "size": 2, "port": 0x3F8, "count": 3}),
            "KVM_EXIT_IO: write to port 0x3f8, 3 times 2 bytes",
        ),
        (
            exit_of(abi.KVM_EXIT_MMIO, mmio={"phys_addr": 0xFEC0_0000, "len": 4}),
            "KVM_EXIT_MMIO: read of 4 bytes at 0xfec00000",
        ),
        (
            exit_of(
                abi.KVM_EXIT_SYSTEM_EVENT,
                system_event={"type": abi.KVM_SYSTEM_EVENT_CRASH, "ndata": 1, "flags": 5},
            ),
            "KVM_EXIT_SYSTEM_EVENT: KVM_SYSTEM_EVENT_CRASH, 0x5",
        ),
        (
            exit_of(abi.KVM_EXIT_INTERNAL_ERROR, internal={"suberror": 3, "ndata": 0}),
            "KVM_EXIT_INTERNAL_ERROR: KVM_INTERNAL_ERROR_DELIVERY_EV",
        ),
        (
            exit_of(abi.KVM_EXIT_INTERNAL_ERROR, internal={"suberror": 77, "ndata": 0}),
            "KVM_EXIT_INTERNAL_ERROR: suberror 77",
        ),
        (
            exit_of(abi.KVM_EXIT_X86_RDMSR, msr={"index": 0xC000_0080}),
            "KVM_EXIT_X86_RDMSR: MSR 0xc0000080",
        ),
    ],
)
def test_an_exit_is_described(run: abi.kvm_run, text: str) -> None:
    assert exits.describe(run) == text


def test_an_instruction_that_kvm_cannot_emulate_is_shown() -> None:
    run = exit_of(abi.KVM_EXIT_INTERNAL_ERROR, emulation_failure={"suberror": 1, "ndata": 3})
    failure = run.emulation_failure
    assert exits.describe(run) == (
        "KVM_EXIT_INTERNAL_ERROR: KVM_INTERNAL_ERROR_EMULATION, 0x0, 0x0, 0x0"
    )
    failure.flags = abi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    failure.insn_size = 4
    failure.insn_bytes[:5] = b"\x48\x0f\xc7\x0e\x90"
    assert exits.describe(run).endswith("cannot emulate an instruction, bytes 48 0f c7 0e")


def test_a_count_larger_than_the_data_is_limited() -> None:
    run = exit_of(abi.KVM_EXIT_INTERNAL_ERROR, internal={"suberror": 2, "ndata": 1 << 31})
    assert exits.describe(run).count("0x0") == 16
    run = exit_of(abi.KVM_EXIT_SYSTEM_EVENT, system_event={"type": 1, "ndata": 1 << 31})
    assert exits.describe(run).count("0x0") == 16


def test_a_run_area_smaller_than_kvm_run_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than kvm_run"):
        kvm_run.run(0, bytearray(sizeof(abi.kvm_run) - 1), NoDevices())
    with pytest.raises(ValueError, match="smaller than kvm_run"):
        kvm_run.clear_kick(bytearray(1))


def test_a_run_area_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(BufferError):
        kvm_run.clear_kick(bytes(sizeof(abi.kvm_run)))


def test_a_descriptor_that_is_not_a_vcpu_fails_with_its_errno() -> None:
    with open(os.devnull) as not_a_vcpu, pytest.raises(OSError, match="KVM_RUN: ") as raised:
        kvm_run.run(not_a_vcpu.fileno(), bytearray(sizeof(abi.kvm_run)), NoDevices())
    assert raised.value.errno == errno.ENOTTY


def test_kicking_before_the_handler_is_installed_is_refused() -> None:
    script = (
        "from pyvmm_native import kvm_run\n"
        "try: kvm_run.kick(0, bytearray(1 << 13))\n"
        "except RuntimeError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout == "install_kick_handler() was not called\n", result.stderr


def test_a_signal_that_cannot_be_handled_is_refused() -> None:
    with pytest.raises(OSError, match="sigaction") as raised:
        kvm_run.install_kick_handler(9)
    assert raised.value.errno == errno.EINVAL


def test_pykvm_imports_nothing_of_ours() -> None:
    script = (
        "import sys, pykvm\n"
        "ours = {'pyvmm', 'devices', 'pyvmm_native', 'guest_images'}\n"
        "print(sorted(ours & {name.split('.')[0] for name in sys.modules}))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout == "[]\n", result.stderr
