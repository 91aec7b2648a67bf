# SPDX-License-Identifier: Apache-2.0
"""Snapshot files are replaced as a whole, and nothing but a snapshot is replaced."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.cli.remedies import remedy
from pyvmm.errors import UserError
from pyvmm.memory.ram import Ram
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.sockets import lab_paths
from tests.pyvmm.files.small_disk import run_on_small_disk
from tests.pyvmm.snapshot.snapshot_files import (
    KINDS,
    RAM_BYTES,
    filled,
    read,
    same,
    write,
)


def test_a_full_disk_leaves_the_old_snapshot_as_it_was(tmp_path: Path) -> None:
    """On a tmpfs with room for the old snapshot and part of the new one."""
    script = """
import os, pathlib, sys
from pyvmm.errors import UserError
from pyvmm_native.runs import PageRuns
from tests.pyvmm.snapshot.snapshot_files import filled, write
path = pathlib.Path(sys.argv[1]) / "snapshot"
write(path, filled())
old = path.read_bytes()
more = PageRuns([(0, 2048)])
try:
    write(path, filled(more), more)
except UserError as error:
    print(error)
assert path.read_bytes() == old
assert os.listdir(path.parent) == ["snapshot"]
print("whole")
"""
    output = run_on_small_disk(tmp_path, 5, script)
    assert output.endswith("whole\n")
    assert "No space left on device" in output


def test_a_killed_writer_leaves_the_old_snapshot_as_it_was(snapshot: Path) -> None:
    """Killed at several moments, the last just before the rename."""
    old = snapshot.read_bytes()
    script = """
import os, pathlib, signal, sys
from tests.pyvmm.snapshot.snapshot_files import filled, write
moment = int(sys.argv[2])
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == 4:
    pathlib.Path.replace = die
seen = []
def on_block(number):
    seen.append(number)
    if len(seen) == moment + 1:
        die()
write(pathlib.Path(sys.argv[1]), filled(seed=2), on_block=on_block)
"""
    for moment in range(5):
        command = [sys.executable, "-c", script, str(snapshot), str(moment)]
        done = subprocess.run(command, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        assert snapshot.read_bytes() == old
        left = [path for path in snapshot.parent.iterdir() if path != snapshot]
        assert len(left) == 1, "the writer before has removed the file of the one before it"
    write(snapshot, filled(seed=3))
    assert os.listdir(snapshot.parent) == [snapshot.name]


def test_an_aborted_writer_leaves_no_file(snapshot: Path) -> None:
    old = snapshot.read_bytes()

    def abort(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(snapshot, filled(seed=2), on_block=abort)
    assert snapshot.read_bytes() == old
    assert os.listdir(snapshot.parent) == [snapshot.name]


def create_pipe(path: Path) -> None:
    os.mkfifo(path)


def create_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def create_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root creates device nodes")


@pytest.mark.parametrize("link", [False, True], ids=["itself", "a link to it"])
@pytest.mark.parametrize(
    ("create", "kind"),
    [(create_pipe, "a pipe"), (create_socket, "a socket"), (create_device, "a character device")],
)
def test_a_special_file_is_never_replaced(
    tmp_path: Path, create: Callable[[Path], None], kind: str, link: bool
) -> None:
    path = named = tmp_path / "special"
    create(path)
    before = path.lstat()
    if link:
        named = tmp_path / "link"
        named.symlink_to(path)
    for force in (False, True):
        with pytest.raises(UserError, match=f"{named}: it is {kind}"):
            SnapshotWriter(named, Ram(RAM_BYTES).memory, force=force).__enter__()
    assert os.path.samestat(path.lstat(), before)
    assert path.lstat().st_ctime_ns == before.st_ctime_ns


def test_another_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("snapshot of a thought")
    with pytest.raises(UserError, match="is a file, but not a snapshot") as error:
        write(path, filled())
    assert "--force" in remedy(error.value)
    assert path.read_text() == "snapshot of a thought"
    assert os.listdir(tmp_path) == ["notes"]
    write(path, filled(), force=True)
    assert same(read(path), filled())


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(UserError, match="is a file, but not a snapshot"):
        write(path, filled(), on_block=lambda number: path.write_text("mine"))
    assert path.read_text() == "mine"


def test_a_damaged_snapshot_is_replaced(snapshot: Path) -> None:
    os.truncate(snapshot, 100)
    write(snapshot, filled(seed=2))
    assert same(read(snapshot), filled(seed=2))


@pytest.mark.parametrize("exists", [False, True])
def test_a_symbolic_link_is_followed(tmp_path: Path, exists: bool) -> None:
    """The new file is created beside the target, which may be on another file system."""
    (tmp_path / "to").mkdir()
    target, link = tmp_path / "to" / "s", tmp_path / "link"
    if exists:
        write(target, filled())
    link.symlink_to("to/s")
    write(link, filled(seed=2))
    assert os.readlink(link) == "to/s"
    assert same(read(target), filled(seed=2))


def test_a_file_name_may_have_255_bytes(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127 + "x")
    write(path, filled())
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_directory_that_cannot_be_synced_is_reported_as_such(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """EINVAL: the file system has nothing to sync. Another error: the new file is there, still."""
    sync = os.fsync

    def fail_for_directories(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    if code == errno.EINVAL:
        write(snapshot, filled(seed=2))
    else:
        with pytest.raises(UserError, match=r"is complete, but .* its directory") as error:
            write(snapshot, filled(seed=2))
        assert "untouched" not in remedy(error.value) + str(error.value)
    assert same(read(snapshot), filled(seed=2))


@pytest.mark.parametrize("link", [False, True])
def test_a_snapshot_that_the_lab_would_keep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    path = Path(f"/dev/shm/pyvmm-test-{os.getpid()}")
    if link:
        (tmp_path / "link").symlink_to(path)
    monkeypatch.setenv(lab_paths.IN_LAB_VARIABLE, "1")
    for name, value in lab_paths.sockets_variable({Path("/vm.sock"): "/inner"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="does not share /dev with the host"):
        write(tmp_path / "link" if link else path, filled())
    assert not path.exists()


def test_unusable_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        write(tmp_path / "nowhere" / "s", filled())
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match="directory"):
        write(tmp_path / "directory", filled())
    with pytest.raises(UserError, match="No such file"):
        SnapshotFile(tmp_path / "nothing", KINDS)
