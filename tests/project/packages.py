# SPDX-License-Identifier: Apache-2.0
"""The sdist and the wheel of this checkout, built without compiling: its native modules are used.

The sdist is built from a copy of the files that git knows, the wheel from the sdist, and both
without a network. An `Environment` is a venv without pip; distributions of the running Python come
after its own on the path, for the dependencies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tests.project.sources import ROOT, files

NATIVE = Path("cython_src/pyvmm_native")
BUILD_SDIST = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command without Python's environment variables; return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def pip(*arguments: object, cwd: Path) -> str:
    """Run the pip of this Python, which asks no index."""
    quiet = ("--quiet", "--disable-pip-version-check")
    return run(sys.executable, "-m", "pip", *quiet, *arguments, cwd=cwd)


def build_sdist(folder: Path, added: Mapping[str, str]) -> Path:
    """Build the sdist of this checkout and of the `added` files (path: text) into `folder`."""
    tree = folder / "tree"
    for path in files(suffixes=None):
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    for name, text in added.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    run(sys.executable, "-c", BUILD_SDIST, folder, cwd=tree)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def unpack_sdist(sdist: Path, folder: Path) -> Path:
    """Unpack an sdist, and add this checkout's native modules as a build finds them up to date."""
    # Debian 12's Python 3.11.2 has no filters in tarfile, later ones warn without.
    run("tar", "--extract", "--file", sdist, cwd=folder)
    (tree,) = folder.iterdir()
    built = tree / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    (built / NATIVE.name).mkdir(parents=True)
    for source in (ROOT / NATIVE).glob("*.c"):
        shutil.copyfile(source, tree / NATIVE / source.name)  # newer than what it was made of
    for module in (ROOT / NATIVE).glob("*.so"):
        shutil.copyfile(module, built / NATIVE.name / module.name)
        (tree / NATIVE / module.name).symlink_to(built / NATIVE.name / module.name)
    return tree


def build_wheel(tree: Path, folder: Path) -> Path:
    """Build the wheel of an unpacked sdist into `folder`."""
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    pip("wheel", *offline, "--wheel-dir", folder, tree, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_wheel(folder: Path, name: str, contents: Mapping[str, str]) -> Path:
    """Write a wheel of another project: version 9.9 of `name`, with these files (path: text)."""
    information = f"{name}-9.9.dist-info"
    described = {
        **contents,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*described, f"{information}/RECORD"])
    wheel = folder / f"{name}-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**described, f"{information}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


class Environment:
    """A venv with the given wheels, and the dependencies from the running Python."""

    def __init__(self, folder: Path, *wheels: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        self.prefix = folder
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / version / "site-packages"
        dependencies = sysconfig.get_path("purelib")
        (self.packages / "dependencies.pth").write_text(f"{dependencies}\n")
        self.install(*wheels)

    def install(self, *wheels: Path) -> None:
        """Install wheels as pip does, over existing files."""
        options = ("--no-deps", "--no-index", "--no-compile", "--ignore-installed")
        for wheel in wheels:
            pip("--python", self.python, "install", *options, wheel, cwd=self.prefix)

    def uninstall(self, name: str) -> None:
        """Remove a distribution as pip does."""
        pip("--python", self.python, "uninstall", "--yes", name, cwd=self.prefix)
