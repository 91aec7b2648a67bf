# SPDX-License-Identifier: Apache-2.0
"""The balloon of a Linux guest, inflated by 7 of 8 GiB and deflated: both dialects, and QEMU's.

In its turn each contender boots a guest with the same kernel. Its balloon is inflated and deflated
while most of its RAM is untouched; then the guest touches nearly all of its RAM and frees it again,
the balloon is inflated and deflated again, and the guest ends.

The time is from setting the target until the driver has reported the size, polled every `POLL_S`
seconds in the same way for all (of QEMU by QMP). Its stages:

    guest allocation     pages from the guest's allocator (guest release: back to it)
    guest bookkeeping    the driver's other work between messages
    transport            from adding a message to the queue to its return, minus the work of the
                         device: the notification, waking up, the ring, the interrupt
    decoding             a message to runs of RAM
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
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from bench.measure import TOTAL, Case, Plan, Values, take_turns
from bench.migratable_guests import APPEND, QEMU, Size, retry_in_lab
from bench.qemu import QemuGuest, qemu_guest
from devices.balloon import page_queues
from guest_images.build import image_path
from guest_images.recipe import read_recipe
from pyvmm.boot.image_config import config_for_image
from pyvmm.harness.console_guest import ConsoleGuest
from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.memory import ram as memory
from pyvmm.memory.rss import resident_bytes
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.units import MIB

PAGES_PER_MIB = 256
SLACK_SHARE = 8
"""The share of RAM that may be free but not in MemFree: freed pages wait in per-CPU lists, which
hold up to an eighth of a zone (MIN_PERCPU_PAGELIST_HIGH_FRACTION, mm/page_alloc.c)."""
TIMES = "/sys/module/virtio_balloon_times/parameters"
RAM = ("untouched", "touched")
MEMORY = {"inflate": "guest allocation", "deflate": "guest release"}
"""The driver's stage in the guest's allocator, by the direction of the resize."""


@dataclass(frozen=True)
class GuestSize(Size):
    """Guests of one size."""

    vcpus: int

    @property
    def inflate_mib(self) -> int:
        return self.ram_mib * 7 // 8


QUICK_MIB, FULL_MIB = 512, 8192
ROUNDS, LAB_ROUNDS = 3, 1
"""A round takes some ten minutes in the lab."""


class Stopwatches:
    """Seconds spent in `page_queues.decode_pages` and `memory.discard` while this is open."""

    def __init__(self) -> None:
        self.seconds = {"decoding": 0.0, "discard": 0.0}

    @contextmanager
    def running(self) -> Iterator[Stopwatches]:
        with (
            self._timed(page_queues, "decode_pages", "decoding"),
            self._timed(memory, "discard", "discard"),
        ):
            yield self

    @contextmanager
    def _timed(self, module: ModuleType, name: str, stage: str) -> Iterator[None]:
        function: Callable[..., Any] = getattr(module, name)

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds[stage] += time.perf_counter() - begin

        setattr(module, name, timed)
        try:
            yield
        finally:
            setattr(module, name, function)


class BalloonGuest(Protocol):
    """The guest of one contender."""

    @property
    def guest(self) -> ConsoleGuest[Any]:
        """Its console."""

    async def resize(self, pages: int) -> tuple[float, dict[str, float] | None]:
        """Resize the balloon to `pages`; return the seconds, and those of the device by stage."""

    def resident_bytes(self) -> int:
        """RSS of its process."""


Boot = Callable[[], AbstractAsyncContextManager[BalloonGuest]]
"""Boots a contender's guest and ends it with the block."""


class PyvmmBalloonGuest:
    """A guest of pyvmm, in this process."""

    def __init__(self, guest: GuestSession) -> None:
        self.guest = guest

    async def resize(self, pages: int) -> tuple[float, dict[str, float] | None]:
        with Stopwatches().running() as watches:
            resize = await self.guest.resize_balloon(pages, force=True)
        return resize.seconds, watches.seconds

    def resident_bytes(self) -> int:
        return resident_bytes()


class QemuBalloonGuest:
    """A guest of QEMU's."""

    def __init__(self, guest: QemuGuest) -> None:
        self.guest = guest

    async def resize(self, pages: int) -> tuple[float, dict[str, float] | None]:
        return await self.guest.resize_balloon(pages), None

    def resident_bytes(self) -> int:
        return resident_bytes(self.guest.pid)


def measure(plan: Plan) -> list[Case]:
    """Guests of one vCPU."""
    return _cases(GuestSize(QUICK_MIB if plan.quick else FULL_MIB, 1), plan)


def measure_smp(plan: Plan) -> list[Case]:
    """Guests of four vCPUs."""
    return _cases(GuestSize(QUICK_MIB if plan.quick else FULL_MIB, 4), plan)


@asynccontextmanager
async def _pyvmm(image: Path, scale: GuestSize, dialect: str) -> AsyncIterator[BalloonGuest]:
    config = config_for_image(
        image,
        append=APPEND,
        run="pattern",
        ram_bytes=scale.ram_mib * MIB,
        vcpus=scale.vcpus,
        dialect=dialect,
    )
    async with guest_session(config) as guest:
        yield PyvmmBalloonGuest(guest)


@asynccontextmanager
async def _qemu(image: Path, scale: GuestSize) -> AsyncIterator[BalloonGuest]:
    async with qemu_guest(
        "pc", image, ram_mib=scale.ram_mib, vcpus=scale.vcpus, append=APPEND
    ) as guest:
        yield QemuBalloonGuest(guest)


def _cases(scale: GuestSize, plan: Plan) -> list[Case]:
    """Measure inflating and deflating with RAM untouched and touched, in the same turns."""
    image = image_path(read_recipe())
    contenders: dict[str, Boot] = {
        "pyvmm, bitmap": partial(_pyvmm, image, scale, "bitmap"),
        "pyvmm, standard": partial(_pyvmm, image, scale, "standard"),
        QEMU: partial(_qemu, image, scale),
    }
    vcpus = f"{scale.vcpus} vCPU{'s' if scale.vcpus > 1 else ''}"
    first, *others = (
        Case(f"{direction}, RAM {ram}, {vcpus}", "s", against=QEMU)
        for ram in RAM
        for direction in MEMORY
    )

    def turn(name: str) -> Values:
        values: Values
        values, *other_values = plan.checkpoint.turn(
            name, lambda: retry_in_lab(partial(_round, contenders[name], scale))
        )
        for case, each in zip(others, other_values, strict=True):
            case.add(name, each)
        return values

    turns = {name: partial(turn, name) for name in contenders}
    rounds = plan.rounds(LAB_ROUNDS if in_lab() else ROUNDS)
    take_turns(first, turns, rounds, plan, warm_up=False)
    return [first, *others]


async def _round(boot: Boot, scale: GuestSize) -> list[Values]:
    async with boot() as guest:
        await guest.guest.wait_for_user_space()
        untouched = await _inflate_and_deflate(guest, scale)
        await guest.guest.command(f"grab {scale.touch_mib}")
        await guest.guest.command("free")
        # The balloon may also hold pages that were never touched.
        least_freed = (scale.inflate_mib - (scale.ram_mib - scale.touch_mib)) * MIB
        return untouched + await _inflate_and_deflate(guest, scale, least_freed)


async def _inflate_and_deflate(
    guest: BalloonGuest, scale: GuestSize, least_freed: int | None = None
) -> list[Values]:
    """Inflate and deflate; with RAM touched, the host must regain `least_freed` bytes."""
    free_before = await guest.guest.free_bytes()
    before = guest.resident_bytes()
    inflate = await _resize(guest, "inflate", scale.inflate_mib * PAGES_PER_MIB)
    if least_freed is not None:
        freed = before - guest.resident_bytes()
        assert freed >= least_freed, f"the host regained {freed} bytes, not {least_freed}"
    deflate = await _resize(guest, "deflate", 0)
    free = await guest.guest.free_bytes()
    slack = scale.ram_mib * MIB // SLACK_SHARE
    assert free >= free_before - slack, f"{free_before} bytes were free, now {free}"
    return [inflate, deflate]


async def _resize(guest: BalloonGuest, direction: str, pages: int) -> Values:
    """Resize the balloon and read the driver's time counters."""
    await guest.guest.shell(f"for i in {TIMES}/{direction}_*; do echo 0 >$i; done")
    seconds, device = await guest.resize(pages)
    counters = await guest.guest.shell(f"cd {TIMES}; grep . {direction}_*")
    sums = {name: int(sum_) for name, _, sum_ in (line.partition(":") for line in counters.split())}
    return {TOTAL: seconds, **_stages(direction, seconds, sums, device)}


def _stages(
    direction: str, seconds: float, sums: dict[str, int], device: dict[str, float] | None
) -> dict[str, float]:
    """Split `seconds` by the driver's counters, and the device's if they are known."""
    memory_s = sums[f"{direction}_{'alloc' if direction == 'inflate' else 'free'}_ns"] / 1e9
    tell_s = sums[f"{direction}_tell_ns"] / 1e9
    rounds_s = sums[f"{direction}_total_ns"] / 1e9
    messages = (
        {"transport, decoding and discard": tell_s}
        if device is None
        else {"transport": tell_s - sum(device.values()), **device}
    )
    return {
        MEMORY[direction]: memory_s,
        "guest bookkeeping": rounds_s - memory_s - tell_s,
        **messages,
        "reporting the size": seconds - rounds_s,
    }
