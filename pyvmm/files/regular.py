# SPDX-License-Identifier: Apache-2.0
"""Open a file that a person names, and never wait for it.

open(2) of a named pipe waits for a writer, and a read from a pipe or terminal for its data; opening
a device can have effects of its own. So only regular files are opened, whose type is checked before
and, as the path may name something else by then, after the opening.

A file system that does not respond, such as that of a network server that is down, makes both wait
in the kernel. So a thread does them, for which the caller waits for at most `OPEN_TIMEOUT_S`.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from pyvmm.blocking.deadline import call_within

OPEN_TIMEOUT_S = 10.0
_TYPES = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a directory",
}


def open_regular(path: Path | str) -> int:
    """Return a descriptor of the regular file at `path`, open for reading.

    Raises OSError, with the type of the file as `strerror` if it is not a regular one.
    """
    try:
        return call_within(OPEN_TIMEOUT_S, "open-file", lambda: _open(path), discard=os.close)
    except TimeoutError as error:
        text = f"its file system has not responded for {OPEN_TIMEOUT_S:g} s"
        raise OSError(errno.ETIMEDOUT, text, os.fspath(path)) from error


def _open(path: Path | str) -> int:
    _check(os.stat(path), path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_regular_file(path: Path | str) -> BinaryIO:
    """Return the regular file at `path`, open for reading. Raises OSError as `open_regular`."""
    return os.fdopen(open_regular(path), "rb")


def _check(status: os.stat_result, path: Path | str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _TYPES.get(stat.S_IFMT(status.st_mode), "of an unknown type")
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(code, f"it is {kind}, not a regular file", os.fspath(path))
