# SPDX-License-Identifier: Apache-2.0
"""Guests whose RAM is in huge pages of hugetlbfs.

The tests need a pool. They make one in the lab, whose kernel is their own; on another machine the
pool is the administrator's, and a test is skipped if it is too small.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.config import HugePages
from pyvmm.harness.guest_session import (
    GuestSession,
    guest_session,
    incoming_session,
    restored_session,
)
from pyvmm.machine.catalogue import part_kinds
from pyvmm.machine.exit_result import ExitReason
from pyvmm.memory.errors import HugePagesUnavailable
from pyvmm.memory.huge_page_pool import POOL, HugePagePool, grow_pool, read_pool
from pyvmm.memory.hugetlb_ram import MAP_HUGE_2MB, MAP_HUGETLB, HugetlbRam
from pyvmm.memory.rss import resident_bytes
from pyvmm.qmp import commands
from pyvmm.qmp.messages import Request
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.saver import SnapshotRequest
from pyvmm.sockets.addresses import parse_migration_address
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from pyvmm.units import HUGE_PAGE_BYTES, MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns
from tests.kvm.balloon_driver import power_off
from tests.kvm.fixture_types import MakeConfig, RunGuest

pytestmark = pytest.mark.kvm

RAM_MIB = 192
RAM_HUGE_PAGES = RAM_MIB // 2
POOL_PAGES = 2 * RAM_HUGE_PAGES + 16
"""Enough for two guests at once, and some to spare."""
INFLATE_MIB, PATTERN_MIB = 96, 24
WRITE_CONTINUOUSLY = "(while pattern grab 8 fill 3 verify 3 free; do echo good; done) > /log 2>&1 &"
INTACT = f"verified {PATTERN_MIB * MIB} wrong 0"


@pytest.fixture(autouse=True)
def pool() -> Iterator[Callable[[], HugePagePool]]:
    """Return a function that reads the pool, of which POOL_PAGES are available at first."""

    def read() -> HugePagePool:
        pool = read_pool()
        assert pool is not None
        return pool

    size = (POOL / "nr_hugepages").read_text()
    if in_lab():
        grow_pool(POOL_PAGES)
    if read().available < POOL_PAGES:
        pytest.skip(f"the pool has {read().available} huge pages, not {POOL_PAGES}")
    yield read
    if in_lab():
        (POOL / "nr_hugepages").write_text(size)


@contextlib.contextmanager
def reserved(huge_pages: int) -> Iterator[None]:
    """Reserve `huge_pages`, as another process would."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB
    with mmap.mmap(-1, huge_pages * HUGE_PAGE_BYTES, flags=flags):
        yield


def huge_pages(*numbers: int) -> PageRuns:
    return PageRuns((512 * number, 512) for number in numbers)


async def hold_pattern(guest: GuestSession) -> None:
    """Have the guest touch most of its memory, and keep a pattern in some of it."""
    await guest.wait_for_user_space()
    for command in ("alloc 130", "free", f"alloc {PATTERN_MIB}", "fill 7"):
        await guest.command(command)


async def use_memory(guest: GuestSession, mib: int) -> None:
    """Verify the pattern, then have the guest use `mib` MiB in its place, and verify that."""
    assert await guest.command("verify 7") == INTACT
    for command in ("free", f"alloc {mib}", "fill 8"):
        await guest.command(command)
    assert await guest.command("verify 8") == f"verified {mib * MIB} wrong 0"


def test_discarded_huge_pages_belong_to_the_pool(pool: Callable[[], HugePagePool]) -> None:
    """They return to it with their reservation, and are taken from it with one."""
    before, rss = pool().available, resident_bytes()
    ram = HugetlbRam(16 * HUGE_PAGE_BYTES)
    assert pool().available == before - 16
    for number in range(16):
        ram.memory.write(number * HUGE_PAGE_BYTES, b"%d" % number)
    assert resident_bytes() - rss >= 16 * HUGE_PAGE_BYTES
    ram.discard(huge_pages(2, 3, 4, 9))
    assert pool().available == before - 12
    assert ram.memory.read(3 * HUGE_PAGE_BYTES, 2) == bytes(2)
    ram.memory.write(3 * HUGE_PAGE_BYTES, b"ordinary")
    ram.restore_backing(huge_pages(3, 9))
    assert pool().available == before - 14
    assert ram.memory.read(3 * HUGE_PAGE_BYTES, 8) == bytes(8)
    assert ram.memory.read(5 * HUGE_PAGE_BYTES, 1) == b"5"
    ram.close()
    assert pool().available == before


# Huge pages that a driver said not to use have contents, and mremap fails.
REFUSED = """
import errno
from pyvmm.memory.hugetlb_ram import HugetlbRam
from pyvmm.units import HUGE_PAGE_BYTES
from pyvmm_native.runs import PageRuns
from tests.native.seccomp import refuse

ram = HugetlbRam(8 * HUGE_PAGE_BYTES)
pages = PageRuns([(512 * 2, 512 * 4)])
ram.discard(pages)
ram.memory.write(0, b"x" * ram.size_bytes)
ram.memory.log_dirty_pages(True)
refuse(25, errno.ENOMEM)  # mremap
ram.restore_backing(pages)
((start_pfn, bits),) = ram.memory.take_dirty_pages()
dirty = PageRuns.from_bitmap(bits, start_pfn)
for number in range(8):
    kept = ram.memory.read(number * HUGE_PAGE_BYTES, HUGE_PAGE_BYTES) == b"x" * HUGE_PAGE_BYTES
    assert kept or number * 512 in dirty, f"huge page {number} changed"
    assert kept == (number not in range(2, 6))
assert dirty == pages, dirty
"""


def test_memory_that_a_failed_move_has_made_zero_is_dirty(pool: Callable[[], HugePagePool]) -> None:
    before = pool().available
    done = subprocess.run(
        [sys.executable, "-c", REFUSED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert pool().available == before


def test_memory_is_ordinary_where_the_pool_is_exhausted(pool: Callable[[], HugePagePool]) -> None:
    """No access fails when another process has taken the pages that were discarded."""
    ram = HugetlbRam(16 * HUGE_PAGE_BYTES)
    ram.discard(huge_pages(*range(4, 16)))
    with reserved(pool().available - 5):
        ram.restore_backing(huge_pages(4, 5, 8, 9, 10, 11))
        assert pool().available == 0
        for number in range(16):
            ram.memory.write(number * HUGE_PAGE_BYTES, b"%2d" % number)
        written = [int(ram.memory.read(n * HUGE_PAGE_BYTES, 2)) for n in range(16)]
        assert written == list(range(16))
    ram.close()


def test_a_guest_that_finds_too_few_huge_pages_does_not_start(
    pool: Callable[[], HugePagePool], make_config: MakeConfig
) -> None:
    config = make_config(memory_mib=RAM_MIB, hugepages="hugetlbfs")

    async def boot() -> None:
        async with guest_session(config):
            raise AssertionError("the guest runs")

    before = pool()
    with reserved(before.available - 60):
        with pytest.raises(HugePagesUnavailable, match=r"needs 96 .* has 60 that are") as caught:
            asyncio.run(boot())
        assert pool().available == 60, "nothing is left reserved"
    assert caught.value.pool_pages == before.total + RAM_HUGE_PAGES - 60


@pytest.mark.parametrize("dialect", ["standard", "bitmap"])
def test_inflating_returns_huge_pages_and_deflating_takes_them(
    run_guest: RunGuest,
    pool: Callable[[], HugePagePool],
    figure: Callable[[str], None],
    dialect: str,
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await hold_pattern(guest)
        before, balloon = pool().available, guest.vm.balloon
        assert before <= POOL_PAGES - RAM_HUGE_PAGES
        rss = resident_bytes()
        await guest.resize_balloon(INFLATE_MIB * MIB // PAGE_BYTES)
        counters = balloon.counters
        returned = pool().available - before
        assert returned * HUGE_PAGE_BYTES == counters.discarded_bytes
        assert counters.discarded_bytes + counters.kept_bytes == INFLATE_MIB * MIB
        assert counters.discarded_bytes > 0.75 * INFLATE_MIB * MIB
        assert rss - resident_bytes() > counters.discarded_bytes - 8 * MIB
        backing = commands.execute(guest.vm, Request("query-memory-backing", {}))
        assert (backing["hugepages"], backing["host-page-size"]) == ("hugetlbfs", HUGE_PAGE_BYTES)
        reply = commands.execute(guest.vm, Request("query-balloon", {}))
        assert reply["kept"] == counters.kept_bytes
        assert await guest.command("verify 7") == INTACT
        await guest.resize_balloon(0)
        assert balloon.counters.kept_bytes == 0
        assert pool().available == before
        # Others take the pages that the second balloon returns: the guest gets ordinary memory.
        await guest.resize_balloon(INFLATE_MIB * MIB // PAGE_BYTES)
        with reserved(pool().available - 8):
            await guest.resize_balloon(0)
            assert pool().available == 0
            await use_memory(guest, 110)
        await power_off(guest)
        figure(f"hugetlbfs, {dialect}: {returned} of {INFLATE_MIB // 2} huge pages returned")

    run_guest(scenario, memory_mib=RAM_MIB, dialect=dialect, hugepages="hugetlbfs")


def test_reported_huge_pages_return_to_the_pool(
    run_guest: RunGuest, pool: Callable[[], HugePagePool]
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await hold_pattern(guest)
        counters = guest.vm.balloon.counters
        async with asyncio.timeout(60):
            while counters.reported_bytes < 48 * MIB:
                await asyncio.sleep(0.05)
                counters = guest.vm.balloon.counters
        assert counters.reported_bytes % HUGE_PAGE_BYTES == 0
        assert pool().available * HUGE_PAGE_BYTES > 48 * MIB
        await use_memory(guest, 110)
        await power_off(guest)

    options = {"dialect": "standard", "offer": ["reporting"], "hugepages": "hugetlbfs"}
    run_guest(scenario, memory_mib=RAM_MIB, **options)


def test_a_guest_in_huge_pages_is_saved_and_restored(run_guest: RunGuest, file: Path) -> None:
    """Its snapshot says nothing of huge pages; its new RAM is in those of the choice then."""

    async def scenario(guest: GuestSession) -> None:
        await hold_pattern(guest)
        await guest.resize_balloon(48 * MIB // PAGE_BYTES)
        guest.vm.snapshots.start(SnapshotRequest(file))
        while guest.vm.snapshots.active:
            await asyncio.sleep(0.01)
        assert guest.vm.snapshots.status.status == "completed"
        await power_off(guest)

    async def restored(hugepages: HugePages) -> None:
        async with restored_session(file, hugepages=hugepages) as guest:
            assert guest.vm.config.hugepages == hugepages
            await guest.resize_balloon(64 * MIB // PAGE_BYTES)
            await guest.resize_balloon(0)
            await use_memory(guest, 90)
            await power_off(guest)

    run_guest(scenario, memory_mib=RAM_MIB, hugepages="hugetlbfs")
    with SnapshotFile(file, part_kinds()) as snapshot:
        assert snapshot.config.hugepages == "transparent"
    for hugepages in ("hugetlbfs", "transparent"):
        asyncio.run(restored(hugepages))


def test_a_guest_migrates_from_huge_pages_into_huge_pages(
    run_guest: RunGuest, pool: Callable[[], HugePagePool], address: str
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await hold_pattern(guest)
        await guest.resize_balloon(48 * MIB // PAGE_BYTES)
        await guest.shell(WRITE_CONTINUOUSLY)
        listener = MigrationListener(parse_migration_address(address), Security())
        for name, arguments in (
            ("migrate-set-parameters", {"downtime-limit": 5000}),
            ("migrate", {"uri": address}),
        ):
            commands.execute(guest.vm, Request(name, arguments))
        async with incoming_session(listener, hugepages="hugetlbfs") as there:
            assert there.vm.config.hugepages == "hugetlbfs"
            assert pool().available < POOL_PAGES - RAM_HUGE_PAGES
            assert await there.command("verify 7") == INTACT
            assert "good" in await there.shell("cat /log")
            await there.resize_balloon(0)
            assert await there.command("verify 7") == INTACT
            there.console.send_line("quit")
            assert (await there.wait_for_exit()).reason is ExitReason.POWEROFF

    run_guest(scenario, memory_mib=RAM_MIB, hugepages="hugetlbfs")
