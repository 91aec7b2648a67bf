# SPDX-License-Identifier: Apache-2.0
"""The KVM_RUN loop serves port and MMIO exits, and checks what KVM and the devices return."""

from __future__ import annotations

import pytest

from pykvm import abi, exits
from pyvmm_native import kvm_run
from tests.kvm.bare_metal import HALTS, READ_PORT_TWICE, Devices, guest

pytestmark = pytest.mark.kvm

PORTS = """
    ba 34 12                mov dx, 0x1234
    66 b8 44 33 22 11       mov eax, 0x11223344
    ee                      out dx, al
    ef                      out dx, ax
    66 ef                   out dx, eax
    ec                      in al, dx
    66 a3 00 20             mov [0x2000], eax
    ed                      in ax, dx
    66 a3 04 20             mov [0x2004], eax
    66 ed                   in eax, dx
    66 a3 08 20             mov [0x2008], eax
    f4                      hlt
"""


def test_ports_of_every_size() -> None:
    devices = Devices(answers=[0xA1, 0xB1B2, 0xC1C2C3C4])
    with guest(PORTS) as machine:
        assert machine.run(devices) == abi.KVM_EXIT_HLT
        assert machine.words(0x2000, "3I") == (0x112233A1, 0x1122B1B2, 0xC1C2C3C4)
    assert devices.accesses == [
        ("out", 0x1234, 1, 0x44),
        ("out", 0x1234, 2, 0x3344),
        ("out", 0x1234, 4, 0x11223344),
        ("in", 0x1234, 1),
        ("in", 0x1234, 2),
        ("in", 0x1234, 4),
    ]


STRINGS = """
    ba 34 12        mov dx, 0x1234
    be 00 20        mov si, 0x2000
    bf 00 21        mov di, 0x2100
    b9 0b 00        mov cx, 11
    f3 6e           rep outsb
    b9 05 00        mov cx, 5
    f3 6c           rep insb
    b9 03 00        mov cx, 3
    f3 6f           rep outsw
    b9 02 00        mov cx, 2
    66 f3 6d        rep insd
    f4              hlt
"""


def test_string_io_is_served_item_by_item() -> None:
    text = b"string I/O."
    devices = Devices(answers=[*b"bytes", 0x11111111, 0xFFFFFFFF])
    with guest(STRINGS) as machine:
        machine.memory[0x2000 : 0x2000 + len(text)] = text
        machine.memory[0x200B:0x2011] = bytes.fromhex("010203040506")
        assert machine.run(devices) == abi.KVM_EXIT_HLT
        assert machine.memory[0x2100:0x210D] == b"bytes" + b"\x11" * 4 + b"\xff" * 4
    assert devices.accesses == [
        *(("out", 0x1234, 1, byte) for byte in text),
        *[("in", 0x1234, 1)] * 5,
        *(("out", 0x1234, 2, word) for word in (0x0201, 0x0403, 0x0605)),
        *[("in", 0x1234, 4)] * 2,
    ]


DEVICE_MEMORY = """
    48 c7 c3 00 00 00 10            mov rbx, 0x10000000
    48 b8 11 22 33 44 55 66 77 88   mov rax, 0x8877665544332211
    88 03                           mov [rbx], al
    66 89 43 02                     mov [rbx + 2], ax
    89 43 04                        mov [rbx + 4], eax
    48 89 43 08                     mov [rbx + 8], rax
    31 c0                           xor eax, eax
    8a 03                           mov al, [rbx]
    48 89 04 25 00 40 00 00         mov [0x4000], rax
    66 8b 43 02                     mov ax, [rbx + 2]
    48 89 04 25 08 40 00 00         mov [0x4008], rax
    8b 43 04                        mov eax, [rbx + 4]
    48 89 04 25 10 40 00 00         mov [0x4010], rax
    48 8b 43 08                     mov rax, [rbx + 8]
    48 89 04 25 18 40 00 00         mov [0x4018], rax
    f4                              hlt
"""


def test_device_memory_of_every_size() -> None:
    answers = [0xA1, 0xB1B2, 0xC1C2C3C4, 0xD1D2D3D4D5D6D7D8]
    devices = Devices(answers)
    with guest(DEVICE_MEMORY, long_mode=True) as machine:
        assert machine.run(devices) == abi.KVM_EXIT_HLT
        assert list(machine.words(0x4000, "4Q")) == answers
    assert devices.accesses == [
        ("write", 0x10000000, 1, 0x11),
        ("write", 0x10000002, 2, 0x2211),
        ("write", 0x10000004, 4, 0x44332211),
        ("write", 0x10000008, 8, 0x8877665544332211),
        ("read", 0x10000000, 1),
        ("read", 0x10000002, 2),
        ("read", 0x10000004, 4),
        ("read", 0x10000008, 8),
    ]


ACROSS_A_PAGE = """
    bb ff 0f 00 10          mov ebx, 0x10000fff
    b8 11 22 33 44          mov eax, 0x44332211
    89 03                   mov [rbx], eax
    8b 03                   mov eax, [rbx]
    89 04 25 00 40 00 00    mov [0x4000], eax
    f4                      hlt
"""


def test_an_access_across_a_page_is_split_into_bus_sizes() -> None:
    devices = Devices(answers=[0xAA, 0xCCBB, 0xDD])
    with guest(ACROSS_A_PAGE, long_mode=True) as machine:
        assert machine.run(devices) == abi.KVM_EXIT_HLT
        assert machine.words(0x4000, "I") == (0xDDCCBBAA,)
    assert devices.accesses == [
        ("write", 0x10000FFF, 1, 0x11),
        ("write", 0x10001000, 2, 0x3322),
        ("write", 0x10001002, 1, 0x44),
        ("read", 0x10000FFF, 1),
        ("read", 0x10001000, 2),
        ("read", 0x10001002, 1),
    ]


def test_an_exception_of_a_device_is_raised_and_the_guest_reads_all_ones() -> None:
    class Broken(Devices):
        def pio_read(self, port: int, size: int) -> int:
            raise LookupError("no such register")

    with guest(READ_PORT_TWICE) as machine:
        with pytest.raises(LookupError, match="no such register"):
            machine.run(Broken())
        assert machine.run(Devices(answers=[0x1234])) == abi.KVM_EXIT_HLT
        assert machine.words(0x2000, "2H") == (0xFFFF, 0x1234)


@pytest.mark.parametrize("answer", [0x10000, -1, 1 << 64])
def test_a_value_that_does_not_fit_the_access_is_an_error(answer: int) -> None:
    with guest(READ_PORT_TWICE) as machine:
        with pytest.raises(OverflowError):
            machine.run(Devices(answers=[answer]))
        assert machine.run(Devices(answers=[0])) == abi.KVM_EXIT_HLT
        assert machine.words(0x2000, "2H") == (0xFFFF, 0)


def test_a_triple_fault_is_a_shutdown() -> None:
    with guest("0f 0b  ud2") as machine:
        sregs = machine.vcpu.get_sregs()
        sregs.idt.limit = 0
        machine.vcpu.set_sregs(sregs)
        assert machine.run(Devices()) == abi.KVM_EXIT_SHUTDOWN
        assert exits.describe(machine.vcpu.kvm_run).startswith("KVM_EXIT_SHUTDOWN: ")


def forged_area(exit_reason: int) -> tuple[bytearray, abi.kvm_run]:
    """Return a run area that no KVM writes to, with contents that a broken KVM could write."""
    area = bytearray(0x3000)
    run = abi.kvm_run.from_buffer(area)
    run.exit_reason = exit_reason
    return area, run


@pytest.mark.parametrize(
    ("size", "count", "data_offset"),
    [
        (1, 1, 0x3000),
        (4, 1, 0x2FFD),
        (2, 0x1001, 0x1000),
        (1, 1, (1 << 64) - 1),
        (4, 0xFFFFFFFF, 0x1000),
        (3, 1, 0x1000),
        (8, 1, 0x1000),
        (0, 1, 0x1000),
    ],
)
@pytest.mark.parametrize("direction", [abi.KVM_EXIT_IO_IN, abi.KVM_EXIT_IO_OUT])
def test_port_data_outside_the_run_area_is_refused(
    direction: int, size: int, count: int, data_offset: int
) -> None:
    area, run = forged_area(abi.KVM_EXIT_IO)
    run.io.direction, run.io.size, run.io.count = direction, size, count
    run.io.data_offset = data_offset
    before = bytes(area)
    with guest(HALTS) as machine, pytest.raises(RuntimeError, match="run area"):
        kvm_run.run(machine.vcpu.fileno(), area, Devices())
    assert bytes(area) == before


def test_device_memory_data_longer_than_its_field_is_refused() -> None:
    area, run = forged_area(abi.KVM_EXIT_MMIO)
    run.mmio.len = 9
    with guest(HALTS) as machine, pytest.raises(RuntimeError, match="9 bytes"):
        kvm_run.run(machine.vcpu.fileno(), area, Devices())
