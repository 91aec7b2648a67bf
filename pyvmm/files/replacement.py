# SPDX-License-Identifier: Apache-2.0
"""Write a file so that its path names a complete one at every moment, and replace only our own.

    target = replaceable(path, is_ours)
    with ReplacementFile(target) as file:
        os.write(file.fd, data)
        file.commit()

The data goes to a file `.pyvmm-*.part` beside the target, whose place it takes in one step
(rename(2)). A failure before that leaves the target as it was. A path may name nothing, or a
regular file that `is_ours` recognizes; a symbolic link is followed by the same rule. Everything
else (a pipe, a socket, a device, a file with other contents) is refused before anything is written.

A process that is killed leaves its `.part` file. `remove_abandoned` removes those that no process
has open: a write lease (fcntl(2), F_SETLEASE) is granted only then, and is independent of PID
namespaces and of who opened the file. The lab's emulator, for instance, has it open for the lab.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pyvmm.files.regular import open_regular_file

_PREFIX, _SUFFIX = ".pyvmm-", ".part"


class ForeignFileError(FileExistsError):
    """A regular file is in the way whose contents are not ours."""


def replaceable(path: Path, is_ours: Callable[[BinaryIO], bool]) -> Path:
    """Return the path of the file that `path` names, links followed, if it may be replaced.

    That is no file, or a regular one that `is_ours` recognizes when it reads it. Raises
    `ForeignFileError` for another regular file, and OSError.
    """
    try:
        named = path.stat()
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    target = Path(os.path.realpath(path))
    if not target.exists() or not os.path.samestat(named, target.stat()):
        raise OSError(errno.EINVAL, "it is a link to an open file, which has no path")
    with open_regular_file(target) as file:
        if not is_ours(file):
            raise ForeignFileError(errno.EEXIST, "a file with other contents is there")
    return target


class ReplacementFile:
    """A new file at `path`, open as `fd`, that takes the place of `target`.

    Its mode is `mode` without the bits of the umask. Leaving the `with` block without `commit`
    removes it. Raises OSError.
    """

    def __init__(self, target: Path, mode: int = 0o600) -> None:
        self._target = target
        self._mode = mode
        self._committed = False
        name = f"{_PREFIX}{os.urandom(8).hex()}{_SUFFIX}"  # short, however long the target's is
        self.path = target.with_name(name)

    def __enter__(self) -> ReplacementFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.fd = os.open(self.path, flags, self._mode)
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._committed:
            with suppress(OSError):
                self.path.unlink()
        with suppress(OSError):  # NFS may report a failed write here, too late
            os.close(self.fd)

    def commit(self) -> None:
        """Give the file the target's name; a file that had it is gone."""
        self.path.replace(self._target)
        self._committed = True


def replace_file(target: Path, data: bytes) -> None:
    """Write `data` to a new file, with the usual mode, in place of `target`. Raises OSError."""
    with ReplacementFile(target, 0o666) as file:
        pwrite_all(file.fd, data)
        file.commit()


def pwrite_all(fd: int, data: bytes, offset: int = 0) -> None:
    """Write all of `data` at `offset`. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def remove_abandoned(directory: Path) -> list[Path]:
    """Remove the `.part` files in `directory` whose writer was killed; return their paths."""
    removed = []
    with suppress(OSError):
        for path in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
            with suppress(OSError):
                if remove_unless_open(path):
                    removed.append(path)
    return removed


def remove_unless_open(path: Path) -> bool:
    """Remove `path` if it is a file of this user that no process has open.

    Returns True if it has been removed. Raises OSError, `BlockingIOError` if it is open.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        # The signal if somebody opens the file now; SIGIO, the default, would end this process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # EAGAIN: it is open elsewhere
        path.unlink()
        return True
    finally:
        os.close(fd)
