# SPDX-License-Identifier: Apache-2.0
"""The choice of the runtime directory, and its refusal where others could change it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.runtime_directory.announcement import announce
from pyvmm.runtime_directory.directory import check_directory, runtime_directory
from pyvmm.runtime_directory.errors import RuntimeDirectoryUnusable
from pyvmm.runtime_directory.guests import running_guests
from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE

OTHER_UID = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def test_the_directory_is_in_that_of_the_session(runtime: Path) -> None:
    assert runtime_directory() == Path(os.environ["XDG_RUNTIME_DIR"]) / "pyvmm"


@pytest.mark.parametrize("value", ["", "relative", "/does/not/exist", "/etc/passwd"])
def test_an_unusable_variable_is_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    uid = os.geteuid()
    assert runtime_directory() in (Path(f"/run/user/{uid}/pyvmm"), Path(f"/tmp/pyvmm-{uid}"))


@root_only
def test_the_session_of_another_user_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(tmp_path, OTHER_UID, OTHER_UID)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert tmp_path not in runtime_directory().parents


def test_the_lab_has_a_directory_of_its_own(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_LAB_VARIABLE, "1")
    assert runtime_directory() == Path("/dev/shm/pyvmm-runtime")


def test_a_missing_directory_has_no_guests(runtime: Path) -> None:
    assert running_guests() == []
    assert not runtime.exists()


def test_a_directory_that_others_may_write_to_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o777)
    runtime.chmod(0o770)
    with pytest.raises(RuntimeDirectoryUnusable, match=r"other users may use .* 0o70$"):
        announce("web")
    with pytest.raises(RuntimeDirectoryUnusable):
        running_guests()
    assert os.listdir(runtime) == []


@root_only
def test_a_directory_of_another_user_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    os.chown(runtime, OTHER_UID, OTHER_UID)
    with pytest.raises(RuntimeDirectoryUnusable, match=f"belongs to another user, {OTHER_UID}"):
        announce("web")


def test_a_link_is_not_followed(runtime: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    runtime.symlink_to(tmp_path)
    with pytest.raises(RuntimeDirectoryUnusable, match="is not a directory"):
        announce("web")
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_created_is_reported(
    monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RuntimeDirectoryUnusable, match="cannot be created: No space left"):
        announce("web")


def test_a_path_too_long_for_a_socket_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / ("x" * 100)
    base.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    with pytest.raises(RuntimeDirectoryUnusable, match="AF_UNIX path too long"):
        announce("web")
    assert check_directory(base / "pyvmm")
    assert os.listdir(base / "pyvmm") == []
