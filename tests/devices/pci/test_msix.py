# SPDX-License-Identifier: Apache-2.0
"""MSI-X: masks, pending bits, and messages that are always routed before they are sent."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from devices.pci.config_space import PciFunction
from devices.pci.msix import MsixTable

VECTORS = 3
ENABLE, FUNCTION_MASK = 0x8000, 0x4000


class MessageLog:
    """Records the message of each vector, and each (vector, message) sent."""

    def __init__(self) -> None:
        self.messages: dict[int, tuple[int, int]] = {}
        self.routes = 0
        self.sent: list[tuple[int, int, int]] = []

    def route(self, vector: int, address: int, data: int) -> None:
        self.messages[vector] = (address, data)
        self.routes += 1

    def trigger(self, vector: int) -> None:
        self.sent.append((vector, *self.messages[vector]))  # KeyError: sent before routed


class MsixBoard:
    def __init__(self, vectors: int = VECTORS) -> None:
        self.sink = MessageLog()
        self.msix = MsixTable(vectors, self.sink)
        self.function = PciFunction(vendor_id=1, device_id=2, class_code=0, name="test")
        self.capability = self.msix.add_to(
            self.function, bar=4, table_offset=0x8100_8000, pba_offset=0xC200_C000
        )

    def control(self, value: int) -> None:
        self.function.config_write(self.capability + 2, 2, value)

    def set_up(self, vector: int, address: int, data: int, masked: bool = False) -> None:
        table, base = self.msix.table, 16 * vector
        table.write(base, 4, address & 0xFFFF_FFFF)
        table.write(base + 4, 4, address >> 32)
        table.write(base + 8, 4, data)
        table.write(base + 12, 4, int(masked))


@pytest.mark.conformance("4.1.1-1")
def test_capability_describes_table_and_pba() -> None:
    board = MsixBoard()
    read = board.function.config_read
    assert read(board.capability, 1) == 0x11
    assert read(board.capability + 2, 2) == VECTORS - 1
    assert read(board.capability + 4, 4) == 0x8100_8004
    assert read(board.capability + 8, 4) == 0xC200_C004
    board.function.config_write(board.capability + 4, 8, 2**64 - 1)
    board.control(0xFFFF)
    assert read(board.capability + 2, 2) == ENABLE | FUNCTION_MASK | VECTORS - 1
    assert read(board.capability + 4, 8) == 0xC200_C004_8100_8004


@pytest.mark.parametrize(
    ("vectors", "pba_bytes"), [(1, 8), (64, 8), (65, 16), (128, 16), (129, 24), (2048, 256)]
)
def test_the_pending_bits_take_whole_quadwords(vectors: int, pba_bytes: int) -> None:
    """PCI Local Bus 3.0, 6.8.2.5."""
    msix = MsixTable(vectors, MessageLog())
    assert (msix.table_bytes, msix.pba_bytes) == (16 * vectors, pba_bytes)
    assert (msix.table.size_bytes, msix.pba.size_bytes) == (16 * vectors, pba_bytes)


@pytest.mark.conformance("4.1.1-1")
def test_after_reset_every_vector_is_masked() -> None:
    board = MsixBoard()
    for vector in range(VECTORS):
        assert board.msix.table.read(16 * vector, 8) == 0
        assert board.msix.table.read(16 * vector + 8, 8) == 1 << 32


def test_a_live_vector_is_sent_at_once_with_its_message() -> None:
    board = MsixBoard()
    board.set_up(1, 0xFEE0_1000, 0x41)
    board.control(ENABLE)
    board.msix.signal(1)
    assert board.sink.sent == [(1, 0xFEE0_1000, 0x41)]
    assert board.msix.pba.read(0, 8) == 0


def test_setting_up_a_masked_vector_routes_once() -> None:
    board = MsixBoard()
    board.control(ENABLE)
    board.set_up(0, 0x1_FEE0_0000, 7)
    assert board.sink.routes == 1
    assert board.sink.messages == {0: (0x1_FEE0_0000, 7)}
    board.msix.table.write(12, 4, 1)
    board.msix.table.write(12, 4, 0)
    assert board.sink.routes == 1  # unchanged: not routed again


def test_a_changed_message_is_routed_before_the_next_signal() -> None:
    board = MsixBoard()
    board.control(ENABLE)
    board.set_up(0, 0xFEE0_0000, 7)
    board.msix.table.write(8, 4, 8)
    board.msix.signal(0)
    assert board.sink.sent == [(0, 0xFEE0_0000, 8)]


@pytest.mark.conformance("4.1.1-1")
@pytest.mark.parametrize("mask", ["vector", "function"])
def test_a_masked_vector_pends_and_is_sent_once_when_unmasked(mask: str) -> None:
    board = MsixBoard()
    board.set_up(2, 0xFEE0_0000, 9, masked=mask == "vector")
    board.control(ENABLE | (FUNCTION_MASK if mask == "function" else 0))
    board.msix.signal(2)
    board.msix.signal(2)
    assert board.sink.sent == []
    assert board.msix.pba.read(0, 8) == 0b100
    if mask == "vector":
        board.msix.table.write(2 * 16 + 12, 4, 0)
    else:
        board.control(ENABLE)
    assert board.sink.sent == [(2, 0xFEE0_0000, 9)]
    assert board.msix.pba.read(0, 8) == 0


def test_signals_while_disabled_are_dropped() -> None:
    board = MsixBoard()
    board.set_up(0, 0xFEE0_0000, 9)
    assert not board.msix.enabled
    board.msix.signal(0)
    board.control(ENABLE)
    assert board.msix.enabled
    assert board.sink.sent == []


def test_the_pending_array_cannot_be_written() -> None:
    board = MsixBoard()
    board.control(ENABLE)
    board.msix.signal(0)
    board.msix.pba.write(0, 8, 0xFF)
    board.msix.pba.write(0, 4, 0)
    assert board.msix.pba.read(0, 4) == 1


def test_qword_and_byte_accesses_to_the_table() -> None:
    board = MsixBoard()
    board.msix.table.write(0, 8, 0x1122_3344_5566_7788)
    assert board.msix.table.read(4, 4) == 0x1122_3344
    board.msix.table.write(9, 1, 0xAB)
    assert board.msix.table.read(8, 4) == 0xAB00
    board.msix.table.write(0, 1, 0xFF)
    assert board.msix.table.read(0, 4) == 0x5566_77FC  # messages are DWORD aligned
    board.msix.table.write(12, 4, 0xFFFF_FFFE)
    assert board.msix.table.read(12, 4) == 0  # only the mask bit exists
    assert board.msix.table.read(16 * VECTORS, 4) == 0


def test_pending_bits_beyond_the_first_quadword() -> None:
    board = MsixBoard(vectors=70)
    assert board.msix.pba_bytes == 16
    board.control(ENABLE)
    board.msix.signal(69)
    assert board.msix.pba.read(8, 8) == 1 << 5


@pytest.mark.parametrize("vector", [-1, VECTORS, 0xFFFF])
def test_signalling_a_vector_outside_the_table_raises_an_index_error(vector: int) -> None:
    with pytest.raises(IndexError):
        MsixBoard().msix.signal(vector)


@pytest.mark.parametrize("vectors", [0, 2049])
def test_impossible_table_sizes_are_refused(vectors: int) -> None:
    with pytest.raises(ValueError, match="cannot have"):
        MsixTable(vectors, MessageLog())


class MsixAgainstModel(RuleBasedStateMachine):
    """Random programming and signals: every signal of an enabled function is sent exactly once,
    merged with others only while it could not be sent, and always with the message in the table.
    """

    def __init__(self) -> None:
        super().__init__()
        self.board = MsixBoard()
        self.pending: set[int] = set()
        self.expected: list[int] = []

    def live(self, vector: int) -> bool:
        control = self.board.function.config_read(self.board.capability + 2, 2)
        masked = self.board.msix.table.read(16 * vector + 12, 4) & 1
        return control & (ENABLE | FUNCTION_MASK) == ENABLE and not masked

    def settle(self) -> None:
        for vector in sorted(self.pending):
            if self.live(vector):
                self.pending.discard(vector)
                self.expected.append(vector)

    @rule(
        offset=st.integers(0, 16 * VECTORS + 4),
        size=st.sampled_from([1, 2, 4, 8]),
        value=st.integers(0, 2**64 - 1) | st.just(0),
    )
    def program(self, offset: int, size: int, value: int) -> None:
        self.board.msix.table.write(offset, size, value & (1 << (8 * size)) - 1)
        self.settle()

    @rule(value=st.sampled_from([0, ENABLE, FUNCTION_MASK, ENABLE | FUNCTION_MASK]))
    def set_control(self, value: int) -> None:
        self.board.control(value)
        self.settle()

    @rule(vector=st.integers(0, VECTORS - 1))
    def signal(self, vector: int) -> None:
        self.board.msix.signal(vector)
        if self.live(vector):
            self.expected.append(vector)
        elif self.board.msix.enabled:
            self.pending.add(vector)

    @invariant()
    def sent_what_was_due(self) -> None:
        assert sorted(vector for vector, _, _ in self.board.sink.sent) == sorted(self.expected)
        assert self.board.msix.pba.read(0, 8) == sum(1 << vector for vector in self.pending)

    @invariant()
    def live_messages_are_routed(self) -> None:
        for vector in filter(self.live, range(VECTORS)):
            address = self.board.msix.table.read(16 * vector, 8)
            data = self.board.msix.table.read(16 * vector + 8, 4)
            assert self.board.sink.messages[vector] == (address, data)


TestMsixAgainstModel = MsixAgainstModel.TestCase
TestMsixAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
