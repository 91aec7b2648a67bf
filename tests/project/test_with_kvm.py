# SPDX-License-Identifier: Apache-2.0
"""Tests are run in labs side by side: what is printed says where, and no failure is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyvmm.lab.choose import Choice
from tests import with_kvm
from tests.kvm.verifying_guest import GUEST_CORRUPTED
from tests.with_kvm import MISUNDERSTOOD, side_by_side

FIRST_COME = """
import sys
from pathlib import Path
for status in sys.argv[2:]:
    try:
        Path(sys.argv[1], status).touch(exist_ok=False)
    except FileExistsError:
        continue
    print("mine is", status)
    sys.exit(int(status))
"""


def command(directory: Path, *statuses: int) -> list[str]:
    """Each process that runs it takes the next status."""
    return [sys.executable, "-c", FIRST_COME, str(directory), *map(str, statuses)]


@pytest.mark.parametrize(
    ("statuses", "gravest"),
    [((0, 1), 1), ((1, 0), 1), ((GUEST_CORRUPTED, 124), GUEST_CORRUPTED), ((124, 0), 124)],
)
def test_the_gravest_status_counts(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], statuses: tuple[int], gravest: int
) -> None:
    assert side_by_side(command(tmp_path, *statuses), 2) == gravest
    lines = capfdbinary.readouterr().out.splitlines()
    assert {line[: len(b"lab 1: ")] for line in lines} == {b"lab 1: ", b"lab 2: "}
    assert {int(line.split()[-1]) for line in lines} == set(statuses)


@pytest.mark.parametrize(
    ("statuses", "runs"),
    [((0,), 1), ((MISUNDERSTOOD,), 1), ((GUEST_CORRUPTED,), 1), ((1, 0), 2), ((1, 2), 2)],
)
def test_what_failed_in_the_lab_is_run_once_more(
    monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, ...], runs: int
) -> None:
    monkeypatch.setenv("LABS", "1")
    left = list(statuses)
    claims: list[bool] = []

    def labs(command: list[str], count: int) -> int:
        record = Path(next(word for word in command if "--resume=" in word).partition("=")[2])
        claims.append((record / "a.taken").exists())
        (record / "a.taken").touch()
        return left.pop(0)

    monkeypatch.setattr(with_kvm, "choose_kvm", lambda mode: Choice.LAB)
    monkeypatch.setattr(with_kvm, "side_by_side", labs)
    assert with_kvm.main([]) == statuses[-1]
    assert claims == [False] * runs
