# SPDX-License-Identifier: Apache-2.0
"""Read a recording: its description, and its events in order.

`Recording` finds and checks all chunks when it opens the file, and decodes one at a time when its
events are read. The rules by which it tells an end that was cut off, which is expected of a VMM
that was killed, from damage are those of `pyvmm.trace.recording_format`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pyvmm.files.regular import open_regular_file
from pyvmm.trace import recording_format as layout
from pyvmm.trace.errors import RecordingUnusable
from pyvmm.trace.recording_format import ChunkHeader, FileHeader, FormatError
from pyvmm.trace.stream import TraceEvent, events_of
from pyvmm_native.event_decoder import EventError

_CUT = "the last part is incomplete, as its writer was stopped, and is left out"
_SCAN_BYTES = 1 << 20


class _Place(NamedTuple):
    """A chunk, and its offset in the file."""

    offset: int
    header: ChunkHeader


class Recording:
    """The recording in the file at `path`; a context manager that closes it.

    `description` is that of the file, `limit_bytes` the size of its ring (0: no limit). `notes` are
    sentences about what was left out. Raises `RecordingUnusable`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        try:
            self._file: BinaryIO = open_regular_file(path)
        except OSError as error:
            raise _not_readable(path, error) from error
        try:
            header = FileHeader.decode(self._file.read(layout.DATA_OFFSET))
            self.description, self.limit_bytes = header.description, header.limit_bytes
            self.size_bytes = self._file.seek(0, 2)
            self._places = self._ring() if header.limit_bytes else self._sequence()
        except (FormatError, ValueError, RecursionError) as error:
            self._file.close()
            raise RecordingUnusable(f"{path} cannot be used: {error}") from error
        except OSError as error:
            self._file.close()
            raise _not_readable(path, error) from error

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    @property
    def event_count(self) -> int:
        """Number of events."""
        return sum(place.header.event_count for place in self._places)

    @property
    def dropped(self) -> int:
        """Number of events that are missing, as they came too fast."""
        return sum(place.header.dropped for place in self._places)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the chunks in the file."""
        return sum(place.header.size_bytes for place in self._places)

    @property
    def start_ns(self) -> int:
        """CLOCK_MONOTONIC of the first event; 0 if there is none."""
        return self._places[0].header.base_ns if self._places else 0

    def events(self) -> Iterator[TraceEvent]:
        """Yield all events in order. Raises `RecordingUnusable`.

        Also for a ring whose writer has overwritten a chunk in the meantime.
        """
        for place in self._places:
            data = self._intact_chunk(place)
            try:
                yield from events_of(layout.decode_chunk(place.header, data))
            except (FormatError, EventError, OverflowError) as error:
                raise RecordingUnusable(
                    f"{self.path} is damaged at byte {place.offset}: {error}"
                ) from error

    def chunks(self) -> Iterator[bytes]:
        """Yield all chunks in order as they are in the file, padded to the alignment.

        Raises `RecordingUnusable`, as `events` does.
        """
        for place in self._places:
            yield self._intact_chunk(place).ljust(place.header.size_bytes, b"\0")

    def _intact_chunk(self, place: _Place) -> bytes:
        try:
            data = self._read(place.offset, place.header)
        except OSError as error:
            raise _not_readable(self.path, error) from error
        if not layout.chunk_is_intact(place.header, data):
            raise RecordingUnusable(f"{self.path} has changed while it was read")
        return data

    # --- Finding the chunks -----------------------------------------------------------------
    def _sequence(self) -> list[_Place]:
        """Return the chunks of a recording without a limit."""
        places, offset = self._run(layout.DATA_OFFSET, self.size_bytes)
        if offset < self.size_bytes:
            header = self._header(offset)
            cut = header is None or offset + header.size_bytes > self.size_bytes
            if not cut or self._next_run(offset + layout.ALIGNMENT, self.size_bytes):
                raise FormatError(f"it is damaged at byte {offset}")
            self.notes.append(_CUT)
        self._check_order(places)
        return places

    def _ring(self) -> list[_Place]:
        """Return the chunks of a ring: those after the newest one, then those up to it."""
        end = min(self.size_bytes, layout.DATA_OFFSET + self.limit_bytes)
        newest, offset = self._run(layout.DATA_OFFSET, end)
        # An older chunk may begin right where the newest one ends.
        newest, older = _split_at_oldest(newest)
        if not older and offset < end and not self._is_marker(offset):
            older = self._next_run(offset + layout.ALIGNMENT, end)
        if older and newest and older[0].header.first_seq > newest[-1].header.first_seq:
            raise FormatError(f"it is damaged at byte {offset}")
        places = [*older, *newest]
        for index in range(len(older) - 1, -1, -1):
            # What is left of the lap before is no part of the recording.
            if index + 1 < len(places) and _gap(places[index], places[index + 1]):
                places = places[index + 1 :]
                break
        self._check_order(places)
        return places

    def _run(self, offset: int, end: int) -> tuple[list[_Place], int]:
        """Return the intact chunks that follow each other from `offset`, and where they end."""
        places = []
        while offset < end:
            header = self._header(offset)
            if header is None or offset + header.size_bytes > end:
                break
            if not layout.chunk_is_intact(header, self._read(offset, header)):
                break
            places.append(_Place(offset, header))
            offset += header.size_bytes
        return places, offset

    def _check_order(self, places: list[_Place]) -> None:
        for before, after in pairwise(places):
            if _gap(before, after):
                raise FormatError(f"it is damaged: events are missing before byte {after.offset}")

    def _next_run(self, offset: int, end: int) -> list[_Place]:
        """Return the next intact chunk from `offset` and those that follow it; [] without one.

        The work is linear in the size of the file: a place that begins like a chunk is read only if
        that chunk would end where another begins, and all that prove to be none are together no
        longer than the range. FormatError if they are: no writer leaves so many.
        """
        begin, most_bytes = offset, end - offset
        while offset < end:
            self._file.seek(offset)
            data = self._file.read(min(_SCAN_BYTES, end - offset))
            if not data:
                break
            for at in range(0, len(data), layout.ALIGNMENT):
                if not data.startswith(layout.CHUNK_MAGIC, at):
                    continue
                header = self._header(offset + at)
                if header is None or not self._is_boundary(offset + at + header.size_bytes, end):
                    continue
                if places := self._run(offset + at, end)[0]:
                    return places
                most_bytes -= header.size_bytes
                if most_bytes < 0:
                    raise FormatError(f"it is damaged at byte {begin}")
            offset += layout.aligned(len(data))
        return []

    def _header(self, offset: int) -> ChunkHeader | None:
        self._file.seek(offset)
        return layout.decode_chunk_header(self._file.read(layout.CHUNK_HEADER_BYTES))

    def _is_boundary(self, offset: int, end: int) -> bool:
        """Return whether a chunk can end at `offset`: at `end`, or before a chunk or a marker."""
        self._file.seek(offset)
        magic = self._file.read(len(layout.CHUNK_MAGIC))
        return offset == end or (offset < end and magic in (layout.CHUNK_MAGIC, layout.END_MAGIC))

    def _is_marker(self, offset: int) -> bool:
        self._file.seek(offset)
        return self._file.read(len(layout.END_MAGIC)) == layout.END_MAGIC

    def _read(self, offset: int, header: ChunkHeader) -> bytes:
        self._file.seek(offset)
        return self._file.read(layout.CHUNK_HEADER_BYTES + header.body_bytes)


def _not_readable(path: Path, error: OSError) -> RecordingUnusable:
    return RecordingUnusable(f"{path} cannot be read: {error.strerror}")


def _split_at_oldest(places: list[_Place]) -> tuple[list[_Place], list[_Place]]:
    """Return the places up to the first that is followed by an older chunk, and the others."""
    for index, (before, after) in enumerate(pairwise(places), 1):
        if after.header.first_seq < before.header.first_seq:
            return places[:index], places[index:]
    return places, []


def _gap(before: _Place, after: _Place) -> bool:
    return before.header.end_seq != after.header.first_seq
