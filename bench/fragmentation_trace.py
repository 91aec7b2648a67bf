# SPDX-License-Identifier: Apache-2.0
"""A trace of the pages that a fragmented Linux guest gave to its balloon, repeated over all of RAM.

`bench/data/fragmented-guest.xz` is the bitmap of the page frames of a guest of 1 GiB, a bit for
each, compressed. This module recorded it in the lab:

    pyvmm image build
    pyvmm lab --memory 2G -- .venv/bin/python -m bench.fragmentation_trace

Five programs in the guest, on two vCPUs, fill its memory at the same time, so that their pages are
interleaved. One frees its pages, the others keep every 8th, 20th, 60th and 120th. The guest's
kernel is set to use small pages and not to compact memory. Then the balloon is inflated to 7
eighths of RAM, in the bitmap dialect, and all discards are recorded.
"""

from __future__ import annotations

import asyncio
import lzma
from pathlib import Path

from guest_images.build import image_path
from guest_images.recipe import read_recipe
from pyvmm.boot.image_config import config_for_image
from pyvmm.files.replacement import replace_file
from pyvmm.harness.guest_session import GuestSession, guest_session
from pyvmm.memory.ram import Ram
from pyvmm.units import GIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

FILE = Path(__file__).parent / "data" / "fragmented-guest.xz"
GUEST_BYTES = GIB
GUEST_PAGES = GUEST_BYTES // PAGE_BYTES
PROGRAM_MIB = 170
PROGRAMS = ("thin 8", "thin 20", "thin 60", "thin 120", "free")
PROGRAM = "{{ (echo grab {mib}; echo {then}; sleep 9999) | pattern; }} >/tmp/{number} 2>&1 &"


def trace_pages(span: PageRuns) -> PageRuns:
    """Return the trace's pages, repeated over all of `span`."""
    pages = list(PageRuns.from_bitmap(lzma.decompress(FILE.read_bytes())))
    copies = (
        (base + start, count)
        for first, total in span
        for base in range(first, first + total, GUEST_PAGES)
        for start, count in pages
    )
    return PageRuns(copies).intersect(span)


class _RecordingRam:
    """Records the discards of a machine's RAM."""

    def __init__(self, ram: Ram) -> None:
        self.pages = PageRuns()
        self._discard = ram.discard
        ram.discard = self.discard  # type: ignore[method-assign]

    def discard(self, runs: PageRuns) -> int:
        self.pages = self.pages.union(runs)
        return self._discard(runs)


async def _record() -> PageRuns:
    config = config_for_image(
        image_path(read_recipe()),
        run="pattern",
        ram_bytes=GUEST_BYTES,
        vcpus=2,
        dialect="bitmap",
    )
    async with guest_session(config) as guest:
        await guest.wait_for_user_space()
        await _fragment_memory(guest)
        recorder = _RecordingRam(guest.vm.ram)
        await guest.resize_balloon(GUEST_PAGES // 8 * 7, force=True)
        return recorder.pages


async def _fragment_memory(guest: GuestSession) -> None:
    programs = (
        PROGRAM.format(mib=PROGRAM_MIB, then=then, number=number)
        for number, then in enumerate(PROGRAMS)
    )
    await guest.shell("echo never >/sys/kernel/mm/transparent_hugepage/enabled")
    await guest.shell("echo 0 >/proc/sys/vm/compaction_proactiveness")
    await guest.shell("mkdir -p /tmp; " + " ".join(programs))
    # Each program replies twice.
    while await guest.shell("cat /tmp/* | grep -c ^ok || true") != f"{2 * len(PROGRAMS)}\n":
        await asyncio.sleep(1)


def _bitmap(pages: PageRuns) -> bytes:
    digits = bytearray(b"0" * GUEST_PAGES)
    for start, count in pages:
        digits[start : start + count] = b"1" * count
    digits.reverse()  # the first digit is the highest bit
    return int(digits, 2).to_bytes(GUEST_PAGES // 8, "little")


if __name__ == "__main__":
    discarded = asyncio.run(_record())
    replace_file(FILE, lzma.compress(_bitmap(discarded), preset=9))
    print(f"{discarded.pages} pages in {len(discarded)} runs, {FILE.stat().st_size} bytes")
