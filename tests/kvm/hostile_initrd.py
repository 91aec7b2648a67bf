# SPDX-License-Identifier: Apache-2.0
"""The initramfs with the hostile init process, compiled when its source has changed.

Compiling takes a second on a host and a minute in the lab, so a unit test does it before the lab
starts, and the archive is cached.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from guest_images.initramfs import compile_program
from pyvmm.cache.directory import cache_dir, keep_most_recent
from pyvmm.files.cpio import cpio
from pyvmm.files.replacement import replace_file

SOURCE = Path(__file__).with_name("hostile_init.c")


def hostile_initrd() -> Path:
    """Return the path of the archive; the program in it is /hostile."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    archive = cache_dir("tests") / f"hostile-{digest}.cpio"
    if not archive.exists():
        program = archive.with_suffix(".elf")
        compile_program(SOURCE, program)
        replace_file(archive, cpio({"/hostile": program.read_bytes()}))
        program.unlink()
    keep_most_recent("hostile-*.cpio", archive)
    return archive
