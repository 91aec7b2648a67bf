# SPDX-License-Identifier: Apache-2.0
"""The file of a recording, as its writer sees it.

A recording begins in a file of another name beside its path, and takes its place with `commit`,
when nothing can refuse it any more: until then an earlier recording is whole. From then on it is
written in place, so what has been written remains when the process is killed. A file that was there
is replaced only if it is a recording that no other process writes; both are locked meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pyvmm.files.replacement import (
    ForeignFileError,
    ReplacementFile,
    pwrite_all,
    remove_abandoned,
    replaceable,
)
from pyvmm.trace.errors import RecordingNotWritten
from pyvmm.trace.recording_format import (
    ALIGNMENT,
    DATA_OFFSET,
    END_MAGIC,
    HEADER_BYTES,
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
    """A new recording for `path`, whose chunks take at most `limit_bytes`; 0 is no limit.

    It is there after `commit`, and only its owner can read it. `events`, `dropped` and
    `written_bytes` are totals, events that a ring has overwritten included. Raises
    `RecordingNotWritten`.

    Threads: any one at a time; `commit` beside another.
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
        self._earlier = -1
        with contextlib.ExitStack() as stack:
            stack.callback(self._unlock_earlier)
            self._target = check_recording(path)
            with _errors(path):
                self._earlier = _lock_existing(self._target)
                remove_abandoned(self._target.parent)
                self._file = stack.enter_context(ReplacementFile(self._target))
                self._fd = self._file.fd
                _lock(self._fd)
                pwrite_all(self._fd, self._header.encode())
            self._stack = stack.pop_all()

    def commit(self) -> None:
        """Put the recording at its path, in place of an earlier one. Raises `RecordingNotWritten`.

        Without it, `close` removes what was written.
        """
        with _errors(self.path):
            if self._earlier < 0:  # nothing was there
                self._earlier = _lock_existing(check_recording(self._target))
            self._file.commit()
        self._unlock_earlier()

    def note_ram(self, ram_bytes: int) -> None:
        """Put the size of the guest's RAM into the description. Raises OSError.

        The description is overwritten in place, within the one sector that holds it.
        """
        if self._header.description.get("ram-bytes") != ram_bytes:
            self._header.description["ram-bytes"] = ram_bytes
            pwrite_all(self._fd, self._header.encode()[:HEADER_BYTES])

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
        """Close the file; may be called repeatedly."""
        self._stack.close()

    def _unlock_earlier(self) -> None:
        if self._earlier >= 0:
            os.close(self._earlier)
            self._earlier = -1


def check_recording(path: Path) -> Path:
    """Return the file to write for `path`, links followed.

    Raises `RecordingNotWritten` if there is something that is not a recording.
    """
    with _errors(path):
        return replaceable(path, begins_recording)


def _lock_existing(path: Path) -> int:
    """Return a locked descriptor of the recording at `path`, or -1 if there is none. OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return -1
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        _lock(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int) -> None:
    with contextlib.suppress(PermissionError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
