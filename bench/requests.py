# SPDX-License-Identifier: Apache-2.0
"""Latency of requests, without a guest: bench "requests".

The time from a notification of the inflate queue to the last used element, for 1, 8 and 64 buffers
that each name one page of 4 KiB, by the path of a machine without KVM:

    event loop   the driver writes to the queue's ioeventfd, and asyncio's event loop serves it
    direct       the transport is called as the event loop does

The device then writes to the eventfd of its MSI-X vector. Beside it, `bench/c/requests.c` does the
same on a queue of its own: the same descriptors, copies and checks, and one madvise a page. The
driver is C in both, on a thread of its own beside the event loop. It waits for the device to be
idle before each notification, and has written to the pages, which are apart from each other.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from statistics import quantiles
from time import perf_counter_ns
from typing import Protocol, cast

from bench.measure import Case, Plan, Values, seconds, take_turns
from bench.native import shared_library
from bench.request_cases import C_LOOP, DIRECT, LOOP, PYVMM, case_name
from devices.balloon.device import BalloonDevice
from devices.balloon.dialects import STANDARD
from devices.bus import Bus
from devices.pci.host_bridge import PciBus
from devices.testing.balloon.driver import INFLATE
from devices.testing.board import APERTURE, SLOT, Board
from devices.testing.driver import VirtioDriver
from devices.testing.driver_queue import DriverQueue
from devices.testing.recorders import RecordingHostNotifiers
from pykvm import Vm, abi, address_of
from pyvmm.machine.interrupts import InterruptRouter
from pyvmm.machine.virtio_pci_device import VirtioPciDevice
from pyvmm.memory import layout
from pyvmm.memory.ram import Ram
from pyvmm.trace.tracer import EventTracer
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.memory import GuestMemory

BUFFERS = (1, 8, 64)
ROUNDS = 15
BATCHES, QUICK_BATCHES = 1000, 50

_RAM_BYTES = 128 * MIB
_C_RINGS_GPA, _DATA_GPA, _PAGES_GPA = 60 * MIB, 64 * MIB, 65 * MIB


def page_gpa(slot: int) -> int:
    """Return the address of the page that the request in `slot` of the ring names."""
    return _PAGES_GPA + 2 * slot * PAGE_BYTES


def measure(plan: Plan) -> list[Case]:
    """Measure every number of buffers by both paths."""
    queues: dict[str, ServedQueue] = {PYVMM: PyvmmQueue(), C_LOOP: CQueue()}
    cases: list[Case] = []
    for path in (LOOP, DIRECT):
        for buffers in BUFFERS:
            cases += _measured(path, buffers, queues, plan)
    for queue in queues.values():
        queue.close()
    return cases


def _measured(
    path: str, buffers: int, queues: Mapping[str, ServedQueue], plan: Plan
) -> tuple[Case, Case]:
    p50, p99 = (
        Case(case_name(buffers, path, percentile), "us", against=C_LOOP, panel=path)
        for percentile in (50, 99)
    )

    def contend(name: str) -> Values:
        queue = queues[name]
        timed = queue.through_loop if path == LOOP else queue.directly
        percentiles = quantiles(timed(buffers, QUICK_BATCHES if plan.quick else BATCHES), n=100)
        p99.add(name, seconds(percentiles[98] / 1e3))
        return seconds(percentiles[49] / 1e3)

    contenders = {name: partial(contend, name) for name in queues}
    take_turns(p50, contenders, plan.rounds(ROUNDS), plan, warm_up=False)
    return p50, p99


class RequestQueue(ctypes.Structure):
    """`struct queue` of bench/c/requests.c."""

    _fields_ = (
        ("ram", ctypes.c_void_p),
        *((name, ctypes.c_uint64) for name in ("ram_bytes", "desc", "avail", "used")),
        *((name, ctypes.c_uint64) for name in ("data", "pages")),
        ("size", ctypes.c_uint32),
        *((name, ctypes.c_int) for name in ("kick", "irq", "stop")),
        *((name, ctypes.c_uint16) for name in ("added", "taken", "next_avail", "next_used")),
    )


class ServedQueue(Protocol):
    """A queue in `memory` with a device; its ring has `served` so many buffers, modulo 2^16.

    `through_loop` and `directly` return the nanoseconds of each of `count` batches.
    """

    memory: GuestMemory

    @property
    def served(self) -> int:
        """The index of the used ring."""

    def through_loop(self, buffers: int, count: int) -> list[int]:
        """Send batches of `buffers` while an event loop serves the queue."""

    def directly(self, buffers: int, count: int) -> list[int]:
        """Send batches of `buffers`, and serve each by a call."""

    def close(self) -> None:
        """Close the eventfds."""


class Driver:
    """The driver in C of `queue` in `ram`, which notifies `kick` and is interrupted by `irq`."""

    def __init__(self, ram: Ram, queue: DriverQueue, kick: int, irq: int) -> None:
        self._ram = ram
        self.stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.library = ctypes.CDLL(str(shared_library("requests")))
        [(gpa, area)] = ram.areas
        assert gpa == 0
        self.queue = RequestQueue(
            ram=address_of(area),
            ram_bytes=ram.size_bytes,
            desc=queue.desc_gpa,
            avail=queue.avail_gpa,
            used=queue.used_gpa,
            data=_DATA_GPA,
            pages=_PAGES_GPA,
            size=queue.size,
            kick=kick,
            irq=irq,
            stop=self.stop,
        )

    def drive(self, buffers: int, count: int, serve: Callable[[], None]) -> list[int]:
        """Send batches from a thread of their own while `serve` runs, until `stop` is readable."""
        ns = (ctypes.c_int64 * count)()
        errors: list[int] = []

        def drive() -> None:
            try:
                queue = ctypes.byref(self.queue)
                errors.append(self.library.requests_drive(queue, buffers, count, ns))
            finally:
                os.eventfd_write(self.stop, 1)

        thread = threading.Thread(target=drive)
        thread.start()
        serve()
        thread.join()
        os.eventfd_read(self.stop)
        _check(*errors)
        return list(ns)

    def send(self, buffers: int, count: int, serve: Callable[[], object]) -> list[int]:
        """Send batches, and call `serve` for each."""
        queue, ns = ctypes.byref(self.queue), []
        for _ in range(count):
            self.library.requests_add(queue, buffers)
            begin = perf_counter_ns()
            serve()
            ns.append(perf_counter_ns() - begin)
            assert self.library.requests_take(queue) == buffers
        return ns


class CQueue:
    """The device in C."""

    def __init__(self) -> None:
        ram = Ram(_RAM_BYTES, transparent=False)
        self.memory = ram.memory
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self._events = [os.eventfd(0, flags) for _ in range(2)]
        queue = DriverQueue(ram.memory, 128, base_gpa=_C_RINGS_GPA, event_idx=True)
        self._driver = Driver(ram, queue, *self._events)
        self._ring = queue
        self._serve = partial(self._call, self._driver.library.requests_serve)

    @property
    def served(self) -> int:
        return self._ring.used_idx

    def through_loop(self, buffers: int, count: int) -> list[int]:
        loop = self._driver.library.requests_loop
        return self._driver.drive(buffers, count, partial(self._call, loop))

    def directly(self, buffers: int, count: int) -> list[int]:
        return self._driver.send(buffers, count, self._serve)

    def close(self) -> None:
        for event in (*self._events, self._driver.stop):
            os.close(event)

    def _call(self, function: Callable[[object], int]) -> None:
        _check(function(ctypes.byref(self._driver.queue)))


class EventfdVm:
    """The part of `Vm` that connects eventfds; it keeps them for a driver without KVM."""

    def __init__(self) -> None:
        self.kicks: dict[int, int] = {}
        """Eventfds by the address that notifies them."""
        self.irqs: dict[int, int] = {}
        """Eventfds by GSI."""

    def ioeventfd(self, event: int, gpa: int, size: int, *, flags: int = 0) -> None:
        if flags & abi.KVM_IOEVENTFD_FLAG_DEASSIGN:
            del self.kicks[gpa]
        else:
            self.kicks[gpa] = event

    def irqfd(self, event: int, gsi: int) -> None:
        self.irqs[gsi] = event

    def irq_line(self, gsi: int, level: int) -> None:
        pass

    def set_gsi_routing(self, routes: object) -> None:
        pass


class EventfdBoard(Board):
    """A balloon in `ram` in a slot of a machine whose KVM is `vm`."""

    def __init__(self, ram: Ram, vm: EventfdVm) -> None:
        tracer = EventTracer()
        self.device = BalloonDevice(STANDARD, ram, tracer)
        self.notifiers = RecordingHostNotifiers()
        self.mmio = Bus("mmio", tracer=tracer)
        self.pci = PciBus(self.mmio, [APERTURE])
        self.errors: list[BaseException] = []
        self.slot = VirtioPciDevice(
            self.device,
            SLOT,
            pci=self.pci,
            router=InterruptRouter(cast(Vm, vm)),
            lock=threading.Lock(),
            tracer=tracer,
            on_error=self.errors.append,
        )
        self.transport = self.slot.transport
        self.function = self.transport.function


class PyvmmQueue:
    """The inflate queue of a balloon in a machine's slot."""

    def __init__(self) -> None:
        vm, ram = EventfdVm(), Ram(_RAM_BYTES, transparent=False)
        self._board = EventfdBoard(ram, vm)
        driver = VirtioDriver(self._board).start()
        kick = vm.kicks[min(vm.kicks)]  # of queue 0
        irq_gsi = layout.FIRST_MSI_GSI + 1 + INFLATE
        self.memory, self._ring = ram.memory, driver.queues[INFLATE]
        self._driver = Driver(ram, driver.queues[INFLATE], kick, vm.irqs[irq_gsi])

    @property
    def served(self) -> int:
        return self._ring.used_idx

    def through_loop(self, buffers: int, count: int) -> list[int]:
        return self._driver.drive(buffers, count, lambda: asyncio.run(self._serve_until_stopped()))

    async def _serve_until_stopped(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        loop.add_reader(self._driver.stop, stopped.set)
        self._board.slot.start(loop)
        await stopped.wait()
        self._board.slot.stop()
        loop.remove_reader(self._driver.stop)
        assert not self._board.errors

    def directly(self, buffers: int, count: int) -> list[int]:
        serve_queue = self._board.transport.serve_queue

        def serve() -> None:
            while serve_queue(INFLATE):
                pass

        return self._driver.send(buffers, count, serve)

    def close(self) -> None:
        self._board.slot.close()
        os.close(self._driver.stop)


def _check(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))
