# SPDX-License-Identifier: Apache-2.0
"""Write a snapshot so that its path names a complete one at every moment.

    with SnapshotWriter(path, memory) as file:
        file.store(...)         # any number of times, as the guest changes its memory
        file.finish(records)

Everything goes to a temporary file in the same directory (see `pyvmm.files.replacement`). It is
synced, replaces the old snapshot in one step, and then the directory is synced. A failure before
that step leaves the old snapshot as it was; the file that a killed writer leaves is removed by the
next writer in that directory. The file is readable by its owner only: it holds all of the guest's
secrets.

Only a snapshot is replaced, or with `force` another regular file. This is checked first of all and
again before the step.

A block that has changed is written again, to its old place if it still fits there, else to the end;
the old place becomes a hole then. The disk writes while further blocks are copied, so little is
left to sync in the end.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyvmm.files.replacement import (
    ForeignFileError,
    ReplacementFile,
    pwrite_all,
    remove_abandoned,
    replaceable,
)
from pyvmm.snapshot.errors import SnapshotNotDurable, SnapshotNotWritten, SnapshotPathInUse
from pyvmm.snapshot.format import (
    BITMAP_BYTES,
    PAGES_OFFSET,
    Block,
    Header,
    begins_snapshot,
    encode_blocks,
    holes,
)
from pyvmm.sockets.lab_paths import host_cannot_see, lab_directory
from pyvmm.state.records import Record
from pyvmm_native import PAGE_BYTES
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import punch_hole, store_block


class SnapshotWriter:
    """Writes `memory` to `path`, block by block; raises `UserError` where that cannot be written.

    A file at `path` stays as it was until `finish` has returned. Leaving the `with` block before
    that discards the new one.

    Threads: snapshot; created on the event loop.
    """

    def __init__(self, path: Path, memory: GuestMemory, *, force: bool = False) -> None:
        self._path = path
        self._force = force
        self._memory = memory
        self._blocks: dict[int, Block] = {}
        self._room_of: dict[int, int] = {}
        self._room = 0
        self.write_behind = True
        """Have the disk write each block at once; `store` may wait for it then."""

    def __enter__(self) -> SnapshotWriter:
        with self._errors():
            self._target = self._replaceable(self._path)
        if host_cannot_see(self._target):
            raise SnapshotNotWritten(
                f"cannot write the snapshot {self._path}: the lab, in which the guest runs, does"
                f" not share {lab_directory(self._target)} with the host"
            )
        with self._errors():
            remove_abandoned(self._target.parent)
            self._file = ReplacementFile(self._target).__enter__()
        self._fd = self._file.fd
        return self

    def _replaceable(self, path: Path) -> Path:
        return replaceable(path, lambda file: self._force or begins_snapshot(file))

    def __exit__(self, *exc: object) -> None:
        self._file.__exit__(*exc)

    @property
    def pages(self) -> int:
        """Number of guest pages in the file, as it is now."""
        return sum(block.pages for block in self._blocks.values())

    def store(self, number: int, changed: int, full: int) -> None:
        """Bring block `number` up to date: of its `changed` pages only those in `full` are stored.

        Both have a bit for each page. A block of which the guest changes a page meanwhile has to be
        stored again before `finish`: its checksum may be wrong.
        """
        old = self._blocks.pop(number, None)
        kept = int.from_bytes(old.bitmap, "little") & ~changed if old else 0
        bits = kept | full
        if not bits:
            return
        pages = bits.bit_count()
        if old is not None and pages <= self._room_of[number]:
            place = old.place
        else:
            place, self._room_of[number] = self._room, pages
            self._room += pages
        bitmap = bits.to_bytes(BITMAP_BYTES, "little")
        block = Block(number, place, 0, bitmap)
        with self._errors():
            crc = store_block(
                self._memory,
                block.first_pfn,
                bitmap,
                self._fd,
                block.offset,
                write_behind=self.write_behind,
            )
        self._blocks[number] = Block(number, place, crc, bitmap)

    def finish(self, records: Sequence[Record]) -> int:
        """Complete the file and give it its name; return its size in bytes."""
        blocks = [self._blocks[number] for number in sorted(self._blocks)]
        tail = b"".join(record.encode() for record in (*records, encode_blocks(blocks)))
        header = Header(self._memory.size_bytes, self._room, len(tail))
        with self._errors():
            for start, end in holes(blocks, self._room):
                if start < end:
                    length = (end - start) * PAGE_BYTES
                    punch_hole(self._fd, PAGES_OFFSET + start * PAGE_BYTES, length)
            pwrite_all(self._fd, tail, header.records_offset)
            pwrite_all(self._fd, header.encode())
            os.fsync(self._fd)
            self._replaceable(self._target)  # another process may have created a file there
            self._file.commit()
        self._sync_directory(self._target.parent)
        return header.file_bytes

    def _sync_directory(self, path: Path) -> None:
        """Sync the directory that has the file's new name, where the file system supports it."""
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTSUP):
                return
            raise SnapshotNotDurable(
                f"the snapshot {self._path} is complete, but a power failure may undo it: its"
                f" directory cannot be synced: {error.strerror}"
            ) from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ForeignFileError as error:
            raise SnapshotPathInUse(
                f"{self._path} is a file, but not a snapshot, and is not replaced"
            ) from error
        except OSError as error:
            raise SnapshotNotWritten(
                f"cannot write the snapshot {self._path}: {error.strerror}"
            ) from error
