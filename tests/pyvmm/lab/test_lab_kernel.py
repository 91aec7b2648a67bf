# SPDX-License-Identifier: Apache-2.0
"""Choosing and unpacking the lab's kernel, on small fake installations."""

import os
from pathlib import Path

import pytest

from pyvmm.errors import NotInstalled
from pyvmm.lab.errors import LabKernelUnreadable
from pyvmm.lab.kernel import (
    find_kernel,
    module_closure,
    startable_image,
    strip_signature,
)
from tests.pyvmm.boot.bzimage_kernel import bzimage, pack
from tests.pyvmm.boot.elf_kernel import elf_kernel

DEPENDENCIES = """\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio_ring.ko
kernel/fs/netfs/netfs.ko:
kernel/fs/fscache/fscache.ko: kernel/fs/netfs/netfs.ko
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/fscache/fscache.ko kernel/fs/netfs/netfs.ko
kernel/arch/x86/kvm/kvm.ko:
kernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko
"""  # noqa: E501 - the format has one line per module


def install(root: Path, release: str, dependencies: str = DEPENDENCIES) -> None:
    (root / "boot").mkdir(exist_ok=True)
    (root / "boot" / f"vmlinuz-{release}").touch()
    modules = root / "modules" / release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(dependencies)
    (modules / "modules.builtin").write_text("kernel/drivers/char/virtio_console.ko\n")


def find(root: Path):  # type: ignore[no-untyped-def]
    return find_kernel(root / "boot", root / "modules")


def test_modules_are_listed_once_and_after_their_dependencies(tmp_path: Path) -> None:
    install(tmp_path, "6.1.0-1-amd64")
    names = [path.name for path in find(tmp_path).modules]
    assert len(names) == len(set(names)) == 10
    for line in DEPENDENCIES.splitlines():
        module, _, needs = line.partition(":")
        for need in needs.split():
            assert names.index(Path(need).name) < names.index(Path(module).name)


def test_a_builtin_module_needs_no_file(tmp_path: Path) -> None:
    install(tmp_path, "6.1.0-1-amd64")
    closure = module_closure(tmp_path / "modules" / "6.1.0-1-amd64")
    assert closure is not None
    assert "virtio_console.ko" not in [path.name for path in closure]


def test_the_newest_suitable_kernel_is_chosen(tmp_path: Path) -> None:
    install(tmp_path, "6.1.0-9-amd64")
    install(tmp_path, "6.1.0-10-amd64")
    without_9p = "".join(line for line in DEPENDENCIES.splitlines(True) if "9p" not in line)
    install(tmp_path, "6.1.0-11-cloud-amd64", without_9p)
    assert find(tmp_path).release == "6.1.0-10-amd64"


def test_unsuitable_kernels_are_named_in_the_error(tmp_path: Path) -> None:
    install(tmp_path, "6.1.0-11-cloud-amd64", "")
    with pytest.raises(NotInstalled, match=r"6\.1\.0-11-cloud-amd64") as caught:
        find(tmp_path)
    assert caught.value.packages == ("linux-image-amd64",)


def test_a_kernel_that_cannot_be_read_is_skipped_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "6.8.0-1-amd64")
    install(tmp_path, "6.1.0-1-amd64")
    newest = tmp_path / "boot" / "vmlinuz-6.8.0-1-amd64"
    # Root may read every file, so the test does not depend on their modes.
    monkeypatch.setattr(os, "access", lambda path, mode: path != newest)
    assert find(tmp_path).release == "6.1.0-1-amd64"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(LabKernelUnreadable, match="no permission to read") as caught:
        find(tmp_path)
    assert caught.value.image == newest


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.12.90+deb12-amd64", "6.12.107+deb12-amd64"),
        ("6.12.107+deb13-amd64", "7.3.4+deb13-amd64"),
        ("6.1.0-9-amd64", "6.1.0-10-amd64"),
    ],
)
def test_every_number_of_a_release_counts(tmp_path: Path, older: str, newer: str) -> None:
    install(tmp_path, newer)
    install(tmp_path, older)
    assert find(tmp_path).release == newer


def test_a_kernel_beside_its_modules_is_found(tmp_path: Path) -> None:
    install(tmp_path, "6.12.107+deb13-amd64")
    install(tmp_path, "7.3.4+deb13-amd64")
    beside = tmp_path / "modules" / "7.3.4+deb13-amd64" / "vmlinuz"
    (tmp_path / "boot" / "vmlinuz-7.3.4+deb13-amd64").rename(beside)
    assert find(tmp_path).image == beside


def test_a_copy_that_can_be_read_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "7.3.4+deb13-amd64")
    beside = tmp_path / "modules" / "7.3.4+deb13-amd64" / "vmlinuz"
    beside.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path == beside)
    assert find(tmp_path).image == beside


def test_a_host_without_kernels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotInstalled, match="no kernel for the lab") as caught:
        find(tmp_path)
    assert caught.value.packages == ("linux-image-amd64",)


def test_the_vmlinux_in_the_bzimage_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    install(tmp_path, "6.1.0-1-amd64")
    vmlinux = elf_kernel(bytes(range(256)) * 100)
    kernel = find(tmp_path)
    kernel.image.write_bytes(bzimage(pack("xz", vmlinux)))
    assert startable_image(kernel).read_bytes() == vmlinux


def test_a_signature_is_removed() -> None:
    body = b"\x7fELF and the rest"
    tail = bytes(8) + (300).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert strip_signature(body + bytes(300) + tail) == body
    assert strip_signature(body) == body


def test_a_signature_length_beyond_the_module_is_clipped() -> None:
    tail = bytes(8) + b"\xff\xff\xff\xff" + b"~Module signature appended~\n"
    assert strip_signature(b"body" + tail) == b""
