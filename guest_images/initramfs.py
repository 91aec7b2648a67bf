# SPDX-License-Identifier: Apache-2.0
"""The guest's root file system: busybox, /init, and two small programs.

`session` gives the shell its terminal, `pattern` fills memory and verifies it.

The archive is not packed here. The kernel build gets a list for its gen_init_cpio, which creates
device nodes and files owned by root without root privileges, and links the archive into the kernel
(Documentation/driver-api/early-userspace/early_userspace_support.rst).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from pyvmm.blocking.process_limit import process_limit_reported

LIST_NAME = "initramfs.list"  # CONFIG_INITRAMFS_SOURCE in kernel.config
STAGE_NAME = "initramfs"
PROGRAMS = ("pattern", "session")  # each from one file in src, and headers there
LEFT_OUT = {"busybox", "init", "linuxrc"}  # not commands for a shell, or already in the list


def prepare_initramfs(build_directory: Path, package: Path, busybox: Path) -> None:
    """Write the list and every file it names into `build_directory`, the kernel's object tree.

    `package` is the directory that has `src` and `rootfs`.
    """
    stage = build_directory / STAGE_NAME
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    shutil.copyfile(busybox, stage / "busybox")
    shutil.copyfile(package / "rootfs" / "init", stage / "init")
    for name in PROGRAMS:
        compile_program(package / "src" / f"{name}.c", stage / name)
    for file in stage.iterdir():
        os.utime(file, (0, 0))  # recorded in the archive; equal inputs give equal images
    (build_directory / LIST_NAME).write_text("\n".join(_entries(_applets(busybox))) + "\n")
    # The kernel's makefile compares time stamps, which were just set to zero.
    (build_directory / "usr" / "initramfs_data.cpio").unlink(missing_ok=True)


def compile_program(source: Path, program: Path) -> None:
    """Compile one C file, statically: the guest has no shared libraries."""
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-pthread"]
    with process_limit_reported():
        subprocess.run(["gcc", *flags, "-o", str(program), str(source)], check=True)


def _applets(busybox: Path) -> list[str]:
    with process_limit_reported():
        listing = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    return [name for name in listing.stdout.split() if name not in LEFT_OUT]


def _entries(applets: list[str]) -> list[str]:
    """Return the lines of the list; paths on the right are relative to the object tree."""
    return [
        *(f"dir /{name} 0755 0 0" for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp")),
        "slink /sbin bin 0777 0 0",
        "nod /dev/console 0600 0 0 c 5 1",
        f"file /init {STAGE_NAME}/init 0755 0 0",
        *(f"file /bin/{name} {STAGE_NAME}/{name} 0755 0 0" for name in ("busybox", *PROGRAMS)),
        *(f"slink /bin/{name} busybox 0777 0 0" for name in applets),
    ]
