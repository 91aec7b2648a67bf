# SPDX-License-Identifier: Apache-2.0
"""The guest agent's program, compiled once and kept in the cache.

It is one static executable that needs nothing of the guest but Linux, from `src/agent`. Its name in
the cache is the hash of its sources; any compiler's result will do, and asking the compiler for its
version takes seconds in the lab.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from guest_images.initramfs import compile_program
from guest_images.recipe import HERE, check_compiler
from pyvmm.cache.directory import cached_file

SOURCES = HERE / "src" / "agent"
CACHE_KIND = "agent"


def agent_program() -> Path:
    """Return the path of the executable. Raises `NotInstalled` if a compiler is needed."""
    total = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        total.update(f"{source.name} {hashlib.sha256(source.read_bytes()).hexdigest()}\n".encode())
    return cached_file(CACHE_KIND, total.hexdigest()[:32], _compile)


def _compile() -> bytes:
    check_compiler()
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "agent")
        compile_program(SOURCES / "agent.c", program)
        return program.read_bytes()
