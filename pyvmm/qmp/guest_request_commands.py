# SPDX-License-Identifier: Apache-2.0
"""Commands that ask the guest's balloon driver something; all are pyvmm's own.

    query-unused-pages         {"timeout": S, "runs": N, "cells": N}, all optional
    query-free-page-hints      the same
    balloon-drop-caches        {"timeout": S}
    balloon-sync-filesystems   {"timeout": S}

They are named after the device that carries the questions. QEMU has nothing of that prefix,
"guest-" would suggest its guest agent, which no pyvmm guest needs, and "x-" marks what may change
without notice. A client waits for its answer, at most `timeout` seconds.

Unused pages are what the guest's kernel calls free when it is asked (bitmap dialect, MISC_VQ), or
what its driver can allocate and hold for us for a moment (standard dialect, FREE_PAGE_HINT), with
"complete" if that came to an end in time. They come as numbers, and on request as runs and as
cells. Runs are [start, count] in 4 KiB page frames, the first `runs` of them by address;
"run-count" says how many there are. Cells are equal chunks of guest-physical address space from
0 to the end of RAM, at most `cells` of them, of a power of two of pages each: how many pages of
each are RAM and how many unused, which is enough for a picture. A cell without RAM lies in the hole
below 4 GiB.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from pyvmm.balloon.guest_requests import DEFAULT_TIMEOUT_S, GuestRequestError
from pyvmm.qmp.messages import QmpError

if TYPE_CHECKING:
    from pyvmm.balloon.free_page_hints import Hints
    from pyvmm.qmp.vm_control import MachineControl
    from pyvmm_native.runs import PageRuns

MAX_TIMEOUT_S = 86400.0
MAX_RUNS = 65536
MAX_CELLS = 65536

_T = TypeVar("_T")


async def query_unused_pages(
    machine: MachineControl, timeout: float = DEFAULT_TIMEOUT_S, runs: int = 0, cells: int = 0
) -> dict[str, Any]:
    """What the guest did not use a moment ago."""
    _check_arguments(timeout, runs, cells)
    begin = time.monotonic()
    unused = await _answered(machine.misc_requests.unused_pages(timeout))
    seconds = time.monotonic() - begin
    return _described(machine.ram_pages, unused, seconds, runs, cells)


async def query_free_page_hints(
    machine: MachineControl, timeout: float = DEFAULT_TIMEOUT_S, runs: int = 0, cells: int = 0
) -> dict[str, Any]:
    """What the guest could do without for a moment; it may use all of it again at once."""
    _check_arguments(timeout, runs, cells)
    begin = time.monotonic()
    hints = await _answered(_hints(machine, timeout))
    answer = _described(machine.ram_pages, hints.pages, time.monotonic() - begin, runs, cells)
    return {"complete": hints.complete, **answer}


async def _hints(machine: MachineControl, timeout_s: float) -> Hints:
    async with machine.free_page_hints.held(timeout_s) as hints:
        return hints


async def drop_caches(
    machine: MachineControl, timeout: float = DEFAULT_TIMEOUT_S
) -> dict[str, Any]:
    """Have the guest drop what it only caches; dirty pages stay, so sync first."""
    check_timeout(timeout)
    await _answered(machine.misc_requests.drop_caches(timeout))
    return {}


async def sync_filesystems(
    machine: MachineControl, timeout: float = DEFAULT_TIMEOUT_S
) -> dict[str, Any]:
    """Have the guest write its file systems out."""
    check_timeout(timeout)
    await _answered(machine.misc_requests.sync_filesystems(timeout))
    return {}


def _described(
    ram: PageRuns, unused: PageRuns, seconds: float, runs: int, cells: int
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "seconds": round(seconds, 6),
        "ram-pages": ram.pages,
        "unused-pages": unused.pages,
        "share": round(unused.pages / ram.pages, 6),
        "largest-run": unused.largest,
        "run-count": len(unused),
    }
    if runs:
        answer["runs"] = [list(run) for run, _ in zip(unused, range(runs), strict=False)]
    if cells:
        answer["cells"] = _cells(ram, unused, cells)
    return answer


def _cells(ram: PageRuns, unused: PageRuns, at_most: int) -> dict[str, Any]:
    end_pfn = max(start + count for start, count in ram)
    pages = 1 << (-(-end_pfn // at_most) - 1).bit_length()
    count = -(-end_pfn // pages)
    return {
        "pages": pages,
        "ram": ram.per_cell(pages, count),
        "unused": unused.per_cell(pages, count),
    }


async def _answered(question: Awaitable[_T]) -> _T:
    try:
        return await question
    except GuestRequestError as error:
        raise QmpError(str(error)) from error


def _check_arguments(timeout_s: float, runs: int, cells: int) -> None:
    check_timeout(timeout_s)
    _check_at_most("runs", runs, MAX_RUNS)
    _check_at_most("cells", cells, MAX_CELLS)


def check_timeout(seconds: float) -> None:
    """Refuse what is no time-out."""
    if not 0 < seconds <= MAX_TIMEOUT_S:  # written so that no number that is none passes
        raise QmpError(f"Parameter 'timeout' expects seconds, more than 0 to {MAX_TIMEOUT_S:g}")


def _check_at_most(name: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise QmpError(f"Parameter '{name}' expects a value of 0 to {most}")
