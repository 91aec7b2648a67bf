# SPDX-License-Identifier: Apache-2.0
"""Tests run in several labs at once: each line names its lab, and no failure is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyvmm.lab.choose import KvmProvider
from tests import with_kvm
from tests.kvm.verifying_guest import GUEST_CORRUPTED
from tests.with_kvm import USAGE_ERROR, run_concurrently

TAKE_NEXT_STATUS = """
import sys
from pathlib import Path
for status in sys.argv[2:]:
    try:
        Path(sys.argv[1], status).touch(exist_ok=False)
    except FileExistsError:
        continue
    print("status", status)
    sys.exit(int(status))
"""


def command(directory: Path, *statuses: int) -> list[str]:
    """Return a command whose processes exit with the next status each."""
    return [sys.executable, "-c", TAKE_NEXT_STATUS, str(directory), *map(str, statuses)]


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [((0, 1), 1), ((1, 0), 1), ((GUEST_CORRUPTED, 124), GUEST_CORRUPTED), ((124, 0), 124)],
)
def test_the_worst_status_is_returned(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], statuses: tuple[int], worst: int
) -> None:
    assert run_concurrently(command(tmp_path, *statuses), 2) == worst
    lines = capfdbinary.readouterr().out.splitlines()
    assert {line[: len(b"lab 1: ")] for line in lines} == {b"lab 1: ", b"lab 2: "}
    assert {int(line.split()[-1]) for line in lines} == set(statuses)


@pytest.mark.parametrize(
    ("statuses", "runs"),
    [((0,), 1), ((USAGE_ERROR,), 1), ((GUEST_CORRUPTED,), 1), ((1, 0), 2), ((1, 2), 2)],
)
def test_failed_tests_are_retried_in_new_labs(
    monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, ...], runs: int
) -> None:
    monkeypatch.setenv("LABS", "1")
    left = list(statuses)
    claims: list[bool] = []

    def labs(command: list[str], count: int) -> int:
        record = Path(next(word for word in command if "--resume=" in word).partition("=")[2])
        claims.append((record / "a.claimed").exists())
        (record / "a.claimed").touch()
        return left.pop(0)

    monkeypatch.setattr(with_kvm, "choose_kvm", lambda mode: KvmProvider.LAB)
    monkeypatch.setattr(with_kvm, "run_concurrently", labs)
    assert with_kvm.main([]) == statuses[-1]
    assert claims == [False] * runs
