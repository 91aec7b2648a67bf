# SPDX-License-Identifier: Apache-2.0
"""Files that a person names: regular ones are opened, nothing else, and nothing is waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pyvmm.files.regular import open_regular, open_regular_file


def test_a_regular_file_is_opened_for_reading(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with open_regular_file(path) as file:
        assert file.read() == b"text"
        assert not os.get_inheritable(file.fileno())


def test_other_files_are_refused_by_their_type(tmp_path: Path) -> None:
    pipe, bound = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bound))
        for path, kind in (
            (pipe, "a pipe"),
            (bound, "a socket"),
            (Path("/dev/null"), "a character device"),
            (tmp_path, "a directory"),
        ):
            with pytest.raises(OSError, match=f"it is {kind}, not a regular file"):
                open_regular(path)


@pytest.mark.timeout(30)
def test_a_pipe_that_takes_the_place_of_a_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no writer, for which opening it would wait."""
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.touch()
    os.mkfifo(pipe)
    before, descriptors = file.stat(), sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "stat", lambda path: before)
    with pytest.raises(OSError, match="it is a pipe"):
        open_regular(pipe)
    monkeypatch.undo()
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
