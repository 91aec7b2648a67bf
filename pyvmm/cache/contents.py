# SPDX-License-Identifier: Apache-2.0
"""The contents of a cache directory: listed, removed, and kept below a limit.

An entry is a file or a directory in the directory of a kind. Everything can be computed again, so
any entry may be removed, but not while it is in use: a file that another process has open (see
`pyvmm.files.replacement`) is left alone, and so are the trees of the kernel and unfinished images
while a build holds the lock. A file system without leases, such as NFS, cannot tell that a file is
not in use, and keeps all of them.

The limit is a number of bytes in the file `limit`. It is applied when something has been added: the
entries used longest ago are removed first, never the one that was added. A limit that is smaller
than what is in use is exceeded meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pyvmm.files.replacement import remove_abandoned, remove_unless_open, replace_file

BUILD_LOCK = "build.lock"
"""The lock of `guest_images.build`."""
_LIMIT = "limit"
_TREES = "kernel"
"""The kind whose entries are source and object trees of a build."""
_UNFINISHED = ".image-"


class CacheEntry(NamedTuple):
    """A file or a directory in the cache."""

    kind: str
    path: Path
    size_bytes: int
    """Space on the disk."""
    used: float
    """Time of the last use, in seconds since the epoch; of a directory, of the last change."""


def list_entries(root: Path) -> list[CacheEntry]:
    """Return the entries of the cache at `root`, those used longest ago first.

    Files of killed writers are removed before.
    """
    entries = []
    for directory in _scan(root):
        if directory.is_dir(follow_symlinks=False):
            remove_abandoned(Path(directory.path))
            entries += [_entry(directory.name, found) for found in _scan(directory.path)]
    return sorted((entry for entry in entries if entry), key=lambda entry: entry.used)


def remove_entry(root: Path, entry: CacheEntry) -> bool:
    """Remove `entry` of the cache at `root` unless it is in use; return True if it is gone."""
    try:
        if entry.kind == _TREES or entry.path.name.startswith(_UNFINISHED):
            with _no_build(root) as idle:
                return idle and _remove(entry.path)
        return _remove(entry.path)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def read_limit(root: Path) -> int | None:
    """Return the limit of the cache at `root`, in bytes; None if there is none."""
    try:
        return int((root / _LIMIT).read_text())
    except (OSError, ValueError):
        return None


def set_limit(root: Path, size_bytes: int | None) -> None:
    """Set the limit of the cache at `root`, or remove it. Raises OSError."""
    if size_bytes is None:
        (root / _LIMIT).unlink(missing_ok=True)
    else:
        root.mkdir(parents=True, exist_ok=True)
        replace_file(root / _LIMIT, f"{size_bytes}\n".encode())


def apply_limit(root: Path, added: Path | None = None) -> None:
    """Remove entries until those that remain keep the limit, if there is one."""
    limit_bytes = read_limit(root)
    if limit_bytes is None:
        return
    entries = list_entries(root)
    size_bytes = sum(entry.size_bytes for entry in entries)
    for entry in entries:
        if size_bytes <= limit_bytes:
            break
        if entry.path != added and remove_entry(root, entry):
            size_bytes -= entry.size_bytes


def _scan(directory: Path | str) -> list[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(directory) as found:
        return list(found)
    return []


def _entry(kind: str, found: os.DirEntry[str]) -> CacheEntry | None:
    with suppress(OSError):  # it may be removed meanwhile
        status = found.stat(follow_symlinks=False)
        size_bytes, used = status.st_blocks * 512, status.st_mtime
        if stat.S_ISDIR(status.st_mode):
            size_bytes += _tree_bytes(found.path)
        return CacheEntry(kind, Path(found.path), size_bytes, used)
    return None


def _tree_bytes(directory: str) -> int:
    total = 0
    for found in _scan(directory):
        with suppress(OSError):
            total += found.stat(follow_symlinks=False).st_blocks * 512
            if found.is_dir(follow_symlinks=False):
                total += _tree_bytes(found.path)
    return total


def _remove(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        import shutil  # saves 5 ms where nothing is removed

        shutil.rmtree(path)
        return True
    return remove_unless_open(path)


@contextmanager
def _no_build(root: Path) -> Iterator[bool]:
    """Keep builds of images from starting; yield False if one is running."""
    with (root / BUILD_LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
