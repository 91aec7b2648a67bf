# SPDX-License-Identifier: Apache-2.0
"""Cost of discards by the device model alone, without a guest: bench "device".

One process has RAM as a machine's and a fake ring on it (`bench.fake_guest`). 7 of 8 GiB are named
in requests like those of real drivers, and the time is from each notification to its used entry:
ring, copy, decoding, checks and the discard itself. C programs discard the same ranges of the same
memory, in the fastest way we know and as QEMU does, page by page; the list of ranges is prepared
for them. The work is interleaved (`bench.measure`) in pieces of one bitmap.

    one run              all of it; two runs, as RAM has a hole below 4 GiB
    runs of 2 MiB        every second 2 MiB, aligned: memory that a guest frees in large blocks
    every second page    the worst case for a list of runs
    fragmented guest     a trace of a Linux guest's balloon (`bench.fragmentation_trace`)

Each with RAM in pages of 4 KiB and in transparent huge pages. Memory is touched again before every
run, and the presence of every page is checked after it, both outside the measured time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench.discarder import WAYS, discarder
from bench.fake_guest import FakeGuest, bitmap_pieces
from bench.fragmentation_trace import trace_pages
from bench.measure import ENOUGH_ROUNDS, Case, Plan, interleave
from bench.touched_ram import HUGE_PAGE_PAGES, DiscardedPages, TouchedRam, have_huge_pages
from devices.balloon.dialects import BITMAP, STANDARD
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

BEST, PER_RUN, PER_PAGE = WAYS
BITMAPS, ARRAYS = "pyvmm, bitmap", "pyvmm, standard"
ROUNDS = ENOUGH_ROUNDS
SHORT_ROUNDS = 9
"""For patterns of a few hundredths of a second, where a median of few rounds is mostly noise."""


@dataclass(frozen=True)
class Pattern:
    """Pages of `span` that a guest gives to its balloon, and the contenders to measure on them."""

    name: str
    pages: Callable[[PageRuns], PageRuns]
    contenders: tuple[str, ...]
    huge_rounds: int = ROUNDS
    """Rounds with huge pages."""


def every_second_unit(span: PageRuns, unit: int) -> PageRuns:
    """Return every second `unit` pages, aligned."""
    last = sum(list(span)[-1])
    return PageRuns((start, unit) for start in range(0, last, 2 * unit)).intersect(span)


PATTERNS = (
    Pattern("one run", lambda span: span, (BITMAPS, ARRAYS, BEST, PER_PAGE), SHORT_ROUNDS),
    Pattern(
        "runs of 2 MiB",
        partial(every_second_unit, unit=HUGE_PAGE_PAGES),
        (BITMAPS, BEST, PER_RUN),
        SHORT_ROUNDS,
    ),
    Pattern(
        "every second page", partial(every_second_unit, unit=1), (BITMAPS, ARRAYS, BEST, PER_RUN)
    ),
    Pattern("fragmented guest", trace_pages, (BITMAPS, ARRAYS, BEST, PER_RUN)),
)


def measure(plan: Plan) -> list[Case]:
    """Measure every pattern, with small and with huge pages."""
    ram = TouchedRam(512 * MIB if plan.quick else 8192 * MIB)
    span = ram.pages.subtract(PageRuns([(0, ram.size_bytes // PAGE_BYTES // 8)]))
    cases = []
    for huge in (False, True) if have_huge_pages() else (False,):
        for pattern in PATTERNS:
            ram.use_huge_pages(huge)
            size = "huge pages" if huge else "4 KiB pages"
            case = Case(f"{pattern.name}, {size}", "s", against=BEST, panel=size)
            rounds = plan.rounds(pattern.huge_rounds if huge else ROUNDS)
            measure_discards(case, ram, pattern.pages(span), pattern.contenders, rounds, plan)
            cases.append(case)
    ram.close()
    return cases


def measure_discards(
    case: Case,
    ram: TouchedRam,
    pages: PageRuns,
    names: Iterable[str],
    rounds: int,
    plan: Plan,
) -> None:
    """Have `pages` of `ram` discarded, interleaved by bitmaps; its first 64 MiB are for rings."""
    guests = {
        BITMAPS: FakeGuest(BITMAP, ram, rings_gpa=8 * MIB),
        ARRAYS: FakeGuest(STANDARD, ram, rings_gpa=32 * MIB),
    }
    discarded = DiscardedPages(ram, pages)

    def discard_by(name: str, piece: PageRuns) -> Callable[[], float]:
        if name in guests:
            return partial(guests[name].inflate, guests[name].requests(piece))
        return partial(discarder(name), ram.ranges(piece))

    @contextmanager
    def prepared() -> Iterator[None]:
        ram.touch(discarded)
        yield
        ram.assert_discarded(discarded)

    pieces = [{name: discard_by(name, piece) for name in names} for piece in bitmap_pieces(pages)]
    interleave(case, pieces, prepared, rounds, plan)
