# SPDX-License-Identifier: Apache-2.0
"""Cost of discards by the device model alone, without a guest: bench "device".

One process has RAM as a machine's and a fake ring on it (`bench.fake_guest`). 7 of 8 GiB are named
in requests like those of real drivers, and the time is from each notification to its used entry:
ring, copy, decoding, checks and the discard itself. C programs discard the same ranges of the same
memory, in the fastest way we know and as QEMU does, page by page; the list of ranges is prepared
for them. The work is interleaved (`bench.measure`) in pieces of one bitmap.

    one run              all of it; two runs, as RAM has a hole below 4 GiB
    one run of blocks    the same in the driver's requests where it finds blocks of 2 MiB
    runs of 2 MiB        every second 2 MiB, aligned: memory that a guest frees in large blocks
    every second block   the same in requests of blocks
    every second page    the worst case for a list of runs
    fragmented guest     a trace of a Linux guest's balloon (`bench.fragmentation_trace`)

Each with RAM in pages of 4 KiB and in transparent huge pages, requests of blocks only in these. A
bitmap of pages names 256 MiB at most, one of blocks 1 GiB. Memory is touched again before every
run, and the presence of every page is checked after it, both outside the measured time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench.discarder import WAYS, discarder
from bench.encoding_cases import BITMAP as BITMAPS
from bench.encoding_cases import BLOCKS
from bench.encoding_cases import STANDARD as ARRAYS
from bench.fake_guest import FakeGuest, bitmap_pieces, block_pieces
from bench.fragmentation_trace import trace_pages
from bench.measure import ENOUGH_ROUNDS, Case, Plan, interleave
from bench.touched_ram import HUGE_PAGE_PAGES, DiscardedPages, TouchedRam, have_huge_pages
from devices.balloon.dialects import BITMAP, STANDARD
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

BEST, PER_RUN, PER_PAGE = WAYS
BLOCK_BITMAPS = BITMAPS + BLOCKS
GUESTS = (
    (BITMAPS, BITMAP, 4 * MIB),
    (ARRAYS, STANDARD, 24 * MIB),
    (BLOCK_BITMAPS, BITMAP, 44 * MIB),
)
"""The contenders that are fake guests: the dialect, and the address of their rings."""
ROUNDS = ENOUGH_ROUNDS
REPEATS = 3
"""For patterns of a few hundredths of a second, in which one stall of milliseconds would show."""


@dataclass(frozen=True)
class Pattern:
    """Pages of `span` that a guest gives to its balloon, and the contenders to measure on them."""

    name: str
    pages: Callable[[PageRuns], PageRuns]
    contenders: tuple[str, ...]
    huge_repeats: int = 1
    """Repeats of a round with huge pages."""
    pieces: Callable[[PageRuns], Iterable[PageRuns]] = bitmap_pieces
    """The pages of each request that is not an array."""
    only_huge: bool = False


def every_second_unit(span: PageRuns, unit: int) -> PageRuns:
    """Return every second `unit` pages, aligned."""
    last = sum(list(span)[-1])
    return PageRuns((start, unit) for start in range(0, last, 2 * unit)).intersect(span)


PATTERNS = (
    Pattern("one run", lambda span: span, (BITMAPS, ARRAYS, BEST, PER_PAGE), REPEATS),
    Pattern(
        "one run of blocks",
        lambda span: span,
        (BLOCK_BITMAPS, BEST),
        REPEATS,
        block_pieces,
        only_huge=True,
    ),
    Pattern(
        "runs of 2 MiB",
        partial(every_second_unit, unit=HUGE_PAGE_PAGES),
        (BITMAPS, BEST, PER_RUN),
        REPEATS,
    ),
    Pattern(
        "every second block",
        partial(every_second_unit, unit=HUGE_PAGE_PAGES),
        (BLOCK_BITMAPS, BEST),
        REPEATS,
        block_pieces,
        only_huge=True,
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
            if pattern.only_huge and not huge:
                continue
            ram.use_huge_pages(huge)
            size = "huge pages" if huge else "4 KiB pages"
            case = Case(f"{pattern.name}, {size}", "s", against=BEST, panel=size)
            pages, names = pattern.pages(span), pattern.contenders
            repeats = plan.rounds(pattern.huge_repeats) if huge else 1
            pieces = pattern.pieces(pages)
            measure_discards(case, ram, pieces, names, plan.rounds(ROUNDS), plan, repeats=repeats)
            cases.append(case)
    ram.close()
    return cases


def measure_discards(
    case: Case,
    ram: TouchedRam,
    pieces: Iterable[PageRuns],
    names: Iterable[str],
    rounds: int,
    plan: Plan,
    *,
    repeats: int = 1,
) -> None:
    """Have `pieces` of `ram` discarded in turns; its first 64 MiB are for rings."""
    pieces = list(pieces)
    guests = {
        name: FakeGuest(dialect, ram, gpa, blocks=name.endswith(BLOCKS))
        for name, dialect, gpa in GUESTS
        if name in names
    }
    discarded = DiscardedPages(ram, PageRuns(run for piece in pieces for run in piece))

    def discard_by(name: str, piece: PageRuns) -> Callable[[], float]:
        if name in guests:
            return partial(guests[name].inflate, guests[name].requests(piece))
        return partial(discarder(name), ram.ranges(piece))

    @contextmanager
    def prepared() -> Iterator[None]:
        ram.touch(discarded)
        yield
        ram.assert_discarded(discarded)

    work = [{name: discard_by(name, piece) for name in names} for piece in pieces]
    interleave(case, work, prepared, rounds, plan, repeats=repeats)
