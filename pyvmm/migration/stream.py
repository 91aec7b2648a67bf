# SPDX-License-Identifier: Apache-2.0
"""Bytes to messages, in the one order there is.

A reader does no input or output: it is fed what has come and gives messages when they are complete.
Besides what `messages` checks, it knows which message may follow which, and refuses any other; and
after the first message of a source it knows the machine's RAM, outside of which there are no pages.
Everything wrong is a `MigrationError`. A reader holds one record at most and what it was fed last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto

from pyvmm.memory.layout import ram_ranges
from pyvmm.migration import messages
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.messages import FromDestination, FromSource
from pyvmm.state.records import Kind, Record, RecordError, RecordReader
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns


class _Phase(Enum):
    START = auto()
    COPYING = auto()
    PARTS = auto()
    READY = auto()
    OVER = auto()


_Step = tuple[frozenset[_Phase], _Phase | None]
"""When a message may come, and the phase that it begins, if it does."""

_FROM_SOURCE: dict[type, _Step] = {
    messages.Hello: (frozenset({_Phase.START}), _Phase.COPYING),
    messages.Pages: (frozenset({_Phase.COPYING}), None),
    messages.Zeros: (frozenset({_Phase.COPYING}), None),
    messages.RoundEnd: (frozenset({_Phase.COPYING}), None),
    messages.DeviceState: (frozenset({_Phase.COPYING, _Phase.PARTS}), _Phase.PARTS),
    messages.Ready: (frozenset({_Phase.COPYING, _Phase.PARTS}), _Phase.READY),
    messages.Commit: (frozenset({_Phase.READY}), _Phase.OVER),
}
_FROM_DESTINATION: dict[type, _Step] = {
    messages.Welcome: (frozenset({_Phase.START}), _Phase.COPYING),
    messages.RoundAck: (frozenset({_Phase.COPYING}), None),
    messages.StateRestored: (frozenset({_Phase.COPYING}), _Phase.READY),
    messages.Running: (frozenset({_Phase.READY}), _Phase.OVER),
    messages.Failed: (frozenset(_Phase) - {_Phase.OVER}, _Phase.OVER),
}

_SOURCE_READS: dict[str, Callable[[bytes], FromSource]] = {
    "migration": messages.Hello.read,
    "pages": messages.Pages.read,
    "zeros": messages.Zeros.read,
    "round": messages.RoundEnd.read,
    "ready": messages.Ready.read,
    "commit": messages.Commit.read,
}
_DESTINATION_READS: dict[str, Callable[[bytes], FromDestination]] = {
    "welcome": messages.Welcome.read,
    "arrived": messages.RoundAck.read,
    "complete": messages.StateRestored.read,
    "running": messages.Running.read,
    "failed": messages.Failed.read,
}


class _Reader:
    """What both directions have in common."""

    def __init__(self, kinds: Mapping[str, Kind], steps: Mapping[type, _Step]) -> None:
        self._records = RecordReader(kinds)
        self._steps = steps
        self._phase = _Phase.START
        self._rounds = 0

    @property
    def wanted_bytes(self) -> int:
        """How many more bytes the next message needs, at least 1."""
        return max(self._records.wanted_bytes, 1)

    @property
    def between_messages(self) -> bool:
        """Nothing has been fed that was not given out as a message."""
        return self._records.between_records

    def feed(self, data: bytes) -> None:
        """Take the bytes that follow those fed before."""
        self._records.feed(data)

    def _next_record(self) -> Record | None:
        try:
            return self._records.next()
        except RecordError as error:
            if self._phase is _Phase.START:
                raise MigrationError(f"the other side speaks no migration: {error}") from error
            raise MigrationError(str(error)) from error

    def _check_order(self, message: object) -> None:
        allowed, following = self._steps[type(message)]
        if self._phase not in allowed:
            raise MigrationError(f"message {type(message).__name__} came out of order")
        if isinstance(message, messages.RoundEnd | messages.RoundAck):
            self._rounds += 1
            if message.number != self._rounds:
                raise MigrationError(f"round {message.number} came where {self._rounds} was due")
        self._phase = following or self._phase


class SourceReader(_Reader):
    """Reads what a source says of a machine whose parts are `kinds`."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        if not kinds.keys().isdisjoint(messages.SOURCE_KINDS):
            raise ValueError("a part of the machine has the name of a message")
        super().__init__({**messages.SOURCE_KINDS, **kinds}, _FROM_SOURCE)
        self._ram = PageRuns()
        self._parts: set[tuple[str, int]] = set()

    def next(self) -> FromSource | None:
        """The next message, or None until more is fed. Raises `MigrationError`."""
        record = self._next_record()
        if record is None:
            return None
        read = _SOURCE_READS.get(record.kind)
        message = read(record.payload) if read else messages.DeviceState(record)
        self._check_order(message)
        match message:
            case messages.Hello(config):
                self._ram = PageRuns(
                    (gpa // PAGE_BYTES, length // PAGE_BYTES)
                    for gpa, length in ram_ranges(config.ram_bytes)
                )
            case messages.Pages() | messages.Zeros():
                if message.runs.subtract(self._ram):
                    raise MigrationError("pages came that the guest does not have")
            case messages.DeviceState(part):
                if (part.kind, part.instance) in self._parts:
                    raise MigrationError(f"part {part.kind!r} number {part.instance} came twice")
                self._parts.add((part.kind, part.instance))
        return message


class DestinationReader(_Reader):
    """Reads what a destination says."""

    def __init__(self) -> None:
        super().__init__(messages.DESTINATION_KINDS, _FROM_DESTINATION)

    def next(self) -> FromDestination | None:
        """The next message, or None until more is fed. Raises `MigrationError`."""
        record = self._next_record()
        if record is None:
            return None
        message = _DESTINATION_READS[record.kind](record.payload)
        self._check_order(message)
        return message
