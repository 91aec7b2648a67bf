# SPDX-License-Identifier: Apache-2.0
"""The host's pool of huge pages, as its files in /sys and /proc describe it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from pyvmm.memory.huge_page_pool import (
    HugePagePool,
    grow_pool,
    hugetlbfs_bytes,
    read_pool,
    transparent_bytes,
    transparent_setting,
)
from pyvmm.units import HUGE_PAGE_BYTES, MIB


def make_pool(
    directory: Path, *, total: int = 10, free: int = 10, reserved: int = 0, surplus: int = 0
) -> Path:
    numbers = {"nr": total, "free": free, "resv": reserved, "surplus": surplus}
    for name, number in {**numbers, "nr_overcommit": 0}.items():
        (directory / f"{name}_hugepages").write_text(f"{number}\n")
    return directory


def test_the_pool_counts_persistent_and_surplus_pages(tmp_path: Path) -> None:
    make_pool(tmp_path, total=12, free=5, reserved=2, surplus=3)
    (tmp_path / "nr_overcommit_hugepages").write_text("4\n")
    pool = read_pool(tmp_path)
    assert pool == HugePagePool(total=9, free=5, reserved=2, surplus=3, max_surplus=4)
    assert pool.available == 5 - 2 + 1


def test_a_kernel_without_huge_pages_has_no_pool(tmp_path: Path) -> None:
    assert read_pool(tmp_path / "none") is None
    grow_pool(3, tmp_path / "none")


@pytest.mark.parametrize(("wanted", "size"), [(7, 10), (8, 10), (9, 11), (20, 22)])
def test_a_pool_grows_by_what_is_missing(tmp_path: Path, wanted: int, size: int) -> None:
    make_pool(tmp_path, total=10, free=9, reserved=1)
    grow_pool(wanted, tmp_path)
    assert int((tmp_path / "nr_hugepages").read_text()) == size


def test_the_setting_of_transparent_huge_pages_is_in_brackets(tmp_path: Path) -> None:
    file = tmp_path / "enabled"
    assert transparent_setting(file) == "never"
    file.write_text("always [madvise] never\n")
    assert transparent_setting(file) == "madvise"


def test_a_process_that_has_ended_has_no_huge_pages() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert hugetlbfs_bytes(child) == 0
    os.waitpid(child, 0)


def test_huge_pages_of_this_process_are_counted() -> None:
    if transparent_setting() == "never":
        pytest.skip("this host has no transparent huge pages")
    before = transparent_bytes()
    with mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, len(area), mmap.PAGESIZE):
            area[offset] = 1
        grown = transparent_bytes() - before
    assert grown % HUGE_PAGE_BYTES == 0
    assert grown >= 24 * MIB
    assert hugetlbfs_bytes() == 0
