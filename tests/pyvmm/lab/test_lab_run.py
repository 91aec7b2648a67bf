# SPDX-License-Identifier: Apache-2.0
"""Directories that the lab shares, and those of programs, which it caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.lab.errors import NotSharedWithLab
from pyvmm.lab.run import program_directories, run_in_lab


def test_program_directories_are_disjoint_and_hold_no_user_files() -> None:
    directories = [Path(path) for path in program_directories()]
    assert directories
    for path in directories:
        assert path.is_dir()
        assert not any(path.is_relative_to(other) for other in directories if other != path)
    for directory in (Path("/tmp"), Path.home(), Path.cwd()):
        assert directory not in directories


def test_a_working_directory_that_is_not_shared_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir("/dev/shm")
    monkeypatch.setattr("pyvmm.lab.run.start", lambda **_: pytest.fail("started"))
    with pytest.raises(NotSharedWithLab, match="does not share /dev with the host, so not /dev/"):
        run_in_lab(["true"])


@pytest.fixture
def no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.lab.run.start", lambda **_: pytest.fail("started"))


@pytest.mark.usefixtures("no_lab")
def test_a_working_directory_that_was_removed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "removed").mkdir()
    monkeypatch.chdir(tmp_path / "removed")
    (tmp_path / "removed").rmdir()
    with pytest.raises(NotSharedWithLab, match="the working directory no longer exists"):
        run_in_lab(["true"])


@pytest.mark.usefixtures("no_lab")
def test_an_installation_that_the_lab_cannot_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyvmm.lab.run._package_directories", lambda: [Path("/dev/shm/v/pyvmm")])
    with pytest.raises(NotSharedWithLab, match="so not /dev/shm/v/pyvmm"):
        run_in_lab(["true"])


@pytest.mark.usefixtures("no_lab")
def test_errors_name_a_socket_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        run_in_lab(["true"], sockets=[Path("file")])
    assert str(error.value) == "file exists and is not a socket"
