# SPDX-License-Identifier: Apache-2.0
"""Directories that the lab shares, and those of programs, which it caches."""

from __future__ import annotations

from pathlib import Path

import pytest

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
