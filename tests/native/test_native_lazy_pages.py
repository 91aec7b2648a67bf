# SPDX-License-Identifier: Apache-2.0
"""Guest RAM that is loaded when it is accessed or in the background; damaged files."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from pyvmm.memory.ram import Ram
from pyvmm.units import MIB
from pyvmm_native.lazy_pages import LazyPages
from pyvmm_native.page_blocks import BLOCK_PAGES, ChecksumError, store_block
from pyvmm_native.pages import bitmap, touched
from pyvmm_native.runs import PageRuns

RAM_BYTES = 65 * MIB
PAGES = PageRuns([(0, 3), (100, 1), (511, 2), (1024, 512), (RAM_BYTES // 4096 - 1, 1)])
Block = tuple[int, bytes, int, int]


def empty_ram() -> Ram:
    """Return RAM without transparent huge pages.

    The kernel's collapsing of pages into huge ones would touch pages that no test has touched.
    """
    return Ram(RAM_BYTES, transparent=False)


def needs_userfaultfd() -> None:
    try:
        LazyPages(empty_ram().memory, [], 0)
    except PermissionError:
        pytest.skip("this kernel does not let us watch page faults")


class StoredRam:
    """RAM with contents in `PAGES`, and the file that they are stored in."""

    def __init__(self, path: Path) -> None:
        self.ram = empty_ram()
        numbers = random.Random(5)
        for start, count in PAGES:
            self.ram.memory.write(start * 4096, numbers.randbytes(count * 4096))
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.blocks: list[Block] = []
        offset = 4096
        for first in range(0, RAM_BYTES // 4096, BLOCK_PAGES):
            bits = bitmap(PAGES, first, BLOCK_PAGES)
            if any(bits):
                crc = store_block(self.ram.memory, first, bits, self.fd, offset)
                self.blocks.append((first, bits, offset, crc))
                offset += int.from_bytes(bits, "little").bit_count() * 4096


@pytest.fixture
def saved(tmp_path: Path) -> StoredRam:
    needs_userfaultfd()
    return StoredRam(tmp_path / "pages")


@contextmanager
def served(lazy: LazyPages) -> Iterator[None]:
    """Serve in a thread while the block runs; the thread ends by itself."""
    thread = threading.Thread(target=lazy.serve, daemon=True)
    thread.start()
    while not lazy.serving:
        time.sleep(0.001)
    yield
    thread.join(30)
    assert not thread.is_alive()


def same(one: Ram, other: Ram) -> bool:
    return one.memory.read(0, RAM_BYTES) == other.memory.read(0, RAM_BYTES)


def test_all_pages_are_loaded_in_the_background(saved: StoredRam) -> None:
    copy = empty_ram()
    LazyPages(copy.memory, saved.blocks, saved.fd).serve()
    assert touched(copy.memory, copy.pages) == PAGES
    assert same(copy, saved.ram)


@pytest.mark.parametrize("pfn", [0, 1, 50, 100, 511, 512, 1024, 1500])
def test_an_access_waits_for_its_block(saved: StoredRam, pfn: int) -> None:
    copy = empty_ram()
    lazy = LazyPages(copy.memory, saved.blocks, saved.fd)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(copy.memory.read(pfn * 4096, 1 << 19)))
    reader.start()
    time.sleep(0.05)
    assert not found
    with served(lazy):
        reader.join(30)
    assert found == [saved.ram.memory.read(pfn * 4096, 1 << 19)]
    assert same(copy, saved.ram)


def test_an_access_at_the_end_of_its_block_is_woken(saved: StoredRam) -> None:
    """Access a page that the file lacks just as its block becomes complete.

    One pass in thirty hit that moment on an idle machine of two processors.
    """
    for _ in range(300):
        copy = empty_ram()
        lazy = LazyPages(copy.memory, saved.blocks, saved.fd)
        reader = threading.Thread(target=copy.memory.read, args=(511 * 4096, 1 << 19))
        reader.start()
        lazy.serve()
        reader.join(10)
        assert not reader.is_alive()


@pytest.mark.parametrize("pfn", [1500, RAM_BYTES // 4096 - 1])
def test_a_waiting_thread_may_hold_the_gil(saved: StoredRam, pfn: int) -> None:
    """Like a short read, which keeps the GIL."""
    copy = empty_ram()
    with served(LazyPages(copy.memory, saved.blocks, saved.fd)):
        assert copy.memory.read(pfn * 4096, 9) == saved.ram.memory.read(pfn * 4096, 9)


def test_written_pages_keep_their_contents(saved: StoredRam) -> None:
    copy = empty_ram()
    with served(LazyPages(copy.memory, saved.blocks, saved.fd)):
        copy.memory.write(1100 * 4096, b"new")
    assert copy.memory.read(1100 * 4096, 3) == b"new"
    assert copy.memory.read(1100 * 4096 + 3, 9) == saved.ram.memory.read(1100 * 4096 + 3, 9)


def test_blocks_of_huge_pages_are_loaded_as_a_whole(saved: StoredRam) -> None:
    """Pages that are not in the file, or were skipped, are zeros in them."""
    copy = empty_ram()
    lazy = LazyPages(copy.memory, saved.blocks[:-1], saved.fd, whole_blocks=True)
    lazy.skip(PageRuns([(1, 1), (1024, 512)]))
    with served(lazy):
        assert copy.memory.read(100 * 4096, 8) == saved.ram.memory.read(100 * 4096, 8)
    assert touched(copy.memory, PageRuns([(0, 2048)])) == PageRuns([(0, 1024)])
    for pfn in range(1024):
        kept = pfn in PAGES and pfn != 1
        expected = saved.ram.memory.read(pfn * 4096, 4096) if kept else bytes(4096)
        assert copy.memory.read(pfn * 4096, 4096) == expected


def test_a_block_smaller_than_a_huge_page_is_refused(saved: StoredRam) -> None:
    with pytest.raises(ValueError, match="not a whole huge page"):
        LazyPages(empty_ram().memory, saved.blocks, saved.fd, whole_blocks=True)


def test_discarded_pages_are_not_loaded(saved: StoredRam) -> None:
    copy = empty_ram()
    lazy = LazyPages(copy.memory, saved.blocks, saved.fd)
    gone = PageRuns([(1, 1), (60, 500), (1100, 1), (1200, 30)])
    lazy.skip(gone)
    copy.discard(gone)
    with served(lazy):
        assert copy.memory.read(1100 * 4096, 4096) == bytes(4096)
    assert touched(copy.memory, PAGES) == PAGES.subtract(gone).union(PageRuns([(1100, 1)]))
    copy.discard(PageRuns([(1024, 512)]))
    assert copy.memory.read(1024 * 4096, 4096) == bytes(4096)


def test_a_damaged_block_stops_the_vcpus_before_it_wakes_waiters(saved: StoredRam) -> None:
    """Waiters wake only once `failed` is set and every vCPU was told to leave the guest."""
    first, bits, offset, crc = saved.blocks[-1]
    copy = empty_ram()
    lazy = LazyPages(copy.memory, [*saved.blocks[:-1], (first, bits, offset, crc ^ 1)], saved.fd)
    run_area = bytearray(1 << 14)
    signalled = threading.Event()
    sleeper = threading.Thread(target=signalled.wait, args=(30,))
    sleeper.start()
    assert sleeper.native_id is not None
    lazy.add_vcpu(sleeper.native_id, 0, run_area)
    seen: list[tuple[bool, int, bytes]] = []

    def read() -> None:
        data = copy.memory.read(RAM_BYTES - MIB, MIB)[-4:]
        seen.append((lazy.failed, run_area[1], data))

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.05)
    assert not seen
    with pytest.raises(ChecksumError):
        lazy.serve()
    reader.join(30)
    signalled.set()
    assert seen == [(True, 1, bytes(4))], "immediate_exit is the second byte of kvm_run"


def test_a_truncated_file_fails_with_eio(saved: StoredRam) -> None:
    os.truncate(saved.fd, 8192)
    lazy = LazyPages(empty_ram().memory, saved.blocks, saved.fd)
    with pytest.raises(OSError, match="Input/output error"):
        lazy.serve()
    assert lazy.failed


def test_a_stopped_loader_leaves_pages_zero(saved: StoredRam) -> None:
    copy = empty_ram()
    lazy = LazyPages(copy.memory, saved.blocks, saved.fd)
    lazy.stop()
    lazy.serve()
    assert not lazy.failed
    assert copy.memory.read(0, 4096) == bytes(4096), "no access waits"


def test_a_run_area_stays_mapped_until_serving_ends(saved: StoredRam) -> None:
    lazy = LazyPages(empty_ram().memory, saved.blocks, saved.fd)
    with mmap.mmap(-1, 1 << 14) as run_area:
        lazy.add_vcpu(threading.get_native_id(), 0, run_area)
        with pytest.raises(BufferError):
            run_area.close()
        lazy.serve()
        lazy.add_vcpu(threading.get_native_id(), 0, run_area)  # after serving began


def test_a_vcpu_added_after_a_failure_is_stopped_at_once(saved: StoredRam) -> None:
    os.truncate(saved.fd, 8192)
    lazy = LazyPages(empty_ram().memory, saved.blocks, saved.fd)
    with pytest.raises(OSError, match="Input/output error"):
        lazy.serve()
    run_area = bytearray(1 << 14)
    lazy.add_vcpu(threading.get_native_id(), 0, run_area)
    assert run_area[1] == 1, "immediate_exit is the second byte of kvm_run"


@pytest.mark.parametrize(
    ("run_area", "reason"),
    [
        (bytearray(1), "smaller than kvm_run"),
        (bytes(1 << 14), "writable"),
        (memoryview(bytearray(1 << 15))[::2], "contiguous"),
    ],
)
def test_an_invalid_run_area_is_refused(
    saved: StoredRam, run_area: bytes | bytearray | memoryview, reason: str
) -> None:
    lazy = LazyPages(empty_ram().memory, saved.blocks, saved.fd)
    with pytest.raises(ValueError, match=reason):
        lazy.add_vcpu(threading.get_native_id(), 0, run_area)


def test_a_page_of_a_block_beyond_ram_is_refused(saved: StoredRam) -> None:
    last = (RAM_BYTES // 4096 - 1) // BLOCK_PAGES * BLOCK_PAGES
    inside = RAM_BYTES // 4096 - last
    for page, refused in ((inside - 1, False), (inside, True)):
        bits = (1 << page).to_bytes(64, "little")
        with pytest.raises(ValueError, match="not inside guest RAM") if refused else nullcontext():
            LazyPages(empty_ram().memory, [(last, bits, 0, 0)], saved.fd)


@pytest.mark.parametrize("first", [1, 1 << 41, 40 * BLOCK_PAGES])
def test_invalid_blocks_are_refused(saved: StoredRam, first: int) -> None:
    with pytest.raises(ValueError, match="block"):
        LazyPages(empty_ram().memory, [(first, bytes(64), 0, 0)], saved.fd)
    with pytest.raises(ValueError, match="twice"):
        LazyPages(empty_ram().memory, [saved.blocks[0]] * 2, saved.fd)
