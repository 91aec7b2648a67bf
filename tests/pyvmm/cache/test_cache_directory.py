# SPDX-License-Identifier: Apache-2.0
"""The cache directory: its location, and the files that are kept in it."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.cache.directory import (
    KEPT_FILES,
    CacheUnusable,
    cache_dir,
    cache_root,
    cached_file,
    keep_most_recent,
)


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_each_kind_has_a_directory_below_xdg_cache_home(base: Path) -> None:
    assert cache_dir("elf") == base / "pyvmm" / "elf"
    assert cache_dir("elf").is_dir()


def test_the_default_is_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "pyvmm"


def test_a_user_without_a_home_directory_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(CacheUnusable, match="no home directory"):
        cache_dir("elf")


def test_a_directory_that_cannot_be_created_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CacheUnusable, match="cannot create the cache directory"):
        cache_dir("elf")


def test_the_most_recently_used_files_are_kept() -> None:
    paths = [cache_dir("lab") / f"snapshot-{index}" for index in range(KEPT_FILES + 2)]
    for age, path in enumerate(paths):
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    other = cache_dir("lab") / "vmlinux-1"
    other.touch()
    keep_most_recent("snapshot-*", paths[-1])
    assert set(cache_dir("lab").iterdir()) == {paths[-1], *paths[: KEPT_FILES - 1], other}


def test_a_file_is_computed_only_once() -> None:
    path = cached_file("elf", "name", lambda: b"data")
    assert path == cache_dir("elf") / "name"
    assert path.read_bytes() == b"data"
    assert cached_file("elf", "name", lambda: pytest.fail("computed again")) == path


def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one of a user that the system does not know."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def a_file_in_place_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()


def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite

    def fail(fd: int, data: bytes, offset: int) -> int:
        if "memfd" not in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fail)


def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def fail(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return open_file(path, flags, *rest)

    monkeypatch.setattr(os, "open", fail)


@pytest.mark.parametrize("trouble", [no_home, a_file_in_place_of_the_cache, full_disk, read_only])
def test_without_a_usable_cache_a_file_is_in_memory(
    trouble: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        trouble(tmp_path, patched)
        path = cached_file("vmlinux", trouble.__name__, lambda: b"data")
        again = cached_file("vmlinux", trouble.__name__, lambda: pytest.fail("computed again"))
    assert path == again
    assert subprocess.run(["cat", path], capture_output=True, check=True).stdout == b"data"
    if (tmp_path / "cache").is_dir():
        assert not list(cache_dir("vmlinux").iterdir()), "nothing unfinished is left"


def test_a_full_cache_that_cannot_be_written_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached_file("vmlinux", "name", lambda: b"data")

    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", fail)
    assert cached_file("vmlinux", "name", lambda: pytest.fail("computed again")) == path


def test_the_next_writer_removes_the_file_of_a_killed_one() -> None:
    left = cache_dir("vmlinux") / ".pyvmm-0.part"
    left.touch()
    path = cached_file("vmlinux", "name", lambda: b"data")
    assert list(path.parent.iterdir()) == [path]
