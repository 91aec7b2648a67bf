# SPDX-License-Identifier: Apache-2.0
"""`pyvmm unused`: show which memory a running guest does not use, as figures and as a map.

`query-unused-pages` (`pyvmm.qmp.guest_request_commands`) returns totals, and counts for cells of
the guest's address space; `page_map` draws one character for each cell.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import click

from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.options import qmp_option, timeout_option
from pyvmm.cli.qmp_command import run_qmp_command
from pyvmm.qmp.client import QmpClient
from pyvmm.standard_streams.text import print_line
from pyvmm.units import format_size
from pyvmm_native import PAGE_BYTES

COLUMNS = 64
MAX_ROWS = 32


@dataclass(frozen=True)
class Shades:
    """Characters for a cell of which nothing, a part or everything is unused."""

    in_use: str
    partly: str
    unused: str

    def of(self, unused: int, ram: int) -> str:
        """Return the character for a cell with `unused` of its `ram` pages unused."""
        if not ram:
            return " "
        if unused in (0, ram):
            return self.unused if unused else self.in_use
        return self.partly[unused * len(self.partly) // ram]


BLOCKS = Shades("·", "░▒▓", "█")
ASCII = Shades(".", "-+=", "#")


@click.command()
@qmp_option
@timeout_option(10.0, "Fail when the guest has not answered after this many seconds.")
@click.option(
    "--drop-caches",
    is_flag=True,
    help="First have the guest write back its file systems and drop its page cache.",
)
@json_option
def unused(address: str, timeout_s: float, drop_caches: bool, as_json: bool) -> int:
    """Show the pages that a running guest does not use.

    The guest's balloon driver reads its page allocator and answers at once; nothing is taken from
    the guest. The command shows the number of unused pages, their share of RAM, the longest run,
    and a map of guest-physical memory with one character for each block, in address order.

    A page that is unused now may be in use a moment later. The count is close to the guest's own
    MemFree: pages in the balloon count as used, and so do pages of cached files, unless
    --drop-caches has the guest drop them first.

    \b
    Show a guest's unused memory, without and with its caches dropped:
      pyvmm unused --qmp unix:/tmp/vm.sock
      pyvmm unused --qmp unix:/tmp/vm.sock --drop-caches

    This needs a driver with MISC_VQ or HOST_REQ_VQ, such as the one in guest.img; the standard
    dialect has neither.

    The exit status is 0 when the guest answered, 1 when it ended, 2 when it did not or cannot
    answer.
    """

    def work(client: QmpClient) -> int:
        if drop_caches:
            client.execute("balloon-sync-filesystems", timeout=timeout_s)
            client.execute("balloon-drop-caches", timeout=timeout_s)
        answer = client.execute("query-unused-pages", timeout=timeout_s, cells=COLUMNS * MAX_ROWS)
        if as_json:
            print_json({**answer, "page-size": PAGE_BYTES})
            return 0
        for line in report(answer, _shades(sys.stdout.encoding)):
            print_line(line)
        return 0

    return run_qmp_command(address, "pyvmm unused", work, guest_timeout_s=timeout_s)


def report(answer: Mapping[str, Any], shades: Shades) -> Iterator[str]:
    """Yield the lines to print for the answer of `query-unused-pages`."""
    pages, ram_pages = answer["unused-pages"], answer["ram-pages"]
    yield (
        f"unused: {pages:,} pages, {format_size(pages * PAGE_BYTES)}"
        f" of {format_size(ram_pages * PAGE_BYTES)} ({answer['share']:.1%})"
    )
    yield (
        f"runs: {answer['run-count']:,}, the longest"
        f" {format_size(answer['largest-run'] * PAGE_BYTES)}; answered in {answer['seconds']:.3f} s"
    )
    yield ""
    cells = answer["cells"]
    yield from page_map(cells["pages"], cells["ram"], cells["unused"], shades)
    yield ""
    yield (
        f"{shades.unused} unused  {' '.join(reversed(shades.partly))} partly  {shades.in_use} in"
        f" use   (one character is {format_size(cells['pages'] * PAGE_BYTES)})"
    )


def page_map(
    cell_pages: int, ram: Sequence[int], unused: Sequence[int], shades: Shades
) -> Iterator[str]:
    """Yield rows of cells, each with its first address; adjacent rows without RAM are one line."""
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
    """Return a guest-physical address in the form 0x1_0000_0000."""
    gpa = pfn * PAGE_BYTES
    return f"0x{gpa >> 32:x}_{gpa >> 16 & 0xFFFF:04x}_{gpa & 0xFFFF:04x}"


def _shades(encoding: str) -> Shades:
    """Return block characters if `encoding` has them, else ASCII."""
    try:
        "".join((BLOCKS.in_use, BLOCKS.partly, BLOCKS.unused)).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS
