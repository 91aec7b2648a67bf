# SPDX-License-Identifier: Apache-2.0
"""The archives that are added to an initramfs: the agent, modules, a userland, and put files."""

from __future__ import annotations

import lzma
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.boot.agent_plan import plan_agent
from pyvmm.boot.errors import (
    KernelUnusable,
    ModulesUnusable,
    NotEnoughRam,
    OverlayUnusable,
)
from pyvmm.boot.image_config import config_for_image
from pyvmm.boot.kernel_modules import find_modules
from pyvmm.boot.loader import read_boot_files
from pyvmm.boot.overlay import (
    PutPath,
    agent_archive,
    agent_archive_from_package,
    put_archive,
)
from pyvmm.cache.directory import cache_dir
from pyvmm.units import MIB
from tests.pyvmm.boot.bzimage_kernel import bzimage, pack
from tests.pyvmm.boot.elf_kernel import elf_kernel

RELEASE = "6.99.0-test"
RAM_BYTES = 256 * MIB


def unpack(archive: bytes, into: Path) -> None:
    into.mkdir(exist_ok=True)
    command = ["busybox", "cpio", "-idm", "--quiet"]
    subprocess.run(command, cwd=into, input=archive, check=False)  # it cannot make device nodes


def put(host: Path, guest: str = "/root/x") -> bytes:
    return put_archive([PutPath(host, guest)], RAM_BYTES)


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """Make a directory of modules: virtio_console needs virtio and virtio_ring."""
    directory = tmp_path / "lib" / "modules" / RELEASE
    drivers = directory / "kernel"
    drivers.mkdir(parents=True)
    for name in ("virtio", "virtio_ring"):
        (drivers / f"{name}.ko").write_bytes(name.encode())
    (drivers / "virtio_console.ko.xz").write_bytes(lzma.compress(b"console"))
    (directory / "modules.dep").write_text(
        "kernel/virtio_console.ko.xz: kernel/virtio_ring.ko kernel/virtio.ko\n"
        "kernel/virtio_ring.ko: kernel/virtio.ko\nkernel/virtio.ko:\n"
    )
    (directory / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\n")
    return directory


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Make a bzImage of `RELEASE`."""
    content = bytearray(bzimage(pack("gzip", elf_kernel())))
    content[0x20E:0x210] = (0x300).to_bytes(2, "little")
    text = f"{RELEASE} (builder) #1".encode() + b"\0"
    content[0x500 : 0x500 + len(text)] = text
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    return path


def test_modules_are_found_in_loading_order(modules: Path) -> None:
    found = find_modules(modules, ["virtio-pci", "virtio_console", "virtio_balloon"])
    names = [path.name for path in found.files]
    assert names == ["virtio.ko", "virtio_ring.ko", "virtio_console.ko.xz"]
    assert found.missing == ("virtio_balloon",)


def test_the_agent_comes_with_the_modules_of_the_kernel(
    modules: Path, kernel: Path, tmp_path: Path
) -> None:
    boot = tmp_path / "boot"
    boot.mkdir()
    plan = plan_agent(kernel.rename(boot / f"vmlinuz-{RELEASE}"), None, "auto", command=True)
    assert plan is not None
    assert plan.append == "rdinit=/pyvmm/agent"
    unpack(plan.archive, tmp_path / "out")
    unpacked = tmp_path / "out" / "pyvmm"
    assert os.access(unpacked / "agent", os.X_OK)
    order = (unpacked / "modules" / "order").read_text().split()
    assert order == ["virtio.ko", "virtio_ring.ko", "virtio_console.ko"]
    assert (unpacked / "modules" / "virtio_console.ko").read_bytes() == b"console"
    assert (tmp_path / "out" / "bin" / "sh").readlink() == Path("busybox")


def test_an_initramfs_keeps_its_init_without_a_command(
    modules: Path, kernel: Path, tmp_path: Path
) -> None:
    plan = plan_agent(kernel, tmp_path / "initrd", modules, command=False)
    assert plan is not None
    assert plan.append == "rdinit=/pyvmm/agent pyvmm.init=/init"
    assert plan_agent(kernel, None, modules, command=False) is None


def test_a_kernel_without_its_modules_cannot_run_commands(kernel: Path, tmp_path: Path) -> None:
    with pytest.raises(ModulesUnusable, match=f"modules of Linux {RELEASE} are not installed"):
        plan_agent(kernel, None, "auto", command=True)
    assert plan_agent(kernel, tmp_path / "initrd", "auto", command=False) is None
    assert plan_agent(kernel, None, "no", command=True) is not None


def test_a_kernel_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelUnusable, match=r"cannot read .*missing: No such file"):
        plan_agent(tmp_path / "missing", None, "auto", command=True)


def test_modules_without_the_console_driver_are_refused(kernel: Path, modules: Path) -> None:
    (modules / "modules.dep").write_text("kernel/virtio.ko:\n")
    with pytest.raises(ModulesUnusable, match="has no virtio_console"):
        plan_agent(kernel, None, modules, command=True)


def test_a_directory_that_holds_one_release_is_enough(kernel: Path, modules: Path) -> None:
    root = modules.parents[2]
    assert plan_agent(kernel, None, root, command=True) is not None
    with pytest.raises(ModulesUnusable, match="has no directories of kernel modules"):
        plan_agent(kernel, None, modules / "kernel", command=True)


def test_the_archive_of_the_agent_is_cached(modules: Path) -> None:
    files = find_modules(modules, ["virtio_console"]).files
    first = agent_archive(files, userland=False)
    cached = set(cache_dir("overlays").iterdir())
    assert agent_archive(files, userland=False) == first
    assert set(cache_dir("overlays").iterdir()) == cached
    assert agent_archive((), userland=False) != first


def test_a_package_of_modules_is_unpacked_once(modules: Path, tmp_path: Path) -> None:
    package = tmp_path / "linux-image.deb"
    package.write_bytes(b"package")
    files = find_modules(modules, ["virtio_console"]).files
    unpacked = []

    @contextmanager
    def unpack_package() -> Iterator[tuple[Path, ...]]:
        unpacked.append(package)
        yield files

    first = agent_archive_from_package(package, [], unpack_package, userland=False)
    assert first == agent_archive(files, userland=False)
    assert agent_archive_from_package(package, [], unpack_package, userland=False) == first
    assert len(unpacked) == 1
    package.write_bytes(b"another package")
    assert agent_archive_from_package(package, [], unpack_package, userland=False) == first
    assert len(unpacked) == 2
    agent_archive_from_package(package, ["virtio_console"], unpack_package, userland=False)
    assert len(unpacked) == 3


def test_directories_are_put_with_modes_and_links(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub").chmod(0o750)
    (source / "sub" / "file").write_bytes(b"content")
    (source / "sub" / "file").chmod(0o640)
    (source / "hard").hardlink_to(source / "sub" / "file")
    (source / "soft").symlink_to("sub")
    (source / "broken").symlink_to("/nowhere")
    unpack(put(source, "/data"), tmp_path / "out")
    out = tmp_path / "out" / "data"
    assert (out / "sub/file").read_bytes() == b"content"
    assert stat.S_IMODE((out / "sub").stat().st_mode) == 0o750
    assert stat.S_IMODE((out / "sub/file").stat().st_mode) == 0o640
    assert (out / "hard").stat().st_ino == (out / "sub/file").stat().st_ino
    assert (out / "hard").read_bytes() == b"content"
    assert (out / "soft").readlink() == Path("sub")
    assert (out / "broken").readlink() == Path("/nowhere")


def test_a_link_that_is_put_itself_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    unpack(put(tmp_path / "link", "/file"), tmp_path / "out")
    assert (tmp_path / "out" / "file").read_bytes() == b"content"
    assert not (tmp_path / "out" / "file").is_symlink()


def test_pipes_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OverlayUnusable, match=r"pipe: it is a pipe"):
        put(tmp_path)
    with pytest.raises(OverlayUnusable, match="nothing: No such file"):
        put(tmp_path / "nothing")


def test_nothing_to_put_is_no_archive() -> None:
    assert put_archive([], RAM_BYTES) == b""


def test_files_are_measured_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(200 * MIB)
    (tmp_path / "hard").hardlink_to(tmp_path / "sparse")
    with pytest.raises(NotEnoughRam, match="200 MiB, need at least 400 MiB of RAM, the guest has"):
        put(tmp_path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(OverlayUnusable, match="is too large"):
        put(tmp_path)


@pytest.mark.parametrize(
    "where", ["/pyvmm/agent", "/root/../pyvmm", "//pyvmm/agent", "/pyvmm/modules/order"]
)
def test_the_files_of_the_agent_are_not_replaced(where: str, tmp_path: Path) -> None:
    with pytest.raises(OverlayUnusable, match="belongs to the guest agent"):
        put(tmp_path, where)


def test_a_directory_does_not_replace_the_files_of_the_agent(tmp_path: Path) -> None:
    (tmp_path / "pyvmm").mkdir()
    (tmp_path / "pyvmm" / "agent").write_text("another agent")
    with pytest.raises(OverlayUnusable, match=r"^/pyvmm is in /pyvmm, which belongs to the guest"):
        put(tmp_path, "/")


def test_files_need_twice_their_size_of_ram(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf_kernel())
    config = config_for_image(kernel, ram_bytes=128 * MIB)
    read_boot_files(config, bytes(16 * MIB))
    with pytest.raises(NotEnoughRam, match="need at least") as raised:
        read_boot_files(config, bytes(60 * MIB))
    assert raised.value.needed_bytes > 128 * MIB
