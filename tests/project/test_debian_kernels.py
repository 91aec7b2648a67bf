# SPDX-License-Identifier: Apache-2.0
"""Stock kernels that cannot be fetched are reported, and their tests are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvm import debian_kernels
from tests.kvm.debian_kernels import NAMES, Unavailable


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debian_kernels, "SEARCH_PATH", str(tmp_path))


def test_without_apt_every_kernel_is_reported_as_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_apt(monkeypatch, tmp_path)
    debian_kernels.main()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(NAMES)
    assert all("skipped" in line and "apt-cache is not installed" in line for line in lines)
    assert all(debian_kernels.cached(name) is None for name in NAMES)


def test_a_cached_kernel_is_used_when_fetching_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "cache" / "pyvmm" / "debian" / NAMES[0]
    directory.mkdir(parents=True)
    (directory / "initramfs.cpio").touch()
    (directory / "version").write_text("linux-image-5.10 5.10.1")
    without_apt(monkeypatch, tmp_path)
    debian_kernels.main()
    assert "using linux-image-5.10 5.10.1" in capsys.readouterr().err.splitlines()[0]


def test_an_unknown_package_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="no package source"):
        debian_kernels.newest("linux-image-of-no-such-kind")


def test_a_cache_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(debian_kernels, "newest", lambda name: (name, "1"))
    with pytest.raises(SystemExit, match="set XDG_CACHE_HOME"):
        debian_kernels.main()


def test_the_initramfs_contains_init_programs_and_modules(tmp_path: Path) -> None:
    module = tmp_path / "lib/modules/6.1/kernel/drivers/virtio/virtio_balloon.ko"
    module.parent.mkdir(parents=True)
    module.write_bytes(b"a module")
    archive = debian_kernels.initramfs(tmp_path)
    for name in ("init", "init.guest", "bin/busybox", "bin/pattern", "bin/session"):
        assert f"{name}\0".encode() in archive
    assert str(module.relative_to(tmp_path)).encode() + b"\0" in archive
    assert debian_kernels.INIT.encode() in archive
