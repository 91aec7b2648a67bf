# SPDX-License-Identifier: Apache-2.0
"""GuestMemory against its oracle: a dict of gpa → byte."""

from __future__ import annotations

import mmap
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_native.memory import GuestAddressError, GuestMemory

PAGE = 4096
# Two adjacent regions, a hole, and a third region.
REGIONS = ((0x1000, PAGE), (0x2000, 2 * PAGE), (0x8000, PAGE))
edges = st.sampled_from([gpa + side for gpa, size in REGIONS for side in (0, size)])
addresses = st.one_of(
    st.builds(lambda edge, near: max(0, edge + near), edges, st.integers(-9, 9)),
    st.integers(0, (1 << 64) - 1),
)
lengths = st.one_of(st.integers(0, 3 * PAGE + 2), st.integers(0, (1 << 64) - 1))


def make_memory() -> GuestMemory:
    return GuestMemory([(gpa, bytearray(size)) for gpa, size in REGIONS])


def is_ram(gpa: int, length: int) -> bool:
    """Return whether every byte of the range is in a region (always so for an empty range)."""
    if length > 4 * PAGE:
        return False
    return all(any(g <= a < g + n for g, n in REGIONS) for a in range(gpa, gpa + length))


@given(st.lists(st.tuples(addresses, st.binary(max_size=64)), max_size=20), addresses, lengths)
def test_reads_return_what_was_written(
    writes: list[tuple[int, bytes]], gpa: int, length: int
) -> None:
    memory = make_memory()
    held: dict[int, int] = {}
    for start, data in writes:
        if is_ram(start, len(data)):
            memory.write(start, data)
            held.update(zip(range(start, start + len(data)), data, strict=True))
        else:
            with pytest.raises(GuestAddressError):
                memory.write(start, data)
    if is_ram(gpa, length):
        expected = bytes(held.get(a, 0) for a in range(gpa, gpa + length))
        assert memory.read(gpa, length) == expected
    else:
        with pytest.raises(GuestAddressError) as caught:
            memory.read(gpa, length)
        assert (caught.value.gpa, caught.value.length) == (gpa, length)
    everything = b"".join(memory.read(g, n) for g, n in REGIONS)
    assert len(everything) - everything.count(0) == sum(1 for byte in held.values() if byte)


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(0, 1), (0x1000, 0x3001), (0x4FFF, 1), (0x8000, 1 << 64), (-1, 2), (1 << 70, 1), (0x8FFF, 2)],
)
def test_accesses_outside_ram_are_refused(gpa: int, length: int) -> None:
    with pytest.raises(GuestAddressError):
        make_memory().read(gpa, length)


def test_repr_and_attributes_describe_the_regions() -> None:
    memory = GuestMemory([(0x8000, bytearray(PAGE)), (0, bytearray(2 * PAGE))])
    assert memory.size_bytes == 3 * PAGE
    assert memory.regions == ((0, 2 * PAGE), (0x8000, PAGE))
    assert memory.page_ranges == ((0, 2), (8, 1))
    assert GuestMemory([]).size_bytes == 0


def test_large_copies_cross_regions() -> None:
    memory = GuestMemory([(0, bytearray(1 << 20)), (1 << 20, bytearray(1 << 20))])
    data = bytes(range(256)) * 4096
    memory.write(0x8000, data)
    assert memory.read(0x8000, len(data)) == data


def test_write_takes_any_buffer() -> None:
    memory = make_memory()
    memory.write(0x1000, memoryview(bytearray(b"abcd")).cast("I"))
    assert memory.read(0x1000, 4) == b"abcd"
    with pytest.raises(TypeError):
        memory.write(0x1000, "abcd")  # type: ignore[arg-type]


def test_buffers_stay_exported() -> None:
    area = mmap.mmap(-1, PAGE)
    memory = GuestMemory([(0, area)])
    with pytest.raises(BufferError):
        area.close()
    del memory
    area.close()


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length of -1"):
        make_memory().read(0x1000, -1)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([(0, bytes(PAGE))], "writable"),
        ([(0, memoryview(bytearray(2 * PAGE))[::2])], "contiguous"),
        ([(1, bytearray(PAGE))], "whole pages"),
        ([(-PAGE, bytearray(PAGE))], "whole pages"),
        ([(0, bytearray(PAGE + 1))], "whole pages"),
        ([(0, bytearray(0))], "whole pages"),
        ([((1 << 52) - PAGE, bytearray(2 * PAGE))], "52 bits"),
        ([(0, memoryview(bytearray(PAGE + 8))[8:])], "aligned"),
        ([(0, bytearray(2 * PAGE)), (PAGE, bytearray(PAGE))], "overlaps"),
        ([(0, bytearray(PAGE)), (0, bytearray(PAGE))], "overlaps"),
    ],
)
def test_the_constructor_refuses_invalid_regions(
    regions: list[tuple[int, bytearray]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GuestMemory(regions)


def test_the_constructor_needs_buffers() -> None:
    with pytest.raises(TypeError):
        GuestMemory([(0, 4096)])  # type: ignore[list-item]


@given(st.lists(st.tuples(addresses, st.binary(max_size=5000)), max_size=20), st.integers(0, 20))
def test_every_written_page_is_logged_and_no_other(
    writes: list[tuple[int, bytes]], taken: int
) -> None:
    """The log has every page written since it was last taken, and no other."""
    memory = make_memory()
    memory.write(REGIONS[0][0], b"before it is logged")
    memory.log_dirty_pages(True)
    changed: set[int] = set()
    for number, (start, data) in enumerate(writes):
        if number == taken:
            assert logged(memory) == changed
            changed.clear()
        if is_ram(start, len(data)):
            memory.write(start, data)
            changed.update(address // PAGE for address in range(start, start + len(data)))
    assert logged(memory) == changed
    assert logged(memory) == set()


def logged(memory: GuestMemory) -> set[int]:
    return {
        start_pfn + 8 * place + bit
        for start_pfn, bitmap in memory.take_dirty_pages()
        for place, byte in enumerate(bitmap)
        for bit in range(8)
        if byte >> bit & 1
    }


def test_taking_the_log_while_it_is_off_is_refused() -> None:
    memory = make_memory()
    with pytest.raises(ValueError, match="not being logged"):
        memory.take_dirty_pages()
    memory.log_dirty_pages(True)
    memory.write(REGIONS[0][0], b"x")
    memory.log_dirty_pages(True)
    assert logged(memory) == {REGIONS[0][0] // PAGE}, "enabling it again changes nothing"
    memory.write(REGIONS[0][0], b"x")
    memory.log_dirty_pages(False)
    with pytest.raises(ValueError, match="not being logged"):
        memory.take_dirty_pages()
    memory.log_dirty_pages(True)
    assert logged(memory) == set(), "what came before is forgotten"


def test_logging_may_begin_while_a_copy_runs_without_the_gil() -> None:
    """Each of many small regions is marked by itself, so a copy reads the log 64 times."""
    data = bytes(64 * PAGE)
    for _ in range(20):
        memory = GuestMemory([(i * PAGE, bytearray(PAGE)) for i in range(64)])
        stopping = threading.Event()
        writer = threading.Thread(target=write_until, args=(memory, data, stopping))
        writer.start()
        memory.log_dirty_pages(True)
        memory.write(0, b"x")
        stopping.set()
        writer.join()
        assert memory.take_dirty_pages()[0] == (0, b"\x01")


def write_until(memory: GuestMemory, data: bytes, stopping: threading.Event) -> None:
    while not stopping.is_set():
        memory.write(0, data)
