# SPDX-License-Identifier: Apache-2.0
"""The cache directory, for files that are slow to compute; any may be deleted at any time.

`$XDG_CACHE_HOME/pyvmm` (by default `~/.cache/pyvmm`, XDG Base Directory Specification) has a
directory for each kind of file. A file there is complete or absent, even with several writers.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pyvmm.errors import UserError

KEPT_FILES = 3
"""Files of one kind that are kept by default; a snapshot of the lab takes about 200 MB."""


class CacheUnusable(UserError):
    """The cache directory cannot be created or written to."""


def cache_root() -> Path:
    """Return the directory of all kinds, which need not exist. Raises `CacheUnusable`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "pyvmm"
    except RuntimeError as error:
        raise CacheUnusable("this user has no home directory for a cache") from error


def cache_dir(kind: str) -> Path:
    """Return the directory of `kind`, creating it if it is missing. Raises `CacheUnusable`."""
    path = cache_root() / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheUnusable(
            f"cannot create the cache directory {path}: {error.strerror}"
        ) from error
    return path


def keep_most_recent(pattern: str, in_use: Path, count: int = KEPT_FILES) -> None:
    """Remove all but the `count` most recently used files beside `in_use` whose names match.

    The time of the last use is the file's mtime; that of `in_use` is set here, so it is always
    kept.
    """
    with contextlib.suppress(FileNotFoundError):  # another process may remove files, too
        os.utime(in_use)
        used = sorted(in_use.parent.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
        for path in used[:-count]:
            path.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically: other processes see all of it or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
