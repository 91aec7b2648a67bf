# SPDX-License-Identifier: Apache-2.0
"""A file system that is soon full: a tmpfs of its own for one program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run_on_small_disk(directory: Path, size_mib: int, script: str) -> str:
    """Return the output of the Python `script`, for which a tmpfs is mounted on `directory`.

    Its path is the script's argument. The test is skipped where nothing can be mounted.
    """
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c",
         f'mount -t tmpfs -o size={size_mib}m none "$1" && exec "$2" -c "$3" "$1"',
         "sh", str(directory), sys.executable, script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system of our own here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout
