# SPDX-License-Identifier: Apache-2.0
"""The files to which a guest's output is appended: those of --log and --port."""

from __future__ import annotations

import os
from errno import ENXIO
from pathlib import Path

from pyvmm.cli.errors import CommandError


def open_for_appending(path: Path, option: str) -> int:
    """Return a descriptor to append to the file `path` of `option`, which is created if need be.

    Raises `CommandError`, also for a pipe that has no reader: the guest would wait for one.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as error:
        reason = "it is a pipe without a reader" if error.errno == ENXIO else error.strerror
        raise CommandError(
            f"cannot write to {path}: {reason}", f"choose another file for {option}"
        ) from error
    os.set_blocking(fd, True)
    return fd
