# SPDX-License-Identifier: Apache-2.0
"""The inputs of a guest image, and the hash that identifies them.

`read_recipe` reads every input once: the kernel source, our patches and configuration, the files of
the userland, busybox and the compiler. Their SHA-256 names the finished image in the cache and is
recorded in its manifest, so an image is up to date if its manifest has the digest of the current
inputs. A kernel source is identified by name, size and modification time instead of its contents:
it is 150 MB as an archive and 85,000 files as a directory, and the check is made on every run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from guest_images.errors import KernelSourceMissing, KernelSourceUnusable
from guest_images.initramfs import PROGRAMS
from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.errors import NotInstalled, UserError

HERE = Path(__file__).parent
KERNEL_SERIES = "6.12"
KERNEL_PACKAGE = f"linux-source-{KERNEL_SERIES}"
KERNEL_ARCHIVE = Path(f"/usr/src/{KERNEL_PACKAGE}.tar.xz")
BUSYBOX = Path("/bin/busybox")
BUSYBOX_PACKAGE = "busybox-static"

# Programs and headers, and the Debian packages that contain them.
TOOLS = {
    "gcc": "gcc",
    "make": "make",
    "patch": "patch",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "objcopy": "binutils",
    "tar": "tar",
    "xz": "xz-utils",
}
HEADERS = {"stdlib.h": "libc6-dev", "gelf.h": "libelf-dev"}

# Files of this package that determine the contents of the image.
OWN_FILES = ("kernel.config", "recipe.py", "kernel.py", "initramfs.py", "build.py", "manifest.py")
OWN_DIRECTORIES = ("patches", "rootfs")


@dataclass(frozen=True)
class Recipe:
    """All inputs of one image: `source` is an archive or a directory, `digest` is hexadecimal."""

    source: Path
    source_identity: str
    patches: tuple[Path, ...]
    config: Path
    busybox: Path
    digest: str


def read_recipe(source: Path | None = None) -> Recipe:
    """Read all inputs, with the kernel from `source` or else from Debian's archive.

    Raises `UserError` when the kernel source, busybox or the compiler is missing.
    """
    path = _find_source(source)
    if not BUSYBOX.is_file():
        raise NotInstalled(f"there is no {BUSYBOX}", BUSYBOX_PACKAGE)
    identity = _identify(path)
    patches = tuple(sorted((HERE / "patches").glob("*.patch")))
    total = hashlib.sha256()
    for text in (identity, _compiler_version()):
        total.update(f"{len(text)} {text}".encode())
    for file in (*_own_files(), BUSYBOX):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.name} {content}\n".encode())
    return Recipe(path, identity, patches, HERE / "kernel.config", BUSYBOX, total.hexdigest())


def check_tools() -> None:
    """Raise `NotInstalled` when a tool or header that the build needs is missing."""
    missing = {tool: package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if "gcc" not in missing:
        missing |= {name: package for name, package in HEADERS.items() if not _has_header(name)}
    _check_missing("the guest image", missing)


def check_compiler() -> None:
    """Raise `NotInstalled` when the C compiler, or its library, is missing."""
    missing = {} if shutil.which("gcc") else {"gcc": TOOLS["gcc"]}
    if not missing and not _has_header("stdlib.h"):
        missing = {"stdlib.h": HEADERS["stdlib.h"]}
    _check_missing("the guest agent", missing)


def _check_missing(result: str, missing: Mapping[str, str]) -> None:
    """Raise `NotInstalled` if anything is `missing`, with the package that has it."""
    if missing:
        raise NotInstalled(
            f"{result} cannot be built without {', '.join(missing)}",
            *sorted(set(missing.values())),
        )


def _find_source(source: Path | None) -> Path:
    if source is None:
        if not KERNEL_ARCHIVE.is_file():
            raise KernelSourceMissing(
                f"there is no kernel source at {KERNEL_ARCHIVE}", KERNEL_PACKAGE
            )
        return KERNEL_ARCHIVE
    if not source.exists():
        raise KernelSourceUnusable(f"the kernel source {source} does not exist")
    if source.is_dir():
        kernel_version(source)
    elif not source.is_file():
        raise KernelSourceUnusable(
            f"the kernel source {source} is neither a directory nor a regular file"
        )
    return source.resolve()


def kernel_version(tree: Path) -> str:
    """Return the version of the kernel source in `tree`, such as "6.12.5".

    Raises `UserError` unless it is a kernel source of the series that our patches are for.
    """
    try:
        with (tree / "Makefile").open(encoding="utf-8", errors="replace") as makefile:
            lines = [next(makefile, "").partition("=") for _ in range(6)]
    except OSError as error:
        raise KernelSourceUnusable(f"{tree} is not a kernel source tree") from error
    fields = {name.strip(): value.strip() for name, _, value in lines}
    version = ".".join(fields.get(name, "") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
    if not version.startswith(f"{KERNEL_SERIES}."):
        raise KernelSourceUnusable(f"{tree} is not Linux {KERNEL_SERIES}")
    return version + fields.get("EXTRAVERSION", "")


def _identify(source: Path) -> str:
    if source.is_file():
        return _stamp(source, source.name)
    digest = hashlib.sha256(str(source).encode())
    for directory, names, files in os.walk(source):
        names[:] = sorted(name for name in names if name != ".git")
        for name in sorted(files):
            path = os.path.join(directory, name)
            digest.update(_stamp(Path(path), path).encode())
    return digest.hexdigest()


def _stamp(file: Path, name: str) -> str:
    status = file.lstat()
    return f"{name} {status.st_size} {status.st_mtime_ns}\n"


def _own_files() -> Iterator[Path]:
    yield from (HERE / name for name in OWN_FILES)
    yield from (HERE / "src" / f"{name}.c" for name in PROGRAMS)
    yield from sorted((HERE / "src").glob("*.h"))
    for directory in OWN_DIRECTORIES:
        yield from sorted(path for path in (HERE / directory).glob("*") if path.is_file())


def _compiler_version() -> str:
    if not shutil.which("gcc"):
        check_tools()
    command = ["gcc", "--version"]
    with process_limit_reported():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _has_header(name: str) -> bool:
    """Return whether the compiler finds it. Raises `UserError` if the compiler does not run."""
    command = ["gcc", "-E", "-P", "-x", "c", "-"]
    source = f"#if __has_include(<{name}>)\nfound\n#endif\n"
    with process_limit_reported():
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[:1] or [f"status {done.returncode}"]
        raise UserError(f"the C compiler does not run: {reason[0]}")
    return "found" in done.stdout
