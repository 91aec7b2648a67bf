# SPDX-License-Identifier: Apache-2.0
"""Archives of the guest's agent, unpacked; hostile ones leave nothing behind."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from guest_images.agent import agent_program
from pyvmm.cli.command_request import GetPath
from pyvmm.cli.errors import CommandError
from pyvmm.cli.fetched_files import _unpack


def unpack(archive: bytes, host: Path) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        _unpack(file, GetPath("/root/x", host))


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the agent's program, which the cache does not keep executable."""
    path = tmp_path_factory.mktemp("agent") / "agent"
    path.write_bytes(agent_program().read_bytes())
    path.chmod(0o755)
    return path


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return output.getvalue()


def member(name: str, type_: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = type_, link, 0o6755
    return info


def test_the_archive_of_the_agent_is_unpacked_as_it_was(agent: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    deep = source / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * 100_000)
    (source / "script").write_bytes(b"#!/bin/sh\n")
    (source / "script").chmod(0o750)
    (source / "link").symlink_to("d" * 150)
    (source / "read-only").mkdir(mode=0o555)
    made = subprocess.run([agent, "archive", source], capture_output=True, check=True)
    target = tmp_path / "target"
    unpack(made.stdout, target)
    assert (target / deep.relative_to(source) / "file").read_bytes() == b"x" * 100_000
    assert stat.S_IMODE((target / "script").stat().st_mode) == 0o750
    assert (target / "link").readlink() == Path("d" * 150)
    assert stat.S_IMODE((target / "read-only").stat().st_mode) == 0o555


def test_the_agent_reports_files_that_it_cannot_archive(agent: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / "pipe")
    made = subprocess.run([agent, "archive", tmp_path / "d"], capture_output=True, check=False)
    assert made.returncode == 1
    assert b"pipe: is no file" in made.stderr
    missing = subprocess.run([agent, "archive", tmp_path / "no"], capture_output=True, check=False)
    assert missing.returncode == 1
    assert b"No such file" in missing.stderr


def test_set_user_id_bits_are_not_taken(tmp_path: Path) -> None:
    unpack(archive((member("x"), b"content")), tmp_path / "x")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "members",
    [
        [(member("../outside"), b"")],
        [(member("/outside"), b"")],
        [(member("x", tarfile.DIRTYPE), b""), (member("x/../../outside"), b"")],
        [(member("x", tarfile.DIRTYPE), b""), (member("y"), b"")],
        [(member("x"), b"1"), (member("x"), b"2")],
        [(member("x", tarfile.DIRTYPE), b""), (member("x/h", tarfile.LNKTYPE, "/etc/passwd"), b"")],
        [(member("x", tarfile.CHRTYPE), b"")],
        [(member("x", tarfile.FIFOTYPE), b"")],
        [],
    ],
)
def test_a_hostile_archive_leaves_nothing(
    members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path
) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    with pytest.raises((CommandError, OSError)):
        unpack(archive(*members), directory / "x")
    assert list(directory.iterdir()) == []
    assert list(tmp_path.iterdir()) == [directory]


def test_links_are_made_last_so_that_none_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    members = [
        (member("x", tarfile.DIRTYPE), b""),
        (member("x/l", tarfile.SYMTYPE, str(outside)), b""),
        (member("x/l/file"), b"hostile"),
    ]
    with pytest.raises((CommandError, OSError)):
        unpack(archive(*members), tmp_path / "x")
    assert list(outside.iterdir()) == []


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    whole = archive((member("x"), b"content" * 1000))
    for length in (100, 700, 3000):
        with pytest.raises(CommandError):
            unpack(whole[:length], tmp_path / "x")
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(CommandError, match="exists by now"):
        unpack(archive((member("x"), b"")), tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"
