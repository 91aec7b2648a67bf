# SPDX-License-Identifier: Apache-2.0
"""Discarding memory, as resident pages and readable contents show it."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from mmap import ACCESS_COPY, MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path

import pytest

from pyvmm_native import discard as native
from pyvmm_native.discard import Discarded, discard, have_process_madvise
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

PAGE = 4096
MAP_NORESERVE = 0x4000  # <asm-generic/mman.h>; the mmap module lacks it in Python 3.11
BASE_PFN = 0x100
BASE_GPA = BASE_PFN * PAGE
SYS_MLOCK = 149
FILLED = b"\x5a" * PAGE


def anonymous(pages: int, *, flags: int = 0) -> mmap:
    """Return private anonymous memory without huge pages."""
    area = mmap(-1, pages * PAGE, flags=MAP_PRIVATE | MAP_ANONYMOUS | flags)
    area.madvise(MADV_NOHUGEPAGE)
    return area


def filled(pages: int) -> mmap:
    area = anonymous(pages)
    area[:] = FILLED * pages
    return area


def resident_bytes() -> int:
    """Return the exact count; /proc/self/statm lags behind by some pages per thread."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("smaps_rollup has no Rss")


def gone_pages(area: mmap) -> set[int]:
    pages = [area[i : i + PAGE] for i in range(0, len(area), PAGE)]
    assert all(page in (FILLED, bytes(PAGE)) for page in pages)
    return {i for i, page in enumerate(pages) if page == bytes(PAGE)}


def runs_of(*pairs: tuple[int, int]) -> PageRuns:
    """Return the runs, given by page number within the area, as guest page frames."""
    return PageRuns((BASE_PFN + start, count) for start, count in pairs)


@pytest.mark.parametrize("pattern", ["everything", "every other page", "ragged", "nothing"])
def test_named_pages_are_freed_and_no_others(pattern: str) -> None:
    pages = 16384  # 64 MiB
    pairs = {
        "everything": [(0, pages)],
        "every other page": [(i, 1) for i in range(0, pages, 2)],
        "ragged": [(i, 1 + i % 7) for i in range(0, pages - 8, 13)],
        "nothing": [],
    }[pattern]
    area = filled(pages)
    memory = GuestMemory([(BASE_GPA, area)])
    runs = runs_of(*pairs)
    before = resident_bytes()
    result = discard(memory, runs)
    fell = before - resident_bytes()
    assert result.bytes == runs.pages * PAGE
    # Python itself may allocate or free a little meanwhile.
    assert abs(fell - result.bytes) < pages * PAGE // 100
    assert gone_pages(area) == {i for start, count in pairs for i in range(start, start + count)}


def test_ranges_go_to_the_kernel_together() -> None:
    memory = GuestMemory([(BASE_GPA, filled(5000))])
    result = discard(memory, runs_of(*((2 * i, 1) for i in range(2500))))
    expected_calls = 3 if have_process_madvise() else 2500
    assert result == Discarded(bytes=2500 * PAGE, calls=expected_calls)


def test_a_run_may_cross_adjacent_regions() -> None:
    low, high = filled(4), filled(4)
    memory = GuestMemory([(BASE_GPA, low), (BASE_GPA + 4 * PAGE, high)])
    assert discard(memory, runs_of((3, 2), (6, 1))).bytes == 3 * PAGE
    assert gone_pages(low) == {3}
    assert gone_pages(high) == {0, 2}


def test_discarded_pages_are_logged_as_dirty() -> None:
    low, high = filled(4), filled(4)
    memory = GuestMemory([(BASE_GPA, low), (BASE_GPA + 4 * PAGE, high)])
    discard(memory, runs_of((0, 1)))
    memory.log_dirty_pages(True)
    discard(memory, runs_of((3, 2), (6, 1)))
    assert memory.take_dirty_pages() == [(BASE_PFN, b"\x08"), (BASE_PFN + 4, b"\x05")]


def test_more_than_2_gib_is_discarded_whole() -> None:
    """The kernel stops at 2 GiB per call, within a range: further calls take the rest."""
    gib_pages = 1 << 18
    area = anonymous(6 * gib_pages, flags=MAP_NORESERVE)
    kept = 2 * gib_pages + 12
    ends = [0, 9, gib_pages, 2 * gib_pages - 2, kept, 4 * gib_pages, 6 * gib_pages - 1]
    for page in ends:
        area[page * PAGE] = 1
    pairs = [(0, 10), (11, gib_pages - 1), (gib_pages + 11, gib_pages + 1)]
    pairs += [(kept + 1, 1), (kept + 3, 6 * gib_pages - kept - 3)]
    runs = runs_of(*pairs)
    result = discard(GuestMemory([(BASE_GPA, area)]), runs)
    assert result.bytes == runs.pages * PAGE
    assert result.calls >= 3
    assert [page for page in ends if area[page * PAGE]] == [kept]


@pytest.mark.parametrize(
    "pairs", [[(-1, 2)], [(7, 2)], [(0, 1), (8, 1)], [(1 << 51, 1)], [(0, (1 << 52) - BASE_PFN)]]
)
def test_runs_outside_ram_discard_nothing(pairs: list[tuple[int, int]]) -> None:
    area = filled(8)
    with pytest.raises(ValueError, match="not wholly inside guest RAM"):
        discard(GuestMemory([(BASE_GPA, area)]), runs_of(*pairs))
    assert gone_pages(area) == set()


def test_memory_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    file.write_bytes(FILLED * 8)
    with file.open("r+b") as opened:
        areas = {
            "shared": mmap(-1, 8 * PAGE),
            "shared file": mmap(opened.fileno(), 8 * PAGE),
            "private file": mmap(opened.fileno(), 8 * PAGE, access=ACCESS_COPY),
        }
    for kind, area in areas.items():
        area[:] = FILLED * 8
        with pytest.raises(ValueError, match="not private anonymous"):
            discard(GuestMemory([(BASE_GPA, area)]), runs_of((0, 8)))
        assert gone_pages(area) == set(), kind


def test_one_bad_region_refuses_all() -> None:
    memory = GuestMemory([(BASE_GPA, filled(4)), (BASE_GPA + (1 << 20), mmap(-1, 4 * PAGE))])
    with pytest.raises(ValueError, match="region at gpa 0x200000 is not private"):
        discard(memory, runs_of((0, 1)))


def test_unaligned_memory_is_refused() -> None:
    area = filled(3)
    memory = GuestMemory([(BASE_GPA, memoryview(area)[64 : 64 + 2 * PAGE])])
    with pytest.raises(ValueError, match="does not start at a page"):
        discard(memory, runs_of((0, 1)))


def test_a_region_may_span_several_mappings() -> None:
    """Advice for a part, such as against huge pages, splits the kernel's mapping."""
    area = mmap(-1, 64 * PAGE, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    area[:] = FILLED * 64
    area.madvise(MADV_NOHUGEPAGE, 16 * PAGE, 8 * PAGE)
    assert discard(GuestMemory([(BASE_GPA, area)]), runs_of((15, 10))).bytes == 10 * PAGE
    assert gone_pages(area) == set(range(15, 25))


def test_is_within_needs_ranges_without_a_gap() -> None:
    ranges = [(10, 20), (20, 30), (40, 50)]
    for start, end, expected in [(10, 30, True), (12, 29, True), (12, 31, False), (30, 31, False)]:
        assert native.is_within(ranges, start, end) == expected
    assert native.is_within(ranges, 45, 50)
    assert not native.is_within([], 0, 1)
    assert not native.is_within(ranges, 9, 12)


def test_locked_memory_is_refused_after_earlier_ranges_are_discarded() -> None:
    area = filled(16)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    # As a system call, because AddressSanitizer replaces mlock() by a function that does nothing.
    locked = ctypes.c_void_p(address + 8 * PAGE)
    assert libc.syscall(ctypes.c_long(SYS_MLOCK), locked, ctypes.c_size_t(PAGE)) == 0
    with pytest.raises(OSError, match="guest RAM") as caught:
        discard(GuestMemory([(BASE_GPA, area)]), runs_of(*((i, 1) for i in range(0, 16, 2))))
    assert caught.value.errno == errno.EINVAL
    assert gone_pages(area) == {0, 2, 4, 6}


def test_a_forked_child_discards_its_own_memory() -> None:
    area = filled(16)
    memory = GuestMemory([(BASE_GPA, area)])
    runs = runs_of(*((i, 1) for i in range(0, 16, 2)))
    assert discard(memory, runs).bytes == 8 * PAGE
    area[:] = FILLED * 16
    child = os.fork()
    if child == 0:
        discard(memory, runs)
        os._exit(0 if gone_pages(area) == set(range(0, 16, 2)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert gone_pages(area) == set()


REFUSED = """
import sys
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pyvmm_native.discard import discard, have_process_madvise
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns
from tests.native.seccomp import refuse

refuse_with, probe_first = int(sys.argv[1]), sys.argv[2] == "probe first"
if probe_first:
    have_process_madvise()
refuse(440, refuse_with)  # process_madvise

area = mmap(-1, 64 * 4096, flags=MAP_PRIVATE | MAP_ANONYMOUS)
area[:] = bytes([0x5A]) * len(area)
result = discard(GuestMemory([(0, area)]), PageRuns((i, 1) for i in range(0, 64, 2)))
left = [area[i * 4096] for i in range(64)]
assert left == [0, 0x5A] * 32, left
assert result.bytes == 32 * 4096, result
print(result.calls)
"""


@pytest.mark.parametrize("refuse_with", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("order", ["probe first", "refuse first"])
def test_each_range_takes_a_call_where_process_madvise_is_refused(
    refuse_with: int, order: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, str(refuse_with), order],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # One call that was refused, if the probe had found it to work, and one for each range.
    refused_calls = 1 if order == "probe first" and have_process_madvise() else 0
    assert int(done.stdout) == 32 + refused_calls
