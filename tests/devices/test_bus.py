# SPDX-License-Identifier: Apache-2.0
"""The bus routes every byte of any access to the device that it belongs to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import Bus

SPACE_BYTES = 64


class Memory:
    """A device of plain bytes that refuses accesses outside its range."""

    def __init__(self, length: int) -> None:
        self.data = bytearray(length)

    def read(self, offset: int, size: int) -> int:
        assert 0 <= offset <= offset + size <= len(self.data)
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        assert 0 <= offset <= offset + size <= len(self.data)
        self.data[offset : offset + size] = value.to_bytes(size, "little")


class BusEvents:
    quiet = native = None
    watched = False

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, int | str]]] = []

    def event(self, name: str, **fields: int | str) -> None:
        self.events.append((name, fields))


accesses = st.tuples(
    st.integers(0, SPACE_BYTES), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)
)


@given(st.sets(st.integers(0, 7)), st.lists(accesses, max_size=20))
def test_a_bus_behaves_like_an_array_with_holes(
    slots: set[int], steps: list[tuple[int, int, int]]
) -> None:
    bus = Bus("b")
    oracle = bytearray(b"\xff" * (SPACE_BYTES + 8))
    for slot in slots:
        bus.map(8 * slot, 5 + slot % 4, Memory(5 + slot % 4))
        oracle[8 * slot : 8 * slot + 5 + slot % 4] = bytes(5 + slot % 4)
    claimed = {8 * slot + i for slot in slots for i in range(5 + slot % 4)}
    for address, size, value in steps:
        value &= (1 << (8 * size)) - 1
        bus.write(address, size, value)
        for i, byte in enumerate(value.to_bytes(size, "little"), address):
            if i in claimed:
                oracle[i] = byte
    for address in range(SPACE_BYTES):
        for size in (1, 2, 4, 8):
            expected = int.from_bytes(oracle[address : address + size], "little")
            assert bus.read(address, size) == expected


def test_an_access_inside_a_range_reaches_the_device_whole() -> None:
    bus, device = Bus("b"), Memory(8)
    bus.map(0x100, 8, device)
    bus.write(0x100, 8, 0x0807060504030201)
    assert device.data == bytes(range(1, 9))
    assert bus.read(0x104, 4) == 0x08070605


def test_ranges_can_move_and_are_free_again() -> None:
    bus, device = Bus("b"), Memory(16)
    bus.map(0x1000, 16, device)
    bus.unmap(0x1000)
    assert bus.read(0x1000, 4) == 0xFFFF_FFFF
    bus.map(0x1008, 16, device)
    bus.write(0x1008, 1, 0x5A)
    assert device.data[0] == 0x5A
    with pytest.raises(ValueError, match="nothing is mapped"):
        bus.unmap(0x1000)


@pytest.mark.parametrize(("start", "length"), [(15, 2), (16, 16), (20, 1), (31, 9), (0, 64)])
def test_overlapping_ranges_are_refused(start: int, length: int) -> None:
    bus = Bus("b")
    bus.map(16, 16, Memory(16))
    with pytest.raises(ValueError, match="already in use"):
        bus.map(start, length, Memory(length))
    bus.map(0, 16, Memory(16))
    bus.map(32, 1, Memory(1))


@pytest.mark.parametrize(("start", "length"), [(0, 0), (-1, 4), (4, -1)])
def test_empty_and_negative_ranges_are_refused(start: int, length: int) -> None:
    with pytest.raises(ValueError, match="bad range"):
        Bus("b").map(start, length, Memory(1))


def test_unclaimed_accesses_read_ones_drop_writes_and_are_traced() -> None:
    log = BusEvents()
    bus = Bus("pio", tracer=log)
    assert bus.read(0x80, 2) == 0xFFFF
    bus.write(0x80, 1, 7)
    assert log.events == [
        ("unclaimed_read", {"bus": "pio", "address": 0x80, "size": 2}),
        ("unclaimed_write", {"bus": "pio", "address": 0x80, "size": 1, "value": 7}),
    ]
    assert Bus("config", unclaimed_byte=0).read(0, 8) == 0


def test_the_last_bytes_of_the_address_space() -> None:
    bus = Bus("mmio")
    bus.map(2**64 - 8, 8, Memory(8))
    bus.write(2**64 - 1, 1, 3)
    assert bus.read(2**64 - 1, 1) == 3
    assert bus.read(2**64 - 4, 8) == 0xFFFF_FFFF_0300_0000
