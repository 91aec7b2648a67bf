# SPDX-License-Identifier: Apache-2.0
"""Registers as tables: one declaration drives dispatch, partial access, tracing and tests.

A device lists its registers once, as `Register` rows with a name, an offset, a size and handlers
for reads and writes, and passes the list to a `RegisterTable`, which is a `BusDevice`:

    self.registers = RegisterTable("widget", [
        Register("select", 0x00, 2),                                  # kept in the table
        Register("status", 0x02, 1, write=self._write_status, read=self._read_status),
        Register("version", 0x04, 4, Access.RO, reset=1),
        Register("base", 0x08, 8, writable=~0xFFF),                   # low bits stay 0
    ])
    self.registers["select"]          # the owner's view of a kept value; assignable

The value of a register with a `read` handler is kept by the table's owner: the table only calls
`read()` and `write(value)`. Without one the table keeps the value; the register's `write` handler,
if any, is called with the new value after it was stored.

An access that is exactly one register is the fast path. Any other access (part of a register,
several registers, across a gap, any size and alignment) is resolved byte by byte, here and nowhere
else: each register touched is read once or written once, in ascending order; a read is composed
from their bytes; a partial write is merged with the register's present value (with zeros for W1C
and WO, where zero bits mean nothing), unless the register takes `whole_writes_only`. Bytes that
belong to no register read as 0 and ignore writes.

Handlers see only values that fit the register. Nothing here locks: callers serialise accesses.

A table is also a `Stateful` part. It saves the values that it keeps and the guest can write; the
value of a read-only register either never changes or is saved by its owner.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from devices.ports import Tracer
from devices.state import Fields, Payload, Restore


class Access(enum.Enum):
    """Access rights of the guest to a register."""

    RO = "read only: writes are ignored"
    RW = "read and write"
    W1C = "bits written as 1 are cleared, bits written as 0 stay"
    WO = "write only: reads as 0"


# Python 3.11 looks up members of an enumeration slowly; these are compared on every access.
_RO, _W1C, _WO = Access.RO, Access.W1C, Access.WO


def _nothing() -> int:
    """Read a register that is write only."""
    return 0


class Register(NamedTuple):
    """One row of a table.

    `name` is unique in the table. `offset` and `size` are bytes from the start of the table. `read`
    returns the value and `write` gets each value written; without `read` the table keeps the value.
    `peek` returns the value where `read` changes something, such as a bit that reading clears.
    `reset` is the initial value of a register the table keeps and `writable` its mask of bits a
    write can change (all, if None); both are ignored for a register with a `read` handler. With
    `whole_writes_only` a write to a part of the register is ignored.
    """

    name: str
    offset: int
    size: int
    access: Access = Access.RW
    """The access rights of the guest."""
    read: Callable[[], int] | None = None
    write: Callable[[int], None] | None = None
    reset: int = 0
    writable: int | None = None
    whole_writes_only: bool = False
    peek: Callable[[], int] | None = None

    @property
    def end(self) -> int:
        """Offset of the first byte after the register."""
        return self.offset + self.size


_offset = attrgetter("offset")


class RegisterTable:
    """A `BusDevice` made of registers; also `Stateful`.

    `name` identifies the table in traces. While `tracer` is watched, every register read or written
    by the guest is an event `register_read` or `register_write` with fields table, register and
    value. Raises ValueError when two registers overlap, share a name, or a writable one has `read`
    without `write` (say RO).
    """

    def __init__(
        self, name: str, registers: Iterable[Register], *, tracer: Tracer | None = None
    ) -> None:
        self.name = name
        self._tracer = tracer
        self._rows = tuple(sorted(registers, key=_offset))
        by_name: dict[str, Register] = {}
        by_span: dict[tuple[int, int], Register] = {}
        values: dict[str, int] = {}
        readers: dict[str, Callable[[], int]] = {}
        exact_readers: dict[tuple[int, int], Callable[[], int]] = {}
        kept, end, before = values.__getitem__, 0, ""
        for row in self._rows:  # in one pass: a machine has hundreds of registers
            row_name, offset, size, access, read, write, reset, *_ = row
            if offset < end:
                raise ValueError(f"{name}: {before} overlaps {row_name}")
            if read is None:
                values[row_name] = reset
                read = partial(kept, row_name)
            elif write is None and access is not _RO:
                raise ValueError(f"{name}: {row_name} has no write handler")
            if access is _WO:
                read = _nothing
            span = offset, size
            end, before = offset + size, row_name
            by_name[row_name] = by_span[span] = row
            readers[row_name] = exact_readers[span] = read
        if len(by_name) != len(self._rows):
            raise ValueError(f"{name}: two registers have the same name")
        self._by_name, self._by_span, self._values = by_name, by_span, values
        self._readers = readers
        # What nearly every unwatched read needs, in one look-up.
        self._exact_readers = exact_readers

    # --- The owner's side -------------------------------------------------------------------
    @property
    def size_bytes(self) -> int:
        """Bytes from the start of the table to the end of its last register."""
        return self._rows[-1].end if self._rows else 0

    def __iter__(self) -> Iterator[Register]:
        return iter(self._rows)

    def __getitem__(self, name: str) -> int:
        """Return the value of a register the table keeps."""
        return self._values[name]

    def __setitem__(self, name: str, value: int) -> None:
        """Set the value of a register the table keeps; access rights and handlers do not apply."""
        if name not in self._values:
            raise KeyError(name)
        self._values[name] = value & _ones(self._by_name[name].size)

    def reset(self) -> None:
        """Set every register the table keeps to its reset value; no handler is called."""
        self._values.update((row.name, row.reset) for row in self._rows if row.read is None)

    def peek(self) -> Iterator[tuple[Register, int]]:
        """Yield every register with its value: no side effect of a read, and no event."""
        for row in self._rows:
            yield row, row.peek() if row.peek is not None else self._readers[row.name]()

    def peek_bytes(self) -> bytes:
        """Return all registers as bytes, as `peek`; gaps are zeros."""
        data = bytearray(self.size_bytes)
        for row, value in self.peek():
            data[row.offset : row.end] = value.to_bytes(row.size, "little")
        return bytes(data)

    # --- Saved state ------------------------------------------------------------------------
    STATE_VERSION = 1

    @property
    def STATE_KIND(self) -> str:
        """The name of a table that is a part of the machine by itself."""
        return self.name

    def save_state(self) -> Payload:
        """Return the values that the table keeps and the guest can write."""
        return {row.name: self[row.name] for row in self._guest_written()}

    def check_state(self, fields: Fields) -> Restore:
        """Check that the guest could have written the values; no handler is called for them."""
        values = {row.name: _saved_value(row, fields) for row in self._guest_written()}

        def restore() -> None:
            for name, value in values.items():
                self[name] = value

        return restore

    def restore_state(self, fields: Fields) -> None:
        """As `Stateful.restore_state`."""
        restore = self.check_state(fields)
        fields.done()
        restore()

    def _guest_written(self) -> list[Register]:
        return [row for row in self._rows if row.read is None and row.access is not _RO]

    # --- The guest's side (BusDevice) -------------------------------------------------------
    def read(self, offset: int, size: int) -> int:
        """Read `size` bytes, any alignment, as a little-endian number."""
        tracer = self._tracer
        if tracer is None or not tracer.watched:
            reader = self._exact_readers.get((offset, size))
            if reader is not None:
                return reader()
        register = self._by_span.get((offset, size))
        if register is not None:
            return self._read_register(register)
        result = 0
        for register in self._touched(offset, size):
            shift = 8 * (register.offset - offset)
            value = self._read_register(register)
            result |= value << shift if shift >= 0 else value >> -shift
        return result & _ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `value` as `size` little-endian bytes, any alignment."""
        register = self._by_span.get((offset, size))
        if register is not None:
            self._write_register(register, value)
            return
        for register in self._touched(offset, size):
            start = max(offset, register.offset)
            length = min(offset + size, register.end) - start
            part = (value >> (8 * (start - offset))) & _ones(length)
            if length < register.size:
                if register.whole_writes_only or register.access is _RO:
                    continue
                shift = 8 * (start - register.offset)
                part = self._kept_bits(register, _ones(length) << shift) | part << shift
            self._write_register(register, part)

    def _touched(self, offset: int, size: int) -> list[Register]:
        end = offset + size
        return [row for row in self._rows if row.offset < end and offset < row.end]

    def _kept_bits(self, register: Register, written: int) -> int:
        """Return the bits outside the mask `written`, which a partial write leaves as they are."""
        if register.access in (_W1C, _WO):
            return 0
        return self._readers[register.name]() & ~written

    def _read_register(self, register: Register) -> int:
        value = self._readers[register.name]()
        tracer = self._tracer
        if tracer is not None and tracer.watched:
            tracer.event("register_read", table=self.name, register=register.name, value=value)
        return value

    def _write_register(self, register: Register, value: int) -> None:
        tracer = self._tracer
        if tracer is not None and tracer.watched:
            tracer.event("register_write", table=self.name, register=register.name, value=value)
        if register.access is _RO:
            return
        if register.read is None:
            value = self._store(register, value)
        if register.write is not None:
            register.write(value)

    def _store(self, register: Register, value: int) -> int:
        old = self._values[register.name]
        mask = _ones(register.size) if register.writable is None else register.writable
        if register.access is _W1C:
            new = old & ~(value & mask)
        else:
            new = (old & ~mask | value & mask) & _ones(register.size)
        self._values[register.name] = new
        return new


def _saved_value(row: Register, fields: Fields) -> int:
    value = fields.number(row.name, below=1 << 8 * row.size)
    if row.writable is not None and (value ^ row.reset) & ~row.writable:
        raise fields.error(row.name, f"cannot be {value:#x}")
    return value


def _ones(size_bytes: int) -> int:
    return (1 << (8 * size_bytes)) - 1
