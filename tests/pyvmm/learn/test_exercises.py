# SPDX-License-Identifier: Apache-2.0
"""Each check accepts the solution, and explains what is wrong with every other attempt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvmm.learn.chapter import load_chapters
from pyvmm.learn.file_check import check_file
from tests.project.sources import ROOT
from tests.pyvmm.learn.lessons import ATTEMPTS, EXPLANATIONS, Attempt

CHAPTERS = load_chapters()


@pytest.mark.parametrize(
    "attempt",
    [attempt for attempt in ATTEMPTS if not attempt.chapter.check_needs_kvm],
    ids=lambda attempt: attempt.name,
)
def test_the_check_accepts_the_solution_and_explains_other_attempts(
    attempt: Attempt, tmp_path: Path
) -> None:
    outcome = check_file(attempt.chapter, attempt.write(tmp_path))
    assert outcome.passed == attempt.name.endswith("_solution"), outcome.message
    assert attempt.explanation in outcome.message


def test_every_chapter_has_two_wrong_solutions_with_explanations() -> None:
    for number in CHAPTERS:
        names = [attempt.name for attempt in ATTEMPTS if attempt.chapter.number == number]
        assert len(names) >= 4
        assert all(EXPLANATIONS.get(name) for name in names if not name.endswith("_solution"))
    assert set(EXPLANATIONS) < {attempt.name for attempt in ATTEMPTS}


def test_there_are_twelve_chapters_that_describe_themselves() -> None:
    assert list(CHAPTERS) == list(range(1, 13))
    for chapter in CHAPTERS.values():
        assert chapter.text
        assert chapter.goal.endswith(".")
        assert len(f"    {chapter.goal}") <= 80
        assert all(len(line) <= 100 for line in chapter.text.splitlines())


def test_every_chapter_has_a_page_with_its_goal_exercise_and_check() -> None:
    for number, chapter in CHAPTERS.items():
        page = (ROOT / chapter.page).read_text()
        assert f"\n# {number}. {chapter.title}\n" in page
        for part in (
            f"pyvmm learn {number}\n",
            f"pyvmm learn {number} --exercise",
            f"pyvmm learn {number} --check {chapter.exercise_name}",
        ):
            assert part in page, f"{chapter.page}: {part}"
        headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
        for heading in ("Goal", "Run it", "Break it", "Read next"):
            assert heading in headings, f"{chapter.page}: {heading}"
