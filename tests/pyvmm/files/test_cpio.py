# SPDX-License-Identifier: Apache-2.0
"""Initramfs archives, unpacked by GNU cpio or busybox."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from pyvmm.files.cpio import CpioArchive, cpio


def unpack(archive: bytes, into: Path) -> None:
    command = ["busybox", "cpio", "-idm", "--quiet"]
    subprocess.run(command, cwd=into, input=archive, check=True)


def test_files_are_unpacked_with_their_content(tmp_path: Path) -> None:
    files = {"/init": b"#!", "/a/b/c": bytes(range(256)), "/a/empty": b"", "/a/b/odd": b"12345"}
    unpack(cpio(files), tmp_path)
    for path, content in files.items():
        copy = tmp_path / path.lstrip("/")
        assert copy.read_bytes() == content
        assert os.access(copy, os.X_OK)


def test_modes_and_links_are_kept(tmp_path: Path) -> None:
    archive = CpioArchive()
    archive.add_directory("d", 0o700)
    archive.add_file("d/file", b"content", 0o640)
    archive.add_link("d/again", "d/file", 0o640)
    archive.add_symlink("link", "d/file")
    unpack(archive.finish(), tmp_path)
    file = (tmp_path / "d/file").stat()
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    assert stat.S_IMODE(file.st_mode) == 0o640
    assert (tmp_path / "d/again").stat().st_ino == file.st_ino
    assert (tmp_path / "link").readlink() == Path("d/file")
    assert (tmp_path / "link").read_bytes() == b"content"


def test_archives_are_concatenated_at_multiples_of_four_bytes() -> None:
    archive = CpioArchive()
    archive.add_file("x", b"1")
    assert len(archive.finish()) % 4 == 0


def test_a_file_of_4_gib_is_refused() -> None:
    class Large(bytes):
        def __len__(self) -> int:
            return 1 << 32

    with pytest.raises(ValueError, match="cannot hold"):
        CpioArchive().add_file("large", Large())


def test_no_file_becomes_a_link_to_a_path_that_was_added_twice() -> None:
    archive = CpioArchive()
    for path in ("/x", "/x", "/y"):
        archive.add_file(path, b"content")
    entries = archive.finish().split(b"070701")[1:-1]
    assert len({entry[:8] for entry in entries}) == 3, "one inode number each"
