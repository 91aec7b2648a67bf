# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 9: requests name the pages that they are asked to, and no others.

A real balloon in the bitmap dialect decodes the requests of the exercise's `inflate_request`; the
check compares the pages that it discards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from devices.balloon.dialects import BITMAP
from devices.testing.balloon import INFLATE, BalloonDriver
from pyvmm.learn.checking import expect
from pyvmm_native.runs import PageRuns

RAM_PAGES = 8192
"""Pages below the rings of the driver."""


def _page_sets() -> Iterator[list[int]]:
    """Yield sets of pages, the simplest first."""
    yield [0]
    yield [64]
    yield [100]
    yield [4096 + 63]
    yield [130, 191]
    yield [130, 192]
    yield list(range(256, 320))
    yield list(range(301, 700))
    yield [5, 70, 1000, 5000]
    rng = random.Random(9)
    for count in (3, 50, 1000):
        yield sorted(rng.sample(range(RAM_PAGES), count))


def check(exercise: Any) -> None:
    """Check `inflate_request` of the module `exercise`."""
    for pages in _page_sets():
        _check_pages(exercise, pages)


def _check_pages(exercise: Any, pages: list[int]) -> None:
    driver = BalloonDriver(BITMAP).start()
    request = exercise.inflate_request(pages)
    driver.send(INFLATE, [request])
    asked = PageRuns((pfn, 1) for pfn in pages)
    named = driver.board.ram.discarded_pages
    subject = f"A request for {_show(asked)}"
    refused = [fields["why"] for name, fields in driver.board.tracer.events if "bad" in name]
    if refused:
        expect(
            False, f"{subject}: the device has refused it: {refused[0]}.{_hint(str(refused[0]))}"
        )
    if named != asked:
        lost, kept = named.subtract(asked), asked.subtract(named)
        parts = [f"{subject} names {_show(named) or 'no page'}."]
        if lost:
            parts.append(f"The guest has lost {_show(lost)}, which it uses.")
        if kept:
            parts.append(f"The host has not freed {_show(kept)}.")
        parts.append("Bit b of byte i, counted from the least significant, is the page")
        parts.append("start_pfn + 8 i + b.")
        expect(False, " ".join(parts))


def _hint(why: str) -> str:
    if "start_pfn" in why:
        return " Bit 0 stands for a page whose number is a multiple of 64, even if it is not named."
    if "bmap_len" in why:
        return " bmap_len is the length of the bitmap in bytes, whole words of 8."
    return ""


def _show(pages: PageRuns) -> str:
    """Return the first runs of `pages` in words."""
    runs = [f"page {pfn}" if n == 1 else f"pages {pfn} to {pfn + n - 1}" for pfn, n in pages]
    return ", ".join(runs[:3]) + (f" and {len(runs) - 3} further runs" if len(runs) > 3 else "")
