# SPDX-License-Identifier: Apache-2.0
"""The KVM_RUN loop serves LSR and THR of a polling console itself, and passes on the rest."""

from __future__ import annotations

import errno
import signal
import threading

import pytest

from pykvm import abi
from pyvmm_native import kvm_run
from pyvmm_native.serial import UNLIMITED, ByteQueue, SerialFastPath
from tests.kvm.bare_metal import Devices, guest

pytestmark = pytest.mark.kvm

PORT = 0x3F8
PRINTS = """
    be 00 20        mov si, 0x2000
    ba fd 03        mov dx, 0x3fd
    ec              in al, dx
    a2 00 30        mov [0x3000], al
    ba f8 03        mov dx, 0x3f8
    ac              lodsb
    ee              out dx, al
    84 c0           test al, al
    75 f0           jnz $-14
    f4              hlt
"""
OTHER_ACCESSES = """
    ba f8 03        mov dx, 0x3f8
    ec              in al, dx
    ef              out dx, ax
    ba fd 03        mov dx, 0x3fd
    ee              out dx, al
    ed              in ax, dx
    ba fa 03        mov dx, 0x3fa
    ec              in al, dx
    f4              hlt
"""


PRINTS_FOREVER = """
    ba fd 03        mov dx, 0x3fd
    ec              in al, dx
    ba f8 03        mov dx, 0x3f8
    ee              out dx, al
    eb f6           jmp $-8
"""


def fast_path(line_status: int | None) -> tuple[ByteQueue, SerialFastPath]:
    queue = ByteQueue(lambda: None, 1 << 16)
    serial = SerialFastPath(queue, PORT)
    serial.line_status, serial.thr_credits = line_status, UNLIMITED
    queue.put(b">")
    return queue, serial


def test_a_polling_console_does_not_reach_the_uart_model() -> None:
    text = bytes(range(1, 256)) * 4 + b"\0"
    devices, (queue, serial) = Devices(), fast_path(0x61)
    with guest(PRINTS) as machine:
        machine.memory[0x2000 : 0x2000 + len(text)] = text
        vcpu = machine.vcpu
        assert kvm_run.run(vcpu.fileno(), vcpu.run_area, devices, serial) == abi.KVM_EXIT_HLT
        assert machine.words(0x3000, "B") == (0x61,)
    assert queue.take() == b">" + text
    assert devices.accesses == []


def test_accesses_outside_the_fast_path_reach_the_uart_model() -> None:
    text = b"ab\0"
    devices, (queue, serial) = Devices(answers=[0x60] * len(text)), fast_path(None)
    serial.thr_credits = 1
    with guest(PRINTS) as machine:
        machine.memory[0x2000 : 0x2000 + len(text)] = text
        vcpu = machine.vcpu
        assert kvm_run.run(vcpu.fileno(), vcpu.run_area, devices, serial) == abi.KVM_EXIT_HLT
        assert machine.words(0x3000, "B") == (0x60,)
    assert queue.take() == b">a"
    assert devices.accesses == [
        ("in", 0x3FD, 1),
        ("in", 0x3FD, 1),
        ("out", PORT, 1, ord("b")),
        ("in", 0x3FD, 1),
        ("out", PORT, 1, 0),
    ]


def test_other_accesses_to_the_same_ports_reach_the_uart_model() -> None:
    devices, (queue, serial) = Devices(answers=[0x11, 0x2222, 0x33]), fast_path(0x60)
    with guest(OTHER_ACCESSES) as machine:
        vcpu = machine.vcpu
        assert kvm_run.run(vcpu.fileno(), vcpu.run_area, devices, serial) == abi.KVM_EXIT_HLT
    assert queue.take() == b">"
    assert [access[:3] for access in devices.accesses] == [
        ("in", PORT, 1),
        ("out", PORT, 2),
        ("out", 0x3FD, 1),
        ("in", 0x3FD, 2),
        ("in", 0x3FA, 1),
    ]


def test_a_guest_that_only_prints_can_be_kicked_and_leaves_the_gil_free() -> None:
    """The loop that serves it releases the GIL, so this thread runs meanwhile."""
    queue, serial = fast_path(0x60)
    kvm_run.install_kick_handler(signal.SIGRTMIN)
    with guest(PRINTS_FOREVER) as machine:
        area, reasons = machine.vcpu.run_area, list[int]()

        def run() -> None:
            reasons.append(kvm_run.run(machine.vcpu.fileno(), area, Devices(), serial))

        thread = threading.Thread(target=run)
        thread.start()
        while len(queue) < 1000:
            pass
        assert thread.native_id is not None
        kvm_run.kick(thread.native_id, area)
        thread.join()
        assert reasons == [-errno.EINTR]
        assert queue.take().strip(b"\x60") == b">"
