# SPDX-License-Identifier: Apache-2.0
"""KVM's dirty log of all slots, and exactly the pages whose log is cleared."""

from __future__ import annotations

from typing import cast

import pytest

from pykvm import Vm
from pyvmm.memory.dirty_log import KvmDirtyLog
from pyvmm.memory.ram import Ram
from pyvmm.units import GIB, MIB
from pyvmm_native.runs import PageRuns
from tests.pyvmm.migration.migration_guest import PAGE, LoggingVm, PlainRam

RAM_BYTES = 3 * GIB + 65 * MIB
HIGH_PFN = 4 * GIB // PAGE
LAST_PFN = HIGH_PFN + 65 * MIB // PAGE - 1
WRITTEN = [0, 63, 64, 127, 16384, 16385, HIGH_PFN, HIGH_PFN + 16384, LAST_PFN]


class LoggedRam:
    """RAM on both sides of the PCI hole, whose guest has written the pages `WRITTEN`."""

    def __init__(self, manual: bool = True) -> None:
        self.ram = PlainRam(RAM_BYTES)
        self.vm = LoggingVm(manual)
        self.log = KvmDirtyLog(cast(Vm, self.vm), cast(Ram, self.ram))

    def write(self, *pfns: int) -> None:
        for pfn in pfns:
            slot, page, _ = self.ram.slot_of(pfn)
            self.vm.written(slot, page)


def pages(runs: PageRuns) -> list[int]:
    return [pfn for start, count in runs for pfn in range(start, start + count)]


@pytest.mark.parametrize(
    ("start_pfn", "count", "cleared"),
    [
        (0, 64, {0, 63}),
        (64, 64, {64, 127}),
        (64, 16384 - 64 + 1, {64, 127, 16384}),
        (16384, 16384, {16384, 16385}),
        (HIGH_PFN, 16384, {HIGH_PFN}),
        (HIGH_PFN + 16384, 16384, {HIGH_PFN + 16384, LAST_PFN}),  # beyond the end of RAM
    ],
)
def test_the_pages_of_a_range_are_cleared_and_no_others(
    start_pfn: int, count: int, cleared: set[int]
) -> None:
    guest = LoggedRam()
    with guest.log as log:
        guest.write(*WRITTEN)
        assert pages(log.collect()) == WRITTEN
        log.clear(start_pfn, count)
        assert pages(log.collect()) == [pfn for pfn in WRITTEN if pfn not in cleared]


def test_nothing_is_logged_outside_the_block() -> None:
    guest = LoggedRam()
    assert not guest.vm.logging
    with guest.log:
        assert guest.vm.logging
    assert not guest.vm.logging


def test_a_page_that_is_written_after_the_collection_is_not_cleared() -> None:
    guest = LoggedRam()
    with guest.log as log:
        guest.write(0)
        log.collect()
        guest.write(1)
        log.clear(0, 64)
        assert pages(log.collect()) == [1]


def test_a_kvm_without_manual_protection_clears_by_itself() -> None:
    guest = LoggedRam(manual=False)
    with guest.log as log:
        guest.write(*WRITTEN)
        assert pages(log.collect()) == WRITTEN
        log.clear(0, 64)
        assert pages(log.collect()) == []
