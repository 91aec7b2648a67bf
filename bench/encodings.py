# SPDX-License-Identifier: Apache-2.0
"""The encodings of pages beside each other: the balloon in every dialect, and QEMU's.

Each contender is the same guest with another dialect of our driver, or with Linux's arrays of page
frame numbers (`standard`), here and in QEMU. In the contenders with blocks the driver keeps a free
block of 2 MiB as one entry; in the others it splits each into single pages.

Encodings, on guests of 1 GiB: a quarter of RAM is inflated and deflated while the free memory

    whole               is as the guest booted
    in runs of 64 KiB   has been cut to pieces (`bench.fragmented_guest`)
    every other page    has been cut to single pages, the worst case

Each has a boot of its own. `bench.balloon_guests` describes the stages of the time.

Rates, on guests of 8 GiB: how fast they shrink and grow, in the manner of HyperAlloc's benchmark
(EuroSys 2025): 7 GiB are reclaimed and returned, several times while RAM is untouched; then the
guest touches nearly all of its RAM, shrinks, grows, and touches it again. Arrays take so long that
they move only 512 MiB; their rate does not depend on the amount.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.balloon_guests import (
    PAGES_PER_MIB,
    BalloonGuest,
    Boot,
    GuestSize,
    measured_resize,
    pyvmm_balloon,
    qemu_balloon,
)
from bench.encoding_cases import (
    BITMAP,
    BLOCKS,
    FREE_MEMORY,
    HYBRID,
    RANGES,
    RUN_PAGES,
    STANDARD,
    Cycle,
    EncodingCases,
    RateCases,
    quantities,
)
from bench.fragmented_guest import fragment_memory, fragment_overlay, resize_fragmented
from bench.measure import Case, Plan
from bench.migratable_guests import QEMU, retry_in_lab
from guest_images.build import image_path
from guest_images.recipe import read_recipe
from pyvmm.units import MIB

QUICK_SIZE, ENCODING_SIZE = GuestSize(256, 1), GuestSize(1024, 1)
QUICK_RATE_SIZE, RATE_SIZE = GuestSize(512, 1), GuestSize(8192, 1)
ARRAYS_MIB = 512
CYCLES = {"untouched": 3, "touched": 1}
"""Number of times that the guest shrinks and grows, with RAM untouched and touched.

Touching several GiB takes long in the lab, most of all once the host backs them with single pages.
"""


class BalloonSetup(NamedTuple):
    """The driver and the device of a contender."""

    dialect: str
    """Empty: that of QEMU."""
    blocks: bool = False
    """The driver keeps blocks of 2 MiB."""

    def boot(self, image: Path, size: GuestSize, overlay: bytes = b"") -> Boot:
        """Return a function that boots the guest."""
        if not self.dialect:
            return partial(qemu_balloon, image, size, overlay)
        append = f"virtio_balloon.blocks={int(self.blocks)}"
        return partial(pyvmm_balloon, image, size, self.dialect, append, overlay)

    def rate_mib(self, size: GuestSize) -> int:
        """Return the amount of memory to reclaim and return."""
        if self.dialect in ("", "standard"):
            return min(size.inflate_mib, ARRAYS_MIB)
        return size.inflate_mib


CONTENDERS = {
    QEMU: BalloonSetup(""),
    STANDARD: BalloonSetup("standard"),
    BITMAP: BalloonSetup("bitmap"),
    HYBRID: BalloonSetup("hybrid"),
    RANGES: BalloonSetup("ranges"),
    BITMAP + BLOCKS: BalloonSetup("bitmap", blocks=True),
    HYBRID + BLOCKS: BalloonSetup("hybrid", blocks=True),
    RANGES + BLOCKS: BalloonSetup("ranges", blocks=True),
}
QUICK_RATED = (STANDARD, BITMAP)
"""Contenders whose rates are measured in a quick run."""


def measure(plan: Plan) -> list[Case]:
    """Measure encodings and rates; a quick run has small guests, and each dialect once."""
    encodings, rates = EncodingCases(FREE_MEMORY), RateCases()
    size = QUICK_SIZE if plan.quick else ENCODING_SIZE
    rate_size = QUICK_RATE_SIZE if plan.quick else RATE_SIZE
    image, overlay = image_path(read_recipe()), fragment_overlay(size.ram_mib * MIB)
    states = FREE_MEMORY[-1:] if plan.quick else FREE_MEMORY
    cycles = dict.fromkeys(CYCLES, 1) if plan.quick else CYCLES
    rated = QUICK_RATED if plan.quick else tuple(CONTENDERS)
    plan.progress.stage("encodings", len(CONTENDERS) * len(states) + len(rated))

    def turn(name: str, work: Callable[[], Any]) -> Any:
        result = plan.checkpoint.turn(name, partial(retry_in_lab, work))
        plan.progress.advance()
        return result

    for state in states:
        for name, setup in CONTENDERS.items():
            boot = setup.boot(image, size, overlay)
            resize = partial(_inflate_and_deflate, boot, size, RUN_PAGES[state])
            encodings.add(name, state, turn(f"{name}, {state}", resize))
    for name in rated:
        setup = CONTENDERS[name]
        boot, mib = setup.boot(image, rate_size), setup.rate_mib(rate_size)
        cycle = partial(_shrink_and_grow, boot, rate_size, mib, cycles, setup.blocks)
        rates.add(name, turn(f"{name}, rates", cycle))
    return [*encodings.cases, *rates.cases]


async def _inflate_and_deflate(boot: Boot, size: GuestSize, run_pages: int) -> dict[str, Any]:
    """Return the quantities of each direction."""
    pages = size.ram_mib * PAGES_PER_MIB // 4
    async with boot() as guest:
        await guest.guest.wait_for_user_space()
        if run_pages:
            await fragment_memory(guest.guest, run_pages)
            costs = await resize_fragmented(guest, pages)
        else:
            costs = {
                direction: await measured_resize(guest, direction, target)
                for direction, target in (("inflate", pages), ("deflate", 0))
            }
        return {direction: quantities(each) for direction, each in costs.items()}


async def _shrink_and_grow(
    boot: Boot, size: GuestSize, mib: int, counts: Mapping[str, int], blocks: bool
) -> list[Cycle]:
    """Return each cycle of a guest; `counts` are like `CYCLES`.

    Asserts that the driver has kept blocks if and only if `blocks` is true.
    """
    is_full = mib == size.inflate_mib
    cycles = []
    async with boot() as guest:
        await guest.guest.wait_for_user_space()
        for ram, count in counts.items():
            if ram == "touched":
                await _touch(guest, size)
            for _ in range(count):
                inflate = await measured_resize(guest, "inflate", mib * PAGES_PER_MIB)
                assert inflate.keeps_blocks == blocks, inflate.counters
                deflate = await measured_resize(guest, "deflate", 0)
                touches = ram == "touched" and is_full
                touch_gib_s = await _touch(guest, size) if touches else 0.0
                cycles.append(
                    Cycle(
                        ram=ram,
                        gib=mib / 1024,
                        is_full=is_full,
                        inflate=inflate.stages(),
                        deflate=deflate.stages(),
                        touch_gib_s=touch_gib_s,
                    )
                )
    return cycles


async def _touch(guest: BalloonGuest, size: GuestSize) -> float:
    """Have the guest touch nearly all of its RAM and free it; return the rate in GiB/s."""
    begin = time.monotonic()
    await guest.guest.command(f"grab {size.touch_mib}")
    seconds = time.monotonic() - begin
    await guest.guest.command("free")
    return size.touch_mib / 1024 / seconds
