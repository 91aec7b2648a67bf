# SPDX-License-Identifier: Apache-2.0
"""Read a snapshot: everything but the pages when it is opened, the pages later.

`SnapshotFile` checks the header, every record and the size of the file before it uses any of them.
Pages are read straight into guest RAM, and checked block by block as they are read; the guest does
not run before all of them are right. Memory is allocated for the records, which are
few and bounded, and for an entry per 2 MiB of the guest, and only as the bytes are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from devices.state import StateError
from pyvmm.errors import UserError
from pyvmm.files.regular import open_regular
from pyvmm.snapshot.errors import SnapshotDamaged
from pyvmm.snapshot.format import (
    HEADER,
    HEADER_KIND,
    OWN_KINDS,
    PAGES,
    PAGES_OFFSET,
    REPORT,
    Header,
    decode_blocks,
)
from pyvmm.snapshot.report import PageReport
from pyvmm.state.config_record import CONFIG, restore_config
from pyvmm.state.records import Kind, Record, RecordError, RecordReader, VersionError, record_fields
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import ChecksumError, check_stored, load_block

_PIECE_BYTES = 1 << 16

OnPages = Callable[[int], None]
"""Called with the number of pages just read and checked."""


class SnapshotFile:
    """An open snapshot, whose machine has parts of the kinds `kinds`; use it in a `with` block.

    `path` is its file, of `file_bytes` bytes, `config` the configuration of the saved machine,
    `report` a summary of its pages, `header` and `blocks` the places of the sections and pages.
    Raises `UserError` for a file that is not a snapshot, is damaged or incomplete, or has sections
    that this version refuses.

    Threads: event loop.
    """

    def __init__(self, path: Path, kinds: Mapping[str, Kind]) -> None:
        self.path = path
        try:
            self._fd = open_regular(path)
        except OSError as error:
            raise UserError(f"cannot read the snapshot {path}: {error.strerror}") from error
        try:
            with self._errors():
                self._read(kinds)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> SnapshotFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    @property
    def pages(self) -> int:
        """Number of pages in the file."""
        return sum(block.pages for block in self.blocks)

    def fileno(self) -> int:
        """Return the descriptor of the open file, from which pages can be read later."""
        return self._fd

    def _read(self, kinds: Mapping[str, Kind]) -> None:
        self.header = _read_header(self._fd)
        self.file_bytes = self.header.file_bytes
        records = _read_records(self._fd, self.header, {**OWN_KINDS, **kinds})
        own = {name: _take(records, name) for name in OWN_KINDS}
        self.parts = records
        """The records of the machine's parts, of whose payloads only the checksums are checked."""
        self.blocks = decode_blocks(own[PAGES], self.header)
        self.config = restore_config(record_fields(own[CONFIG], OWN_KINDS[CONFIG]))
        if self.config.ram_bytes != self.header.ram_bytes:
            raise RecordError(
                f"record {CONFIG!r} is of a guest with {self.config.ram_bytes} bytes of RAM,"
                f" the file of one with {self.header.ram_bytes}"
            )
        self.report = PageReport.restore(record_fields(own[REPORT], OWN_KINDS[REPORT]))

    def load(self, memory: GuestMemory, on_pages: OnPages = lambda pages: None) -> None:
        """Read all pages into `memory`, which is all zeros.

        Raises `UserError`; pages in `memory` may be damaged then, and nothing may use them.
        """
        for block in self.blocks:
            with self._errors():
                load_block(memory, block.first_pfn, block.bitmap, self._fd, block.offset, block.crc)
            on_pages(block.pages)

    def check(self, on_pages: OnPages = lambda pages: None) -> None:
        """Read and check all pages. Raises `UserError`."""
        for block in self.blocks:
            with self._errors():
                check_stored(block.first_pfn, block.bitmap, self._fd, block.offset, block.crc)
            on_pages(block.pages)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (RecordError, StateError, ChecksumError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SnapshotDamaged(f"the snapshot {self.path} cannot be used: {reason}") from error


def _read_header(fd: int) -> Header:
    reader = RecordReader({HEADER: HEADER_KIND})
    reader.feed(os.pread(fd, PAGES_OFFSET, 0))
    try:
        record = reader.next()
    except VersionError as error:
        raise RecordError(
            f"its format has version {error.version}; this pyvmm reads {error.readable}"
        ) from error
    except RecordError:
        record = None
    if record is None:
        raise RecordError("it is not a snapshot, or its header is damaged")
    header = Header.decode(record)
    size = os.fstat(fd).st_size
    if size != header.file_bytes:
        raise RecordError(f"it has {size} bytes and not {header.file_bytes}")
    return header


def _read_records(fd: int, header: Header, kinds: Mapping[str, Kind]) -> list[Record]:
    """Return all records but the first; `RecordError` if one is repeated."""
    reader = RecordReader(kinds)
    records: dict[tuple[str, int], Record] = {}
    offset = header.records_offset
    while offset < header.file_bytes:
        data = os.pread(fd, min(_PIECE_BYTES, header.file_bytes - offset), offset)
        if not data:
            break
        offset += len(data)
        reader.feed(data)
        while record := reader.next():
            if records.setdefault((record.kind, record.instance), record) is not record:
                raise RecordError(f"record {record.kind!r} appears twice")
    if not reader.between_records:
        raise RecordError("its last record is incomplete")
    return list(records.values())


def _take(records: list[Record], kind: str) -> Record:
    for record in records:
        if record.kind == kind:
            records.remove(record)
            return record
    raise RecordError(f"record {kind!r} is missing")
