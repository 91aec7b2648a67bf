# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the booted lab: their names, and recovery from a bad one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.cache.directory import cache_dir
from pyvmm.lab.boot_snapshot import BootSnapshotError, resume, save, snapshot_path
from pyvmm.lab.qemu import QEMU, LabProcess
from pyvmm.sockets.lab_paths import in_lab


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_another_machine_or_emulator_has_another_snapshot(tmp_path: Path) -> None:
    emulator = tmp_path / "qemu"
    emulator.write_bytes(b"one")
    machine = [str(emulator), "-m", "4096M"]
    path = snapshot_path(machine)
    assert snapshot_path(machine) == path
    assert snapshot_path([*machine[:2], "8192M"]) != path
    emulator.write_bytes(b"another")
    assert snapshot_path(machine) != path


def test_a_machine_is_saved_and_resumed(tmp_path: Path) -> None:
    """A machine without processors or memory, which QEMU saves at once."""
    qemu = shutil.which(QEMU)
    if qemu is None:
        pytest.skip("QEMU is not installed")
    machine = [qemu, "-machine", "none", "-nodefaults", "-display", "none"]
    path = tmp_path / "snapshot-1"
    (tmp_path / ".pyvmm-0.part").touch()  # of a process that was killed
    lab = LabProcess(machine)
    try:
        save(lab.monitor, path)
        with pytest.raises(BootSnapshotError, match="No such file or directory"):
            save(lab.monitor, tmp_path / "nowhere" / "snapshot-1")
    finally:
        lab.end()
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    lab = LabProcess(machine, path)
    try:
        resume(lab.monitor, path)
    finally:
        lab.end()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pyvmm", "lab", "--kvm", "lab", "--memory", "2G", "--"]
    return subprocess.run([*argv, *command], capture_output=True, text=True, timeout=120)


def test_a_lab_resumes_and_replaces_a_truncated_snapshot() -> None:
    if in_lab():
        pytest.skip("labs do not nest")
    show = ("sh", "-c", "head -c 16 /dev/urandom | od -An -tx1; cat /proc/uptime; date +%s")
    results = [run(*show)]
    (snapshot,) = cache_dir("lab").glob("snapshot-*")
    good = snapshot.read_bytes()
    results += [run(*show), run(*show)]
    snapshot.write_bytes(good[:100_000] + b"truncated")
    results.append(run(*show))
    assert [(result.returncode, result.stderr) for result in results] == [(0, "")] * 4
    lines = [result.stdout.splitlines() for result in results]
    # Resumed labs share a snapshot, but neither random numbers nor the clock.
    assert len({line[0] for line in lines}) == 4
    assert [int(line[2]) for line in lines] == sorted(int(line[2]) for line in lines)
    assert snapshot.stat().st_size > 1 << 20
