# SPDX-License-Identifier: Apache-2.0
"""An idle guest, and one that writes, move to another process: with and without unused pages.

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
The guest that writes changes 50 MB of its memory a second, a page after the other and round again,
from before the migration until after it. Downtime limits are 300 ms, as they come. Since the lab
copies hardly faster than that guest writes, its migration may slow it down (`auto-converge`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from bench.measure import TOTAL, Case, Plan, Values, take_turns
from bench.movers import (
    ASKED,
    HINTING,
    MIB,
    NOT_ASKED,
    QEMU,
    QEMU_HINTED,
    QUICK_SIZE,
    SEED,
    THOROUGH_SIZE,
    VERIFIED,
    Boot,
    Size,
    again_in_the_lab,
    in_memory,
    moved,
    pyvmm_boot,
    qemu_boot,
)

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
WRITING = (ASKED, QEMU_HINTED)
"""Those that move while the guest writes: the best of either side."""
QUICK_IDLE, QUICK_WRITING = (ASKED, QEMU_HINTED), (ASKED,)


class Cases:
    """What one move gives, by what is measured; all of it while the guest is `doing` that."""

    def __init__(self, doing: str) -> None:
        self.time = Case(f"time, {doing}", "s", against=QEMU)
        self.sent = Case(f"sent, {doing}", "MiB", against=QEMU)
        self.downtime = Case(f"downtime, {doing}", "ms", against=QEMU)
        self.rounds = Case(f"rounds, {doing}", "rounds", against=QEMU)


def measure(plan: Plan) -> list[Case]:
    """One size of guest, idle and then writing."""
    size = QUICK_SIZE if plan.quick else THOROUGH_SIZE
    idle, writing = Cases("idle"), Cases("50 MB/s written")
    for cases, names, writes in (
        (idle, QUICK_IDLE if plan.quick else tuple(CONTENDERS), 0),
        (writing, QUICK_WRITING if plan.quick else WRITING, WRITTEN_MIB[plan.quick]),
    ):
        for case in vars(cases).values():
            case.against = names[-1]
        turns = {name: partial(_turn, name, size, cases, writes, plan) for name in names}
        take_turns(cases.time, turns, 1, plan, rehearse=False)
    pairs = zip(vars(idle).values(), vars(writing).values(), strict=True)
    return [case for pair in pairs for case in pair]


def _turn(name: str, size: Size, cases: Cases, writes: int, plan: Plan) -> Values:
    move = partial(_move, CONTENDERS[name], size, writes)
    seconds, answer = plan.kept.turn(f"{name} {writes}", lambda: again_in_the_lab(move))
    cases.sent.add(name, {TOTAL: answer["ram"]["transferred"] / MIB})
    cases.downtime.add(name, {TOTAL: float(answer["downtime"])})
    cases.rounds.add(name, {TOTAL: float(answer["ram"]["dirty-sync-count"])})
    return {TOTAL: seconds}


async def _move(contender: Contender, size: Size, writes: int) -> tuple[float, dict[str, object]]:
    options = {} if contender.asks is None else {"unused": contender.asks}
    async with contender.boot(size) as mover, in_memory() as directory:
        path = directory / "migration"
        async with mover.destination(path) as ask:
            if writes:
                await mover.command("migrate-set-capabilities", capabilities=CONVERGE)
                for line in ("free", f"alloc {writes}", f"write {WRITE_MB_S}"):
                    await mover.guest.ask(line)
            seconds, answer = await moved(mover, f"unix:{path}", **options)
            if writes:
                assert "wrong 0" in await ask("report")  # it still writes
            else:
                found = await ask(f"verify {SEED}")
                assert found == VERIFIED, f"the guest found its memory changed: {found}"
    return seconds, answer
