# SPDX-License-Identifier: Apache-2.0
"""The kernel the lab boots: a distribution's own, made quick to start.

A suitable kernel is one that is installed with its modules and has 9p, virtio and kvm-amd (QEMU's
emulated processor is an AMD one); Debian's `linux-image-amd64` is, its `-cloud-` flavour has no
9p. Under emulation most of a compressed kernel's start is its own decompression, so the vmlinux
inside the bzImage is unpacked here once, kept in the cache directory, and started through its PVH
entry.
"""

from __future__ import annotations

import gzip
import lzma
from dataclasses import dataclass
from pathlib import Path

from pyvmm.boot.bzimage import open_bzimage
from pyvmm.cache.directory import cache_dir
from pyvmm.errors import UserError

ENTRY_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "virtio_console", "kvm-amd")
"""What the lab loads, in this order; each after what it depends on."""

INSTALL_REMEDY = "apt-get install linux-image-amd64"

_SIGNATURE_MAGIC = b"~Module signature appended~\n"


@dataclass(frozen=True)
class LabKernel:
    """An installed kernel that can be the lab's."""

    release: str
    image: Path
    modules: tuple[Path, ...]
    """Module files in loading order."""


def lab_cache() -> Path:
    """Where the lab keeps its initramfs and its snapshots."""
    return cache_dir("lab")


def find_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> LabKernel:
    """The newest suitable kernel installed; UserError when there is none."""
    releases = sorted(
        (path.name.removeprefix("vmlinuz-") for path in boot.glob("vmlinuz-*")),
        key=_version_key,
        reverse=True,
    )
    for release in releases:
        closure = module_closure(modules / release)
        if closure is not None:
            return LabKernel(release, boot / f"vmlinuz-{release}", closure)
    found = f" (found without 9p, virtio or kvm-amd: {', '.join(releases)})" if releases else ""
    raise UserError(f"no kernel for the lab in {boot}{found}", INSTALL_REMEDY)


def _version_key(release: str) -> list[int]:
    return [int(part) for part in release.replace("-", ".").split(".") if part.isdigit()]


def module_closure(directory: Path) -> tuple[Path, ...] | None:
    """Files of `ENTRY_MODULES` and all they depend on, dependencies first.

    None when one of them does not exist; what is built into the kernel needs no file.
    """
    try:
        lines = (directory / "modules.dep").read_text().splitlines()
        builtin_lines = (directory / "modules.builtin").read_text().split()
    except OSError:
        return None
    needs = {}
    for line in lines:
        name, _, rest = line.partition(":")
        needs[name] = rest.split()
    by_name = {_module_name(path): path for path in needs}
    builtin = {_module_name(path) for path in builtin_lines}
    order: dict[str, None] = {}
    for entry in ENTRY_MODULES:
        name = entry.replace("-", "_")
        if name in builtin:
            continue
        if name not in by_name:
            return None
        # modules.dep lists a module's dependencies outermost first
        for path in (*reversed(needs[by_name[name]]), by_name[name]):
            order.setdefault(path)
    return tuple(directory / path for path in order)


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """The module, uncompressed and unsigned; UserError for a compression Python does not know."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    elif path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix != ".ko":
        raise UserError(f"cannot read the kernel module {path}", INSTALL_REMEDY)
    return strip_signature(data)


def strip_signature(module: bytes) -> bytes:
    """A module without what is appended to sign it; checking that is slow under emulation.

    The appendix (kernel: Documentation/admin-guide/module-signing.rst) ends in a 12-byte structure
    whose last field is the signature's length, big-endian, and a magic text.
    """
    end = len(module) - len(_SIGNATURE_MAGIC)
    if not module.endswith(_SIGNATURE_MAGIC) or end < 12:
        return module
    signature_bytes = int.from_bytes(module[end - 4 : end], "big")
    return module[: max(end - 12 - signature_bytes, 0)]


def startable_image(kernel: LabKernel) -> Path:
    """The kernel in the form that starts fastest: the vmlinux in its bzImage."""
    return open_bzimage(kernel.image).vmlinux
