# SPDX-License-Identifier: Apache-2.0
"""ioeventfd, irqfd, GSI routing and MSI on a real KVM."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from pykvm import Vcpu, abi, irqchip_route, msi_route
from tests.kvm.bare_metal import Devices, GuestDone, enter_real_mode, guest

pytestmark = pytest.mark.kvm

LAPIC_SPURIOUS_VECTOR, LAPIC_SOFTWARE_ENABLE = 0xF0, 0x100
MSI_ADDRESS = 0xFEE0_0000  # to local APIC 0


@contextlib.contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


WRITE_PORTS = """
    ba 34 12        mov dx, 0x1234
    b8 05 00        mov ax, 5
    ef              out dx, ax
    b8 07 00        mov ax, 7
    ef              out dx, ax
    f4              hlt
"""


def test_an_ioeventfd_is_signalled_by_its_port_write_only() -> None:
    with guest(WRITE_PORTS) as machine, eventfd() as fd:
        flags = abi.KVM_IOEVENTFD_FLAG_PIO
        machine.vm.ioeventfd(fd, 0x1234, 2, datamatch=7, flags=flags)
        devices = Devices()
        assert machine.run(devices) == abi.KVM_EXIT_HLT
        assert devices.accesses == [("out", 0x1234, 2, 5)]
        assert os.eventfd_read(fd) == 1

        machine.vm.ioeventfd(
            fd, 0x1234, 2, datamatch=7, flags=flags | abi.KVM_IOEVENTFD_FLAG_DEASSIGN
        )
        enter_real_mode(machine.vcpu, machine.memory)
        devices = Devices()
        assert machine.run(devices) == abi.KVM_EXIT_HLT
        assert [access[-1] for access in devices.accesses] == [5, 7]
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)


WRITE_MMIO = """
    bb 00 00 00 10          mov ebx, 0x10000000
    66 c7 03 01 00          mov word ptr [rbx], 1
    c7 43 04 02 00 00 00    mov dword ptr [rbx + 4], 2
    f4                      hlt
"""


@pytest.mark.parametrize("length", [0, 2])
def test_an_ioeventfd_is_signalled_by_an_mmio_write(length: int) -> None:
    with guest(WRITE_MMIO, long_mode=True) as machine, eventfd() as fd:
        machine.vm.ioeventfd(fd, 0x1000_0000, length)
        devices = Devices()
        assert machine.run(devices) == abi.KVM_EXIT_HLT
        assert devices.accesses == [("write", 0x1000_0004, 4, 2)]
        assert os.eventfd_read(fd) == 1


# Map interrupts 0-7 of the 8259 to vectors 0x20-0x27, unmask them, and wait for one.
WAIT_FOR_IRQ = """
    b0 11       mov al, 0x11
    e6 20       out 0x20, al
    b0 20       mov al, 0x20
    e6 21       out 0x21, al
    b0 04       mov al, 0x04
    e6 21       out 0x21, al
    b0 01       mov al, 0x01
    e6 21       out 0x21, al
    b0 00       mov al, 0x00
    e6 21       out 0x21, al
    e6 10       out READY_PORT, al
    fb          sti
    f4          hlt
    eb fd       jmp $-1
"""
END_IRQ = """
    b0 20       mov al, 0x20
    e6 20       out 0x20, al
    e6 11       out DONE_PORT, al
    cf          iret
"""


def test_irq_line_interrupts_the_guest() -> None:
    with guest(WAIT_FOR_IRQ, irqchip=True, handler=END_IRQ) as machine:

        def pulse() -> None:
            machine.vm.irq_line(4, 1)
            machine.vm.irq_line(4, 0)

        with pytest.raises(GuestDone):
            machine.run(Devices(on_ready=pulse))


def test_an_irqfd_interrupts_the_guest() -> None:
    with guest(WAIT_FOR_IRQ, irqchip=True, handler=END_IRQ) as machine, eventfd() as fd:
        machine.vm.irqfd(fd, 4)
        with pytest.raises(GuestDone):
            machine.run(Devices(on_ready=lambda: os.eventfd_write(fd, 1)))


def test_the_resample_fd_is_signalled_at_the_end_of_a_level_interrupt() -> None:
    with (
        guest(WAIT_FOR_IRQ, irqchip=True, handler=END_IRQ) as machine,
        eventfd() as fd,
        eventfd() as ended,
    ):
        machine.vm.irqfd(fd, 4, resamplefd=ended)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(ended)
        with pytest.raises(GuestDone):
            machine.run(Devices(on_ready=lambda: os.eventfd_write(fd, 1)))
        assert os.eventfd_read(ended) == 1


def test_a_gsi_can_be_routed_to_another_pin() -> None:
    with guest(WAIT_FOR_IRQ, irqchip=True, handler=END_IRQ) as machine, eventfd() as fd:
        machine.vm.set_gsi_routing([irqchip_route(20, abi.KVM_IRQCHIP_PIC_MASTER, 5)])
        machine.vm.irqfd(fd, 20)
        with pytest.raises(GuestDone):
            machine.run(Devices(on_ready=lambda: os.eventfd_write(fd, 1)))


WAIT_FOR_MSI = """
    e6 10       out READY_PORT, al
    fb          sti
    f4          hlt
    eb fd       jmp $-1
"""
END_MSI = """
    e6 11       out DONE_PORT, al
    cf          iret
"""


def enable_local_apic(vcpu: Vcpu) -> None:
    lapic = vcpu.get_lapic()
    lapic.regs[LAPIC_SPURIOUS_VECTOR + 1] |= LAPIC_SOFTWARE_ENABLE >> 8
    vcpu.set_lapic(lapic)


def test_signal_msi_interrupts_the_guest() -> None:
    with guest(WAIT_FOR_MSI, irqchip=True, handler=END_MSI) as machine:
        enable_local_apic(machine.vcpu)
        delivered = []
        devices = Devices(
            on_ready=lambda: delivered.append(machine.vm.signal_msi(MSI_ADDRESS, 0x31))
        )
        with pytest.raises(GuestDone):
            machine.run(devices)
        assert delivered == [True]


def test_an_irqfd_sends_the_msi_of_its_gsi() -> None:
    with guest(WAIT_FOR_MSI, irqchip=True, handler=END_MSI) as machine, eventfd() as fd:
        enable_local_apic(machine.vcpu)
        machine.vm.set_gsi_routing([msi_route(24, MSI_ADDRESS, 0x31)])
        machine.vm.irqfd(fd, 24)
        with pytest.raises(GuestDone):
            machine.run(Devices(on_ready=lambda: os.eventfd_write(fd, 1)))
        machine.vm.irqfd(fd, 24, flags=abi.KVM_IRQFD_FLAG_DEASSIGN)
