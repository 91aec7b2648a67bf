# SPDX-License-Identifier: Apache-2.0
"""Commands that make a request to the guest's balloon driver; all are pyvmm's own.

The commands are named after the device that carries the requests. QEMU has none with that prefix,
"guest-" would suggest its guest agent, which no pyvmm guest needs, and "x-" marks commands that may
change without notice. A client waits for the reply, at most `timeout` seconds. A request that
fails, for any reason, is an error of class DeviceNotActive.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from pyvmm.balloon.guest_requests import DEFAULT_TIMEOUT_S, GuestRequestError
from pyvmm.qmp.command import Command, Parameter
from pyvmm.qmp.messages import QmpError, timestamp

if TYPE_CHECKING:
    from pyvmm.balloon.free_page_hints import Hints
    from pyvmm.qmp.vm_control import VmControl
    from pyvmm_native.runs import PageRuns

MAX_TIMEOUT_S = 86400.0
MAX_RUNS = 65536
MAX_CELLS = 65536

_T = TypeVar("_T")


async def query_balloon_stats(vm: VmControl, timeout: float = DEFAULT_TIMEOUT_S) -> dict[str, Any]:
    """Return the guest's memory statistics, measured after the command.

    Arguments:
        timeout: the longest wait for the guest
    Returns:
        stats.*: each statistic by QEMU's name; null if the guest does not report it
        unknown: statistics without a name, by tag
        time.seconds: the time of the report since the epoch
        time.microseconds: the fraction of that second
    Errors:
        DeviceNotActive: the driver cannot respond, does not in time, or responds wrongly
    In QEMU:
        no such command; `qom-get` of `guest-stats` returns the last report that was polled
    """
    timed = await _response(vm.balloon_statistics.fresh(timeout))
    return {
        "stats": timed.report.known,
        "unknown": {str(tag): value for tag, value in timed.report.unknown.items()},
        "time": timestamp(timed.time_ns),
    }


async def query_unused_pages(
    vm: VmControl, timeout: float = DEFAULT_TIMEOUT_S, runs: int = 0, cells: int = 0
) -> dict[str, Any]:
    """Return the pages that the guest's kernel had on its free lists a moment ago.

    The guest may use them again at any time. Not in the standard dialect.

    Arguments:
        timeout: the longest wait for the guest
        runs: the number of runs to list
        cells: the number of equal parts, at most, into which to divide guest-physical address
            space from 0 to the end of RAM; 0 for none
    Returns:
        seconds: the time that the guest took
        ram-pages: pages of 4 KiB of the guest's RAM
        unused-pages: those of them that are unused
        share: the ratio of the two
        largest-run: length of the longest run of such pages
        run-count: number of all runs
        runs?: the first runs by address, each as [first page frame number, number of pages]
        cells.pages?: pages in a cell, a power of two
        cells.ram?: pages of RAM in each cell; a cell with none lies in the hole below 4 GiB
        cells.unused?: such pages in each cell
    Errors:
        DeviceNotActive: the driver cannot respond, does not in time, or responds wrongly
    In QEMU:
        no such command
    """
    begin = time.monotonic()
    unused = await _response(vm.misc_requests.unused_pages(timeout))
    seconds = time.monotonic() - begin
    return _describe(vm.ram_pages, unused, seconds, runs, cells)


async def query_free_page_hints(
    vm: VmControl, timeout: float = DEFAULT_TIMEOUT_S, runs: int = 0, cells: int = 0
) -> dict[str, Any]:
    """Return the pages that the guest's driver could allocate and hold for a moment.

    The driver has released them when the command returns. Needs the standard dialect, and the
    feature FREE_PAGE_HINT, which is not offered by default.

    Arguments:
        timeout: the longest wait for the guest
        runs: the number of runs to list
        cells: the number of equal parts, at most, into which to divide guest-physical address
            space from 0 to the end of RAM; 0 for none
    Returns:
        complete: whether the driver could hint all free pages in time
        seconds: the time that the guest took
        ram-pages: pages of 4 KiB of the guest's RAM
        unused-pages: those of them that are hinted
        share: the ratio of the two
        largest-run: length of the longest run of such pages
        run-count: number of all runs
        runs?: the first runs by address, each as [first page frame number, number of pages]
        cells.pages?: pages in a cell, a power of two
        cells.ram?: pages of RAM in each cell; a cell with none lies in the hole below 4 GiB
        cells.unused?: such pages in each cell
    Errors:
        DeviceNotActive: the driver cannot respond, does not in time, or responds wrongly
    In QEMU:
        no such command; a migration uses the hints there
    """
    begin = time.monotonic()
    hints = await _response(_hints(vm, timeout))
    result = _describe(vm.ram_pages, hints.pages, time.monotonic() - begin, runs, cells)
    return {"complete": hints.complete, **result}


async def _hints(vm: VmControl, timeout_s: float) -> Hints:
    async with vm.free_page_hints.held(timeout_s) as hints:
        return hints


async def drop_caches(vm: VmControl, timeout: float = DEFAULT_TIMEOUT_S) -> dict[str, Any]:
    """Have the guest's kernel drop its clean caches; dirty pages stay, so sync first.

    Not in the standard dialect. Needs a driver that knows this request, as that of guest.img does.

    Arguments:
        timeout: the longest wait for the guest
    Errors:
        DeviceNotActive: the driver cannot respond, does not in time, or responds wrongly
    In QEMU:
        no such command
    """
    await _response(vm.misc_requests.drop_caches(timeout))
    return {}


async def sync_filesystems(vm: VmControl, timeout: float = DEFAULT_TIMEOUT_S) -> dict[str, Any]:
    """Have the guest's kernel write out its file systems.

    Not in the standard dialect. Needs a driver that knows this request, as that of guest.img does.

    Arguments:
        timeout: the longest wait for the guest
    Errors:
        DeviceNotActive: the driver cannot respond, does not in time, or responds wrongly
    In QEMU:
        no such command
    """
    await _response(vm.misc_requests.sync_filesystems(timeout))
    return {}


async def _response(request: Awaitable[_T]) -> _T:
    """Return the response of the guest; raises `QmpError` if the request fails."""
    try:
        return await request
    except GuestRequestError as error:
        raise QmpError(str(error), "DeviceNotActive") from error


def _describe(
    ram: PageRuns, unused: PageRuns, seconds: float, runs: int, cells: int
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "seconds": round(seconds, 6),
        "ram-pages": ram.pages,
        "unused-pages": unused.pages,
        "share": round(unused.pages / ram.pages, 6),
        "largest-run": unused.largest,
        "run-count": len(unused),
    }
    if runs:
        result["runs"] = [list(run) for run, _ in zip(unused, range(runs), strict=False)]
    if cells:
        result["cells"] = _cells(ram, unused, cells)
    return result


def _cells(ram: PageRuns, unused: PageRuns, at_most: int) -> dict[str, Any]:
    end_pfn = max(start + count for start, count in ram)
    pages = 1 << (-(-end_pfn // at_most) - 1).bit_length()
    count = -(-end_pfn // pages)
    return {
        "pages": pages,
        "ram": ram.per_cell(pages, count),
        "unused": unused.per_cell(pages, count),
    }


TIMEOUT = Parameter(
    "timeout",
    float,
    required=False,
    expects=f"seconds, more than 0 to {MAX_TIMEOUT_S:g}",
    accepts=lambda seconds: 0 < seconds <= MAX_TIMEOUT_S,  # rejects NaN, too
)
_PAGES = (
    TIMEOUT,
    Parameter(
        "runs",
        int,
        required=False,
        expects=f"a value of 0 to {MAX_RUNS}",
        accepts=lambda runs: 0 <= runs <= MAX_RUNS,
    ),
    Parameter(
        "cells",
        int,
        required=False,
        expects=f"a value of 0 to {MAX_CELLS}",
        accepts=lambda cells: 0 <= cells <= MAX_CELLS,
    ),
)

COMMANDS = {
    "query-balloon-stats": Command(query_balloon_stats, (TIMEOUT,)),
    "query-unused-pages": Command(query_unused_pages, _PAGES),
    "query-free-page-hints": Command(query_free_page_hints, _PAGES),
    "balloon-drop-caches": Command(drop_caches, (TIMEOUT,)),
    "balloon-sync-filesystems": Command(sync_filesystems, (TIMEOUT,)),
}
