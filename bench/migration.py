# SPDX-License-Identifier: Apache-2.0
"""Live migration to another process, of an idle and of a writing guest, with unused pages skipped.

In its turn each contender boots a guest with the same kernel, which uses nearly all of its RAM and
frees it again. Then it is migrated to a process that waits at a unix socket, where the memory that
it held must be unchanged.

    pyvmm, bitmap                   queries the guest's unused pages on the misc queue
    pyvmm, bitmap, query disabled   copies all pages that the host backs
    pyvmm, standard, hints          free page hints of the stock driver
    QEMU pc                         copies all pages that the host backs
    QEMU pc, hints                  free page hints

The time is from `migrate` until `query-migrate` reports completion, polled every `POLL_S` seconds
in the same way for all. Bytes, downtime and rounds are those of its final reply. Downtime limits
are the default of 300 ms. Guests have 1 GiB and `ENOUGH_ROUNDS` rounds; those of 8 GiB, in a
benchmark of their own, have one, because a turn takes minutes in the lab. The lab's memory is
touched before (`bench.lab_memory`).

The writing guest (`measure_writing`) changes 50 MB of its memory a second, page after page in a
loop, from before the migration until after it. Since the lab copies hardly faster than that, the
migration may throttle the guest (`auto-converge`). A migration that has not completed within
`MIGRATION_TIMEOUT_S` is listed as timed out, with that time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.lab_memory import touch_lab_memory
from bench.measure import ENOUGH_ROUNDS, TOTAL, Case, Plan, dealt
from bench.migratable_guests import (
    FULL_SIZE,
    LARGE_SIZE,
    MIGRATION_TIMEOUT_S,
    PATTERN_SEED,
    QEMU,
    QEMU_HINTS,
    QEMU_HINTS_DEVICE,
    QUERY_DISABLED,
    QUICK_SIZE,
    VERIFIED,
    WITH_QUERY,
    Boot,
    MigrationTimeout,
    Size,
    in_memory,
    migrate,
    pyvmm_boot,
    qemu_boot,
    retry_in_lab,
)
from bench.peers import BASELINE
from pyvmm.units import MIB

WITH_HINTS = "pyvmm, standard, hints"
WRITE_MB_S = 50
REWRITTEN_MIB = {True: 16, False: 128}
"""Memory that is rewritten, in a quick run or not."""
CONVERGE = [{"capability": "auto-converge", "state": True}]


@dataclass(frozen=True)
class Contender:
    """The function that boots its guest, and the option of its migration."""

    boot: Boot
    query_unused: bool | None = None
    """The `unused` option of our `migrate`; None for guests without it."""


@dataclass(frozen=True)
class Extent:
    """The guests to migrate, and how often."""

    size: Size
    writes_mib: int
    """Memory that the guest rewrites while it is migrated; 0 for an idle one."""
    rounds: int


CONTENDERS = {
    WITH_QUERY: Contender(pyvmm_boot("bitmap"), True),
    QUERY_DISABLED: Contender(pyvmm_boot("bitmap"), False),
    WITH_HINTS: Contender(pyvmm_boot("standard", "free-page-hint"), True),
    QEMU: Contender(qemu_boot()),
    QEMU_HINTS: Contender(qemu_boot(*QEMU_HINTS_DEVICE)),
}
WRITING = (WITH_QUERY, QUERY_DISABLED, QEMU, QEMU_HINTS)
QUICK_IDLE, QUICK_WRITING = (WITH_QUERY, QEMU_HINTS), (WITH_QUERY,)


class Cases:
    """The measurements of one migration; `guest` describes the guest."""

    def __init__(self, guest: str, against: str) -> None:
        self.time = Case(f"migration time, {guest}", "s", against)
        self.sent = Case(f"data sent, {guest}", "MiB", against)
        self.downtime = Case(f"downtime, {guest}", "ms", against)
        self.rounds = Case(f"rounds, {guest}", "rounds", against, plotted=False)


def measure(plan: Plan) -> list[Case]:
    """Measure an idle guest, beside QEMU with hints."""
    return _idle(plan, FULL_SIZE, ENOUGH_ROUNDS)


def measure_writing(plan: Plan) -> list[Case]:
    """Measure a writing guest, beside ours with unused pages skipped."""
    return _writing(plan, FULL_SIZE, ENOUGH_ROUNDS)


def measure_large(plan: Plan) -> list[Case]:
    """Measure as `measure`, one guest of 8 GiB of each contender."""
    return _idle(plan, LARGE_SIZE, 1)


def measure_writing_large(plan: Plan) -> list[Case]:
    """Measure as `measure_writing`, one guest of 8 GiB of each contender."""
    return _writing(plan, LARGE_SIZE, 1)


def _idle(plan: Plan, size: Size, rounds: int) -> list[Case]:
    names = QUICK_IDLE if plan.quick else tuple(CONTENDERS)
    cases = Cases("idle guest", QEMU_HINTS)
    return _measure(plan, cases, names, Extent(QUICK_SIZE if plan.quick else size, 0, rounds))


def _writing(plan: Plan, size: Size, rounds: int) -> list[Case]:
    names = QUICK_WRITING if plan.quick else WRITING
    cases = Cases("guest writing 50 MB/s", WITH_QUERY)
    size, writes_mib = (QUICK_SIZE if plan.quick else size), REWRITTEN_MIB[plan.quick]
    return _measure(plan, cases, names, Extent(size, writes_mib, rounds))


def _measure(plan: Plan, cases: Cases, names: Sequence[str], extent: Extent) -> list[Case]:
    contenders = {name: CONTENDERS[name] for name in names} | _peers(plan, names)
    rounds, timed_out = plan.rounds(extent.rounds), set[str]()
    plan.progress.stage(cases.time.name, rounds * len(contenders))
    if not plan.quick:
        touch_lab_memory()
    for number in range(rounds):
        for name in dealt(list(contenders), number):
            if name not in timed_out:
                turn = partial(_migrate, contenders[name], extent.size, extent.writes_mib)
                result = plan.checkpoint.turn(name, partial(retry_in_lab, turn))
                if not _add(cases, name, *result):
                    timed_out.add(name)
            plan.progress.advance()
    return list(vars(cases).values())


def _peers(plan: Plan, names: Sequence[str]) -> dict[str, Contender]:
    """Return the contenders of QEMU's in `names`, for each further QEMU."""
    balloons: dict[str, tuple[str, ...]] = {QEMU: (), QEMU_HINTS: QEMU_HINTS_DEVICE}
    return {
        name.replace(BASELINE, peer.name): Contender(qemu_boot(*balloons[name], peer=peer))
        for peer in plan.peers
        for name in names
        if name in balloons
    }


def _add(cases: Cases, name: str, seconds: float, answer: dict[str, Any]) -> bool:
    """Add the result of one turn; return False if the migration has timed out.

    The contender is listed as timed out then, without its earlier turns. Raises `MigrationTimeout`
    if it is the baseline.
    """
    if answer:
        cases.time.add(name, {TOTAL: seconds})
        cases.sent.add(name, {TOTAL: answer["ram"]["transferred"] / MIB})
        cases.downtime.add(name, {TOTAL: float(answer["downtime"])})
        cases.rounds.add(name, {TOTAL: float(answer["ram"]["dirty-sync-count"])})
        return True
    if name == cases.time.against:
        raise MigrationTimeout(f"the migration of {name}, the baseline of the ratios, timed out")
    for case in vars(cases).values():
        case.rounds.pop(name, None)
    cases.time.add(f"{name}, timed out", {TOTAL: seconds})
    return False


async def _migrate(contender: Contender, size: Size, writes: int) -> tuple[float, dict[str, Any]]:
    options = {} if contender.query_unused is None else {"unused": contender.query_unused}
    async with contender.boot(size) as guest, in_memory() as directory:
        path = directory / "migration"
        async with guest.destination(path) as command:
            if writes:
                await guest.qmp("migrate-set-capabilities", capabilities=CONVERGE)
                for line in ("free", f"alloc {writes}", f"write {WRITE_MB_S}"):
                    await guest.guest.command(line)
            try:
                seconds, answer = await migrate(guest, f"unix:{path}", **options)
            except MigrationTimeout as error:
                print(error, file=sys.stderr, flush=True)
                return MIGRATION_TIMEOUT_S, {}
            if writes:
                assert "wrong 0" in await command("report")  # it is still writing
            else:
                found = await command(f"verify {PATTERN_SEED}")
                assert found == VERIFIED, f"the guest's memory has changed: {found}"
    return seconds, answer
