# SPDX-License-Identifier: Apache-2.0
"""Debian's stock kernels, with their own modules, for the tests that boot them.

`make stock-kernels` downloads them (`tests.kvm.debian_archive`), installs nothing, and keeps a
directory for each in the cache. It is part of `make test`, and runs before the lab, which has no
network. A directory has the name of the kernel in `KERNELS`:

    vmlinuz           as Debian ships it
    modules/          its virtio and entropy drivers and their modules.dep
    initramfs.cpio    busybox, `pattern`, `session` and these modules, and an init that loads them
    version           of the kernel package

The init then executes that of guest.img, so the guest is controlled in the same way. If a kernel
cannot be downloaded, the cached one is used; without one, the tests that need it are skipped.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from guest_images.initramfs import PROGRAMS, compile_program
from guest_images.recipe import BUSYBOX, HERE
from pyvmm.boot.kernel_modules import read_module
from pyvmm.cache.directory import CacheUnusable, cache_dir
from pyvmm.cli.remedies import with_remedy
from pyvmm.files.cpio import cpio
from pyvmm.files.replacement import replace_file
from tests.kvm.debian_archive import DebianArchive, Package, Unavailable, run

KERNELS = {
    "6.1-cloud": ("bookworm-security", "linux-image-cloud-amd64"),
    "6.1": ("bookworm-security", "linux-image-amd64"),
    "6.12": ("trixie-security", "linux-image-amd64"),
    "backports": ("trixie-backports", "linux-image-amd64"),
}
"""Suite and metapackage of each kernel: the oldest and the newest that Debian has, and between."""
LONG_KERNELS = {
    "6.12-cloud": ("trixie-security", "linux-image-cloud-amd64"),
    "6.12-rt": ("trixie-security", "linux-image-rt-amd64"),
    "backports-rt": ("trixie-backports", "linux-image-rt-amd64"),
}
"""Those that only the long tests boot."""
MODULES = ("virtio_pci", "virtio_balloon", "virtio-rng")
DRIVERS = (
    "kernel/drivers/virtio/**/*.ko*",
    "kernel/drivers/char/hw_random/**/*.ko*",
    "kernel/drivers/char/virtio_console.ko*",
)
"""Patterns for the files of these modules, of the console's driver, and of their dependencies."""
FETCH = "make stock-kernels"

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
for module in {" ".join(MODULES)}; do
    # Built-in drivers are not in modules.dep.
    if grep -q "/$module\\.ko" /lib/modules/*/modules.dep; then /bin/modprobe $module; fi
done
exec /bin/sh /init.guest
"""


@dataclass(frozen=True)
class StockKernel:
    """One of Debian's kernels, in the cache."""

    name: str
    directory: Path

    @property
    def vmlinuz(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        return self.directory / "initramfs.cpio"

    @property
    def version(self) -> str:
        return (self.directory / "version").read_text()

    @property
    def drivers(self) -> tuple[str, ...]:
        """The patterns of drivers that were unpacked."""
        listed = self.directory / "drivers"
        return tuple(listed.read_text().splitlines()) if listed.exists() else ()


def cached(name: str) -> StockKernel | None:
    """Return the kernel that an earlier fetch has cached, or None."""
    kernel = StockKernel(name, cache_dir("debian") / name)
    return kernel if kernel.initramfs.exists() else None


def fetch(name: str, archive: DebianArchive) -> StockKernel:
    """Update the cache to the newest kernel called `name`; raises `Unavailable`."""
    suite, metapackage = (KERNELS | LONG_KERNELS)[name]
    packages = archive.kernel_packages(metapackage, suite)
    version = f"{packages[0].name} {packages[0].version}"
    kernel = StockKernel(name, cache_dir("debian") / name)
    unpacked = cached(name) is not None and kernel.drivers == DRIVERS
    if not unpacked or kernel.version != version:
        with tempfile.TemporaryDirectory(dir=kernel.directory.parent) as temporary:
            tree = Path(temporary) / "tree"
            _unpack(archive, packages, Path(temporary))
            (tree / "version").write_text(version)
            (tree / "drivers").write_text("\n".join(DRIVERS))
            shutil.rmtree(kernel.directory, ignore_errors=True)
            tree.rename(kernel.directory)
    replace_file(kernel.initramfs, initramfs(kernel.directory / "modules"))
    return kernel


def _unpack(archive: DebianArchive, packages: list[Package], directory: Path) -> None:
    """Download and unpack `packages` to `directory`/tree: the kernel, the modules of `DRIVERS`."""
    whole = directory / "whole"
    for package in archive.download(packages, directory):
        run("dpkg-deb", "-x", str(package), str(whole))
        package.unlink()
    pick_kernel(whole, directory / "tree")


def pick_kernel(installed: Path, tree: Path) -> None:
    """Copy from the root directory `installed` to `tree` the kernel and its modules, uncompressed.

    The kernel is in /boot, or, from Linux 6.19 on, beside its modules.
    """
    ((modules, vmlinuz),) = (
        (modules, image)
        for modules in installed.glob("**/lib/modules/*")
        for image in (modules / "vmlinuz", installed / "boot" / f"vmlinuz-{modules.name}")
        if image.exists()
    )
    copies = tree / "modules" / "lib" / "modules" / modules.name
    for drivers in DRIVERS:
        for module in modules.glob(drivers):
            target = copies / module.relative_to(modules).with_name(
                f"{module.name.partition('.ko')[0]}.ko"
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_module(module))
    for listing in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(modules / listing, copies)
    run("depmod", "-b", str(tree / "modules"), modules.name)
    vmlinuz.rename(tree / "vmlinuz")


def initramfs(modules: Path) -> bytes:
    """Return a cpio archive with all that the guest needs; the kernel adds /dev/console."""
    files = {f"/{path.relative_to(modules)}": path for path in modules.rglob("*") if path.is_file()}
    contents = {name: path.read_bytes() for name, path in sorted(files.items())}
    contents |= {"/bin/busybox": BUSYBOX.read_bytes(), "/init": INIT.encode()}
    contents["/init.guest"] = (HERE / "rootfs" / "init").read_bytes()
    with tempfile.TemporaryDirectory() as temporary:
        for name in PROGRAMS:
            program = Path(temporary) / name
            compile_program(HERE / "src" / f"{name}.c", program)
            contents[f"/bin/{name}"] = program.read_bytes()
    for directory in ("proc", "sys", "dev", "root"):
        contents[f"/{directory}/.keep"] = b""
    return cpio(contents)


def main(*options: str) -> None:
    """Fetch `KERNELS`, with --long `LONG_KERNELS`, too; report what happened."""
    try:
        archive = DebianArchive(cache_dir("debian") / "apt")
        _update(archive)
        for name in KERNELS | LONG_KERNELS if "--long" in options else KERNELS:
            _fetch_or_report(name, archive)
    except CacheUnusable as error:
        sys.exit(f"{FETCH}: {with_remedy(error)}")


def _update(archive: DebianArchive) -> None:
    try:
        archive.update()
    except Unavailable as error:
        print(f"package indices not updated: {error}", file=sys.stderr)


def _fetch_or_report(name: str, archive: DebianArchive) -> None:
    try:
        print(f"{name}: {fetch(name, archive).version}")
    except Unavailable as error:
        kernel = cached(name)
        use = f"using {kernel.version}" if kernel else "tests that boot it will be skipped"
        print(f"{name}: {use}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
