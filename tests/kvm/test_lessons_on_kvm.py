# SPDX-License-Identifier: Apache-2.0
"""The checks and runnable parts of lessons that need KVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.learn.chapter_04.run import READ_BYTES, run
from pyvmm.learn.file_check import check_file
from pyvmm.learn.stage import Stage
from tests.pyvmm.learn.lessons import ATTEMPTS, Attempt

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(
    "attempt",
    [attempt for attempt in ATTEMPTS if attempt.chapter.check_needs_kvm],
    ids=lambda attempt: attempt.name,
)
def test_the_check_accepts_the_solution_and_explains_other_attempts(
    attempt: Attempt, tmp_path: Path
) -> None:
    outcome = check_file(attempt.chapter, attempt.write(tmp_path))
    assert outcome.passed == attempt.name.endswith("_solution"), outcome.message
    assert attempt.explanation in outcome.message


def test_a_runnable_part_shows_and_records_the_events_of_a_linux_guest(
    tmp_path: Path, guest_image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Stage(tmp_path / "chapter_04.rec", guest_image))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("  queue_live index=0 size=0x100 desc_gpa=")
    assert [line.split()[0] for line in lines[1:4]] == ["descriptor", "chain", "used"]
    assert lines[-1] == f"The guest has read {READ_BYTES} random bytes from /dev/hwrng."
