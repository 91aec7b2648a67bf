# SPDX-License-Identifier: Apache-2.0
"""A kick stops a vCPU in any state, and no kick is lost."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator

import pytest

from pykvm import abi
from pyvmm_native import kvm_run
from tests.kvm.bare_metal import HALTS, READ_PORT_TWICE, Devices, Guest, GuestDone, code, guest

pytestmark = pytest.mark.kvm

JOIN_SECONDS = 20

SPIN = """
    e6 10           out READY_PORT, al
    eb fe           jmp $
"""
HALT_FOREVER = """
    e6 10           out READY_PORT, al
    f4              hlt
    eb fd           jmp $-1
"""


class VcpuThread(threading.Thread):
    """Runs a guest once; `reason` is the result."""

    def __init__(self, machine: Guest) -> None:
        super().__init__(daemon=True)
        self._machine = machine
        self.ready = threading.Event()
        self.reason: int | None = None

    def run(self) -> None:
        self.reason = self._machine.run(Devices(on_ready=self.ready.set))

    def kick(self) -> None:
        assert self.native_id is not None
        assert kvm_run.kick(self.native_id, self._machine.vcpu.run_area)


@pytest.fixture
def kick_handler() -> Iterator[None]:
    """Kick with SIGUSR1, whose disposition is restored afterwards."""
    before = signal.getsignal(signal.SIGUSR1)
    kvm_run.install_kick_handler(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("listing", "irqchip"),
    [
        pytest.param(SPIN, False, id="spinning"),
        pytest.param(HALT_FOREVER, True, id="halted in the kernel"),
    ],
)
@pytest.mark.usefixtures("kick_handler")
def test_repeated_kicks_stop_a_running_vcpu(listing: str, irqchip: bool) -> None:
    with guest(listing, irqchip=irqchip) as machine:
        for round_ in range(20):
            thread = VcpuThread(machine)
            thread.start()
            if round_ == 0:
                assert thread.ready.wait(JOIN_SECONDS)
            thread.kick()
            thread.join(JOIN_SECONDS)
            assert not thread.is_alive()
            assert thread.reason == -errno.EINTR
            kvm_run.clear_kick(machine.vcpu.run_area)


@pytest.mark.usefixtures("kick_handler")
def test_a_kick_before_the_run_is_not_lost() -> None:
    with guest(SPIN) as machine:
        assert kvm_run.kick(threading.get_native_id(), machine.vcpu.run_area)
        devices = Devices()
        assert machine.run(devices) == -errno.EINTR
        assert machine.run(devices) == -errno.EINTR
        assert machine.vcpu.run() == abi.KVM_EXIT_INTR


@pytest.mark.usefixtures("kick_handler")
def test_a_kick_from_a_device_completes_the_access_first() -> None:
    with guest(READ_PORT_TWICE) as machine:

        class Kicking(Devices):
            def pio_read(self, port: int, size: int) -> int:
                kvm_run.kick(threading.get_native_id(), machine.vcpu.run_area)
                return super().pio_read(port, size)

        assert machine.run(Kicking(answers=[0x1111])) == -errno.EINTR
        assert machine.vcpu.get_regs().rax == 0x1111
        kvm_run.clear_kick(machine.vcpu.run_area)
        assert machine.run(Devices(answers=[0x2222])) == abi.KVM_EXIT_HLT
        assert machine.words(0x2000, "2H") == (0x1111, 0x2222)


@pytest.mark.usefixtures("kick_handler")
def test_kicking_an_ended_thread_raises() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert thread.native_id is not None
    with guest(HALTS) as machine:
        assert not kvm_run.kick(thread.native_id, machine.vcpu.run_area)


START_SECOND_VCPU = """
    bb 00 00 e0 fe                  mov ebx, 0xfee00000
    c7 83 f0 00 00 00 ff 01 00 00   mov dword ptr [rbx + 0xf0], 0x1ff
    c7 83 10 03 00 00 00 00 00 01   mov dword ptr [rbx + 0x310], 0x01000000
    c7 83 00 03 00 00 00 45 00 00   mov dword ptr [rbx + 0x300], 0x00004500
    c7 83 00 03 00 00 02 46 00 00   mov dword ptr [rbx + 0x300], 0x00004602
    e6 10                           out READY_PORT, al
    f4                              hlt
    eb fd                           jmp $-1
"""
SECOND_VCPU_GPA = 0x2000  # where start-up IPI vector 2 begins
SECOND_VCPU = """
    e6 11           out DONE_PORT, al
"""


@pytest.mark.usefixtures("kick_handler")
def test_a_second_vcpu_waits_for_its_start_up_ipi() -> None:
    with guest(START_SECOND_VCPU, long_mode=True, irqchip=True) as machine:
        machine.memory[SECOND_VCPU_GPA : SECOND_VCPU_GPA + 2] = code(SECOND_VCPU)
        done = threading.Event()

        def run_second() -> None:
            with machine.vm.create_vcpu(1) as second:
                second.set_mp_state(abi.KVM_MP_STATE_UNINITIALIZED)
                waiting.set()
                with pytest.raises(GuestDone):
                    kvm_run.run(second.fileno(), second.run_area, Devices())
                done.set()

        waiting = threading.Event()
        second_thread = threading.Thread(target=run_second, daemon=True)
        second_thread.start()
        assert waiting.wait(JOIN_SECONDS)
        first_thread = VcpuThread(machine)
        first_thread.start()
        assert done.wait(JOIN_SECONDS)
        second_thread.join(JOIN_SECONDS)
        first_thread.kick()
        first_thread.join(JOIN_SECONDS)
        assert first_thread.reason == -errno.EINTR


def test_the_run_area_stays_mapped_while_its_vcpu_runs() -> None:
    with guest(SPIN) as machine:
        refused = []

        def close() -> None:
            with pytest.raises(BufferError):
                machine.vcpu.run_area.close()
            refused.append(True)
            raise GuestDone

        with pytest.raises(GuestDone):
            machine.run(Devices(on_ready=close))
        assert refused == [True]
