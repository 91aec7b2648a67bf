# SPDX-License-Identifier: Apache-2.0
"""The kernel that the lab boots: a distribution's own, unpacked to boot fast.

A suitable kernel is installed with its modules and has 9p, virtio and kvm-amd (QEMU emulates an AMD
processor). Its bzImage is /boot/vmlinuz-RELEASE, or vmlinuz beside its modules, where Fedora and
Debian's split packages (since Linux 6.19) put it. Debian's `linux-image-amd64` is suitable; its
`-cloud-` flavour has no 9p. Under emulation a compressed kernel spends most of its boot on its own
decompression, so the vmlinux in the bzImage is unpacked once, kept in the cache directory, and
booted through its PVH entry.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pyvmm.boot.bzimage import open_bzimage
from pyvmm.boot.kernel_modules import find_modules
from pyvmm.errors import NotInstalled
from pyvmm.lab.errors import LabKernelUnreadable

ENTRY_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "virtio_console", "kvm-amd")
"""Modules that the lab loads, in this order, each after its dependencies."""

LAB_CACHE = "lab"
"""The kind of cache that has the lab's initramfs and boot snapshots."""

DEBIAN_PACKAGE = "linux-image-amd64"

_SIGNATURE_MAGIC = b"~Module signature appended~\n"


@dataclass(frozen=True)
class LabKernel:
    """An installed kernel that the lab can boot."""

    release: str
    image: Path
    modules: tuple[Path, ...]
    """Module files in loading order."""


def find_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> LabKernel:
    """Return the newest suitable kernel that this user may read.

    Raises NotInstalled if there is no suitable one, LabKernelUnreadable if none can be read.
    """
    images = _installed_images(boot, modules)
    releases = sorted(images, key=_version_key, reverse=True)
    unreadable: list[Path] = []
    for release in releases:
        closure = module_closure(modules / release)
        if closure is None:
            continue
        for image in images[release]:
            if os.access(image, os.R_OK):
                return LabKernel(release, image, closure)
        unreadable += images[release]
    if unreadable:
        raise LabKernelUnreadable(unreadable[0])
    found = f" (found without 9p, virtio or kvm-amd: {', '.join(releases)})" if releases else ""
    raise NotInstalled(f"no kernel for the lab in {boot} or {modules}{found}", DEBIAN_PACKAGE)


def _installed_images(boot: Path, modules: Path) -> dict[str, list[Path]]:
    """Return the bzImages by release, which may have one in either directory."""
    images: dict[str, list[Path]] = {}
    for image in boot.glob("vmlinuz-*"):
        images.setdefault(image.name.removeprefix("vmlinuz-"), []).append(image)
    for image in modules.glob("*/vmlinuz"):
        images.setdefault(image.parent.name, []).append(image)
    return images


def _version_key(release: str) -> list[int]:
    """Return the numbers of a release such as 6.1.0-57-amd64 or 7.3.4+deb13-amd64, in order."""
    return [int(part) for part in re.split(r"[-+.]", release) if part.isdigit()]


def module_closure(directory: Path) -> tuple[Path, ...] | None:
    """Return the files of `ENTRY_MODULES` and their dependencies, dependencies first.

    Returns None if one is missing; modules built into the kernel need no file.
    """
    try:
        found = find_modules(directory, ENTRY_MODULES)
    except OSError:
        return None
    return None if found.missing else found.files


def strip_signature(module: bytes) -> bytes:
    """Return a module without its signature, whose check is slow under emulation.

    The signature (kernel: Documentation/admin-guide/module-signing.rst) ends in a 12-byte structure
    whose last field is the signature's length, big-endian, and a magic text.
    """
    end = len(module) - len(_SIGNATURE_MAGIC)
    if not module.endswith(_SIGNATURE_MAGIC) or end < 12:
        return module
    signature_bytes = int.from_bytes(module[end - 4 : end], "big")
    return module[: max(end - 12 - signature_bytes, 0)]


def startable_image(kernel: LabKernel) -> Path:
    """Return the vmlinux in the kernel's bzImage, which boots fastest."""
    return open_bzimage(kernel.image).vmlinux
