# SPDX-License-Identifier: Apache-2.0
"""Saved state of a part of the machine, as plain values, and how it is checked and restored.

A part (`Stateful`) saves itself as a `Payload`: names and plain values, including bytes and nested
payloads. The writer of a file or stream adds kind, version and checksum. Saved state is as little
trusted as a guest, since it comes from a file or from the network. So it is read through `Fields`,
every accessor of which checks the value it returns, and a wrong value raises a `StateError` that
names part and field. `restore_state` checks everything before it changes anything.

    def save_state(self):
        return {"index": self._index, "memory": bytes(self._memory)}

    def restore_state(self, fields):
        index, memory = fields.number("index", below=128), fields.data("memory", length=128)
        fields.done()
        self._index, self._memory = index, bytearray(memory)

Where a part is composed of others, each of them has `check_state(fields)`, which checks and returns
a `Restore`, the function that restores it; the part calls these when all checks have passed.

`encode` writes a payload as JSON: any tool can read it, nothing in it can be executed, and the
standard library supports it. Bytes are {"$bytes": base64}, which is why no name begins with "$". A
payload has exactly one encoding (names sorted, no spaces, no fractions), which `decode` enforces by
writing what it has read as JSON again, and each string of base64 from its bytes: a duplicate name,
or a number written in another way, is refused without a separate check.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, cast

Value: TypeAlias = "int | bool | str | bytes | Sequence[Value] | Mapping[str, Value]"
"""A plain value; numbers have 64 bits."""
Payload: TypeAlias = "Mapping[str, Value]"
"""The state of a part: values by name."""
Restore: TypeAlias = Callable[[], None]
"""Applies a state that has been checked; it cannot fail."""

_T = TypeVar("_T")

MAX_PAYLOAD_BYTES = 1 << 20
"""Longest encoded payload; the largest parts, of a vCPU or a device, take tens of KiB."""
MAX_DEPTH = 12
"""Deepest nesting of payloads and lists."""

_BYTES = "$bytes"
_BYTES_ONLY = {_BYTES}
_NUMBERS = {int}
_U64_VALUES = 1 << 64
_LEAST = -_U64_VALUES // 2
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class StateError(ValueError):
    """A saved state cannot be restored here; `part` and `reason` are also in the message."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part}: {reason}")
        self.part = part
        self.reason = reason


class Stateful(Protocol):
    """A part of the machine that can be saved, and restored into a new one of the same kind."""

    @property
    def STATE_KIND(self) -> str:
        """Name of the part, unique in a machine."""

    @property
    def STATE_VERSION(self) -> int:
        """Version of the payload, incremented whenever it changes."""

    def save_state(self) -> Payload:
        """Return the state; the part does not change meanwhile."""

    def restore_state(self, fields: Fields) -> None:
        """Apply the saved state; StateError, with nothing changed, if it is invalid."""


def encode(payload: Payload) -> bytes:
    """Return the encoding of a payload; ValueError if a value in it is not plain."""
    text = _JSON.encode(_plain(payload, MAX_DEPTH))
    if len(text) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload of {len(text)} bytes is too long")
    return text.encode("ascii")


def decode(data: bytes, part: str = "state") -> Payload:
    """Return the payload that `encode` has encoded; StateError, naming `part`, for other bytes."""
    if len(data) > MAX_PAYLOAD_BYTES:
        raise StateError(part, f"a payload of {len(data)} bytes is too long")
    try:
        text = data.decode("ascii")
        read = json.loads(text)
        if type(read) is not dict:
            raise ValueError("not a payload")
        payload = _valued_fields(read, MAX_DEPTH)
        canonical = _JSON.encode(read) == text
    except (ValueError, RecursionError) as error:
        raise StateError(part, f"cannot be read: {error}") from error
    if not canonical:
        raise StateError(part, "is not in the canonical encoding")
    return payload


def _plain(value: object, depth: int) -> object:
    """Return `value` as JSON represents it."""
    if depth < 0:
        raise ValueError("nested too deeply")
    if type(value) is int and _LEAST <= value < _U64_VALUES:
        return value  # as most values are
    match value:
        case bool():
            return value
        case int() if _LEAST <= value < _U64_VALUES:
            return int(value)
        case str() if value.isprintable():
            return value
        case bytes() | bytearray():
            return {_BYTES: _base64(value)}
        case list() | tuple():
            if depth and _all_numbers(value):
                return value
            return [_plain(each, depth - 1) for each in value]
        case dict() if all(isinstance(name, str) and name[:1] != "$" for name in value):
            return {name: _plain(each, depth - 1) for name, each in value.items()}
    raise ValueError(f"{value!r:.60} is not a plain value")


def _base64(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _all_numbers(values: Sequence[Any], at_least: int = _LEAST) -> bool:
    """Return True if all `values` are plain numbers, none of them below `at_least`.

    A quick test of long lists, such as the registers of a vCPU, which are decoded and checked while
    a guest that migrates is paused. It says no to an empty list.
    """
    return (
        {*map(type, values)} == _NUMBERS and at_least <= min(values) and max(values) < _U64_VALUES
    )


def _valued_fields(read: dict[str, object], depth: int) -> dict[str, Value]:
    """Return the payload that JSON's `read` represents. ValueError if it represents none."""
    if depth < 0:
        raise ValueError("nested too deeply")
    return {name: _valued(name, each, depth - 1) for name, each in read.items()}


def _valued(name: str, read: Any, depth: int) -> Value:
    """Return the value, called `name`, that JSON's `read` represents, as `_valued_fields`."""
    kind, value = type(read), cast("Value", read)
    if depth < 0:
        raise ValueError("nested too deeply")
    if name[:1] != "$":
        if (kind is int and _LEAST <= read < _U64_VALUES) or kind is bool:
            return value
        if kind is str and read.isprintable():
            return value
        if kind is dict:
            if read.keys() != _BYTES_ONLY:
                return _valued_fields(read, depth)
            if type(read[_BYTES]) is str:
                data = binascii.a2b_base64(read[_BYTES], strict_mode=True)
                if _base64(data) == read[_BYTES]:
                    return data
        if kind is list:
            if depth and _all_numbers(read):
                return value
            return [_valued("", each, depth - 1) for each in read]
    raise ValueError(f"{name}: {read!r:.60} is not a plain value")


class Fields:
    """The fields of one payload, each checked when it is read; `part` is its name in errors.

    Every accessor raises StateError if the field is missing, of another type or out of range. With
    `ignore_unknown`, which is for payloads of a newer version, `done` does not refuse other fields.
    """

    def __init__(self, part: str, payload: Payload, *, ignore_unknown: bool = False) -> None:
        self.name = part
        """Name of the part."""
        self._ignore_unknown = ignore_unknown
        self._payload = payload
        self._taken: set[str] = set()
        self._parts: list[Fields] = []

    def has(self, name: str) -> bool:
        """Return whether the field is present; for fields that the writer may leave out."""
        return name in self._payload

    def number(self, name: str, *, below: int = _U64_VALUES, at_least: int = 0) -> int:
        """Return a whole number from `at_least` up to, not including, `below`."""
        return self._in_range(name, self._take(name, int), at_least, below)

    def counter(self, name: str) -> int:
        """Return a number that can keep growing and still be saved."""
        return self.number(name, below=_U64_VALUES // 2)

    def numbers(
        self,
        name: str,
        *,
        count: int | None = None,
        at_most: int | None = None,
        below: int = _U64_VALUES,
    ) -> list[int]:
        """Return numbers, all below `below`; exactly `count` of them, or up to `at_most`."""
        items: list[Any] = self.items(name, count=count, at_most=at_most)
        if _all_numbers(items, at_least=0) and max(items) < below:
            return items
        return [self._in_range(name, self._typed(name, each, int), 0, below) for each in items]

    def flag(self, name: str) -> bool:
        """Return True or False."""
        return self._take(name, bool)

    def text(self, name: str) -> str:
        """Return a string of printable characters."""
        return self._take(name, str)

    def data(self, name: str, *, length: int | None = None, at_most: int | None = None) -> bytes:
        """Return bytes: exactly `length` of them, or up to `at_most`."""
        data = self._take(name, bytes)
        self._count(name, len(data), length, at_most, "bytes")
        return data

    def items(
        self, name: str, *, count: int | None = None, at_most: int | None = None
    ) -> list[Value]:
        """Return a list of unchecked values: exactly `count` of them, or up to `at_most`."""
        items: list[Value] = self._take(name, list)
        self._count(name, len(items), count, at_most, "items")
        return items

    def part(self, name: str) -> Fields:
        """Return the payload inside this one."""
        return self._part(f"{self.name}.{name}", self._take(name, dict))

    def parts(
        self, name: str, *, count: int | None = None, at_most: int | None = None
    ) -> list[Fields]:
        """Return a list of payloads: exactly `count` of them, or up to `at_most`."""
        return [
            self._part(f"{self.name}.{name}[{i}]", self._typed(name, each, dict))
            for i, each in enumerate(self.items(name, count=count, at_most=at_most))
        ]

    def same(self, name: str, here: int | str) -> None:
        """Check that the saved value equals `here`, the value in this machine."""
        saved = self._take(name, type(here))
        if saved != here:
            raise self.error(name, f"is {saved!r} in the saved state and {here!r} here")

    def done(self) -> None:
        """Raise StateError if a field, here or in a part, was never read."""
        unknown = sorted(self._payload.keys() - self._taken)
        if unknown and not self._ignore_unknown:
            raise self.error(unknown[0], "is not known here")
        for part in self._parts:
            part.done()

    def error(self, name: str, reason: str) -> StateError:
        """Return the error to raise when field `name` fails a check of the caller."""
        return StateError(self.name, f"{name} {reason}")

    def _part(self, name: str, payload: Payload) -> Fields:
        self._parts.append(Fields(name, payload, ignore_unknown=self._ignore_unknown))
        return self._parts[-1]

    def _take(self, name: str, kind: type[_T]) -> _T:
        if name not in self._payload:
            raise self.error(name, "is missing")
        self._taken.add(name)
        return self._typed(name, self._payload[name], kind)

    def _typed(self, name: str, value: Value, kind: type[_T]) -> _T:
        if type(value) is not kind:  # isinstance would take True for the number 1
            raise self.error(name, f"is {type(value).__name__} and not {kind.__name__}")
        return value

    def _in_range(self, name: str, value: int, at_least: int, below: int) -> int:
        if not at_least <= value < below:
            raise self.error(name, f"is {value}, not from {at_least} to {below - 1}")
        return value

    def _count(
        self, name: str, count: int, exactly: int | None, at_most: int | None, unit: str
    ) -> None:
        if exactly is not None and count != exactly:
            raise self.error(name, f"has {count} {unit} and not {exactly}")
        if at_most is not None and count > at_most:
            raise self.error(name, f"has {count} {unit}, more than {at_most}")
