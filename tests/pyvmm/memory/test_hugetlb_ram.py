# SPDX-License-Identifier: Apache-2.0
"""RAM in huge pages, on a host whose pool is empty: it is mapped from ordinary memory here.

tests/kvm/test_guest_hugepages.py has the same with a pool, and with guests.
"""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import pytest

from pykvm import address_of
from pyvmm.memory import hugetlb_ram
from pyvmm.memory.errors import HostMemoryUnavailable, HugePagesUnavailable
from pyvmm.memory.huge_page_pool import HugePagePool, read_pool
from pyvmm.memory.hugetlb_ram import HugetlbRam
from pyvmm.memory.ram import Ram
from pyvmm.units import GIB, HUGE_PAGE_BYTES, MIB
from pyvmm_native.huge_pages import HugePageBacking
from pyvmm_native.memory import GuestMemory
from pyvmm_native.pages import touched
from pyvmm_native.runs import PageRuns

PAGE = 4096


@pytest.fixture
def ram(monkeypatch: pytest.MonkeyPatch) -> HugetlbRam:
    monkeypatch.setattr(HugetlbRam, "_map", Ram._map)
    return HugetlbRam(64 * MIB)


def huge_pages(*numbers: int) -> PageRuns:
    return PageRuns((512 * number, 512) for number in numbers)


def test_discarded_huge_pages_read_as_zeros_and_others_keep_their_contents(ram: HugetlbRam) -> None:
    ram.memory.write(0, b"\x5a" * (16 * MIB))
    seen: list[PageRuns] = []
    ram.before_discard.add(seen.append)
    assert ram.discard(huge_pages(1, 2, 5)) == 3 * HUGE_PAGE_BYTES
    assert seen == [huge_pages(1, 2, 5)]
    for number in range(8):
        expected = 0 if number in (1, 2, 5) else 0x5A
        data = ram.memory.read(number * HUGE_PAGE_BYTES, HUGE_PAGE_BYTES)
        assert data == bytes([expected]) * HUGE_PAGE_BYTES
    assert not touched(ram.memory, huge_pages(1, 2, 5)).intersect(huge_pages(0, 3, 4))


def test_discarded_memory_can_be_used_and_discarded_again(ram: HugetlbRam) -> None:
    for _ in range(3):
        ram.memory.write(3 * HUGE_PAGE_BYTES, b"used")
        assert ram.discard(huge_pages(3)) == HUGE_PAGE_BYTES
        assert ram.memory.read(3 * HUGE_PAGE_BYTES, 4) == bytes(4)


@pytest.mark.parametrize("runs", [[(0, 511)], [(1, 512)], [(512 * 31, 1024)], [(1 << 45, 512)]])
def test_parts_of_huge_pages_are_not_discarded(
    ram: HugetlbRam, runs: list[tuple[int, int]]
) -> None:
    ram.memory.write(0, b"\x5a" * (64 * MIB))
    with pytest.raises(ValueError, match="not whole huge pages of RAM"):
        ram.discard(PageRuns([(512 * 4, 512), *runs]))
    assert touched(ram.memory, ram.pages) == ram.pages


def test_discards_are_logged_as_dirty(ram: HugetlbRam) -> None:
    ram.memory.log_dirty_pages(True)
    ram.discard(huge_pages(2))
    ((start_pfn, bits),) = ram.memory.take_dirty_pages()
    assert PageRuns.from_bitmap(bits, start_pfn) == huge_pages(2)


def test_memory_is_ordinary_while_the_pool_is_empty(ram: HugetlbRam) -> None:
    pool = read_pool()
    if pool is None or pool.available:
        pytest.skip("this host has huge pages to give")
    ram.discard(huge_pages(2, 3))
    ram.restore_backing(huge_pages(2, 3))
    ram.memory.write(2 * HUGE_PAGE_BYTES, b"ordinary memory")
    assert ram.memory.read(2 * HUGE_PAGE_BYTES, 15) == b"ordinary memory"


def test_parts_of_huge_pages_become_zero(ram: HugetlbRam) -> None:
    ram.memory.write(0, b"\x5a" * (8 * MIB))
    ram.zero(PageRuns([(3, 2), (500, 600), (16000, 5)]))
    expected = bytearray(b"\x5a" * (8 * MIB))
    expected[3 * PAGE : 5 * PAGE] = bytes(2 * PAGE)
    expected[500 * PAGE : 1100 * PAGE] = bytes(600 * PAGE)
    assert ram.memory.read(0, 8 * MIB) == expected
    assert not touched(ram.memory, PageRuns([(16000, 5)])), "untouched memory stays untouched"


def test_neither_a_child_nor_a_core_dump_has_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child would take huge pages from the pool for what its parent writes."""
    for flag in ("MAP_HUGETLB", "MAP_HUGE_2MB"):
        monkeypatch.setattr(hugetlb_ram, flag, 0)
    ram = Ram.__new__(HugetlbRam)
    area = ram._map(4 * MIB)
    start = f"{address_of(area):x}-"
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
    index = next(i for i, text in enumerate(mappings) if f"\n{start}" in text)
    assert {"dc", "dd"} <= set(mappings[index + 1].splitlines()[0].split())


def test_a_device_sees_pages_of_2_mib(ram: HugetlbRam) -> None:
    assert ram.host_page_pages == 512
    ram.close()
    assert not touched(ram.memory, ram.pages)


def test_a_pool_that_is_too_small_is_named_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = HugePagePool(total=10, free=9, reserved=4, surplus=0, max_surplus=0)
    monkeypatch.setattr(hugetlb_ram, "read_pool", lambda: pool)
    with pytest.raises(HugePagesUnavailable, match=r"needs 524288 huge pages .* has 5 that") as got:
        HugetlbRam(1024 * GIB)
    assert got.value.pool_pages == 10 + 524288 - 5


def test_other_reasons_are_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(ram: HugetlbRam, length: int) -> memoryview:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(HugetlbRam, "_map", refuse)
    enough = HugePagePool(total=64, free=64, reserved=0, surplus=0, max_surplus=0)
    for pool, reason in (
        (enough, "cannot reserve 32 huge pages .*: Cannot allocate"),
        (None, "no huge pages"),
    ):
        monkeypatch.setattr(hugetlb_ram, "read_pool", lambda pool=pool: pool)
        with pytest.raises(HugePagesUnavailable, match=reason) as got:
            HugetlbRam(64 * MIB)
        assert got.value.pool_pages is None
        assert isinstance(got.value, HostMemoryUnavailable)


def test_only_private_aligned_memory_is_replaced(tmp_path: Path) -> None:
    shared = mmap.mmap(-1, 4 * MIB)
    private = Ram(64 * MIB).memory
    HugePageBacking(private)
    part = Ram(64 * MIB)._maps[0][1]
    for regions, reason in (
        ([(0, shared)], "not private memory|not aligned"),
        ([(PAGE, part[:HUGE_PAGE_BYTES])], "not aligned"),
        ([(0, part[PAGE : PAGE + HUGE_PAGE_BYTES])], "not aligned"),
        ([(0, part[: HUGE_PAGE_BYTES + PAGE])], "not aligned"),
    ):
        with pytest.raises(ValueError, match=reason):
            HugePageBacking(GuestMemory(regions))
