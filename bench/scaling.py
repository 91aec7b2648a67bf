# SPDX-License-Identifier: Apache-2.0
"""Inflate time by size and by fragmentation: bench "scaling".

As `bench.device_path`, with RAM in pages of 4 KiB, in two series:

* 64 MiB to 12 GiB in one run (two, where it spans the hole below 4 GiB);
* always 4 GiB, as one run up to 1,048,576 runs of one page, each run as far from the next as it is
  long: the number of pages is constant, so the growth is the cost of runs.

Both must grow linearly: time per GiB and, with many runs, per run is constant.
"""

from __future__ import annotations

from bench.device_path import BEST, measure_discards
from bench.encoding_cases import BITMAP
from bench.fake_guest import bitmap_pieces
from bench.measure import ENOUGH_ROUNDS, Case, Plan
from bench.touched_ram import TouchedRam
from pyvmm.units import GIB, MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

ROUNDS = ENOUGH_ROUNDS
RINGS_BYTES = 64 * MIB
SIZES = [64 * MIB, 256 * MIB, GIB, 4 * GIB, 12 * GIB]
QUICK_SIZES = [16 * MIB, 64 * MIB, 256 * MIB]


def measure(plan: Plan) -> list[Case]:
    """Measure the points of both series."""
    sizes = QUICK_SIZES if plan.quick else SIZES
    run_pages = 16384 if plan.quick else 1 << 20
    ram = TouchedRam(RINGS_BYTES + max(sizes[-1], 2 * run_pages * PAGE_BYTES))
    cases = []
    for size_bytes in sizes:
        case = Case(
            f"{_size(size_bytes)} in one run", "s", BEST, group="GiB in one run", x=size_bytes / GIB
        )
        cases.append(_measured(case, ram, first_pages(ram, size_bytes // PAGE_BYTES), plan))
    for runs in (1 << shift for shift in range(0, run_pages.bit_length(), 5)):
        total = _size(run_pages * PAGE_BYTES)
        case = Case(f"{total}, runs: {runs:,}", "s", BEST, group=f"runs, {total} in all", x=runs)
        cases.append(_measured(case, ram, spread_pages(ram, run_pages, runs), plan))
    ram.close()
    return cases


def first_pages(ram: TouchedRam, pages: int) -> PageRuns:
    """Return the first `pages` behind the rings."""
    rings = PageRuns([(0, RINGS_BYTES // PAGE_BYTES)])
    left, runs = pages, []
    for start, count in ram.pages.subtract(rings):
        runs.append((start, min(count, left)))
        left -= min(count, left)
        if not left:
            break
    return PageRuns(runs)


def spread_pages(ram: TouchedRam, pages: int, runs: int) -> PageRuns:
    """Return `pages` in `runs` runs as long as the gaps between them, at the end of RAM."""
    end = sum(list(ram.pages)[-1])
    length = pages // runs
    return PageRuns((end - 2 * length * (i + 1), length) for i in range(runs))


def _size(size_bytes: int) -> str:
    return f"{size_bytes // MIB} MiB" if size_bytes < GIB else f"{size_bytes // GIB} GiB"


def _measured(case: Case, ram: TouchedRam, pages: PageRuns, plan: Plan) -> Case:
    pieces = bitmap_pieces(pages)
    measure_discards(case, ram, pieces, (BITMAP, BEST), plan.rounds(ROUNDS), plan)
    return case
