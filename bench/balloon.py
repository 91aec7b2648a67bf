# SPDX-License-Identifier: Apache-2.0
"""A real guest's balloon takes 7 of 8 GiB and gives them back: ours in both dialects, and QEMU's.

In its turn each contender boots a guest with the same kernel. Its balloon is inflated and deflated
while nobody has touched most of its RAM; then the guest uses nearly all of that and frees it again,
the balloon is inflated and deflated once more, and the guest ends.

The time is that from setting the target until the driver has reported the size, looked at every
`POLL_S` seconds in the same way for all (QEMU is asked by QMP). Its stages:

    guest allocation     pages taken from the guest's allocator (release: given back to it)
    guest bookkeeping    what else the driver does between messages
    transport            from putting a message on the queue to its return, less what the device
                         did meanwhile: the notification, waking up, the ring, the interrupt
    decoding             a message to runs of RAM
    discard              the runs back to the host
    reporting the size   the rest: the driver writes `actual` after every round, we see it

The driver itself counts the first three (patch 0006 in guest_images/patches), decoding and discard
are timed here. What QEMU does with a message cannot be seen from outside, so the middle three are
one stage of its.
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
from bench.movers import APPEND, QEMU, Size, again_in_the_lab
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
"""What part of RAM may be free and not in MemFree: freed pages wait in lists of the processors,
which hold up to an eighth of a zone (MIN_PERCPU_PAGELIST_HIGH_FRACTION, mm/page_alloc.c)."""
TIMES = "/sys/module/virtio_balloon_times/parameters"
RAM = ("untouched", "touched")
MEMORY = {"inflate": "guest allocation", "deflate": "guest release"}
"""Way of the balloon to the driver's stage that is the guest's own memory."""


@dataclass(frozen=True)
class Scale(Size):
    """Guests of one size."""

    vcpus: int

    @property
    def inflate_mib(self) -> int:
        return self.ram_mib * 7 // 8


QUICK_MIB, THOROUGH_MIB = 512, 8192
ROUNDS, LAB_ROUNDS = 3, 1
"""A round takes some ten minutes of the lab."""


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


class Peer(Protocol):
    """One contender's guest."""

    @property
    def guest(self) -> ConsoleGuest[Any]:
        """Its console."""

    async def move(self, pages: int) -> tuple[float, dict[str, float] | None]:
        """Make the balloon `pages` large; the seconds it took, and the device's by stage."""

    def resident_bytes(self) -> int:
        """RSS of its process."""


Boot = Callable[[], AbstractAsyncContextManager[Peer]]
"""Starts a contender's guest and ends it with the block."""


class Pyvmm:
    """A guest of ours, in this process."""

    def __init__(self, guest: GuestSession) -> None:
        self.guest = guest

    async def move(self, pages: int) -> tuple[float, dict[str, float] | None]:
        with Stopwatches().running() as watches:
            moved = await self.guest.resize_balloon(pages)
        return moved.seconds, watches.seconds

    def resident_bytes(self) -> int:
        return resident_bytes()


class Qemu:
    """A guest of QEMU's."""

    def __init__(self, guest: QemuGuest) -> None:
        self.guest = guest

    async def move(self, pages: int) -> tuple[float, dict[str, float] | None]:
        return await self.guest.resize_balloon(pages), None

    def resident_bytes(self) -> int:
        return resident_bytes(self.guest.pid)


def measure(plan: Plan) -> list[Case]:
    """Guests of one vCPU."""
    return _cases(Scale(QUICK_MIB if plan.quick else THOROUGH_MIB, 1), plan)


def measure_smp(plan: Plan) -> list[Case]:
    """Guests of four vCPUs."""
    return _cases(Scale(QUICK_MIB if plan.quick else THOROUGH_MIB, 4), plan)


@asynccontextmanager
async def _pyvmm(image: Path, scale: Scale, dialect: str) -> AsyncIterator[Peer]:
    config = config_for_image(
        image,
        append=f'{APPEND} pyvmm.run="pattern"',
        ram_bytes=scale.ram_mib * MIB,
        vcpus=scale.vcpus,
        dialect=dialect,
    )
    async with guest_session(config) as guest:
        yield Pyvmm(guest)


@asynccontextmanager
async def _qemu(image: Path, scale: Scale) -> AsyncIterator[Peer]:
    async with qemu_guest(
        "pc", image, ram_mib=scale.ram_mib, vcpus=scale.vcpus, append=APPEND
    ) as guest:
        yield Qemu(guest)


def _cases(scale: Scale, plan: Plan) -> list[Case]:
    """What the same turns say of inflating and deflating, RAM untouched and touched."""
    image = image_path(read_recipe())
    contenders: dict[str, Boot] = {
        "pyvmm, bitmap": partial(_pyvmm, image, scale, "bitmap"),
        "pyvmm, standard": partial(_pyvmm, image, scale, "standard"),
        QEMU: partial(_qemu, image, scale),
    }
    vcpus = f"{scale.vcpus} vCPU{'s' if scale.vcpus > 1 else ''}"
    first, *others = (
        Case(f"{way}, RAM {ram}, {vcpus}", "s", against=QEMU) for ram in RAM for way in MEMORY
    )

    def turn(name: str) -> Values:
        values: Values
        values, *other_values = plan.kept.turn(
            name, lambda: again_in_the_lab(partial(_round, contenders[name], scale))
        )
        for case, each in zip(others, other_values, strict=True):
            case.add(name, each)
        return values

    turns = {name: partial(turn, name) for name in contenders}
    rounds = plan.rounds(LAB_ROUNDS if in_lab() else ROUNDS)
    take_turns(first, turns, rounds, plan, rehearse=False)
    return [first, *others]


async def _round(boot: Boot, scale: Scale) -> list[Values]:
    async with boot() as peer:
        await peer.guest.wait_for_user_space()
        untouched = await _there_and_back(peer, scale)
        await peer.guest.command(f"grab {scale.touch_mib}")
        await peer.guest.command("free")
        # The balloon may also hold what was not touched.
        least_freed = (scale.inflate_mib - (scale.ram_mib - scale.touch_mib)) * MIB
        return untouched + await _there_and_back(peer, scale, least_freed)


async def _there_and_back(peer: Peer, scale: Scale, least_freed: int | None = None) -> list[Values]:
    """Inflate and deflate; where RAM is touched the host must get `least_freed` bytes back."""
    free_before = await peer.guest.free_bytes()
    before = peer.resident_bytes()
    inflate = await _move(peer, "inflate", scale.inflate_mib * PAGES_PER_MIB)
    if least_freed is not None:
        freed = before - peer.resident_bytes()
        assert freed >= least_freed, f"the host got {freed} bytes back, not {least_freed}"
    deflate = await _move(peer, "deflate", 0)
    free = await peer.guest.free_bytes()
    slack = scale.ram_mib * MIB // SLACK_SHARE
    assert free >= free_before - slack, f"{free_before} bytes were free, now {free}"
    return [inflate, deflate]


async def _move(peer: Peer, way: str, pages: int) -> Values:
    """Move the balloon and ask the driver where its time went."""
    await peer.guest.shell(f"for i in {TIMES}/{way}_*; do echo 0 >$i; done")
    seconds, device = await peer.move(pages)
    said = await peer.guest.shell(f"cd {TIMES}; grep . {way}_*")
    sums = {name: int(sum_) for name, _, sum_ in (line.partition(":") for line in said.split())}
    return {TOTAL: seconds, **_stages(way, seconds, sums, device)}


def _stages(
    way: str, seconds: float, sums: dict[str, int], device: dict[str, float] | None
) -> dict[str, float]:
    """Split `seconds` by what the driver counted, and the device if it can be seen."""
    memory_s = sums[f"{way}_{'alloc' if way == 'inflate' else 'free'}_ns"] / 1e9
    tell_s = sums[f"{way}_tell_ns"] / 1e9
    rounds_s = sums[f"{way}_total_ns"] / 1e9
    messages = (
        {"transport, decoding and discard": tell_s}
        if device is None
        else {"transport": tell_s - sum(device.values()), **device}
    )
    return {
        MEMORY[way]: memory_s,
        "guest bookkeeping": rounds_s - memory_s - tell_s,
        **messages,
        "reporting the size": seconds - rounds_s,
    }
