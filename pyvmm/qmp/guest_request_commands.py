# SPDX-License-Identifier: Apache-2.0
"""Commands that make a request to the guest's balloon driver; all are pyvmm's own.

    query-balloon-stats        {"timeout": S}
    query-unused-pages         {"timeout": S, "runs": N, "cells": N}
    query-free-page-hints      the same
    balloon-drop-caches        {"timeout": S}
    balloon-sync-filesystems   {"timeout": S}

All arguments are optional. The commands are named after the device that carries the requests. QEMU
has none with that prefix, "guest-" would suggest its guest agent, which no pyvmm guest needs, and
"x-" marks commands that may change without notice. A client waits for the reply, at most `timeout`
seconds. A request that fails, for any reason, is an error of class DeviceNotActive.

query-balloon-stats returns statistics measured after the command, null for those that the guest
does not report.

Unused pages are the pages that the guest's kernel reports as free on request (bitmap dialect,
MISC_VQ), or that its driver can allocate and hold for a moment (standard dialect, FREE_PAGE_HINT),
with "complete" if it could hint all of them in time. They are counted, and on request listed as
runs and as cells. Runs are [start, count] in 4 KiB page frames, the first `runs` of them by
address; "run-count" is the number of all runs. Cells are equal parts of guest-physical address
space from 0 to the end of RAM, at most `cells` of them, each of a power of two of pages. A cell has
the numbers of its pages that are RAM and that are unused, which is enough for a picture. A cell
without RAM lies in the hole below 4 GiB.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from pyvmm.balloon.guest_requests import DEFAULT_TIMEOUT_S, GuestRequestError
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
    """Return statistics measured after the command."""
    check_timeout(timeout)
    timed = await _response(vm.balloon_statistics.fresh(timeout))
    return {
        "stats": timed.report.known,
        "unknown": {str(tag): value for tag, value in timed.report.unknown.items()},
        "time": timestamp(timed.time_ns),
    }


async def query_unused_pages(
    vm: VmControl, timeout: float = DEFAULT_TIMEOUT_S, runs: int = 0, cells: int = 0
) -> dict[str, Any]:
    """Return the pages that the guest did not use a moment ago."""
    _check_arguments(timeout, runs, cells)
    begin = time.monotonic()
    unused = await _response(vm.misc_requests.unused_pages(timeout))
    seconds = time.monotonic() - begin
    return _describe(vm.ram_pages, unused, seconds, runs, cells)


async def query_free_page_hints(
    vm: VmControl, timeout: float = DEFAULT_TIMEOUT_S, runs: int = 0, cells: int = 0
) -> dict[str, Any]:
    """Return the pages that the guest could do without for a moment; it may use them again now."""
    _check_arguments(timeout, runs, cells)
    begin = time.monotonic()
    hints = await _response(_hints(vm, timeout))
    result = _describe(vm.ram_pages, hints.pages, time.monotonic() - begin, runs, cells)
    return {"complete": hints.complete, **result}


async def _hints(vm: VmControl, timeout_s: float) -> Hints:
    async with vm.free_page_hints.held(timeout_s) as hints:
        return hints


async def drop_caches(vm: VmControl, timeout: float = DEFAULT_TIMEOUT_S) -> dict[str, Any]:
    """Have the guest drop its clean caches; dirty pages stay, so sync first."""
    check_timeout(timeout)
    await _response(vm.misc_requests.drop_caches(timeout))
    return {}


async def sync_filesystems(vm: VmControl, timeout: float = DEFAULT_TIMEOUT_S) -> dict[str, Any]:
    """Have the guest write out its file systems."""
    check_timeout(timeout)
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


def _check_arguments(timeout_s: float, runs: int, cells: int) -> None:
    check_timeout(timeout_s)
    _check_at_most("runs", runs, MAX_RUNS)
    _check_at_most("cells", cells, MAX_CELLS)


def check_timeout(seconds: float) -> None:
    """Raise `QmpError` unless `seconds` is a valid time-out."""
    if not 0 < seconds <= MAX_TIMEOUT_S:  # rejects NaN, too
        raise QmpError(f"Parameter 'timeout' expects seconds, more than 0 to {MAX_TIMEOUT_S:g}")


def _check_at_most(name: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise QmpError(f"Parameter '{name}' expects a value of 0 to {most}")
