# SPDX-License-Identifier: Apache-2.0
"""Huge pages of 2 MiB on this host: the pool of hugetlbfs, and the use of huge pages.

An administrator sizes the pool (vm.nr_hugepages). A mapping reserves pages of it: they are free
until they are touched, but belong to that mapping. With vm.nr_overcommit_hugepages the kernel adds
surplus pages when the pool is exhausted and it finds some.

Documentation/admin-guide/mm/hugetlbpage.rst, Documentation/admin-guide/mm/transhuge.rst.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pyvmm.config import HugePages
from pyvmm.units import KIB

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class HugePagePool(NamedTuple):
    """The pool of one size, in huge pages."""

    total: int
    """Persistent pages, the value of vm.nr_hugepages."""
    free: int
    """Pages that hold nothing, whether or not they are reserved."""
    reserved: int
    """Free pages that belong to a mapping."""
    surplus: int
    """Pages in addition to the persistent ones."""
    max_surplus: int
    """Most surplus pages that the kernel may add."""

    @property
    def available(self) -> int:
        """Return how many pages a new mapping can reserve, if memory for surplus ones is found."""
        return self.free - self.reserved + max(0, self.max_surplus - self.surplus)


class MemoryBacking(NamedTuple):
    """The memory of the host behind a guest's RAM; sizes in bytes."""

    hugepages: HugePages
    host_page_bytes: int
    """The unit in which RAM can be discarded."""
    transparent_bytes: int
    """Memory of this process in transparent huge pages."""
    hugetlbfs_bytes: int
    """Memory of this process in huge pages of hugetlbfs that were touched; not part of RSS."""


def read_pool(directory: Path = POOL) -> HugePagePool | None:
    """Return the pool of pages of 2 MiB; None on a kernel without one."""
    names = ("nr", "free", "resv", "surplus", "nr_overcommit")
    try:
        total, free, reserved, surplus, max_surplus = (
            int((directory / f"{name}_hugepages").read_text()) for name in names
        )
    except FileNotFoundError:
        return None
    return HugePagePool(total - surplus, free, reserved, surplus, max_surplus)


def grow_pool(pages: int, directory: Path = POOL) -> None:
    """Have the kernel add huge pages until `pages` are available, as far as it finds memory.

    OSError without the privilege. For machines that nothing else uses, such as a lab.
    """
    pool = read_pool(directory)
    if pool is not None and pool.available < pages:
        size = pool.total + pages - pool.available
        (directory / "nr_hugepages").write_text(str(size))


def transparent_setting(file: Path = TRANSPARENT) -> str:
    """Return the kernel's setting of transparent huge pages: always, madvise or never."""
    try:
        words = file.read_text().split()
    except FileNotFoundError:
        return "never"
    return next(word.strip("[]") for word in words if word.startswith("["))


def hugetlbfs_bytes(pid: int | None = None) -> int:
    """Return the memory of process `pid`, or of this one, in huge pages of hugetlbfs, in bytes."""
    return _field(Path(f"/proc/{pid or 'self'}/status"), "HugetlbPages")


def transparent_bytes() -> int:
    """Return the memory of this process in transparent huge pages, in bytes.

    The kernel looks at each page of the process: some milliseconds per GiB in small pages.
    """
    return _field(Path("/proc/self/smaps_rollup"), "AnonHugePages")


def _field(file: Path, name: str) -> int:
    """Return the size `name` in a file of /proc, in bytes; 0 if it is missing."""
    for line in file.read_text().splitlines():
        field, _, value = line.partition(":")
        if field == name:
            return int(value.split()[0]) * KIB
    return 0
