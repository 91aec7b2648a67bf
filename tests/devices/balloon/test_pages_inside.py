# SPDX-License-Identifier: Apache-2.0
"""The pages in the balloon, as a view of memory shows them."""

from __future__ import annotations

import struct

from devices.balloon import dialects
from devices.balloon.device import BalloonDevice
from devices.testing.board import Board
from devices.testing.driver import VirtioDriver
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from pyvmm.units import MIB
from pyvmm_native.runs import PageRuns

INFLATE, DEFLATE = 0, 1


def running(host_page_pages: int = 1) -> tuple[BalloonDevice, VirtioDriver]:
    tracer = RecordingTracer()
    ram = AnonymousRam((0, 64 * MIB), host_page_pages=host_page_pages)
    balloon = BalloonDevice(dialects.by_name("standard"), ram, tracer)
    return balloon, VirtioDriver(Board(balloon, tracer)).start()


def inside(balloon: BalloonDevice) -> list[int]:
    found = PageRuns()
    for start, bits in balloon.pages_inside():
        found = found.union(PageRuns.from_bitmap(bits, start))
    return [page for start, count in found for page in range(start, start + count)]


def pfns(*pages: int) -> list[bytes]:
    return [struct.pack(f"<{len(pages)}I", *pages)]


def test_pages_are_noted_from_the_first_call_on() -> None:
    balloon, driver = running()
    driver.send(INFLATE, pfns(1, 2))
    assert inside(balloon) == []
    driver.send(INFLATE, pfns(7, 8, 9))
    driver.send(DEFLATE, pfns(8, 2))
    assert inside(balloon) == [7, 9]
    driver.reset()
    assert inside(balloon) == []


def test_all_pages_are_known_where_host_pages_are_larger() -> None:
    balloon, driver = running(host_page_pages=512)
    driver.send(INFLATE, pfns(1, 2))
    assert inside(balloon) == [1, 2]
