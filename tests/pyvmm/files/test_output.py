# SPDX-License-Identifier: Apache-2.0
"""Results that are written into a directory that a person names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.files.errors import OutputNotWritten
from pyvmm.files.output import JSON_START, PNG_START, check_output, write_output


def test_a_result_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    for number in (b"1", b"2"):
        write_output(path, PNG_START + number, PNG_START)
        assert path.read_bytes() == PNG_START + number
    assert os.listdir(tmp_path) == ["plot.png"]


def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    notes, pipe = tmp_path / "notes", tmp_path / "pipe"
    notes.write_text("not a plot")
    os.mkfifo(pipe)
    for path, reason in (
        (notes, "other contents"),
        (pipe, "it is a pipe"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(OutputNotWritten, match=reason):
            check_output(path, PNG_START)
        with pytest.raises(OutputNotWritten, match=reason):
            write_output(path, PNG_START, PNG_START)
    assert notes.read_text() == "not a plot"
    assert pipe.is_fifo()


def test_a_directory_that_cannot_be_written_is_an_error() -> None:
    with pytest.raises(OutputNotWritten, match=r"/proc/figures.json cannot be written"):
        write_output(Path("/proc/figures.json"), b"{}", JSON_START)
