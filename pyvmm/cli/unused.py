# SPDX-License-Identifier: Apache-2.0
"""`pyvmm unused`: how much of its memory a running guest does not use, and where that lies.

The guest is asked over QMP; its answer comes as numbers and as cells of its address space
(`pyvmm.qmp.guest_request_commands`), which `picture` draws one character each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import click

from pyvmm.cli.balloon import parse_seconds
from pyvmm.cli.monitor import qmp_option, visit
from pyvmm.qmp.client import QmpClient
from pyvmm.units import format_size
from pyvmm_native import PAGE_BYTES

COLUMNS = 64
MAX_ROWS = 32


@dataclass(frozen=True)
class Shades:
    """Characters by how much of a cell is unused, from nothing through parts to all."""

    in_use: str
    partly: str
    unused: str

    def of(self, unused: int, ram: int) -> str:
        if not ram:
            return " "
        if unused in (0, ram):
            return self.unused if unused else self.in_use
        return self.partly[unused * len(self.partly) // ram]


BLOCKS = Shades("·", "░▒▓", "█")
ASCII = Shades(".", "-+=", "#")


@click.command()
@qmp_option
@click.option(
    "--timeout",
    "timeout_s",
    type=parse_seconds,
    default=10.0,
    show_default=True,
    metavar="S",
    help="Give up when the guest has not answered after this many seconds.",
)
@click.option(
    "--drop-caches",
    is_flag=True,
    help="First have the guest write its file systems out and drop its page cache.",
)
def unused(address: str, timeout_s: float, drop_caches: bool) -> int:
    """Ask a running guest which of its pages it does not use.

    The guest's balloon driver looks into its page allocator and answers at once; nothing is taken
    from the guest. Shown are the number of unused pages, their share of RAM, the longest run of
    them, and a picture: one character for each stretch of guest-physical memory, in the order of
    addresses.

    What is unused now may be in use the moment after. The count is close to the guest's own
    MemFree: pages in the balloon count as used, and so do those that hold cached files, unless
    --drop-caches makes the guest give them up first.

    \b
    Look at a guest, and at what it could spare:
      pyvmm unused --qmp unix:/tmp/vm.sock
      pyvmm unused --qmp unix:/tmp/vm.sock --drop-caches

    It takes a driver that speaks the bitmap dialect with MISC_VQ; the one in guest.img does. The
    exit status is 0 when the guest answered, 1 when it ended, 2 when it did not or cannot answer.
    """

    def work(client: QmpClient) -> int:
        if drop_caches:
            client.execute("balloon-sync-filesystems", timeout=timeout_s)
            client.execute("balloon-drop-caches", timeout=timeout_s)
        answer = client.execute("query-unused-pages", timeout=timeout_s, cells=COLUMNS * MAX_ROWS)
        for line in report(answer, _shades(sys.stdout.encoding)):
            print(line)
        return 0

    return visit(address, "pyvmm unused", work, guest_timeout_s=timeout_s)


def report(answer: Mapping[str, Any], shades: Shades) -> Iterator[str]:
    """What is printed for the answer of `query-unused-pages`."""
    pages, ram_pages = answer["unused-pages"], answer["ram-pages"]
    yield (
        f"unused: {pages:,} pages, {format_size(pages * PAGE_BYTES)}"
        f" of {format_size(ram_pages * PAGE_BYTES)} ({answer['share']:.1%})"
    )
    yield (
        f"largest run: {format_size(answer['largest-run'] * PAGE_BYTES)},"
        f" of {answer['run-count']:,}; answered in {answer['seconds']:.3f} s"
    )
    yield ""
    cells = answer["cells"]
    yield from picture(cells["pages"], cells["ram"], cells["unused"], shades)
    yield ""
    yield (
        f"{shades.unused} unused  {' '.join(reversed(shades.partly))} partly  {shades.in_use} in"
        f" use   (a character is {format_size(cells['pages'] * PAGE_BYTES)})"
    )


def picture(
    cell_pages: int, ram: Sequence[int], unused: Sequence[int], shades: Shades
) -> Iterator[str]:
    """Rows of cells, each with the address of its first; rows without RAM together are one."""
    starts = range(0, len(ram), COLUMNS)
    for is_ram, group in groupby(starts, key=lambda start: any(ram[start : start + COLUMNS])):
        rows = list(group)
        if not is_ram:
            size = format_size(len(rows) * COLUMNS * cell_pages * PAGE_BYTES)
            yield f"{_address(rows[0] * cell_pages)}  (no RAM here: {size})"
            continue
        for start in rows:
            row = slice(start, start + COLUMNS)
            drawn = "".join(map(shades.of, unused[row], ram[row]))
            yield f"{_address(start * cell_pages)}  {drawn}".rstrip()


def _address(pfn: int) -> str:
    """A guest-physical address in 0x1_0000_0000 form."""
    gpa = pfn * PAGE_BYTES
    return f"0x{gpa >> 32:x}_{gpa >> 16 & 0xFFFF:04x}_{gpa & 0xFFFF:04x}"


def _shades(encoding: str) -> Shades:
    """Blocks where the terminal has them."""
    try:
        "".join((BLOCKS.in_use, BLOCKS.partly, BLOCKS.unused)).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS
