# SPDX-License-Identifier: Apache-2.0
"""Debian's stock kernels, with their own modules, for the tests that boot them.

`make stock-kernels` downloads them, installs nothing, and keeps a directory for each in the cache.
It is part of `make test`, and runs before the lab, which has no network. A directory is named after
the metapackage that depends on the newest kernel of its flavour; Debian 13, whose default kernel is
6.12, has only the first two:

    vmlinuz           as Debian ships it
    modules/          its virtio and entropy drivers and their modules.dep
    initramfs.cpio    busybox, `pattern`, `session` and these modules, and an init that loads them
    version           of the kernel package

The init then executes that of guest.img, so the guest is controlled in the same way. If a kernel
cannot be downloaded, the cached one is used; without one, the tests that need it are skipped.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from guest_images.initramfs import PROGRAMS, compile_program
from guest_images.recipe import BUSYBOX, HERE
from pyvmm.cache.directory import CacheUnusable, cache_dir
from pyvmm.cli.remedies import with_remedy
from pyvmm.files.replacement import replace_file
from pyvmm.lab.initramfs import cpio

NAMES = ("linux-image-cloud-amd64", "linux-image-amd64", "linux-image-6.12-amd64")
MODULES = ("virtio_pci", "virtio_balloon", "virtio-rng")
DRIVERS = ("kernel/drivers/virtio", "kernel/drivers/char/hw_random")
"""The directories of a package that hold these modules and their dependencies."""
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # depmod is there
FETCH = "make stock-kernels"

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
for module in {" ".join(MODULES)}; do
    # Built-in drivers are not in modules.dep.
    if grep -q "/$module\\.ko" /lib/modules/*/modules.dep; then /bin/modprobe $module; fi
done
exec /bin/sh /init.guest
"""


class Unavailable(Exception):
    """The package cannot be fetched; the message says why."""


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
        """The directories of drivers that were unpacked."""
        listed = self.directory / "drivers"
        return tuple(listed.read_text().splitlines()) if listed.exists() else ()


def cached(name: str) -> StockKernel | None:
    """Return the kernel that an earlier fetch has cached, or None."""
    kernel = StockKernel(name, cache_dir("debian") / name)
    return kernel if kernel.initramfs.exists() else None


def fetch(name: str) -> StockKernel:
    """Update the cache to the kernel that `name` depends on; raises `Unavailable`."""
    package, version = newest(name)
    kernel = StockKernel(name, cache_dir("debian") / name)
    unpacked = cached(name) is not None and kernel.drivers == DRIVERS
    if not unpacked or kernel.version != f"{package} {version}":
        with tempfile.TemporaryDirectory(dir=kernel.directory.parent) as temporary:
            _unpack(_download(package, version, Path(temporary)), Path(temporary))
            (Path(temporary) / "tree" / "version").write_text(f"{package} {version}")
            (Path(temporary) / "tree" / "drivers").write_text("\n".join(DRIVERS))
            shutil.rmtree(kernel.directory, ignore_errors=True)
            (Path(temporary) / "tree").rename(kernel.directory)
    replace_file(kernel.initramfs, initramfs(kernel.directory / "modules"))
    return kernel


def newest(name: str) -> tuple[str, str]:
    """Return the kernel package that the metapackage `name` depends on, and its version."""
    if name not in _run("apt-cache", "pkgnames", name).split():
        raise Unavailable("no package source of this machine has it")
    record = _run("apt-cache", "show", "--no-all-versions", name)
    match = re.search(r"^Depends: (linux-image-\S+) \(= (\S+)\)", record, re.MULTILINE)
    if match is None:
        raise Unavailable(f"{name} does not depend on a kernel")
    return match[1], match[2]


def _download(package: str, version: str, directory: Path) -> Path:
    # Otherwise apt, run by root, warns that its sandbox user may not write here.
    sandbox = ("-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()
    _run("apt-get", "-q", *sandbox, "download", f"{package}={version}", cwd=directory)
    (archive,) = directory.glob("*.deb")
    return archive


def _unpack(archive: Path, directory: Path) -> None:
    """Unpack the kernel and the modules of `DRIVERS` to `directory`/tree, uncompressed."""
    whole, tree = directory / "whole", directory / "tree"
    _run("dpkg-deb", "-x", str(archive), str(whole))
    (vmlinuz,) = whole.glob("boot/vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    installed = next(iter(whole.glob(f"**/lib/modules/{release}")))
    modules = tree / "modules" / "lib" / "modules" / release
    for drivers in DRIVERS:
        shutil.copytree(installed / drivers, modules / drivers)
    for packed in modules.rglob("*.ko.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    for listing in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(installed / listing, modules)
    _run("depmod", "-b", str(tree / "modules"), release)
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


def _run(*command: str, cwd: Path | None = None) -> str:
    program = shutil.which(command[0], path=SEARCH_PATH)
    if program is None:
        raise Unavailable(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise Unavailable(f"{' '.join(command)}: {last or f'status {done.returncode}'}")
    return done.stdout


def main() -> None:
    for name in NAMES:
        try:
            print(f"{name}: {fetch(name).version}")
        except Unavailable as error:
            kernel = cached(name)
            use = f"using {kernel.version}" if kernel else "tests that boot it will be skipped"
            print(f"{name}: {use}: {error}", file=sys.stderr)
        except CacheUnusable as error:
            sys.exit(f"{FETCH}: {with_remedy(error)}")


if __name__ == "__main__":
    main()
