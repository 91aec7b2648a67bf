# SPDX-License-Identifier: Apache-2.0
"""Register tables: an access of any size and alignment equals accesses to its bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.registers import Access, Register, RegisterTable

TABLE_BYTES = 24


class RegisterEvents:
    quiet = native = None

    def __init__(self, watched: bool = True) -> None:
        self.watched = watched
        self.events: list[tuple[str, dict[str, int | str]]] = []

    def event(self, name: str, **fields: int | str) -> None:
        self.events.append((name, fields))


def make_table() -> RegisterTable:
    """Return registers of every size and access with gaps between them."""
    return RegisterTable(
        "oracle",
        [
            Register("byte", 0, 1, reset=0x11),
            Register("word", 2, 2, reset=0x2222, writable=0x0FF0),
            Register("three", 4, 3, Access.RO, reset=0x333333),
            Register("clear", 8, 4, Access.W1C, reset=0xFFFF_FFFF, writable=0x00FF_FFFF),
            Register("quad", 12, 8, reset=0x5555_5555_5555_5555),
            Register("secret", 20, 2, Access.WO),
        ],
    )


class ByteOracle:
    """The same 24 bytes, each with its own mask, without registers."""

    def __init__(self) -> None:
        self.value = bytearray.fromhex("11 00 2222 333333 00 ffffffff 5555555555555555 00000000")
        self.writable = bytes.fromhex("ff 00 f00f 000000 00 00000000 ffffffffffffffff 00000000")
        self.clears = bytes.fromhex("00 00 0000 000000 00 ffffff00 0000000000000000 00000000")

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.value[offset : offset + size].ljust(size, b"\0"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        for i, byte in enumerate(value.to_bytes(size, "little"), offset):
            if i < TABLE_BYTES:
                kept = self.value[i] & ~self.writable[i] & 0xFF
                self.value[i] = (kept | byte & self.writable[i]) & ~(byte & self.clears[i])


accesses = st.tuples(
    st.integers(0, TABLE_BYTES + 2), st.integers(1, 8), st.none() | st.integers(0, 2**64 - 1)
)


@given(st.lists(accesses, max_size=30))
def test_any_access_equals_its_byte_accesses(steps: list[tuple[int, int, int | None]]) -> None:
    table, oracle = make_table(), ByteOracle()
    for offset, size, value in steps:
        if value is not None:
            value &= (1 << (8 * size)) - 1
            table.write(offset, size, value)
            oracle.write(offset, size, value)
        assert table.read(offset, size) == oracle.read(offset, size)
    assert table.read(0, TABLE_BYTES) == oracle.read(0, TABLE_BYTES)


def test_handlers_own_the_value_and_are_called_once_per_access() -> None:
    calls: list[str] = []
    state = {"low": 0x1234, "high": 0xABCD}

    def register(name: str, offset: int) -> Register:
        def read() -> int:
            calls.append(f"read {name}")
            return state[name]

        def write(value: int) -> None:
            calls.append(f"write {name} {value:#x}")
            state[name] = value

        return Register(name, offset, 2, read=read, write=write)

    table = RegisterTable("t", [register("high", 2), register("low", 0)])
    assert table.read(0, 4) == 0xABCD1234
    assert calls == ["read low", "read high"]
    calls.clear()
    table.write(1, 2, 0x7766)  # high byte of one, low byte of the other
    assert calls == ["read low", "write low 0x6634", "read high", "write high 0xab77"]
    calls.clear()
    table.write(0, 2, 0x9999)
    assert calls == ["write low 0x9999"]


def test_a_register_passes_the_masked_value_to_its_handler() -> None:
    seen: list[int] = []
    table = RegisterTable("t", [Register("mode", 0, 2, writable=0x00F0, write=seen.append)])
    table.write(0, 2, 0xFFFF)
    table.write(0, 1, 0x50)
    assert seen == [0xF0, 0x50]
    assert table["mode"] == 0x50


def test_read_only_handlers_run_once_for_a_read_and_never_for_a_write() -> None:
    reads: list[int] = []

    def read() -> int:
        reads.append(1)
        return 7

    table = RegisterTable("t", [Register("isr", 0, 4, Access.RO, read=read)])
    table.write(0, 4, 1)
    table.write(1, 1, 1)
    assert not reads
    assert table.read(0, 4) == 7
    assert len(reads) == 1


def test_whole_writes_only_ignores_partial_writes_but_not_wider_ones() -> None:
    seen: list[int] = []
    table = RegisterTable("t", [Register("bell", 2, 2, write=seen.append, whole_writes_only=True)])
    table.write(2, 1, 1)
    table.write(3, 1, 1)
    table.write(1, 2, 1)
    assert seen == []
    table.write(0, 8, 0x5_0000)
    assert seen == [5]


def test_partial_writes_of_write_only_registers_are_merged_with_zeros() -> None:
    seen: list[int] = []
    table = RegisterTable("t", [Register("command", 0, 2, Access.WO, write=seen.append)])
    table.write(0, 2, 0xAABB)
    table.write(0, 1, 0xCC)
    assert seen == [0xAABB, 0x00CC]
    assert table.read(0, 2) == 0


def test_owner_access_and_reset() -> None:
    table = make_table()
    table["three"] = 0x1_44_44_44  # cut to the register's size
    assert table["three"] == 0x444444
    table.reset()
    assert table.read(0, TABLE_BYTES) == ByteOracle().read(0, TABLE_BYTES)
    with pytest.raises(KeyError):
        table["absent"] = 1


def test_every_register_the_guest_touches_is_traced_by_name() -> None:
    log = RegisterEvents()
    table = RegisterTable("t", [Register("a", 0, 1), Register("b", 1, 1)], tracer=log)
    table.write(0, 2, 0x0201)
    table.read(1, 1)
    assert log.events == [
        ("register_write", {"table": "t", "register": "a", "value": 1}),
        ("register_write", {"table": "t", "register": "b", "value": 2}),
        ("register_read", {"table": "t", "register": "b", "value": 2}),
    ]


def test_register_accesses_emit_no_events_while_unwatched() -> None:
    log = RegisterEvents(watched=False)
    table = RegisterTable("t", [Register("a", 0, 1)], tracer=log)
    table.write(0, 1, 1)
    assert table.read(0, 1) == 1
    assert log.events == []


@pytest.mark.parametrize(
    "rows",
    [
        [Register("a", 0, 4), Register("b", 3, 1)],
        [Register("a", 0, 1), Register("a", 1, 1)],
        [Register("a", 0, 1, read=lambda: 0)],
    ],
    ids=["overlap", "same name", "writable without write handler"],
)
def test_invalid_tables_are_refused(rows: list[Register]) -> None:
    with pytest.raises(ValueError, match="t: "):
        RegisterTable("t", rows)
