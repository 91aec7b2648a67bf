# SPDX-License-Identifier: Apache-2.0
"""Records: how the state of a machine is written to a file or a stream, and read back from it.

A state is a sequence of records. Each says what it is, by name and version, and which one of its
kind (a vCPU's number), and carries its payload behind a header of 52 bytes:

    kind      32 bytes   ASCII, padded with zeros
    instance  u32
    version   u32
    size      u32        bytes of payload
    crc       u32        CRC-32C of the payload
    own_crc   u32        CRC-32C of the 48 bytes before

All numbers are little-endian. The header has a checksum of its own so that a length is believed
only when it is what was written. CRC-32C finds every burst of up to 32 flipped bits, and it is the
same for pages, where the processor's own instruction for it counts; it is no protection against
somebody who wants to deceive, so everything in a payload is checked as well.

The reader does no input or output: it is fed bytes as they come and gives records when they are
complete. It knows beforehand which kinds there are, the newest version of each that it understands
and how large each may be, and refuses everything else by name. It has room for no more than twice
what was fed of one record, whatever a header claims. The room is used again for the next record:
new memory for each of them would be a page fault for each of its pages.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm_native.pages import crc32c

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HEADER = struct.Struct("<32sIIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
_KIND_BYTES = 32
_U32_VALUES = 1 << 32


class RecordError(ValueError):
    """Bytes that are no record, or one that is not understood here; the message says which."""


@dataclass(frozen=True)
class Kind:
    """What a reader understands of one kind of record."""

    version: int
    """The newest version; older ones are for whoever reads the payload to refuse."""
    max_bytes: int
    """Longest payload."""
    max_instances: int = 1


@dataclass(frozen=True)
class Record:
    """One part of a state, `payload` as yet unchecked but for its checksum."""

    kind: str
    version: int
    payload: bytes
    instance: int = 0

    def encode(self) -> bytes:
        """Header and payload. ValueError for a name or a number that does not fit the header."""
        return record_header(self.kind, self.version, self.payload, self.instance) + self.payload


def record_header(kind: str, version: int, payload: Buffer, instance: int = 0) -> bytes:
    """What goes before `payload`. ValueError for a name or a number that does not fit."""
    name = kind.encode("ascii")
    numbers = (instance, version, memoryview(payload).nbytes)
    if not 0 < len(name) <= _KIND_BYTES or not all(0 <= n < _U32_VALUES for n in numbers):
        raise ValueError(f"no record: {kind!r} {numbers}")
    header = _HEADER.pack(name, *numbers, crc32c(payload))
    return header + _CRC.pack(crc32c(header))


@dataclass(frozen=True)
class _Header:
    kind: str
    instance: int
    version: int
    size_bytes: int
    crc: int


class RecordReader:
    """Makes records of bytes; `kinds` are those that are understood, by name."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds
        self._room = bytearray()
        self._taken = 0  # bytes at the beginning of it that were given out
        self._filled = 0  # bytes of it that were fed
        self._header: _Header | None = None

    @property
    def between_records(self) -> bool:
        """Nothing has been fed that was not given out as a record."""
        return not self._left and self._header is None

    @property
    def wanted_bytes(self) -> int:
        """How many more bytes the next record needs; more may be fed."""
        size = HEADER_BYTES if self._header is None else self._header.size_bytes
        return max(size - self._left, 0)

    def feed(self, data: bytes) -> None:
        """Take the bytes that follow those fed before."""
        if self._taken:
            left = self._room[self._taken : self._filled]
            self._room[: len(left)] = left
            self._taken, self._filled = 0, len(left)
        end = self._filled + len(data)
        if end > len(self._room):
            self._room += bytes(max(end, 2 * len(self._room)) - len(self._room))
        self._room[self._filled : end] = data
        self._filled = end

    def next(self) -> Record | None:
        """The next complete record, or None until more is fed. Raises `RecordError`."""
        if self._header is None:
            if self._left < HEADER_BYTES:
                return None
            self._header = self._checked(self._take(HEADER_BYTES))
        header = self._header
        if self._left < header.size_bytes:
            return None
        payload = self._take(header.size_bytes)
        if crc32c(payload) != header.crc:
            raise RecordError(f"the checksum of record {header.kind!r} is wrong: it is damaged")
        self._header = None
        return Record(header.kind, header.version, payload, header.instance)

    @property
    def _left(self) -> int:
        return self._filled - self._taken

    def _take(self, count: int) -> bytes:
        with memoryview(self._room) as room:
            taken = bytes(room[self._taken : self._taken + count])
        self._taken += count
        return taken

    def _checked(self, data: bytes) -> _Header:
        own_crc = _CRC.unpack_from(data, _HEADER.size)[0]
        if crc32c(data[: _HEADER.size]) != own_crc:
            raise RecordError("the checksum of a record's header is wrong: it is damaged")
        name, instance, version, size_bytes, crc = _HEADER.unpack_from(data)
        kind = name.rstrip(b"\0").decode("ascii", "backslashreplace")
        known = self._kinds.get(kind)
        if known is None:
            raise RecordError(f"records of kind {kind!r} are not known here")
        if not 0 < version <= known.version:
            raise RecordError(
                f"record {kind!r} has version {version}; this pyvmm reads 1 to {known.version}"
            )
        if instance >= known.max_instances:
            raise RecordError(f"record {kind!r} number {instance} is one too many")
        if size_bytes > known.max_bytes:
            raise RecordError(f"record {kind!r} of {size_bytes} bytes is too long")
        return _Header(kind, instance, version, size_bytes, crc)
