# SPDX-License-Identifier: Apache-2.0
"""Files that take another's place, and the removal of those that killed processes leave."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from pyvmm.files.replacement import (
    ForeignFileError,
    ReplacementFile,
    remove_abandoned,
    replace_file,
    replaceable,
)


def is_ours(file: BinaryIO) -> bool:
    return file.read() == b"ours"


def test_a_path_that_names_nothing_may_be_created(tmp_path: Path) -> None:
    assert replaceable(tmp_path / "new", is_ours) == tmp_path / "new"


def test_only_our_own_files_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"ours")
    assert replaceable(path, is_ours) == path
    path.write_bytes(b"theirs")
    with pytest.raises(ForeignFileError):
        replaceable(path, is_ours)


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        replaceable(tmp_path, is_ours)


def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="symbolic links"):
        replaceable(tmp_path / "link", is_ours)


def test_an_open_file_without_a_name_is_not_replaced() -> None:
    with open(os.memfd_create("x"), "wb") as file, pytest.raises(OSError, match="open file"):
        replaceable(Path(f"/proc/self/fd/{file.fileno()}"), is_ours)


def test_a_file_with_the_name_that_linux_shows_for_a_deleted_one_is_not_replaced(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "file", tmp_path / "file (deleted)"
    path.write_bytes(b"ours")
    other.write_bytes(b"ours")
    with path.open("rb") as file:
        path.unlink()
        with pytest.raises(OSError, match="open file"):
            replaceable(Path(f"/proc/self/fd/{file.fileno()}"), is_ours)


def test_a_failed_replacement_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ReplacementFile(tmp_path / "file"):
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"second"):
        replace_file(path, data)
        assert path.read_bytes() == data
        assert os.listdir(tmp_path) == ["file"]


WRITER = """
import pathlib, sys
from pyvmm.files.replacement import ReplacementFile
with ReplacementFile(pathlib.Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_only_the_file_of_a_process_that_has_ended_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        (part,) = tmp_path.iterdir()
        assert remove_abandoned(tmp_path) == []
        assert part.exists()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert remove_abandoned(tmp_path) == [part]
    assert not os.listdir(tmp_path)


def test_a_file_that_somebody_only_reads_is_not_removed(tmp_path: Path) -> None:
    part = tmp_path / ".pyvmm-0.part"
    part.touch()
    with part.open("rb"):
        assert remove_abandoned(tmp_path) == []
    assert remove_abandoned(tmp_path) == [part]


OPENED_MEANWHILE = """
import pathlib, subprocess, sys
from pyvmm.files.replacement import remove_abandoned
unlink = pathlib.Path.unlink
def open_and_unlink(path):
    opening = "import os, sys; os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)"
    subprocess.run([sys.executable, "-c", opening, path], stderr=subprocess.DEVNULL)
    unlink(path)
pathlib.Path.unlink = open_and_unlink
print(len(remove_abandoned(pathlib.Path(sys.argv[1]))))
"""


def test_a_file_that_is_opened_during_its_removal_does_no_harm(tmp_path: Path) -> None:
    """The kernel signals the holder of the lease then."""
    (tmp_path / ".pyvmm-0.part").touch()
    command = [sys.executable, "-c", OPENED_MEANWHILE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_other_files_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file.part").touch()
    os.mkfifo(tmp_path / ".pyvmm-1.part")
    (tmp_path / ".pyvmm-2.part").symlink_to("file")
    assert remove_abandoned(tmp_path) == []
    assert remove_abandoned(tmp_path / "nowhere") == []
    assert len(os.listdir(tmp_path)) == 4


def test_a_file_system_without_leases_keeps_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = fcntl.fcntl

    def no_leases(fd: int, command: int, argument: int) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(22, "Invalid argument")
        return call(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", no_leases)
    (tmp_path / ".pyvmm-0.part").touch()
    assert remove_abandoned(tmp_path) == []
