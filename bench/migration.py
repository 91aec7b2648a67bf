# SPDX-License-Identifier: Apache-2.0
"""A guest moves to another process, idle or writing: with and without unused pages.

In its turn each contender boots a guest with the same kernel, which uses nearly all of its RAM and
frees it again. Then it moves to a process that waits at a unix socket. There it has to find the
memory that it held as it was.

    pyvmm, bitmap               asks on the misc queue which pages the guest does not use
    pyvmm, bitmap, not asked    copies whatever has memory behind it
    pyvmm, standard, hints      free page hints of the stock driver
    QEMU pc                     copies whatever has memory behind it
    QEMU pc, hints              free page hints

The time is that from `migrate` until `query-migrate` says that it is completed, looked at every
`POLL_S` seconds in the same way for all. Bytes, downtime and rounds are what it says in the end.
Downtime limits are 300 ms, as they come.

The guest that writes (`measure_writing`) changes 50 MB of its memory a second, a page after the
other and round again, from before the migration until after it. Since the lab copies hardly faster
than that, its migration may slow it down (`auto-converge`). A guest that has not moved after
`MIGRATION_TIMEOUT_S` is listed as given up, with that time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.measure import TOTAL, Case, Plan
from bench.movers import (
    ASKED,
    HINTING,
    MIGRATION_TIMEOUT_S,
    NOT_ASKED,
    QEMU,
    QEMU_HINTED,
    QUICK_SIZE,
    SEED,
    THOROUGH_SIZE,
    VERIFIED,
    Boot,
    GivenUp,
    Size,
    again_in_the_lab,
    in_memory,
    moved,
    pyvmm_boot,
    qemu_boot,
)
from pyvmm.units import MIB

HINTED = "pyvmm, standard, hints"
WRITE_MB_S = 50
WRITTEN_MIB = {True: 16, False: 128}
"""How much memory is written to, quickly or not."""
CONVERGE = [{"capability": "auto-converge", "state": True}]


@dataclass(frozen=True)
class Contender:
    """How its guest starts, and what is said to it when it shall move."""

    boot: Boot
    asks: bool | None = None
    """Ours can be told not to ask."""


CONTENDERS = {
    ASKED: Contender(pyvmm_boot("bitmap"), True),
    NOT_ASKED: Contender(pyvmm_boot("bitmap"), False),
    HINTED: Contender(pyvmm_boot("standard", "free-page-hint"), True),
    QEMU: Contender(qemu_boot()),
    QEMU_HINTED: Contender(qemu_boot(*HINTING)),
}
WRITING = (ASKED, NOT_ASKED, QEMU, QEMU_HINTED)
QUICK_IDLE, QUICK_WRITING = (ASKED, QEMU_HINTED), (ASKED,)


class Cases:
    """What one move gives, by what is measured; all of it while the guest is `doing` that."""

    def __init__(self, doing: str, against: str) -> None:
        self.time = Case(f"time, {doing}", "s", against)
        self.sent = Case(f"sent, {doing}", "MiB", against)
        self.downtime = Case(f"downtime, {doing}", "ms", against)
        self.rounds = Case(f"rounds, {doing}", "rounds", against)


def measure(plan: Plan) -> list[Case]:
    """An idle guest, beside the best of QEMU."""
    names = QUICK_IDLE if plan.quick else tuple(CONTENDERS)
    return _measure(plan, Cases("idle", QEMU_HINTED), names, 0)


def measure_writing(plan: Plan) -> list[Case]:
    """A guest that writes, beside the one of ours that says what it does not use."""
    names = QUICK_WRITING if plan.quick else WRITING
    return _measure(plan, Cases("50 MB/s written", ASKED), names, WRITTEN_MIB[plan.quick])


def _measure(plan: Plan, cases: Cases, names: Sequence[str], writes: int) -> list[Case]:
    size = QUICK_SIZE if plan.quick else THOROUGH_SIZE
    plan.progress.stage(cases.time.name, len(names))
    for name in names:
        move = partial(_move, CONTENDERS[name], size, writes)
        seconds, answer = plan.kept.turn(name, partial(again_in_the_lab, move))
        if answer:
            cases.time.add(name, {TOTAL: seconds})
            cases.sent.add(name, {TOTAL: answer["ram"]["transferred"] / MIB})
            cases.downtime.add(name, {TOTAL: float(answer["downtime"])})
            cases.rounds.add(name, {TOTAL: float(answer["ram"]["dirty-sync-count"])})
        elif name == cases.time.against:
            raise GivenUp(f"{name}, by which the others are divided, has not moved")
        else:
            cases.time.add(f"{name}, given up", {TOTAL: seconds})
        plan.progress.advance()
    return list(vars(cases).values())


async def _move(contender: Contender, size: Size, writes: int) -> tuple[float, dict[str, Any]]:
    options = {} if contender.asks is None else {"unused": contender.asks}
    async with contender.boot(size) as mover, in_memory() as directory:
        path = directory / "migration"
        async with mover.destination(path) as command:
            if writes:
                await mover.qmp("migrate-set-capabilities", capabilities=CONVERGE)
                for line in ("free", f"alloc {writes}", f"write {WRITE_MB_S}"):
                    await mover.guest.command(line)
            try:
                seconds, answer = await moved(mover, f"unix:{path}", **options)
            except GivenUp as error:
                print(error, file=sys.stderr, flush=True)
                return MIGRATION_TIMEOUT_S, {}
            if writes:
                assert "wrong 0" in await command("report")  # it still writes
            else:
                found = await command(f"verify {SEED}")
                assert found == VERIFIED, f"the guest found its memory changed: {found}"
    return seconds, answer
