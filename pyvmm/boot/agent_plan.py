# SPDX-License-Identifier: Apache-2.0
"""The boot of a guest with an agent: kernel parameters, modules and initramfs.

`plan_agent` decides it for a kernel. guest.img has all drivers built in. Any other kernel gets the
virtio modules that belong to its release, which are looked for beside the kernel and where they are
installed. A kernel without an initramfs gets a small userland, busybox, so that there is a command
to run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from guest_images.manifest import read_manifest
from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.boot.bzimage import kernel_release
from pyvmm.boot.errors import KernelUnusable, ModulesUnusable
from pyvmm.boot.kernel_modules import find_modules
from pyvmm.boot.overlay import AGENT, agent_archive, agent_archive_from_package
from pyvmm.errors import NotInstalled

MODULES = ("virtio_pci", "virtio_console", "virtio_balloon", "virtio_rng")
"""Drivers of our devices."""
REQUIRED = "virtio_console"
INSTALLED = (Path("/lib/modules"), Path("/usr/lib/modules"))
DEPMOD_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

ModulesFrom = Literal["auto", "no"] | Path
"""Source of the modules: the kernel's release, none, or a directory or package."""


class AgentPlan(NamedTuple):
    """Kernel parameters and an archive for the initramfs, with which a kernel starts the agent."""

    append: str
    archive: bytes


def plan_agent(
    kernel: Path, initrd: Path | None, modules: ModulesFrom, *, command: bool
) -> AgentPlan | None:
    """Return the plan with which `kernel` starts the agent; None if it need not.

    With `command` the agent is the only init. Without, it loads modules that `initrd` may lack, and
    lets the init of `initrd` run. Raises `UserError` where the modules or the agent are missing.
    """
    try:
        built_in = read_manifest(kernel) is not None
    except OSError as error:
        raise KernelUnusable(f"cannot read {kernel}: {error.strerror}") from error
    if not command and (built_in or initrd is None):
        return None
    parameters = f"rdinit={AGENT}" if command else f"rdinit={AGENT} pyvmm.init=/init"
    userland = command and not built_in and initrd is None
    if built_in or modules == "no":
        return AgentPlan(parameters, agent_archive((), userland=userland))
    if isinstance(modules, Path) and modules.suffix == ".deb" and modules.is_file():
        required = [REQUIRED] if command else []
        unpacked = partial(_unpacked_modules, modules, command)
        archive = agent_archive_from_package(modules, required, unpacked, userland=userland)
    else:
        directory = _module_directory(kernel, modules, command)
        if directory is None:
            return None
        archive = agent_archive(_find_drivers(directory, command), userland=userland)
    return AgentPlan(parameters, archive)


def _find_drivers(directory: Path, command: bool) -> tuple[Path, ...]:
    """Return the files of the drivers in `directory`, those that a `command` needs among them."""
    try:
        found = find_modules(directory, MODULES)
    except OSError as error:
        raise ModulesUnusable(
            f"{directory} has no list of kernel modules: {error.strerror}"
        ) from error
    if command and REQUIRED in found.missing:
        raise ModulesUnusable(f"{directory} has no {REQUIRED}")
    return found.files


def _module_directory(kernel: Path, modules: ModulesFrom, required: bool) -> Path | None:
    """Return the directory with the modules of `kernel`; None if there is none and none needed."""
    if isinstance(modules, Path):
        return modules if (modules / "modules.dep").is_file() else _below(modules, modules)
    release = kernel_release(kernel)
    candidates = _candidates(kernel, release) if release else []
    found = next((each for each in candidates if (each / "modules.dep").is_file()), None)
    if found is None and required and release:
        raise ModulesUnusable(f"the modules of Linux {release} are not installed")
    return found


def _candidates(kernel: Path, release: str) -> list[Path]:
    """Return where the modules of `release` may be: beside `kernel`, or installed."""
    package = kernel.resolve().parent.parent
    beside = [kernel.resolve().parent]
    beside += [package / where / release for where in ("lib/modules", "usr/lib/modules")]
    return [*beside, *(directory / release for directory in INSTALLED)]


@contextmanager
def _unpacked_modules(package: Path, command: bool) -> Iterator[tuple[Path, ...]]:
    """Yield the files of the drivers in a Debian package."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-modules-") as temporary:
        _unpack(package, Path(temporary))
        yield _find_drivers(_below(Path(temporary), package), command)


def _below(root: Path, named: Path) -> Path:
    lists = [*root.glob("lib/modules/*/modules.dep"), *root.glob("usr/lib/modules/*/modules.dep")]
    if len(lists) != 1:
        count = len(lists) or "no"
        raise ModulesUnusable(f"{named} has {count} directories of kernel modules, not one")
    return lists[0].parent


def _unpack(package: Path, target: Path) -> None:
    """Unpack a Debian package; `modules.dep`, which it lacks, is made by depmod(8)."""
    depmod = shutil.which("depmod", path=DEPMOD_PATH)
    if depmod is None or shutil.which("dpkg-deb") is None:
        raise NotInstalled("a package of modules needs depmod and dpkg-deb", "kmod", "dpkg")
    _run(["dpkg-deb", "-x", str(package), str(target)], package)
    for directory in (target / "lib/modules", target / "usr/lib/modules"):
        for release in directory.glob("*"):
            root = directory.parent.parent
            _run([depmod, "-b", str(root), release.name], package)


def _run(command: Sequence[str], package: Path) -> None:
    with process_limit_reported():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise ModulesUnusable(f"cannot unpack {package}: {reason[0]}")
