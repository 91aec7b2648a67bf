# SPDX-License-Identifier: Apache-2.0
"""Cost of a register access by the guest: bench "exits".

A guest of a few instructions (`bench.exit_guest`) reads or writes one register in a loop, and all
contenders serve the same vCPU, in turns:

    C loop                         bench/c/exits.c: KVM_RUN, check the reason, answer, repeat
    pyvmm, Cython fast path        accesses that `SerialFastPath` serves: LSR and THR of the UART
    pyvmm, empty Python handlers   the KVM_RUN loop with handlers that only return
    pyvmm, Python device model     the machine's path: device lock, bus, register table, device
    pyvmm, ioeventfd               for MMIO writes: a queue notification, which never leaves KVM

Ports are those of the UART, MMIO is the virtio transport's common configuration. The cases "minus
the C loop" are the differences to the C loop in the same round; all are processor time of the one
thread. Each run checks its result: the sum of the values the guest read, the characters printed,
the register's value, or the eventfd's count. `bench.exit_delay` measures the waiting for the GIL.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from time import thread_time

from bench.exit_guest import (
    DEVICE_BYTES,
    DEVICE_GPA,
    DONE_PORT,
    ExitGuest,
    RegisterAccess,
    exit_guest,
    memory_read,
    memory_write,
    port_read,
    port_write,
)
from bench.measure import Case, Contender, Plan, seconds, take_turns
from bench.native import shared_library
from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import STANDARD
from devices.bus import Bus
from devices.legacy.uart import Uart16550
from devices.pci.host_bridge import PciBus
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import (
    RecordingHostNotifiers,
    RecordingInterruptLine,
    RecordingMsiSink,
)
from devices.virtio.pci_transport import VirtioPciTransport
from pyvmm.machine.vcpu_thread import GuestBuses
from pyvmm.memory.layout import COM1_PORT, COM1_PORTS
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.trace.logging import LogTracer
from pyvmm_native import kvm_run
from pyvmm_native.serial import ByteQueue, SerialFastPath

C_LOOP = "C loop"
FAST_PATH = "pyvmm, Cython fast path"
EMPTY_HANDLERS = "pyvmm, empty Python handlers"
DEVICE_MODEL = "pyvmm, Python device model"
IOEVENTFD = "pyvmm, ioeventfd"

THR_PORT, LSR_PORT = COM1_PORT, COM1_PORT + 5
LSR_VALUE = 0x60
REGISTER_GPA = DEVICE_GPA  # device_feature_select: 4 bytes that the register table keeps
REGISTER_VALUE = 0x5A
NOTIFY_GPA = DEVICE_GPA + DEVICE_BYTES // 2

ROUNDS, LAB_ROUNDS = 41, 5
ACCESSES, QUICK_ACCESSES = 2_000, 1_000

_BAR0, _BAR0_HIGH, _COMMAND, _COMMAND_MEMORY = 0x10, 0x14, 0x04, 1 << 1


class GuestDone(Exception):
    """The guest wrote to DONE_PORT."""


class DonePort:
    """A device whose write ends the program."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        raise GuestDone


class DevicePath:
    """A machine's path to its UART and to a virtio device, with its lock and its tracer."""

    def __init__(self) -> None:
        tracer = LogTracer()
        self.queue = ByteQueue(lambda: None, 1 << 30)
        self.serial = SerialFastPath(self.queue, COM1_PORT)
        pio, mmio = Bus("pio", tracer=tracer), Bus("mmio", tracer=tracer)
        pio.map(
            COM1_PORT, COM1_PORTS, Uart16550(RecordingInterruptLine(), self.queue.put, self.serial)
        )
        pio.map(DONE_PORT, 1, DonePort())
        device = BalloonDevice(STANDARD, AnonymousRam((0, 1 << 20)), tracer)
        transport = VirtioPciTransport(device, RecordingMsiSink(), RecordingHostNotifiers(), tracer)
        PciBus(mmio, [(DEVICE_GPA, DEVICE_BYTES)]).add(1, transport.function)
        transport.function.config_write(_BAR0, 4, DEVICE_GPA)
        transport.function.config_write(_BAR0_HIGH, 4, 0)
        transport.function.config_write(_COMMAND, 2, _COMMAND_MEMORY)
        self.mmio = mmio
        self.buses = GuestBuses(pio, mmio, threading.Lock(), lambda: None)


class Constants:
    """An `IoHandler` of constants, with no device behind it."""

    def pio_read(self, port: int, size: int) -> int:
        return LSR_VALUE

    def pio_write(self, port: int, size: int, value: int) -> None:
        if port == DONE_PORT:
            raise GuestDone

    def mmio_read(self, gpa: int, size: int) -> int:
        return REGISTER_VALUE

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        pass


class Served(ctypes.Structure):
    """struct served of bench/c/exits.c."""

    _fields_ = (("accesses", ctypes.c_uint64), ("written", ctypes.c_uint64))


class Bench:
    """One vCPU and its contenders, which return microseconds per access."""

    def __init__(self, guest: ExitGuest, count: int) -> None:
        self._guest = guest
        self._count = count
        self.device_path = DevicePath()
        self._c_loop = ctypes.CDLL(str(shared_library("exits"))).exits_serve
        self._run_area = (ctypes.c_char * len(guest.vcpu.run_area)).from_buffer(guest.vcpu.run_area)
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        guest.vm.ioeventfd(self._event, NOTIFY_GPA, 4)

    def _timed(self, access: RegisterAccess, serve: Callable[[], None]) -> dict[str, float]:
        self._guest.load(access, self._count)
        begin = thread_time()
        serve()
        return dict(seconds((thread_time() - begin) * 1e6 / self._count))

    def c_loop(self, access: RegisterAccess, *, answer: int = 0, written: int = 0) -> Contender:
        """Return the C loop, answering reads with `answer`, with `written` as the sum of writes."""

        def serve() -> None:
            served = Served()
            result = self._c_loop(
                self._guest.vcpu.fileno(),
                self._run_area,
                ctypes.c_uint16(DONE_PORT),
                ctypes.c_uint64(answer),
                ctypes.byref(served),
            )
            assert result == 0, f"{access}: the guest ended with {result}"
            assert (served.accesses, served.written) == (self._count, written)

        def contend() -> dict[str, float]:
            values = self._timed(access, serve)
            self._check_reads(answer)
            return values

        return contend

    def pyvmm(
        self,
        access: RegisterAccess,
        io: kvm_run.IoHandler,
        *,
        serial: SerialFastPath | None = None,
        answer: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> Contender:
        """Return the KVM_RUN loop with `io` and `serial`; `check` runs after each round."""

        def contend() -> dict[str, float]:
            values = self._timed(access, lambda: self.serve(io, serial))
            self._check_reads(answer)
            check()
            return values

        return contend

    def serve(self, io: kvm_run.IoHandler, serial: SerialFastPath | None = None) -> None:
        """Run the guest's program to its end."""
        vcpu = self._guest.vcpu
        try:
            reason = kvm_run.run(vcpu.fileno(), vcpu.run_area, io, serial)
        except GuestDone:
            return
        raise AssertionError(f"the guest ended with exit {reason}")

    def _check_reads(self, answer: int) -> None:
        """Check that the guest read `answer` each time."""
        if answer:
            assert self._guest.sum == answer * self._count

    # --- Checks of the results --------------------------------------------------------------------
    def printed(self) -> None:
        """Check that every character has arrived, in order."""
        expected = bytes(count & 0xFF for count in range(self._count, 0, -1))
        assert self.device_path.queue.take() == expected

    def register_written(self) -> None:
        """Check that the register holds the last value written."""
        assert self.device_path.mmio.read(REGISTER_GPA, 4) == 1

    def notified(self) -> None:
        """Check that KVM has counted every notification."""
        assert os.eventfd_read(self._event) == self._count

    def close(self) -> None:
        os.close(self._event)

    # --- Cases ------------------------------------------------------------------------------------
    def port_reads(self) -> dict[str, Contender]:
        access, buses, answer = port_read(LSR_PORT), self.device_path.buses, LSR_VALUE
        return {
            C_LOOP: self.c_loop(access, answer=answer),
            FAST_PATH: self.pyvmm(access, buses, serial=self.device_path.serial, answer=answer),
            EMPTY_HANDLERS: self.pyvmm(access, Constants(), answer=answer),
            DEVICE_MODEL: self.pyvmm(access, buses, answer=answer),
        }

    def port_writes(self) -> dict[str, Contender]:
        access, path = port_write(THR_PORT), self.device_path
        buses, serial = path.buses, path.serial
        written = sum(count & 0xFF for count in range(1, self._count + 1))
        return {
            C_LOOP: self.c_loop(access, written=written),
            FAST_PATH: self.pyvmm(access, buses, serial=serial, check=self.printed),
            EMPTY_HANDLERS: self.pyvmm(access, Constants()),
            DEVICE_MODEL: self.pyvmm(access, buses, check=self.printed),
        }

    def mmio_reads(self) -> dict[str, Contender]:
        access, answer = memory_read(REGISTER_GPA), REGISTER_VALUE
        self.device_path.mmio.write(REGISTER_GPA, 4, answer)
        return {
            C_LOOP: self.c_loop(access, answer=answer),
            EMPTY_HANDLERS: self.pyvmm(access, Constants(), answer=answer),
            DEVICE_MODEL: self.pyvmm(access, self.device_path.buses, answer=answer),
        }

    def mmio_writes(self) -> dict[str, Contender]:
        access, buses = memory_write(REGISTER_GPA), self.device_path.buses
        notify = memory_write(NOTIFY_GPA)
        return {
            C_LOOP: self.c_loop(access, written=self._count * (self._count + 1) // 2),
            IOEVENTFD: self.pyvmm(notify, buses, check=self.notified),
            EMPTY_HANDLERS: self.pyvmm(access, Constants()),
            DEVICE_MODEL: self.pyvmm(access, buses, check=self.register_written),
        }


def measure(plan: Plan) -> list[Case]:
    """Measure port and MMIO accesses, and the time that pyvmm adds to each."""
    cases = []
    rounds = plan.rounds(LAB_ROUNDS if in_lab() else ROUNDS)
    with exit_guest() as guest:
        bench = Bench(guest, QUICK_ACCESSES if plan.quick else ACCESSES)
        for name, contenders in (
            ("port read", bench.port_reads()),
            ("port write", bench.port_writes()),
            ("MMIO read", bench.mmio_reads()),
            ("MMIO write", bench.mmio_writes()),
        ):
            case = Case(name, "us", against=C_LOOP, panel="exits")
            take_turns(case, contenders, rounds, plan, warm_up=True)
            cases += [case, _added(case)]
        bench.close()
    return cases


def _added(case: Case) -> Case:
    """Return the difference of each contender to the C loop in the same round."""
    name = f"{case.name}, minus the C loop"
    added = Case(name, case.unit, against=DEVICE_MODEL, panel="added")
    for contender, values in case.rounds.items():
        if contender not in (C_LOOP, IOEVENTFD):
            added.rounds[contender] = [
                value - least for value, least in zip(values, case.rounds[C_LOOP], strict=True)
            ]
    return added
