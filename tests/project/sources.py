# SPDX-License-Identifier: Apache-2.0
"""The project's own files, for the tests that check sources and documents."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("pykvm", "devices", "pyvmm", "guest_images", "cython_src")
PACKAGES = (*PRODUCT, "bench", "tests", "docs")


def files(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """Return the files with these suffixes below `folders` that git tracks or would track."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = (ROOT / name for name in sorted(set(listed.stdout.splitlines())))
    return [path for path in paths if path.suffix in suffixes and path.exists()]


def name_of(path: Path) -> str:
    """Return the path of a file relative to the checkout."""
    return str(path.relative_to(ROOT))
