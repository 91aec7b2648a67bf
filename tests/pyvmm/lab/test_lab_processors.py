# SPDX-License-Identifier: Apache-2.0
"""The reason for the single processor of a lab, by QEMU's version, and the line of `doctor`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pyvmm.cli.doctor import check_qemu
from pyvmm.lab.processors import single_processor_reason

VERSION = "QEMU emulator version {} (Debian 1:{}+ds-1)"


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("7.2.22", "before 8.1"),
        ("8.0.4", "before 8.1"),
        ("8.1.0", "not been shown"),
        ("10.0.2", "not been shown"),
    ],
)
def test_the_reason_for_a_single_processor_depends_on_the_version(
    version: str, reason: str
) -> None:
    assert reason in single_processor_reason(VERSION.format(version, version))


def test_an_unknown_qemu_is_a_reason_for_a_single_processor() -> None:
    assert "unknown" in single_processor_reason("")


def test_doctor_reports_the_processors_of_a_lab_and_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\necho '{VERSION.format('10.0.2', '10.0.2')}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    found = check_qemu().found
    assert found.startswith(VERSION.format("10.0.2", "10.0.2"))
    assert found.endswith(
        "a lab has 1 processor: several have not been shown to be safe with this QEMU"
    )
