# SPDX-License-Identifier: Apache-2.0
"""Starts of the lab for which there is no boot snapshot, and none can be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.lab import start as module
from pyvmm.lab.boot_snapshot import BootSnapshotError, snapshot_path


class FakeLab:
    """Counts its starts."""

    started: list[Path | None]

    def __init__(self, machine: list[str], snapshot: Path | None = None) -> None:
        self.snapshot = snapshot
        self.monitor = None
        self.started.append(snapshot)

    def end(self) -> None:
        """There is nothing to end."""


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Return the boot snapshot of each start that follows, None for a boot."""
    FakeLab.started = []
    monkeypatch.setattr(module, "LabProcess", FakeLab)
    monkeypatch.setattr(module, "machine_arguments", lambda *_: ["qemu"])
    monkeypatch.setattr(module, "_wait_until_booted", lambda lab: None)
    return FakeLab.started


def test_without_a_place_for_a_boot_snapshot_the_lab_boots_once(
    starts: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "snapshot_path", lambda machine: None)
    module.start(memory_mib=1024, cpus=1)
    assert starts == [None]


def test_a_boot_snapshot_that_cannot_be_written_is_tried_once(
    starts: list[Path | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full_disk(monitor: object, path: Path) -> None:
        raise BootSnapshotError("migrate: No space left on device")

    monkeypatch.setattr(module, "snapshot_path", lambda machine: tmp_path / "snapshot")
    monkeypatch.setattr(module, "save", full_disk)
    module.start(memory_mib=1024, cpus=1)
    assert starts == [None, None]


def test_a_cache_without_a_place_has_no_boot_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert snapshot_path(["/bin/sh"]) is None
