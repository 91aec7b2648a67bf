# SPDX-License-Identifier: Apache-2.0
"""Guests whose balloon is measured, pyvmm's and QEMU's, and the cost of one resize.

The time is from setting the target until the driver has reported the size, polled every `POLL_S`
seconds in the same way for all (of QEMU by QMP). Its stages:

    guest allocation     pages from the guest's allocator (guest release: back to it)
    guest bookkeeping    the driver's other work between messages
    transport            from adding a message to the queue to its return, minus the work of the
                         device: the notification, waking up, the used ring, the interrupt
    decoding             the messages that wait in the queue to runs of RAM
    discard              returning the runs to the host
    reporting the size   the rest: the driver writes `actual` after every round, and we poll it

The driver counts the first three (patch 0006 in guest_images/patches); decoding and discard are
timed here. QEMU's handling of a message cannot be observed from outside, so its transport, decoding
and discard are one stage.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar
from unittest.mock import patch

from bench.measure import TOTAL, Values
from bench.migratable_guests import APPEND, Size
from bench.qemu import QemuGuest, qemu_guest
from devices.balloon.device import BalloonDevice
from devices.virtio.queue import Requests
from pyvmm.boot.image_config import config_for_image
from pyvmm.harness.console_guest import ConsoleGuest
from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.memory import ram as memory
from pyvmm.memory.rss import resident_bytes
from pyvmm.units import MIB
from pyvmm_native.discard import discard
from pyvmm_native.ring import Chain, SplitQueue

P = ParamSpec("P")
R = TypeVar("R")

PAGES_PER_MIB = 256
PFN_BYTES = 4
ENCODER_PEAK = "encoder_peak_bytes"
TIMES = "/sys/module/virtio_balloon_times/parameters"
MEMORY = {"inflate": "guest allocation", "deflate": "guest release"}
"""The driver's stage in the guest's allocator, by the direction of the resize."""


@dataclass(frozen=True)
class GuestSize(Size):
    """Guests of one size."""

    vcpus: int

    @property
    def inflate_mib(self) -> int:
        return self.ram_mib * 7 // 8


class Stopwatches:
    """Seconds of a balloon in `RequestReader.pop` and `discard` while this is open."""

    def __init__(self) -> None:
        self.seconds = {"decoding": 0.0, "discard": 0.0}

    @contextmanager
    def running(self, balloon: BalloonDevice) -> Iterator[Stopwatches]:
        """Measure while the block runs."""
        specs = {queue: queue.spec for queue in balloon.queues}
        for queue, spec in specs.items():
            if spec.reader is not None:
                pop = self._timed(spec.reader.pop, "decoding")
                queue.spec = spec._replace(reader=_TimedReader(pop))
        try:
            with patch.object(memory, "discard", self._timed(discard, "discard")):
                yield self
        finally:
            for queue, spec in specs.items():
                queue.spec = spec

    def _timed(self, function: Callable[P, R], stage: str) -> Callable[P, R]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] += time.perf_counter() - begin

        return timed


class _TimedReader(NamedTuple):
    """A `RequestReader` whose `pop` is measured."""

    pop: Callable[[SplitQueue, int, int], Requests | Chain | None]


class DeviceCosts(NamedTuple):
    """The cost of one resize as the device sees it."""

    seconds: dict[str, float]
    """By stage."""
    request_bytes: int
    """Length of all requests, headers included."""


class BalloonGuest(Protocol):
    """The guest of one contender."""

    @property
    def guest(self) -> ConsoleGuest[Any]:
        """Its console."""

    async def resize(self, pages: int) -> tuple[float, DeviceCosts | None]:
        """Resize the balloon to `pages`; return the seconds, and the device's costs if known."""

    def resident_bytes(self) -> int:
        """RSS of its process."""


Boot = Callable[[], AbstractAsyncContextManager[BalloonGuest]]
"""Boots a contender's guest and ends it with the block."""


class PyvmmBalloonGuest:
    """A guest of pyvmm, in this process."""

    def __init__(self, guest: GuestSession) -> None:
        self.guest = guest

    async def resize(self, pages: int) -> tuple[float, DeviceCosts | None]:
        before = self._request_bytes()
        with Stopwatches().running(self.guest.vm.balloon) as watches:
            resize = await self.guest.resize_balloon(pages, force=True)
        return resize.seconds, DeviceCosts(watches.seconds, self._request_bytes() - before)

    def resident_bytes(self) -> int:
        return resident_bytes()

    def _request_bytes(self) -> int:
        counters = self.guest.vm.balloon.counters
        return counters.inflate.bytes + counters.deflate.bytes


class QemuBalloonGuest:
    """A guest of QEMU's."""

    def __init__(self, guest: QemuGuest) -> None:
        self.guest = guest

    async def resize(self, pages: int) -> tuple[float, DeviceCosts | None]:
        return await self.guest.resize_balloon(pages), None

    def resident_bytes(self) -> int:
        return resident_bytes(self.guest.pid)


@asynccontextmanager
async def pyvmm_balloon(
    image: Path, size: GuestSize, dialect: str, append: str = "", overlay: bytes = b""
) -> AsyncIterator[BalloonGuest]:
    """Boot a guest of pyvmm; `overlay` is an archive to add to its initramfs."""
    config = config_for_image(
        image,
        append=f"{APPEND} {append}".strip(),
        run="pattern",
        ram_bytes=size.ram_mib * MIB,
        vcpus=size.vcpus,
        dialect=dialect,
    )
    async with guest_session(config, overlay=overlay) as guest:
        yield PyvmmBalloonGuest(guest)


@asynccontextmanager
async def qemu_balloon(
    image: Path, size: GuestSize, overlay: bytes = b""
) -> AsyncIterator[BalloonGuest]:
    """Boot a guest of QEMU's; `overlay` is an archive to add to its initramfs."""
    async with qemu_guest(
        "pc", image, ram_mib=size.ram_mib, vcpus=size.vcpus, append=APPEND, overlay=overlay
    ) as guest:
        yield QemuBalloonGuest(guest)


@dataclass(frozen=True)
class ResizeCosts:
    """The costs of one resize of a balloon."""

    direction: str
    """`inflate` or `deflate`."""
    seconds: float
    counters: dict[str, int]
    """The driver's counters, without the direction in their names."""
    device: DeviceCosts | None

    @property
    def requests(self) -> int:
        return self.counters["messages"]

    @property
    def request_bytes(self) -> int:
        """Bytes on the queue; without a count, those of arrays of page frame numbers."""
        if self.device is None:
            return PFN_BYTES * self.counters["pages"]
        return self.device.request_bytes

    @property
    def encoder_bytes(self) -> int:
        """Most memory that the driver has held for requests at a time."""
        return self.counters[ENCODER_PEAK]

    @property
    def keeps_blocks(self) -> bool:
        """True if the driver has moved blocks of 2 MiB as blocks."""
        return self.counters.get("blocks", 0) > 0

    @property
    def driver_s(self) -> float:
        """Seconds of the driver, the guest's allocator included."""
        return (self.counters["total_ns"] - self.counters["tell_ns"]) / 1e9

    def stages(self) -> Values:
        """Return the seconds by stage."""
        memory_ns = self.counters["alloc_ns" if self.direction == "inflate" else "free_ns"]
        tell_s = self.counters["tell_ns"] / 1e9
        messages = (
            {"transport, decoding and discard": tell_s}
            if self.device is None
            else {"transport": tell_s - sum(self.device.seconds.values()), **self.device.seconds}
        )
        return {
            TOTAL: self.seconds,
            MEMORY[self.direction]: memory_ns / 1e9,
            "guest bookkeeping": self.driver_s - memory_ns / 1e9,
            **messages,
            "reporting the size": self.seconds - self.counters["total_ns"] / 1e9,
        }


async def measured_resize(guest: BalloonGuest, direction: str, pages: int) -> ResizeCosts:
    """Resize the balloon to `pages`, with the driver's counters of `direction` set to 0 before."""
    await reset_counters(guest, direction)
    seconds, device = await guest.resize(pages)
    lines = await guest.guest.shell(f"cd {TIMES}; grep . {direction}_* encoder_*")
    return ResizeCosts(direction, seconds, parse_counters(direction, lines), device)


async def reset_counters(guest: BalloonGuest, direction: str) -> None:
    """Set the driver's counters of `direction`, and the peak of its encoder, to 0."""
    await guest.guest.shell(f"cd {TIMES}; for i in {direction}_* encoder_*; do echo 0 >$i; done")


def parse_counters(direction: str, text: str) -> dict[str, int]:
    """Return the counters in `text`, words NAME:VALUE, by name without the direction."""
    pairs = (word.partition(":") for word in text.split())
    return {name.removeprefix(f"{direction}_"): int(value) for name, _, value in pairs}
