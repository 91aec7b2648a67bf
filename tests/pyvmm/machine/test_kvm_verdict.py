# SPDX-License-Identifier: Apache-2.0
"""The remembered fitness of KVM: used for the KVM that was probed, from a trusted file only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.machine import kvm_verdict
from pyvmm.machine.kvm_verdict import known_fit, record_fit


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    device = tmp_path / "device"
    device.touch()
    monkeypatch.setattr(kvm_verdict, "KVM_DEVICE", str(device))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return device


@pytest.fixture
def verdict(tmp_path: Path) -> Path:
    """Record the verdict and return its file."""
    record_fit()
    assert known_fit()
    return tmp_path / "pyvmm/kvm/fit"


def test_nothing_is_known_at_first(device: Path) -> None:
    assert not known_fit()


def test_a_kvm_whose_device_was_created_anew_is_unknown(verdict: Path, device: Path) -> None:
    device.rename(device.with_name("old"))
    device.touch()
    assert not known_fit()


def test_a_kvm_whose_device_is_gone_is_unknown(verdict: Path, device: Path) -> None:
    device.unlink()
    assert not known_fit()
    record_fit()


@pytest.mark.parametrize("name", ["_BOOT_ID", "_SYSFS"])
def test_a_kvm_is_unknown_after_a_boot_and_a_load_of_its_modules(
    name: str, verdict: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.write_text("another boot")
    monkeypatch.setattr(kvm_verdict, name, str(other))
    assert not known_fit()


@pytest.mark.parametrize("text", ["", "fit", "\0" * 5000])
def test_a_damaged_file_is_ignored_and_replaced(text: str, verdict: Path) -> None:
    verdict.write_text(text)
    assert not known_fit()
    record_fit()
    assert known_fit()


def test_a_longer_file_is_ignored(verdict: Path) -> None:
    verdict.write_text(verdict.read_text() + "more")
    assert not known_fit()


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_ignored(mode: int, verdict: Path) -> None:
    verdict.chmod(mode)
    assert not known_fit()


def test_a_file_of_another_user_is_ignored(verdict: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert not known_fit()


def test_a_link_to_a_valid_file_is_ignored(verdict: Path) -> None:
    verdict.rename(verdict.with_name("real"))
    verdict.symlink_to("real")
    assert not known_fit()


def test_a_pipe_and_a_directory_are_ignored(verdict: Path) -> None:
    verdict.unlink()
    os.mkfifo(verdict)
    assert not known_fit()
    verdict.unlink()
    verdict.mkdir()
    assert not known_fit()
    record_fit()


def test_a_cache_that_cannot_be_written_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pyvmm").write_text("a file, no directory")
    record_fit()
    assert not known_fit()


def test_a_user_without_permission_is_not_told_that_kvm_is_fit(
    verdict: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not known_fit()
