# SPDX-License-Identifier: Apache-2.0
"""The encodings in the device alone, without a guest: bench "encodings-device".

A fake guest (`bench.fake_guest`) inflates the same pages of touched RAM in each dialect, by the
requests that a driver makes of 256 MiB at a time, or of 256 pages as arrays. The pages are those of
bench "encodings": one run, every second 64 KiB, every other page. Bytes are those of the requests;
the time is the device's, from each notification to the used entry, the discard included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench.device_path import every_second_unit
from bench.encoding_cases import BITMAP, HYBRID, RANGES, RUN_PAGES, STANDARD
from bench.fake_guest import FakeGuest, Request, bitmap_pieces
from bench.measure import TOTAL, Case, Plan, interleave
from bench.touched_ram import DiscardedPages, TouchedRam
from devices.balloon import dialects
from pyvmm.units import GIB, MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

DIALECTS = {
    STANDARD: dialects.STANDARD,
    BITMAP: dialects.BITMAP,
    HYBRID: dialects.HYBRID,
    RANGES: dialects.RANGES,
}
RINGS_BYTES = 24 * MIB
"""Bytes of RAM for the rings of each fake guest."""
ROUNDS = 7


def measure(plan: Plan) -> list[Case]:
    """Measure each pattern of pages."""
    rings_bytes = RINGS_BYTES * (len(DIALECTS) + 1)
    ram = TouchedRam(rings_bytes + (128 * MIB if plan.quick else GIB))
    guests = {
        name: FakeGuest(dialect, ram, rings_gpa=RINGS_BYTES * (number + 1))
        for number, (name, dialect) in enumerate(DIALECTS.items())
    }
    span = ram.pages.subtract(PageRuns([(0, rings_bytes // PAGE_BYTES)]))
    cases = []
    for free_memory, run_pages in RUN_PAGES.items():
        pages = every_second_unit(span, run_pages) if run_pages else span
        requests = {
            name: [guest.requests(piece) for piece in bitmap_pieces(pages)]
            for name, guest in guests.items()
        }
        cases.append(_bytes_case(free_memory, requests, pages.pages))
        cases.append(_time_case(free_memory, ram, guests, requests, pages, plan))
    ram.close()
    return cases


Requests = dict[str, list[list[Request]]]
"""Those of each piece of the pages, by contender."""


def _bytes_case(free_memory: str, requests: Requests, pages: int) -> Case:
    what = "bytes on the queue"
    case = Case(f"{what}, free memory {free_memory}", "bytes/page", STANDARD, panel=what)
    for name, pieces in requests.items():
        length = sum(len(part) for piece in pieces for request in piece for part in request)
        case.add(name, {TOTAL: length / pages})
    return case


def _time_case(
    free_memory: str,
    ram: TouchedRam,
    guests: dict[str, FakeGuest],
    requests: Requests,
    pages: PageRuns,
    plan: Plan,
) -> Case:
    case = Case(f"device, free memory {free_memory}", "ns/page", STANDARD, panel="device")
    discarded = DiscardedPages(ram, pages)

    @contextmanager
    def prepared() -> Iterator[None]:
        ram.touch(discarded)
        yield
        ram.assert_discarded(discarded)

    def inflate(name: str, number: int) -> float:
        return guests[name].inflate(requests[name][number]) * 1e9 / pages.pages

    pieces = [
        {name: partial(inflate, name, number) for name in guests}
        for number in range(len(requests[STANDARD]))
    ]
    return interleave(case, pieces, prepared, plan.rounds(ROUNDS), plan)
