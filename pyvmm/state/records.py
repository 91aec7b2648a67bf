# SPDX-License-Identifier: Apache-2.0
"""Records: the sections of a snapshot file and of a migration stream.

A record says what it is, by kind and version, and which one of its kind (a vCPU's number), and
carries its payload behind a header of 52 bytes:

    kind        32 bytes   ASCII, padded with zeros
    instance    u16
    flags       u16        1: optional; no others
    version     u16        from 1
    compatible  u16        number of earlier versions whose readers can read the payload, too
    size        u32        bytes of payload
    crc         u32        CRC-32C of the payload
    own_crc     u32        CRC-32C of the 48 bytes before

All numbers are little-endian. The header has a checksum of its own so that a length is trusted only
if it is the one that was written. CRC-32C detects every burst of up to 32 flipped bits; it is no
protection against deliberate changes, so everything in a payload is checked as well.

Formats evolve by these rules, which `docs/reference/formats.md` explains:

* A reader knows, for each kind, a range of versions. An older version of the range is upgraded
  when it is read: `RecordReader` returns records of the newest version that it knows.
* A newer version is refused by name, unless the record says that the reader's version can read it.
  Fields that the reader does not know are ignored then (`record_fields`).
* A kind that the reader does not know is skipped if the record is optional, else refused by name.

The reader does no input or output: it is fed bytes as they come and returns records when they are
complete. It never holds more than twice what was fed of one record, whatever a header claims. Its
buffer is used again for the next record: new memory for each of them would cost a page fault for
each of its pages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from devices.state import MAX_PAYLOAD_BYTES, Fields, Payload, StateError, decode, encode
from pyvmm_native.checksum import crc32c

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HEADER = struct.Struct("<32sHHHHII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
KIND_BYTES = 32
_U16_VALUES = 1 << 16
_OPTIONAL = 1

Upgrade: TypeAlias = Callable[[bytes], bytes]
"""Turns a payload of one version into one of the next; StateError if that cannot be done."""


class RecordError(ValueError):
    """Bytes that are not a record, or one that this reader refuses; the message says which."""


class VersionError(RecordError):
    """A record of a version that this reader does not know."""

    def __init__(self, kind: str, version: int, known: Kind) -> None:
        oldest, newest = known.oldest_version, known.version
        readable = f"version {newest}" if oldest == newest else f"versions {oldest} to {newest}"
        super().__init__(f"record {kind!r} has version {version}; this pyvmm reads {readable}")
        self.kind = kind
        self.version = version
        self.readable = readable


@dataclass(frozen=True)
class Kind:
    """The records of one kind that a reader accepts."""

    version: int
    """The newest version, which is the one that is written."""
    max_bytes: int
    """Longest payload."""
    max_instances: int = 1
    upgrades: tuple[Upgrade, ...] = ()
    """From each older version that is accepted to the next one, the oldest first."""

    @property
    def oldest_version(self) -> int:
        """The oldest version that is accepted."""
        return self.version - len(self.upgrades)


class Record(NamedTuple):
    """One section, of whose payload only the checksum has been checked."""

    kind: str
    version: int
    payload: bytes
    instance: int = 0
    optional: bool = False
    """A reader that does not know the kind may skip it."""
    compatible: int = 0
    """Number of earlier versions whose readers can read the payload, too."""

    def encode(self) -> bytes:
        """Return header and payload; ValueError for a value that does not fit the header."""
        header = record_header(
            self.kind, self.version, self.payload, self.instance, self.optional, self.compatible
        )
        return header + self.payload


def record_header(
    kind: str,
    version: int,
    payload: Buffer,
    instance: int = 0,
    optional: bool = False,
    compatible: int = 0,
) -> bytes:
    """Return the header before `payload`; ValueError for a value that does not fit."""
    name = kind.encode("ascii")
    numbers = (instance, int(optional), version, compatible)
    if not 0 < len(name) <= KIND_BYTES or not all(0 <= n < _U16_VALUES for n in numbers):
        raise ValueError(f"a record header cannot hold {kind!r} {numbers}")
    header = _HEADER.pack(name, *numbers, memoryview(payload).nbytes, crc32c(payload))
    return header + _CRC.pack(crc32c(header))


def record_fields(record: Record, known: Kind, name: str = "") -> Fields:
    """Return the fields of a payload, to be named `name` in errors; StateError if malformed.

    Of a version newer than `known`, fields that are not read are ignored.
    """
    part = name or record.kind
    payload = decode(record.payload, part)
    return Fields(part, payload, ignore_unknown=record.version > known.version)


def fields_upgrade(change: Callable[[dict[str, Any]], Payload]) -> Upgrade:
    """Return the `Upgrade` that applies `change` to the fields of a payload."""
    return lambda payload: encode(change(dict(decode(payload))))


class _Header(NamedTuple):
    kind: str
    instance: int
    optional: bool
    version: int
    compatible: int
    size_bytes: int
    crc: int


class RecordReader:
    """Turns bytes into records; `kinds` are those that are known, by name.

    Threads: event loop for snapshots, migration for streams.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds
        self._buffer = bytearray()
        self._taken = 0  # bytes at the beginning of it that were returned
        self._filled = 0  # bytes of it that were fed
        self._header: _Header | None = None

    @property
    def between_records(self) -> bool:
        """Everything that was fed has been returned in records."""
        return not self._left and self._header is None

    @property
    def wanted_bytes(self) -> int:
        """Number of bytes still missing from the next record; more may be fed."""
        size = HEADER_BYTES if self._header is None else self._header.size_bytes
        return max(size - self._left, 0)

    def feed(self, data: bytes) -> None:
        """Take the bytes that follow those fed before."""
        if self._taken:
            left = self._buffer[self._taken : self._filled]
            self._buffer[: len(left)] = left
            self._taken, self._filled = 0, len(left)
        end = self._filled + len(data)
        if end > len(self._buffer):
            self._buffer += bytes(max(end, 2 * len(self._buffer)) - len(self._buffer))
        self._buffer[self._filled : end] = data
        self._filled = end

    def next(self) -> Record | None:
        """Return the next record, skipping optional ones of unknown kinds; None if incomplete.

        Raises `RecordError`.
        """
        while True:
            if self._header is None:
                if self._left < HEADER_BYTES:
                    return None
                self._header = self._accepted(_decoded(self._take(HEADER_BYTES)))
            header = self._header
            if self._left < header.size_bytes:
                return None
            payload = self._take(header.size_bytes)
            if crc32c(payload) != header.crc:
                raise RecordError(f"record {header.kind!r} is damaged: wrong checksum")
            self._header = None
            if header.kind in self._kinds:
                return _record(header, payload, self._kinds[header.kind])

    @property
    def _left(self) -> int:
        return self._filled - self._taken

    def _take(self, count: int) -> bytes:
        with memoryview(self._buffer) as buffer:
            taken = bytes(buffer[self._taken : self._taken + count])
        self._taken += count
        return taken

    def _accepted(self, header: _Header) -> _Header:
        """Return `header`; RecordError if its record is refused."""
        known = self._kinds.get(header.kind)
        if known is None:
            if not header.optional:
                raise RecordError(f"records of kind {header.kind!r} are not known here")
            known = Kind(header.version, MAX_PAYLOAD_BYTES, _U16_VALUES)
        if header.version < known.oldest_version:
            raise VersionError(header.kind, header.version, known)
        if header.version - header.compatible > known.version:
            raise VersionError(header.kind, header.version, known)
        if header.instance >= known.max_instances:
            raise RecordError(f"record {header.kind!r} has no number {header.instance}")
        if header.size_bytes > known.max_bytes:
            raise RecordError(f"record {header.kind!r} of {header.size_bytes} bytes is too long")
        return header


def _decoded(data: bytes) -> _Header:
    own_crc = _CRC.unpack_from(data, _HEADER.size)[0]
    if crc32c(data[: _HEADER.size]) != own_crc:
        raise RecordError("the header of a record is damaged: wrong checksum")
    name, instance, flags, version, compatible, size, crc = _HEADER.unpack_from(data)
    kind = name.rstrip(b"\0").decode("ascii", "backslashreplace")
    if flags & ~_OPTIONAL:
        raise RecordError(f"record {kind!r} has flags 0x{flags:x}, which are not known here")
    if compatible >= max(version, 1):
        earlier = f"{compatible} earlier versions"
        raise RecordError(f"record {kind!r} of version {version} claims to suit {earlier}")
    return _Header(kind, instance, bool(flags), version, compatible, size, crc)


def _record(header: _Header, payload: bytes, known: Kind) -> Record:
    """Return the record, upgraded to the version that is `known` if it is older."""
    version = header.version
    try:
        while version < known.version:
            payload = known.upgrades[version - known.version](payload)
            version += 1
    except StateError as error:
        raise RecordError(
            f"record {header.kind!r} of version {header.version} cannot be upgraded: {error}"
        ) from error
    return Record(
        header.kind, version, payload, header.instance, header.optional, header.compatible
    )
