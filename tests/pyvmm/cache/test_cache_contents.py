# SPDX-License-Identifier: Apache-2.0
"""The contents of the cache: listed, removed unless in use, and kept below a limit."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from guest_images.build import _build_lock
from pyvmm.cache.contents import (
    BUILD_LOCK,
    CacheEntry,
    apply_limit,
    list_entries,
    read_limit,
    remove_entry,
    set_limit,
)
from pyvmm.cache.directory import cache_dir, cache_root, cached_file
from pyvmm.progress.reporter import Silent

KIB = 1024


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a cache with entries of 64 KiB, those of lower numbers used earlier."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number, name in enumerate(("vmlinux/1", "lab/2", "vmlinux/3", "images/4.img")):
        kind, _, file = name.partition("/")
        path = cache_dir(kind) / file
        path.write_bytes(os.urandom(64 * KIB))
        os.utime(path, (1000 + number, 1000 + number))
    return cache_root()


def names(root: Path) -> list[str]:
    return [str(entry.path.relative_to(root)) for entry in list_entries(root)]


def test_entries_are_listed_by_their_last_use(root: Path) -> None:
    tree = cache_dir("kernel") / "tree"
    (tree / "src").mkdir(parents=True)
    (tree / "src" / "file").write_bytes(os.urandom(128 * KIB))
    os.utime(tree, (1001.5, 1001.5))
    entries = list_entries(root)
    assert [entry.kind for entry in entries] == ["vmlinux", "lab", "kernel", "vmlinux", "images"]
    assert entries[0] == CacheEntry("vmlinux", root / "vmlinux" / "1", 64 * KIB, 1000)
    assert entries[2].size_bytes >= 128 * KIB
    assert list_entries(root / "nowhere") == []


def test_a_link_takes_its_own_space_and_not_that_of_its_target(root: Path, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(256 * KIB))
    (root / "lab" / "link").symlink_to(tmp_path / "big")
    (root / "lab" / "dangling").symlink_to(tmp_path / "nowhere")
    sizes = {entry.path.name: entry.size_bytes for entry in list_entries(root)}
    assert sizes["link"] == sizes["dangling"] < 64 * KIB


def test_a_listing_removes_the_files_of_killed_writers(root: Path) -> None:
    (root / "lab" / ".pyvmm-0.part").touch()
    assert len(list_entries(root)) == 4
    assert not (root / "lab" / ".pyvmm-0.part").exists()


def test_a_file_that_is_open_is_not_removed(root: Path) -> None:
    first, *_, last = list_entries(root)
    with first.path.open("rb"):
        assert not remove_entry(root, first)
        assert remove_entry(root, last)
    assert remove_entry(root, first)
    assert remove_entry(root, first), "it is gone already"
    assert names(root) == ["lab/2", "vmlinux/3"]


@pytest.mark.parametrize("name", ["kernel/tree", "images/.image-x"])
def test_the_trees_of_a_build_are_not_removed_while_it_runs(root: Path, name: str) -> None:
    (root / name).mkdir(parents=True)
    (entry,) = (entry for entry in list_entries(root) if entry.path == root / name)
    with _build_lock(Silent()):
        assert not remove_entry(root, entry)
    assert remove_entry(root, entry)
    assert not (root / name).exists()


def test_a_build_waits_for_a_removal_of_its_trees(root: Path) -> None:
    """Both lock the same file."""
    with (
        _build_lock(Silent()),
        (root / BUILD_LOCK).open("w") as lock,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_entries_used_longest_ago_leave_first(root: Path) -> None:
    assert read_limit(root) is None
    apply_limit(root)
    assert len(names(root)) == 4
    set_limit(root, 200 * KIB)
    assert read_limit(root) == 200 * KIB
    apply_limit(root)
    assert names(root) == ["lab/2", "vmlinux/3", "images/4.img"]
    set_limit(root, 0)
    with (root / "lab" / "2").open("rb"):
        apply_limit(root, added=root / "images" / "4.img")
    assert names(root) == ["lab/2", "images/4.img"]
    set_limit(root, None)
    assert read_limit(root) is None
    set_limit(root, None)


def test_a_file_that_is_added_makes_room(root: Path) -> None:
    set_limit(root, 200 * KIB)
    path = cached_file("elf", "new", lambda: os.urandom(64 * KIB), count=10)
    assert path.exists()
    assert names(root) == ["vmlinux/3", "images/4.img", "elf/new"]


def test_a_limit_that_is_no_number_is_none(root: Path) -> None:
    (root / "limit").write_text("much")
    assert read_limit(root) is None
