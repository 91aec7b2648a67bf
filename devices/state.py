# SPDX-License-Identifier: Apache-2.0
"""Saved state: what a part of the machine says of itself, as plain values, and how it is read back.

A part (`Stateful`) writes itself down as a `Payload`: names and plain values, bytes and nested
payloads among them. Whoever writes a file or a stream adds kind, version and checksum. A saved
state is as hostile as a guest: it comes from a file or from the network. So it is read through
`Fields`, whose every accessor checks what it hands out, and what is wrong is a `StateError` that
names part and field. `restore_state` checks everything before it changes anything.

    def save_state(self):
        return {"index": self._index, "memory": bytes(self._memory)}

    def restore_state(self, fields):
        index, memory = fields.number("index", below=128), fields.data("memory", length=128)
        fields.done()
        self._index, self._memory = index, bytearray(memory)

Where a part is made of others, each of them has `check_state(fields)`, which checks and returns a
`Restore`, the function that does it; the part calls these when all of them are content.

`encode` writes a payload as JSON: a person can read it with any tool, there is nothing in it to be
executed, and the standard library has it. Bytes are {"$bytes": base64}, which is why no name begins
with "$". A payload has one encoding only (names sorted, no spaces, no fractions), which `decode`
insists on by encoding what it has read once more: a name that comes twice, or a number written
oddly, is refused without a rule of its own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar

Value: TypeAlias = "int | bool | str | bytes | Sequence[Value] | Mapping[str, Value]"
Payload: TypeAlias = "Mapping[str, Value]"
Restore: TypeAlias = Callable[[], None]

T = TypeVar("T")

MAX_PAYLOAD_BYTES = 1 << 20
"""Longest encoded payload; the largest parts, a vCPU's or a device's, have some ten KiB."""
MAX_DEPTH = 12

_BYTES = "$bytes"
_U64_VALUES = 1 << 64


class StateError(ValueError):
    """A saved state cannot be restored here; the message names the part and what is wrong."""

    def __init__(self, part: str, what: str) -> None:
        super().__init__(f"{part}: {what}")
        self.part = part
        self.what = what


class Stateful(Protocol):
    """A part of the machine that can be saved, and restored into a new one of the same make."""

    @property
    def STATE_KIND(self) -> str:
        """Name of the part, unique in a machine."""

    @property
    def STATE_VERSION(self) -> int:
        """Counts up whenever the payload changes."""

    def save_state(self) -> Payload:
        """Write the state down; the part does not change while it is called, nor by it."""

    def restore_state(self, fields: Fields) -> None:
        """Become what was saved; StateError, with nothing changed, for what cannot be."""


def encode(payload: Payload) -> bytes:
    """Write a payload down; ValueError for one with something in it that is no plain value."""
    text = json.dumps(_plain(payload, MAX_DEPTH), sort_keys=True, separators=(",", ":"))
    if len(text) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload of {len(text)} bytes is too long")
    return text.encode("ascii")


def decode(data: bytes, part: str = "state") -> Payload:
    """Read what `encode` has written; StateError, in the name of `part`, for anything else."""
    if len(data) > MAX_PAYLOAD_BYTES:
        raise StateError(part, f"a payload of {len(data)} bytes is too long")
    try:
        payload = _valued(json.loads(data.decode("ascii")))
        if not isinstance(payload, dict):
            raise ValueError("not a payload")
        canonical = encode(payload) == data
    except (ValueError, RecursionError) as error:
        raise StateError(part, f"cannot be read: {error}") from error
    if not canonical:
        raise StateError(part, "is not written in the one way there is")
    return payload


def _plain(value: object, depth: int) -> object:
    """What JSON can say for `value`."""
    if depth < 0:
        raise ValueError("nested too deeply")
    match value:
        case bool():
            return value
        case int() if -_U64_VALUES // 2 <= value < _U64_VALUES:
            return int(value)
        case str() if value.isprintable():
            return value
        case bytes() | bytearray():
            return {_BYTES: base64.b64encode(value).decode("ascii")}
        case list() | tuple():
            return [_plain(each, depth - 1) for each in value]
        case dict() if all(isinstance(name, str) and name[:1] != "$" for name in value):
            return {name: _plain(each, depth - 1) for name, each in value.items()}
    raise ValueError(f"{value!r:.60} is no plain value")


def _valued(read: object) -> object:
    """What the JSON value `read` stands for; anything odd is left for `encode` to refuse."""
    if isinstance(read, list):
        return [_valued(each) for each in read]
    if isinstance(read, dict):
        if read.keys() == {_BYTES} and isinstance(read[_BYTES], str):
            return base64.b64decode(read[_BYTES], validate=True)
        return {name: _valued(each) for name, each in read.items()}
    return read


class Fields:
    """The fields of one payload, each checked as it is taken; `part` is its name in errors.

    Every accessor raises StateError if the field is missing, of another type or out of range.
    """

    def __init__(self, part: str, payload: Payload) -> None:
        self.name = part
        self._payload = payload
        self._taken: set[str] = set()
        self._parts: list[Fields] = []

    def number(self, name: str, *, below: int = _U64_VALUES, at_least: int = 0) -> int:
        """A whole number from `at_least` up to, not including, `below`."""
        return self._in_range(name, self._take(name, int), at_least, below)

    def counter(self, name: str) -> int:
        """A number that can go on growing and still be saved."""
        return self.number(name, below=_U64_VALUES // 2)

    def numbers(
        self,
        name: str,
        *,
        count: int | None = None,
        at_most: int | None = None,
        below: int = _U64_VALUES,
    ) -> list[int]:
        """Numbers, all below `below`; exactly `count` of them, or up to `at_most`."""
        return [
            self._in_range(name, self._typed(name, each, int), 0, below)
            for each in self.items(name, count=count, at_most=at_most)
        ]

    def flag(self, name: str) -> bool:
        """True or False."""
        return self._take(name, bool)

    def text(self, name: str) -> str:
        """Printable characters."""
        return self._take(name, str)

    def data(self, name: str, *, length: int | None = None, at_most: int | None = None) -> bytes:
        """Bytes: exactly `length` of them, or up to `at_most`."""
        data = self._take(name, bytes)
        self._count(name, len(data), length, at_most, "bytes")
        return data

    def items(
        self, name: str, *, count: int | None = None, at_most: int | None = None
    ) -> list[Value]:
        """A list of unchecked values: exactly `count` of them, or up to `at_most`."""
        items: list[Value] = self._take(name, list)
        self._count(name, len(items), count, at_most, "items")
        return items

    def part(self, name: str) -> Fields:
        """A payload inside this one."""
        return self._part(f"{self.name}.{name}", self._take(name, dict))

    def parts(
        self, name: str, *, count: int | None = None, at_most: int | None = None
    ) -> list[Fields]:
        """A list of payloads: exactly `count` of them, or up to `at_most`."""
        return [
            self._part(f"{self.name}.{name}[{i}]", self._typed(name, each, dict))
            for i, each in enumerate(self.items(name, count=count, at_most=at_most))
        ]

    def same(self, name: str, here: int | str) -> None:
        """Insist that what was saved is what this machine has."""
        saved = self._take(name, type(here))
        if saved != here:
            raise self.error(name, f"was {saved!r} where it was saved and is {here!r} here")

    def done(self) -> None:
        """Everything has been taken: refuse names, here or in the parts, that nobody asked for."""
        unknown = sorted(self._payload.keys() - self._taken)
        if unknown:
            raise self.error(unknown[0], "is not known here")
        for part in self._parts:
            part.done()

    def error(self, name: str, what: str) -> StateError:
        """What to raise when field `name` is wrong in a way only the caller can know."""
        return StateError(self.name, f"{name} {what}")

    def _part(self, name: str, payload: Payload) -> Fields:
        self._parts.append(Fields(name, payload))
        return self._parts[-1]

    def _take(self, name: str, kind: type[T]) -> T:
        if name not in self._payload:
            raise self.error(name, "is missing")
        self._taken.add(name)
        return self._typed(name, self._payload[name], kind)

    def _typed(self, name: str, value: Value, kind: type[T]) -> T:
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
