# SPDX-License-Identifier: Apache-2.0
"""The file of a recording, as its writer sees it.

The file is opened when the recording begins, and written in place, so what has been written remains
when the process is killed. A file that was there is replaced only if it is a recording that no
other process writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pyvmm.files.replacement import ForeignFileError, pwrite_all, replaceable
from pyvmm.trace.errors import RecordingNotWritten
from pyvmm.trace.recording_format import (
    ALIGNMENT,
    DATA_OFFSET,
    END_MAGIC,
    MIN_LIMIT_BYTES,
    FileHeader,
    aligned,
    begins_recording,
    encode_chunk,
)
from pyvmm.units import format_size
from pyvmm.version import VERSION
from pyvmm_native.events import Batch


class RecordingFile:
    """A new recording at `path`, whose chunks take at most `limit_bytes`; 0 is no limit.

    Only its owner can read it. `events`, `dropped` and `written_bytes` are totals, events that a
    ring has overwritten included. Raises `RecordingNotWritten`.
    """

    def __init__(self, path: Path, limit_bytes: int = 0) -> None:
        if limit_bytes and limit_bytes < MIN_LIMIT_BYTES:
            raise RecordingNotWritten(
                f"a recording of {format_size(limit_bytes)} is too small:"
                f" it takes at least {format_size(MIN_LIMIT_BYTES)}"
            )
        self.path = path
        self._limit = limit_bytes // ALIGNMENT * ALIGNMENT
        self._place = 0
        self.events = 0
        self.dropped = 0
        self.written_bytes = 0
        clocks = {"realtime-ns": time.time_ns(), "monotonic-ns": time.monotonic_ns()}
        self._header = FileHeader(self._limit, {"pyvmm": VERSION, **clocks})
        self._fd = _open(path)
        try:
            with _errors(path):
                os.ftruncate(self._fd, 0)
                pwrite_all(self._fd, self._header.encode())
        except BaseException:
            self.close()
            raise

    def note_ram(self, ram_bytes: int) -> None:
        """Put the size of the guest's RAM into the description. Raises OSError."""
        if self._header.description.get("ram-bytes") != ram_bytes:
            self._header.description["ram-bytes"] = ram_bytes
            pwrite_all(self._fd, self._header.encode())

    def write(self, batch: Batch) -> None:
        """Append the chunk of `batch`. Raises OSError."""
        self.write_chunk(encode_chunk(batch), batch)

    def write_chunk(self, chunk: bytes, batch: Batch) -> None:
        """Append `chunk`, that of `batch`. Raises OSError."""
        if self._limit and self._place + len(chunk) > self._limit:
            if self._place < self._limit:
                marker = END_MAGIC.ljust(ALIGNMENT, b"\0")
                pwrite_all(self._fd, marker, DATA_OFFSET + self._place)
            self._place = 0
        pwrite_all(self._fd, chunk, DATA_OFFSET + self._place)
        self._place += aligned(len(chunk))
        self.events += batch.event_count
        self.dropped += batch.dropped
        self.written_bytes += len(chunk)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # NFS may report a failed write here, too late
            os.close(self._fd)


def check_recording(path: Path) -> Path:
    """Return the file to write for `path`, links followed.

    Raises `RecordingNotWritten` if there is something that is not a recording.
    """
    with _errors(path):
        return replaceable(path, begins_recording)


def _open(path: Path) -> int:
    target = check_recording(path)
    with _errors(path):
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise RecordingNotWritten(f"{path} cannot be written: it is no regular file")
            with contextlib.suppress(PermissionError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
    return fd


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ForeignFileError as error:
        raise RecordingNotWritten(f"{path} is a file, but not a recording") from error
    except BlockingIOError as error:
        raise RecordingNotWritten(f"{path} is being written by another process") from error
    except OSError as error:
        raise RecordingNotWritten(f"{path} cannot be written: {error.strerror}") from error
