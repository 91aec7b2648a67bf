# SPDX-License-Identifier: Apache-2.0
"""The project's own files, for the tests that check sources and documents."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("pykvm", "devices", "pyvmm", "guest_images", "cython_src")
PACKAGES = (*PRODUCT, "bench", "tests")
GENERATED = {"build", "dist", "demo-output", "__pycache__"}


def files(*folders: str, suffixes: tuple[str, ...] | None = (".py",)) -> list[Path]:
    """Return the files with these suffixes below `folders` that git tracks or would track.

    Without `suffixes`, return files of every kind. In an unpacked sdist, which git does not know,
    return all files but generated ones.
    """
    names = _git_files(folders) if (ROOT / ".git").exists() else _unpacked_files(folders)
    paths = (ROOT / name for name in sorted(names))
    return [path for path in paths if suffixes is None or path.suffix in suffixes]


def name_of(path: Path) -> str:
    """Return the path of a file relative to the checkout."""
    return str(path.relative_to(ROOT))


def _git_files(folders: tuple[str, ...]) -> set[str]:
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def _unpacked_files(folders: tuple[str, ...]) -> set[str]:
    found = set()
    for folder in folders or (".",):
        for path in (ROOT / folder).rglob("*"):
            parts = path.relative_to(ROOT).parts
            hidden = parts[0] not in (".ci", ".github") and parts[0].startswith(".") and parts[1:]
            if path.is_file() and not hidden and not GENERATED.intersection(parts):
                found.add(name_of(path))
    return found
