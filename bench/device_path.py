# SPDX-License-Identifier: Apache-2.0
"""What the device model takes to give memory back, without a guest: bench "device".

One process, RAM as a machine's, a fake ring on it (`bench.fake_guest`). 7 of 8 GiB are named in
requests like those of real drivers, and the time counts from each notification to its used entry:
ring, copy, decoding, checks and the discard itself. C programs discard the same ranges of the same
memory, in the quickest way we know and as QEMU does, page by page; they get the list of ranges
ready made. The pages are dealt out (`bench.measure`) by what one bitmap tells of.

    one run                  all of it; two runs, as RAM has a hole below 4 GiB
    runs of 2 MiB            every other 2 MiB, aligned: what a guest has in large blocks
    every other page         the worst there is for a list of runs
    recorded in a guest      a real guest's balloon, its memory in pieces (`bench.recorded`)

Each with RAM in pages of 4 KiB and in transparent huge pages. Memory is touched again before every
run, and every page's presence is checked after it, both outside the measured time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench.discarder import WAYS, discarder
from bench.fake_guest import FakeGuest, bitmap_pieces
from bench.measure import Case, Plan, deal_out
from bench.recorded import recorded_pages
from bench.touched_ram import HUGE_PAGE_PAGES, Given, TouchedRam, have_huge_pages
from devices.balloon.dialects import BITMAP, STANDARD
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

BEST, PER_RUN, PER_PAGE = WAYS
BITMAPS, ARRAYS = "pyvmm, bitmap", "pyvmm, standard"
ROUNDS = 3
SHORT_ROUNDS = 9
"""For what takes a few hundredths of a second, where a median of few rounds is mostly noise."""


@dataclass(frozen=True)
class Pattern:
    """Pages of `span` that a guest gives away, and who is worth measuring on them."""

    name: str
    pages: Callable[[PageRuns], PageRuns]
    contenders: tuple[str, ...]
    huge_rounds: int = ROUNDS
    """How often with huge pages."""


def every_other(span: PageRuns, unit: int) -> PageRuns:
    """Every other `unit` pages, aligned."""
    last = sum(list(span)[-1])
    return PageRuns((start, unit) for start in range(0, last, 2 * unit)).intersect(span)


PATTERNS = (
    Pattern("one run", lambda span: span, (BITMAPS, ARRAYS, BEST, PER_PAGE), SHORT_ROUNDS),
    Pattern(
        "runs of 2 MiB",
        partial(every_other, unit=HUGE_PAGE_PAGES),
        (BITMAPS, BEST, PER_RUN),
        SHORT_ROUNDS,
    ),
    Pattern("every other page", partial(every_other, unit=1), (BITMAPS, ARRAYS, BEST, PER_RUN)),
    Pattern("recorded in a guest", recorded_pages, (BITMAPS, ARRAYS, BEST, PER_RUN)),
)


def measure(plan: Plan) -> list[Case]:
    """The cases of this benchmark."""
    ram = TouchedRam(512 * MIB if plan.quick else 8192 * MIB)
    span = ram.pages.subtract(PageRuns([(0, ram.size_bytes // PAGE_BYTES // 8)]))
    cases = []
    for huge in (False, True) if have_huge_pages() else (False,):
        for pattern in PATTERNS:
            ram.use_huge_pages(huge)
            case = Case(f"{pattern.name}, {'huge' if huge else '4 KiB'} pages", "s", against=BEST)
            rounds = plan.rounds(pattern.huge_rounds if huge else ROUNDS)
            take_turns_to_give(case, ram, pattern.pages(span), pattern.contenders, rounds, plan)
            cases.append(case)
    ram.close()
    return cases


def take_turns_to_give(
    case: Case,
    ram: TouchedRam,
    pages: PageRuns,
    names: Iterable[str],
    rounds: int,
    plan: Plan,
) -> None:
    """Have `pages` of `ram` given back, dealt out by bitmaps; its first 64 MiB are for rings."""
    guests = {
        BITMAPS: FakeGuest(BITMAP, ram, rings_gpa=8 * MIB),
        ARRAYS: FakeGuest(STANDARD, ram, rings_gpa=32 * MIB),
    }
    given = Given(ram, pages)

    def giver(name: str, piece: PageRuns) -> Callable[[], float]:
        if name in guests:
            return partial(guests[name].inflate, guests[name].requests(piece))
        return partial(discarder(name), ram.ranges(piece))

    @contextmanager
    def prepared() -> Iterator[None]:
        ram.touch(given)
        yield
        ram.assert_gone(given)

    pieces = [{name: giver(name, piece) for name in names} for piece in bitmap_pieces(pages)]
    deal_out(case, pieces, prepared, rounds, plan)
