# SPDX-License-Identifier: Apache-2.0
"""The files to which a guest's output is appended: those of --log and --port."""

from __future__ import annotations

import os
from pathlib import Path

from pyvmm.cli.errors import CommandError


def open_for_appending(path: Path, option: str) -> int:
    """Return a descriptor to append to the file `path` of `option`, which is created if need be.

    Raises `CommandError`.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise CommandError(
            f"cannot write to {path}: {error.strerror}", f"choose another file for {option}"
        ) from error
