# SPDX-License-Identifier: Apache-2.0
"""The balloon of a Linux guest, inflated by 7 of 8 GiB and deflated: two dialects, and QEMU's.

In its turn each contender boots a guest with the same kernel. Its balloon is inflated and deflated
while most of its RAM is untouched; then the guest touches nearly all of its RAM and frees it again,
the balloon is inflated and deflated again, and the guest ends. `bench.balloon_guests` describes the
stages of a resize.
"""

from __future__ import annotations

from functools import partial

from bench.balloon_guests import (
    MEMORY,
    PAGES_PER_MIB,
    BalloonGuest,
    Boot,
    GuestSize,
    measured_resize,
    pyvmm_balloon,
    qemu_balloon,
)
from bench.measure import Case, Plan, Values, take_turns
from bench.migratable_guests import QEMU, retry_in_lab
from guest_images.build import image_path
from guest_images.recipe import read_recipe
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.units import MIB

SLACK_SHARE = 8
"""The share of RAM that may be free but not in MemFree: freed pages wait in per-CPU lists, which
hold up to an eighth of a zone (MIN_PERCPU_PAGELIST_HIGH_FRACTION, mm/page_alloc.c)."""
RAM = ("untouched", "touched")
QUICK_MIB, FULL_MIB = 512, 8192
ROUNDS, LAB_ROUNDS = 3, 1
"""A round takes some ten minutes in the lab."""


def measure(plan: Plan) -> list[Case]:
    """Guests of one vCPU."""
    return _cases(GuestSize(QUICK_MIB if plan.quick else FULL_MIB, 1), plan)


def measure_smp(plan: Plan) -> list[Case]:
    """Guests of four vCPUs."""
    return _cases(GuestSize(QUICK_MIB if plan.quick else FULL_MIB, 4), plan)


def _cases(scale: GuestSize, plan: Plan) -> list[Case]:
    """Measure inflating and deflating with RAM untouched and touched, in the same turns."""
    image = image_path(read_recipe())
    contenders: dict[str, Boot] = {
        "pyvmm, bitmap": partial(pyvmm_balloon, image, scale, "bitmap"),
        "pyvmm, standard": partial(pyvmm_balloon, image, scale, "standard"),
        QEMU: partial(qemu_balloon, image, scale),
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
    inflate = await measured_resize(guest, "inflate", scale.inflate_mib * PAGES_PER_MIB)
    if least_freed is not None:
        freed = before - guest.resident_bytes()
        assert freed >= least_freed, f"the host regained {freed} bytes, not {least_freed}"
    deflate = await measured_resize(guest, "deflate", 0)
    free = await guest.guest.free_bytes()
    slack = scale.ram_mib * MIB // SLACK_SHARE
    assert free >= free_before - slack, f"{free_before} bytes were free, now {free}"
    return [inflate.stages(), deflate.stages()]
