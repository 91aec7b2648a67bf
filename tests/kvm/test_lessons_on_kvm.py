# SPDX-License-Identifier: Apache-2.0
"""The checks and runnable parts of lessons that need KVM."""

from __future__ import annotations

import pytest

from pyvmm.learn.file_check import check_file
from tests.pyvmm.learn.lessons import ATTEMPTS, Attempt

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(
    "attempt",
    [attempt for attempt in ATTEMPTS if attempt.chapter.check_needs_kvm],
    ids=lambda attempt: attempt.name,
)
def test_the_check_accepts_the_solution_and_explains_other_attempts(attempt: Attempt) -> None:
    outcome = check_file(attempt.chapter, attempt.path)
    assert outcome.passed == attempt.name.endswith("_solution"), outcome.message
    assert attempt.explanation in outcome.message
