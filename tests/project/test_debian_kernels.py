# SPDX-License-Identifier: Apache-2.0
"""Stock kernels: both layouts of Debian's packages, and what happens if one cannot be fetched."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from tests.kvm import debian_archive, debian_kernels
from tests.kvm.debian_archive import DebianArchive, Package, Unavailable
from tests.kvm.debian_kernels import KERNELS

NAME = next(iter(KERNELS))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debian_archive, "SEARCH_PATH", str(tmp_path))


# --- Fetching ---------------------------------------------------------------------------------
def test_without_apt_every_kernel_is_reported_as_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_apt(monkeypatch, tmp_path)
    debian_kernels.main()
    indices, *lines = capsys.readouterr().err.splitlines()
    assert indices == "package indices not updated: apt-get is not installed"
    assert [line.partition(":")[0] for line in lines] == list(KERNELS)
    assert all("skipped" in line and "apt-cache is not installed" in line for line in lines)
    assert all(debian_kernels.cached(name) is None for name in KERNELS)


def test_a_cached_kernel_is_used_when_fetching_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "cache" / "pyvmm" / "debian" / NAME
    directory.mkdir(parents=True)
    (directory / "initramfs.cpio").touch()
    (directory / "version").write_text("linux-image-5.10 5.10.1")
    without_apt(monkeypatch, tmp_path)
    debian_kernels.main()
    assert "using linux-image-5.10 5.10.1" in capsys.readouterr().err.splitlines()[1]


def test_a_cache_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SystemExit, match="set XDG_CACHE_HOME"):
        debian_kernels.main()


# --- Packages ---------------------------------------------------------------------------------
RECORDS = {
    "linux-image-amd64/trixie-security": "linux-image-6.12.118+deb13-amd64 (= 6.12.118-1)",
    "linux-image-6.12.118+deb13-amd64/trixie-security": "kmod, linux-base (>= 4.3~)",
    "linux-image-amd64/trixie-backports": (
        "linux-base-amd64 (= 7.3.4-1), linux-image-7.3.4-amd64 (= 7.3.4-1),"
        " linux-modules-amd64 (= 7.3.4-1)"
    ),
    "linux-image-7.3.4-amd64/trixie-backports": (
        "dracut | initramfs-tools (>= 0.120), linux-base-7.3.4-amd64 (= 7.3.4-1),"
        " linux-binary-7.3.4-amd64 (= 7.3.4-1), linux-modules-7.3.4-amd64 (= 7.3.4-1)"
    ),
    "task-kernel/trixie-backports": "kmod",
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DebianArchive:
    """Return an archive whose apt-cache knows `RECORDS`."""

    def run(*command: str, cwd: Path | None = None) -> str:
        assert command[0] == "apt-cache"
        if command[-1] not in RECORDS:
            raise Unavailable("E: No packages found")
        return f"Package: x\nDepends: {RECORDS[command[-1]]}\nSize: 1\n"

    monkeypatch.setattr(debian_archive, "run", run)
    return DebianArchive(tmp_path)


def test_one_package_has_a_kernel_up_to_6_18(archive: DebianArchive) -> None:
    packages = archive.kernel_packages("linux-image-amd64", "trixie-security")
    assert packages == [Package("linux-image-6.12.118+deb13-amd64", "6.12.118-1")]


def test_several_packages_have_a_kernel_from_6_19_on(archive: DebianArchive) -> None:
    packages = archive.kernel_packages("linux-image-amd64", "trixie-backports")
    assert packages == [
        Package(f"linux-{part}-7.3.4-amd64", "7.3.4-1")
        for part in ("image", "base", "binary", "modules")
    ]


@pytest.mark.parametrize(
    ("name", "fact"),
    [("task-kernel", "does not depend on a kernel"), ("linux-image-of-no-kind", "has no linux-")],
)
def test_a_package_without_a_kernel_is_unavailable(
    archive: DebianArchive, name: str, fact: str
) -> None:
    with pytest.raises(Unavailable, match=fact):
        archive.kernel_packages(name, "trixie-backports")


@pytest.mark.parametrize(
    ("modules", "image"),
    [
        ("lib/modules/6.1.0-57-amd64", "boot/vmlinuz-6.1.0-57-amd64"),
        ("usr/lib/modules/7.3.4-amd64", "usr/lib/modules/7.3.4-amd64/vmlinuz"),
    ],
)
def test_the_kernel_is_found_in_both_layouts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, modules: str, image: str
) -> None:
    monkeypatch.setattr(debian_kernels, "run", lambda *command: "")  # depmod
    installed, tree = tmp_path / "installed", tmp_path / "tree"
    balloon = "kernel/drivers/virtio/virtio_balloon.ko"
    contents = {
        image: b"a bzImage",
        f"{modules}/{balloon}.xz": lzma.compress(b"a module"),
        f"{modules}/kernel/drivers/net/virtio_net.ko.xz": b"unused",
        **{
            f"{modules}/{name}": b""
            for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo")
        },
    }
    for name, data in contents.items():
        (installed / name).parent.mkdir(parents=True, exist_ok=True)
        (installed / name).write_bytes(data)
    debian_kernels.pick_kernel(installed, tree)
    assert (tree / "vmlinuz").read_bytes() == b"a bzImage"
    copied = list(tree.rglob("*.ko*"))
    release = modules.rpartition("/")[2]
    assert copied == [tree / "modules/lib/modules" / release / balloon]
    assert copied[0].read_bytes() == b"a module"


def test_the_initramfs_contains_init_programs_and_modules(tmp_path: Path) -> None:
    module = tmp_path / "lib/modules/6.1/kernel/drivers/virtio/virtio_balloon.ko"
    module.parent.mkdir(parents=True)
    module.write_bytes(b"a module")
    archive = debian_kernels.initramfs(tmp_path)
    for name in ("init", "init.guest", "bin/busybox", "bin/pattern", "bin/session"):
        assert f"{name}\0".encode() in archive
    assert str(module.relative_to(tmp_path)).encode() + b"\0" in archive
    assert debian_kernels.INIT.encode() in archive
