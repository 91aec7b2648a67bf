# SPDX-License-Identifier: Apache-2.0
"""The cache directory: its location, and the files that are kept in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.cache.directory import (
    KEPT_FILES,
    CacheUnusable,
    cache_dir,
    cache_root,
    keep_most_recent,
    write_atomically,
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


def test_a_file_is_replaced_as_a_whole() -> None:
    path = cache_dir("elf") / "tables"
    for data in (b"first", b"second"):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert list(path.parent.iterdir()) == [path]
