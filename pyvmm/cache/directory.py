# SPDX-License-Identifier: Apache-2.0
"""The cache directory, for files that are slow to compute; any may be deleted at any time.

`$XDG_CACHE_HOME/pyvmm` (by default `~/.cache/pyvmm`, XDG Base Directory Specification) has a
directory for each kind of file. A file there is complete or absent, even with several writers.

A cache that cannot be written is only not written: what is there is used, and `cached_file` keeps
in memory what is not. The cache may be read-only, full or another user's, or there may be no place
for one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from pyvmm.errors import UserError
from pyvmm.files.replacement import pwrite_all, remove_abandoned, replace_file

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
    kept. Files of killed writers are removed, too.
    """
    with contextlib.suppress(OSError):  # another process may remove files, or be the only one to
        remove_abandoned(in_use.parent)
        os.utime(in_use)
        used = sorted(in_use.parent.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
        for path in used[:-count]:
            path.unlink(missing_ok=True)


def keep_limit(added: Path) -> None:
    """Remove what was used longest ago if the cache exceeds its limit with the file `added`."""
    # Late: saves 1 ms where nothing is added.
    from pyvmm.cache.contents import apply_limit

    apply_limit(cache_root(), added)


def cached_file(
    kind: str,
    name: str,
    compute: Callable[[], bytes],
    *,
    pattern: str = "*",
    count: int = KEPT_FILES,
) -> Path:
    """Return the path of the file `name` of `kind`; its content is computed unless it is cached.

    `keep_most_recent` is applied with `pattern` and `count`. Where the cache cannot be written, the
    path is that of a file in memory, which this process and its children can open while it lives.
    """
    path = _path_in_cache(kind, name)
    if path is not None and os.access(path, os.R_OK):
        keep_most_recent(pattern, path, count)
        return path
    if (kind, name) not in _in_memory:
        data = compute()
        if path is not None:
            with contextlib.suppress(OSError):
                replace_file(path, data)
                keep_most_recent(pattern, path, count)
                keep_limit(path)
                return path
        fd = _in_memory[kind, name] = os.memfd_create(f"pyvmm-{kind}", os.MFD_CLOEXEC)
        pwrite_all(fd, data)
    return Path(f"/proc/{os.getpid()}/fd/{_in_memory[kind, name]}")


_in_memory: dict[tuple[str, str], int] = {}
"""Open files of this process by kind and name."""


def _path_in_cache(kind: str, name: str) -> Path | None:
    try:
        return cache_dir(kind) / name
    except CacheUnusable:
        return None
