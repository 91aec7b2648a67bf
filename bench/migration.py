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
are the default of 300 ms.

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

from bench.measure import TOTAL, Case, Plan
from bench.migratable_guests import (
    FULL_SIZE,
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
        self.rounds = Case(f"rounds, {guest}", "rounds", against)


def measure(plan: Plan) -> list[Case]:
    """Measure an idle guest, beside QEMU with hints."""
    names = QUICK_IDLE if plan.quick else tuple(CONTENDERS)
    return _measure(plan, Cases("idle guest", QEMU_HINTS), names, 0)


def measure_writing(plan: Plan) -> list[Case]:
    """Measure a writing guest, beside ours with unused pages skipped."""
    names = QUICK_WRITING if plan.quick else WRITING
    return _measure(
        plan, Cases("guest writing 50 MB/s", WITH_QUERY), names, REWRITTEN_MIB[plan.quick]
    )


def _measure(plan: Plan, cases: Cases, names: Sequence[str], writes: int) -> list[Case]:
    size = QUICK_SIZE if plan.quick else FULL_SIZE
    plan.progress.stage(cases.time.name, len(names))
    for name in names:
        turn = partial(_migrate, CONTENDERS[name], size, writes)
        seconds, answer = plan.checkpoint.turn(name, partial(retry_in_lab, turn))
        if answer:
            cases.time.add(name, {TOTAL: seconds})
            cases.sent.add(name, {TOTAL: answer["ram"]["transferred"] / MIB})
            cases.downtime.add(name, {TOTAL: float(answer["downtime"])})
            cases.rounds.add(name, {TOTAL: float(answer["ram"]["dirty-sync-count"])})
        elif name == cases.time.against:
            raise MigrationTimeout(
                f"the migration of {name}, the baseline of the ratios, timed out"
            )
        else:
            cases.time.add(f"{name}, timed out", {TOTAL: seconds})
        plan.progress.advance()
    return list(vars(cases).values())


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
