# SPDX-License-Identifier: Apache-2.0
"""What pyvmm keeps because making it again takes time; all of it may be deleted at any moment.

Below `$XDG_CACHE_HOME/pyvmm` (by default `~/.cache/pyvmm`) there is a directory for each kind of
thing. A file there is whole or absent, whoever else is writing.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pyvmm.errors import UserError

KEPT_FILES = 3
"""How many files of one kind stay; a snapshot of the lab takes about 200 MB."""


class CacheUnusable(UserError):
    """The cache directory cannot be made or written to."""


def cache_dir(kind: str) -> Path:
    """Where files of `kind` are kept (XDG Base Directory Specification); made when missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    path = Path(base) / "pyvmm" / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheUnusable(f"cannot make the cache directory {path}: {error.strerror}") from error
    return path


def keep_most_recent(pattern: str, in_use: Path, count: int = KEPT_FILES) -> None:
    """Remove all but the `count` most recently used files beside `in_use` whose names match.

    Using a file is touching it; `in_use` is touched here and always stays.
    """
    with contextlib.suppress(FileNotFoundError):  # another process may be doing the same
        os.utime(in_use)
        used = sorted(in_use.parent.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
        for path in used[:-count]:
            path.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that others see either not at all or complete."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
