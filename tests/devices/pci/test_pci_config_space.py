# SPDX-License-Identifier: Apache-2.0
"""Configuration space of a function: header, BAR sizing and moving, capabilities, INTx."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import Bus
from devices.pci.config_space import PciFunction
from devices.pci.host_bridge import PciBus
from devices.registers import Register, RegisterTable

COMMAND, STATUS, BAR0, BAR2, CAPABILITIES = 0x04, 0x06, 0x10, 0x18, 0x34
MEMORY, MASTER, INTX_DISABLE = 0x2, 0x4, 0x400
WINDOW = (0xC000_0000, 0x1000_0000)
WINDOW64 = (0x8_0000_0000, 0x1_0000_0000)


class LevelLog:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set_level(self, level: bool) -> None:
        self.levels.append(level)


class FunctionOnBus:
    """A function with a 64-bit BAR 0 of 16 KiB and a 32-bit BAR 2 of 256 bytes, on a bus."""

    def __init__(self) -> None:
        self.mmio = Bus("mmio")
        self.mmio.map(0xC800_0000, 0x1000, RegisterTable("other", [Register("x", 0, 4)]))
        self.line = LevelLog()
        self.moves: list[tuple[int, int | None]] = []
        self.bar0 = RegisterTable("bar0", [Register("r", 0, 4, reset=0xB0B0)])
        self.bar2 = RegisterTable("bar2", [Register("r", 0, 4, reset=0xB2B2)])
        self.function = PciFunction(
            vendor_id=0x1AF4,
            device_id=0x1045,
            subsystem_vendor_id=0x1AF4,
            subsystem_id=0x40,
            class_code=0x00FF00,
            revision=1,
            interrupt_pin=1,
            name="test",
        )
        self.function.add_bar(0, 0x4000, self.bar0)
        self.function.add_bar(2, 0x100, self.bar2, is_64bit=False, prefetchable=True)
        self.function.bar_moved.add(lambda index, gpa: self.moves.append((index, gpa)))
        PciBus(self.mmio, [WINDOW, WINDOW64]).add(1, self.function, self.line)

    def place(self, bar0: int, bar2: int, command: int = MEMORY) -> None:
        self.function.config_write(BAR0, 4, bar0 & 0xFFFF_FFFF)
        self.function.config_write(BAR0 + 4, 4, bar0 >> 32)
        self.function.config_write(BAR2, 4, bar2)
        self.function.config_write(COMMAND, 2, command)


@pytest.mark.conformance("4.1.1-1")
def test_identification_registers() -> None:
    function = FunctionOnBus().function
    assert function.config_read(0x00, 4) == 0x10451AF4
    assert function.config_read(0x08, 4) == 0x00FF0001
    assert function.config_read(0x0C, 4) == 0  # type 0, single function, no BIST
    assert function.config_read(0x2C, 4) == 0x00401AF4
    assert function.config_read(0x30, 4) == 0  # no expansion ROM
    assert function.config_read(0x3C, 2) == 0x0100


def test_identification_cannot_be_written() -> None:
    function = FunctionOnBus().function
    for offset in (0x00, 0x08, 0x2C, 0x30):
        before = function.config_read(offset, 4)
        function.config_write(offset, 4, 0xFFFF_FFFF)
        assert function.config_read(offset, 4) == before


@pytest.mark.conformance("4.1.1-1")
def test_only_meaningful_command_bits_can_be_set() -> None:
    function = FunctionOnBus().function
    function.config_write(COMMAND, 4, 0xFFFF_FFFF)  # with status in the same DWORD
    assert function.config_read(COMMAND, 2) == MEMORY | MASTER | INTX_DISABLE
    assert function.config_read(STATUS, 2) == 0
    assert function.bus_master_enabled
    function.config_write(COMMAND, 1, 0)
    assert function.config_read(COMMAND, 2) == INTX_DISABLE
    assert not function.bus_master_enabled


@pytest.mark.conformance("4.1.1-1")
def test_bar_sizing_protocol() -> None:
    function = FunctionOnBus().function
    for offset in (BAR0, BAR0 + 4, BAR2, 0x1C, 0x20, 0x24):
        function.config_write(offset, 4, 0xFFFF_FFFF)
    assert function.config_read(BAR0, 4) == 0xFFFF_C004  # 64 bit
    assert function.config_read(BAR0 + 4, 4) == 0xFFFF_FFFF
    assert function.config_read(BAR2, 4) == 0xFFFF_FF08  # prefetchable, 32 bit
    assert function.config_read(0x1C, 4) == 0
    assert function.config_read(0x24, 4) == 0


def test_a_bar_is_decoded_only_while_memory_space_is_enabled() -> None:
    board = FunctionOnBus()
    board.place(0xC000_0000, 0xC000_4000, command=0)
    assert board.mmio.read(0xC000_0000, 4) == 0xFFFF_FFFF
    board.function.config_write(COMMAND, 2, MEMORY)
    assert board.mmio.read(0xC000_0000, 4) == 0xB0B0
    assert board.mmio.read(0xC000_4000, 4) == 0xB2B2
    assert board.function.bar_gpa(0) == 0xC000_0000
    board.function.config_write(COMMAND, 2, 0)
    assert board.mmio.read(0xC000_0000, 4) == 0xFFFF_FFFF
    assert board.moves == [(0, 0xC000_0000), (2, 0xC000_4000), (0, None), (2, None)]


def test_a_decoded_bar_moves_with_its_address_and_notifies_once() -> None:
    board = FunctionOnBus()
    board.place(0xC000_0000, 0xC000_4000)
    board.moves.clear()
    board.function.config_write(BAR0, 4, 0xC010_0000)
    board.function.config_write(BAR0, 4, 0xC010_0007)  # the same address: low bits are ignored
    assert board.moves == [(0, 0xC010_0000)]
    assert board.mmio.read(0xC010_0000, 4) == 0xB0B0
    assert board.mmio.read(0xC000_0000, 4) == 0xFFFF_FFFF


def test_a_64_bit_bar_goes_above_4_gib() -> None:
    board = FunctionOnBus()
    board.place(0x8_1234_4000, 0)
    assert board.mmio.read(0x8_1234_4000, 4) == 0xB0B0
    assert board.moves == [(0, 0x8_1234_4000)]


@pytest.mark.parametrize(
    "address",
    [
        0,
        0x10_0000,  # RAM
        0xFEE0_0000,  # local APIC
        0xBFFF_C000,  # ends where the window starts
        0xCFFF_C000 + 0x4000,  # starts where the window ends
        0xC7FF_C000 + 0x4000,  # on another device
        0xFFFF_FFFF_FFFF_C000,
    ],
)
def test_a_bar_outside_the_windows_or_on_a_device_is_not_decoded(address: int) -> None:
    board = FunctionOnBus()
    board.place(address, 0)
    assert board.moves == []
    assert board.function.bar_gpa(0) is None
    assert board.function.config_read(BAR0, 4) == address & 0xFFFF_C000 | 4  # but keeps its value


def test_the_second_of_two_bars_at_one_address_is_decoded_once_the_first_moves() -> None:
    board = FunctionOnBus()
    board.place(0xC000_0000, 0xC000_0000)
    assert board.moves == [(0, 0xC000_0000)]
    board.function.config_write(BAR0, 4, 0xC100_0000)
    assert board.moves[1:] == [(0, 0xC100_0000), (2, 0xC000_0000)]


def test_accepted_and_refused_placements_of_bars_are_traced() -> None:
    events: list[tuple[str, dict[str, int | str]]] = []

    class Trace:
        quiet = native = None
        watched = False

        def event(self, name: str, **fields: int | str) -> None:
            events.append((name, fields))

    pci = PciBus(Bus("mmio"), [WINDOW], tracer=Trace())
    where = {"gpa": 0xC000_0000, "size_bytes": 0x1000}
    for _ in range(2):
        pci.place(**where, handler=RegisterTable("bar", [Register("r", 0, 4)]))
    assert events == [("bar_placed", where), ("bar_refused", where)]


@pytest.mark.conformance("4.1.1-1")
def test_intx_follows_the_device_unless_disabled() -> None:
    board = FunctionOnBus()
    function = board.function
    function.set_interrupt_level(True)
    assert board.line.levels == [True]
    assert function.config_read(STATUS, 2) == 0x8
    function.config_write(COMMAND, 2, INTX_DISABLE)
    assert board.line.levels == [True, False]
    assert function.config_read(STATUS, 2) == 0x8  # still pending
    function.config_write(COMMAND, 2, 0)
    assert board.line.levels == [True, False, True]
    function.set_interrupt_level(False)
    assert board.line.levels == [True, False, True, False]
    assert function.config_read(STATUS, 2) == 0


@pytest.mark.conformance("4.1.1-1")
def test_the_capability_list_is_linked_and_its_bodies_keep_their_masks() -> None:
    function = FunctionOnBus().function
    assert function.config_read(CAPABILITIES, 1) == 0
    first = function.add_capability(0x09, b"\x05\xaa\xbb", writable_mask=b"\x00\x0f")
    second = function.add_capability(0x11, bytes(10))
    assert function.config_read(STATUS, 2) == 0x10
    assert function.config_read(CAPABILITIES, 1) == first == 0x40
    assert second % 4 == 0
    assert function.config_read(first, 4) == 0xAA05 << 16 | second << 8 | 0x09
    assert function.config_read(second, 2) == 0x11
    function.config_write(first, 4, 0xFFFF_FFFF)
    function.config_write(first + 4, 1, 0xFF)
    assert function.config_read(first, 4) == 0xAF05 << 16 | second << 8 | 0x09
    assert function.config_read(first + 4, 1) == 0xBB


@pytest.mark.parametrize("body_bytes", range(1, 9))
def test_capabilities_are_dword_aligned_without_a_gap(body_bytes: int) -> None:
    """PCI Local Bus 3.0, 6.7."""
    function = FunctionOnBus().function
    first = function.add_capability(0x09, bytes(body_bytes))
    second = function.add_capability(0x09, b"")
    assert second % 4 == 0
    assert first + 2 + body_bytes <= second < first + 2 + body_bytes + 4


def test_capability_handlers_get_offsets_in_the_body() -> None:
    function = FunctionOnBus().function
    body = RegisterTable("body", [Register("a", 0, 2), Register("b", 2, 4)])
    offset = function.add_capability(0x09, bytes(6), read=body.read, write=body.write)
    function.config_write(offset + 4, 4, 0x1234_5678)
    function.config_write(offset, 4, 0xBEEF_FFFF)
    assert body["b"] == 0x1234_5678
    assert body["a"] == 0xBEEF
    assert function.config_read(offset + 2, 2) == 0xBEEF


def test_capabilities_beyond_the_configuration_space_are_refused() -> None:
    function = FunctionOnBus().function
    function.add_capability(1, bytes(190))
    with pytest.raises(ValueError, match="no room"):
        function.add_capability(1, b"")


@pytest.mark.parametrize(
    ("index", "size", "wide"),
    [(0, 64, False), (1, 64, False), (2, 64, True), (5, 64, True), (6, 64, False), (-1, 64, False)],
)
def test_bars_that_do_not_fit_are_refused(index: int, size: int, wide: bool) -> None:
    board = FunctionOnBus()
    with pytest.raises(ValueError, match="taken or does not exist"):
        board.function.add_bar(index, size, board.bar0, is_64bit=wide)


@pytest.mark.parametrize("size", [0, 8, 24, 0x1001])
def test_bar_sizes_are_powers_of_two(size: int) -> None:
    board = FunctionOnBus()
    with pytest.raises(ValueError, match="not the size of a BAR"):
        board.function.add_bar(4, size, board.bar0)


writes = st.tuples(
    st.integers(0, 300) | st.sampled_from([COMMAND, BAR0, BAR0 + 4, BAR2]),
    st.integers(1, 8),
    st.integers(0, 2**64 - 1) | st.sampled_from([0xC000_0000, 0x8_0000_0000, MEMORY, 0]),
)


@given(st.lists(writes, max_size=40))
def test_hostile_configuration_writes(steps: list[tuple[int, int, int]]) -> None:
    """No write raises, and decoded BARs lie in a window at the address in their registers."""
    board = FunctionOnBus()
    board.function.add_capability(0x09, bytes(14), writable_mask=b"\xff" * 14)
    decoded: dict[int, int] = {}
    for offset, size, value in steps:
        board.moves.clear()
        board.function.config_write(offset, size, value & (1 << (8 * size)) - 1)
        for index, gpa in board.moves:
            if gpa is None:
                del decoded[index]
            else:
                decoded[index] = gpa
    enabled = board.function.config_read(COMMAND, 2) & MEMORY
    assert enabled or not decoded
    for index, gpa in decoded.items():
        length = {0: 0x4000, 2: 0x100}[index]
        assert any(s <= gpa and gpa + length <= s + n for s, n in (WINDOW, WINDOW64))
        assert board.mmio.read(gpa, 4) == {0: 0xB0B0, 2: 0xB2B2}[index]
        assert board.function.bar_gpa(index) == gpa
    assert board.function.config_read(0, 4) == 0x10451AF4
