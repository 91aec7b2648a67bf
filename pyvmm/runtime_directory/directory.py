# SPDX-License-Identifier: Apache-2.0
"""Choose the runtime directory, and check that no other user can change it.

It is `pyvmm` in `$XDG_RUNTIME_DIR` (XDG Base Directory Specification) or else in `/run/user/UID`,
the first of them that is a directory of this user, else `/tmp/pyvmm-UID`. A variable that another
user's session has left behind, as after su(1), is thereby ignored.

Others may create a file of any name in /tmp. So the directory is used only if it is one, not a link
to one, belongs to this user, and has mode 0700.

The lab has a directory of its own, as sockets and locks in the lab do not reach the host. The guest
that `pyvmm run` starts in a lab is announced on the host, in front of the lab.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyvmm.runtime_directory.errors import RuntimeDirectoryUnusable
from pyvmm.sockets.lab_paths import LAB_RUNTIME_DIRECTORY, in_lab


def runtime_directory() -> Path:
    """Return the path of the directory, which need not exist."""
    if in_lab():
        return Path(LAB_RUNTIME_DIRECTORY)
    uid = os.geteuid()
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if base.startswith("/") and _belongs_to(base, uid):
            return Path(base) / "pyvmm"
    return Path(f"/tmp/pyvmm-{uid}")


def create_directory() -> Path:
    """Return the directory, created if it is missing. Raises `RuntimeDirectoryUnusable`."""
    path = runtime_directory()
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        check_directory(path)
    except OSError as error:
        raise RuntimeDirectoryUnusable(
            f"the runtime directory {path} cannot be created: {error.strerror}"
        ) from error
    return path


def check_directory(path: Path) -> bool:
    """Return whether the directory `path` exists.

    Raises `RuntimeDirectoryUnusable` if another user could have written to it.
    """
    with failures_reported(path):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeDirectoryUnusable(f"the runtime directory {path} is not a directory")
    if status.st_uid != os.geteuid():
        raise RuntimeDirectoryUnusable(
            f"the runtime directory {path} belongs to another user, {status.st_uid}"
        )
    if mode := stat.S_IMODE(status.st_mode) & 0o077:
        raise RuntimeDirectoryUnusable(
            f"other users may use the runtime directory {path}: its mode has {mode:#o}"
        )
    return True


@contextmanager
def failures_reported(directory: Path) -> Iterator[None]:
    """Raise `RuntimeDirectoryUnusable` for an OSError in the block."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error  # "AF_UNIX path too long" has no number
        raise RuntimeDirectoryUnusable(
            f"the runtime directory {directory} cannot be used: {reason}"
        ) from error


def _belongs_to(base: str, uid: int) -> bool:
    try:
        status = os.stat(base)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid
