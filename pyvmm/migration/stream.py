# SPDX-License-Identifier: Apache-2.0
"""Turn the bytes of a migration stream into messages, and enforce the one valid order.

A reader does no input or output: it is fed what has arrived and returns messages when they are
complete. In addition to what `pyvmm.migration.messages` checks, it knows which message may follow
which and refuses any other; and after the source's first message it knows the machine's RAM, and
refuses pages outside of it. All errors are `MigrationError`. A reader holds at most one record and
what it was fed last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING

from pyvmm.memory.layout import ram_ranges
from pyvmm.migration import messages
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.messages import FromDestination, FromSource
from pyvmm.state.records import Kind, Record, RecordError, RecordReader, VersionError
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig


class _Phase(Enum):
    SETUP = auto()
    PRECOPY = auto()
    SWITCHOVER = auto()
    COMMIT = auto()
    OVER = auto()


_Step = tuple[frozenset[_Phase], _Phase | None]
"""The phases in which a message is valid, and the one that it begins, if any."""

_FROM_SOURCE: dict[type, _Step] = {
    messages.Hello: (frozenset({_Phase.SETUP}), _Phase.PRECOPY),
    messages.StreamHello: (frozenset({_Phase.SETUP}), _Phase.OVER),
    messages.Pages: (frozenset({_Phase.PRECOPY}), None),
    messages.Zeros: (frozenset({_Phase.PRECOPY}), None),
    messages.RoundEnd: (frozenset({_Phase.PRECOPY}), None),
    messages.DeviceState: (frozenset({_Phase.PRECOPY, _Phase.SWITCHOVER}), _Phase.SWITCHOVER),
    messages.Ready: (frozenset({_Phase.PRECOPY, _Phase.SWITCHOVER}), _Phase.COMMIT),
    messages.Commit: (frozenset({_Phase.COMMIT}), _Phase.OVER),
}
_FROM_DESTINATION: dict[type, _Step] = {
    messages.Welcome: (frozenset({_Phase.SETUP}), _Phase.PRECOPY),
    messages.StreamsJoined: (frozenset({_Phase.PRECOPY}), None),
    messages.RoundAck: (frozenset({_Phase.PRECOPY}), None),
    messages.StateRestored: (frozenset({_Phase.PRECOPY}), _Phase.COMMIT),
    messages.Running: (frozenset({_Phase.COMMIT}), _Phase.OVER),
    messages.Failed: (frozenset(_Phase) - {_Phase.OVER}, _Phase.OVER),
}

_SOURCE_MESSAGES: dict[str, Callable[[Record], FromSource]] = {
    messages.HELLO: messages.Hello.read,
    "stream": messages.StreamHello.read,
    "pages": messages.Pages.read,
    "zeros": messages.Zeros.read,
    "round-end": messages.RoundEnd.read,
    "ready": messages.Ready.read,
    "commit": messages.Commit.read,
}
_DESTINATION_MESSAGES: dict[str, Callable[[Record], FromDestination]] = {
    "welcome": messages.Welcome.read,
    "joined": messages.StreamsJoined.read,
    "round-ack": messages.RoundAck.read,
    "restored": messages.StateRestored.read,
    "running": messages.Running.read,
    "failed": messages.Failed.read,
}


_READ_AHEAD_BYTES = 1 << 18


def ram_pages(config: MachineConfig) -> PageRuns:
    """Return the pages of the RAM of a machine with `config`."""
    return PageRuns(
        (gpa // PAGE_BYTES, length // PAGE_BYTES) for gpa, length in ram_ranges(config.ram_bytes)
    )


def _check_pages(message: messages.Pages | messages.Zeros, ram: PageRuns) -> None:
    if message.runs.subtract(ram):
        raise MigrationError("the source sent pages outside the guest's RAM")


class _Reader:
    """The reader of one direction, whose messages are valid as `steps` says.

    Threads: migration.
    """

    def __init__(self, kinds: Mapping[str, Kind], steps: Mapping[type, _Step]) -> None:
        self._records = RecordReader(kinds)
        self._steps = steps
        self._phase = _Phase.SETUP
        self._rounds = 0

    @property
    def wanted_bytes(self) -> int:
        """Number of bytes to receive next: those missing from the next message, at least 1.

        Between messages it is the length of one that pages follow. Fewer would take two calls for
        it, more might take contents of pages. Of the first message nothing more is wanted: the
        hello of a stream may be followed by what another reader is to read.
        """
        if self._records.between_records and self._phase is not _Phase.SETUP:
            return messages.PAGES_MESSAGE_BYTES
        return max(self._records.wanted_bytes, 1)

    @property
    def between_messages(self) -> bool:
        """Everything that was fed has been returned in messages."""
        return self._records.between_records

    def feed(self, data: bytes) -> None:
        """Take the bytes that follow those fed before."""
        self._records.feed(data)

    def _next_record(self) -> Record | None:
        try:
            return self._records.next()
        except VersionError as error:
            if error.kind != messages.HELLO:
                raise MigrationError(str(error)) from error
            raise MigrationError(
                f"the source sends version {error.version} of the migration stream;"
                f" this pyvmm reads {error.readable}"
            ) from error
        except RecordError as error:
            if self._phase is _Phase.SETUP:
                raise MigrationError(f"the peer does not send a migration: {error}") from error
            raise MigrationError(str(error)) from error

    def _check_order(self, message: object) -> None:
        valid_in, following = self._steps[type(message)]
        if self._phase not in valid_in:
            raise MigrationError(f"message {type(message).__name__} arrived out of order")
        if isinstance(message, messages.RoundEnd | messages.RoundAck):
            self._rounds += 1
            if message.number != self._rounds:
                raise MigrationError(f"round {message.number} arrived instead of {self._rounds}")
        self._phase = following or self._phase


class SourceReader(_Reader):
    """Reads the messages of a source whose machine has parts of the kinds `kinds`.

    Nothing may follow the hello of a stream here; `StreamReader` reads the rest, of which this
    reader has wanted nothing.

    Threads: migration.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        if not kinds.keys().isdisjoint(messages.SOURCE_KINDS):
            raise ValueError("a part of the machine has the name of a message")
        super().__init__({**messages.SOURCE_KINDS, **kinds}, _FROM_SOURCE)
        self._ram = PageRuns()
        self._parts: set[tuple[str, int]] = set()

    @property
    def wanted_bytes(self) -> int:
        """As of any reader; all that has arrived once no page may follow.

        Until then the contents of pages may follow a message, which the link takes to guest RAM.
        """
        return _READ_AHEAD_BYTES if self._phase is _Phase.SWITCHOVER else super().wanted_bytes

    def next(self) -> FromSource | None:
        """Return the next message, or None until more is fed. Raises `MigrationError`."""
        record = self._next_record()
        if record is None:
            return None
        read = _SOURCE_MESSAGES.get(record.kind)
        message = read(record) if read else messages.DeviceState(record)
        self._check_order(message)
        match message:
            case messages.Hello(config):
                self._ram = ram_pages(config)
            case messages.Pages() | messages.Zeros():
                _check_pages(message, self._ram)
            case messages.DeviceState(part):
                if (part.kind, part.instance) in self._parts:
                    raise MigrationError(f"part {part.kind!r} number {part.instance} arrived twice")
                self._parts.add((part.kind, part.instance))
        return message


class StreamReader(_Reader):
    """Reads what follows the hello of a stream, of a source whose RAM is the pages `ram`.

    Threads: stream receiver.
    """

    def __init__(self, ram: PageRuns) -> None:
        kinds = {name: messages.SOURCE_KINDS[name] for name in ("pages", "round-end")}
        super().__init__(kinds, _FROM_SOURCE)
        self._phase = _Phase.PRECOPY
        self._ram = ram

    def next(self) -> FromSource | None:
        """Return the next message, or None until more is fed. Raises `MigrationError`."""
        record = self._next_record()
        if record is None:
            return None
        message = _SOURCE_MESSAGES[record.kind](record)
        self._check_order(message)
        if isinstance(message, messages.Pages):
            _check_pages(message, self._ram)
        return message


class DestinationReader(_Reader):
    """Reads the messages of a destination.

    Threads: migration.
    """

    def __init__(self) -> None:
        super().__init__(messages.DESTINATION_KINDS, _FROM_DESTINATION)

    def next(self) -> FromDestination | None:
        """Return the next message, or None until more is fed. Raises `MigrationError`."""
        record = self._next_record()
        if record is None:
            return None
        message = _DESTINATION_MESSAGES[record.kind](record)
        self._check_order(message)
        return message
