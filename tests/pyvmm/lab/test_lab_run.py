# SPDX-License-Identifier: Apache-2.0
"""Directories of programs, which the lab caches."""

from __future__ import annotations

from pathlib import Path

from pyvmm.lab.run import program_directories


def test_program_directories_are_disjoint_and_hold_no_user_files() -> None:
    directories = [Path(path) for path in program_directories()]
    assert directories
    for path in directories:
        assert path.is_dir()
        assert not any(path.is_relative_to(other) for other in directories if other != path)
    for directory in (Path("/tmp"), Path.home(), Path.cwd()):
        assert directory not in directories
