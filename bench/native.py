# SPDX-License-Identifier: Apache-2.0
"""The C programs of `bench/c`, which show the limits of the machine.

Each is compiled into the cache when it is first used, and named by the hash of its source and
flags, so a stale one is never run.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

from pyvmm.cache.directory import cache_dir
from pyvmm.errors import NotInstalled

SOURCES = Path(__file__).parent / "c"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


def shared_library(name: str) -> Path:
    """Return `bench/c/NAME.c` as a shared library for ctypes."""
    return _compiled(name, (*FLAGS, "-shared", "-fPIC"), ".so")


def program(name: str) -> Path:
    """Return `bench/c/NAME.c` as a program."""
    return _compiled(name, FLAGS, "")


def static_program(name: str) -> Path:
    """Return `bench/c/NAME.c` as a program without shared libraries, for guests."""
    return _compiled(name, (*FLAGS, "-static"), "-static")


def _compiled(name: str, flags: tuple[str, ...], suffix: str) -> Path:
    source = SOURCES / f"{name}.c"
    digest = hashlib.sha256(" ".join(flags).encode() + source.read_bytes()).hexdigest()[:16]
    target = cache_dir("bench") / f"{name}-{digest}{suffix}"
    if not target.exists():
        # A unique name: a process in a lab, which shares the cache, may have the same id.
        with tempfile.TemporaryDirectory(dir=target.parent) as directory:
            unfinished = Path(directory, name)
            command = ["cc", *flags, "-o", str(unfinished), str(source)]
            try:
                subprocess.run(command, check=True)
            except FileNotFoundError as error:
                raise NotInstalled("there is no C compiler", "gcc") from error
            unfinished.replace(target)
    return target
