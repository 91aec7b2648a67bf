# SPDX-License-Identifier: Apache-2.0
"""The kernel's log of a guest that runs a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.cli.console.kernel_log import KernelLog
from pyvmm.cli.late_loop import LateLoop


def write_log(path: Path, *parts: bytes) -> None:
    log = KernelLog(LateLoop(), path)
    for part in parts:
        log.queue.put(part)
    log.close()


def test_the_log_is_appended_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"before\n")
    write_log(tmp_path / "log", b"line\n")
    assert (tmp_path / "log").read_bytes() == b"before\nline\n"


def test_a_full_disk_behind_the_log_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    write_log(Path("/dev/full"), b"first", b"second")
    message = "pyvmm: the kernel's log cannot be written to /dev/full: No space left on device\n"
    assert capsys.readouterr().err == message
