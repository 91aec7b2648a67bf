# SPDX-License-Identifier: Apache-2.0
"""Additions to a guest's initramfs: its agent, kernel modules, and files of the host.

Linux unpacks any number of archives that follow each other, so the additions are archives of their
own after the user's initramfs. The first has the agent, which the kernel starts (rdinit=), the
modules that the agent loads, and for a kernel without any initramfs a userland, busybox. It is the
same for every guest of a kernel and is kept in the cache. The second has the files to put.

    /pyvmm/agent
    /pyvmm/modules/order       file names, in the order in which to load them
    /pyvmm/modules/NAME.ko     uncompressed
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from guest_images.agent import agent_program
from guest_images.recipe import BUSYBOX, BUSYBOX_PACKAGE
from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.boot.errors import OverlayUnusable
from pyvmm.boot.kernel_modules import read_module
from pyvmm.boot.loader import check_unpacks
from pyvmm.cache.directory import cached_file
from pyvmm.errors import NotInstalled
from pyvmm.files.cpio import MAX_FILE_BYTES, CpioArchive
from pyvmm.files.regular import open_regular_file

DIRECTORY = "/pyvmm"
AGENT = f"{DIRECTORY}/agent"
MODULES = f"{DIRECTORY}/modules"
CACHE_KIND = "overlays"
_LINKED_APPLETS_EXCLUDED = {"busybox", "init", "linuxrc"}


class PutPath(NamedTuple):
    """A file or directory of the host, and its path in the guest."""

    host: Path
    guest: str


def agent_archive(modules: Sequence[Path], *, userland: bool) -> bytes:
    """Return the archive with the agent and `modules`, which are loaded in this order.

    With `userland` it has busybox and a link for each of its commands. Raises `NotInstalled` and
    `ModulesUnusable`.
    """
    return _cached(modules, (), userland, lambda: _pack(modules, userland))


def agent_archive_from_package(
    package: Path,
    required: Sequence[str],
    unpacked: Callable[[], AbstractContextManager[Sequence[Path]]],
    *,
    userland: bool,
) -> bytes:
    """Return the archive with the agent and the modules of `package`, as `agent_archive`.

    `unpacked` yields the files of the modules while they exist, or fails if `required` ones are
    missing. It is called only if the cache does not have the archive, because unpacking takes
    seconds.
    """

    def pack() -> bytes:
        with unpacked() as modules:
            return _pack(modules, userland)

    return _cached((package,), required, userland, pack)


def _cached(
    sources: Sequence[Path], required: Sequence[str], userland: bool, pack: Callable[[], bytes]
) -> bytes:
    """Return the archive made from `sources`, from the cache if none of the files has changed."""
    if userland and not BUSYBOX.is_file():
        raise NotInstalled(f"there is no {BUSYBOX}", BUSYBOX_PACKAGE)
    # The name of the agent's file changes with its content. Its time is that of its last use.
    total = hashlib.sha256(f"{userland}\0{agent_program()}\0{required}\0".encode())
    for path in (*sources, *([BUSYBOX] if userland else [])):
        status = path.stat()
        total.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return cached_file(CACHE_KIND, total.hexdigest()[:32], pack, count=8).read_bytes()


def _pack(modules: Sequence[Path], userland: bool) -> bytes:
    archive = CpioArchive()
    archive.add_character_device("/dev/console", 5, 1)
    archive.add_file(AGENT, agent_program().read_bytes())
    for module in modules:
        archive.add_file(f"{MODULES}/{_file_name(module)}", read_module(module), 0o644)
    order = "".join(f"{_file_name(module)}\n" for module in modules)
    archive.add_file(f"{MODULES}/order", order.encode(), 0o644)
    if userland:
        _add_userland(archive)
    return archive.finish()


def put_archive(paths: Sequence[PutPath], ram_bytes: int) -> bytes:
    """Return the archive with the files and directories `paths`; b"" for none.

    Modes, symbolic links and hard links are kept, and everything belongs to root. Raises
    `OverlayUnusable`, and `NotEnoughRam` for files that a guest with `ram_bytes` cannot hold,
    before it reads any.
    """
    if not paths:
        return b""
    check_unpacks(sum(_size_bytes(path) for path in paths), 0, ram_bytes)
    archive = CpioArchive()
    for path in paths:
        _Putter(archive).put(path)
    return archive.finish()


def _file_name(module: Path) -> str:
    return f"{module.name.partition('.ko')[0]}.ko"


def _add_userland(archive: CpioArchive) -> None:
    archive.add_file("/bin/busybox", BUSYBOX.read_bytes())
    with process_limit_reported():
        listing = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    for name in listing.stdout.split():
        if name not in _LINKED_APPLETS_EXCLUDED:
            archive.add_symlink(f"/bin/{name}", "busybox")


class _Putter:
    """Adds one file or directory of the host to an archive."""

    def __init__(self, archive: CpioArchive) -> None:
        self._archive = archive
        self._linked: dict[tuple[int, int], str] = {}

    def put(self, path: PutPath) -> None:
        """Add `path`. Raises `OverlayUnusable`."""
        with _errors(path):
            for host, guest in _walk(path):
                self._add(host, guest)

    def _add(self, host: Path, guest: str) -> None:
        status = host.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            self._archive.add_directory(guest, mode)
        elif stat.S_ISLNK(status.st_mode):
            self._archive.add_symlink(guest, os.readlink(host))
        elif (status.st_dev, status.st_ino) in self._linked:
            self._archive.add_link(guest, self._linked[status.st_dev, status.st_ino], mode)
        else:
            with open_regular_file(host) as file:
                self._archive.add_file(guest, file.read(), mode)
            if status.st_nlink > 1:
                self._linked[status.st_dev, status.st_ino] = guest


@contextmanager
def _errors(path: PutPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = error.filename or path.host
        raise OverlayUnusable(f"cannot read {name}: {error.strerror}") from error


def _size_bytes(path: PutPath) -> int:
    """Return the size of all regular files of `path`, hard links counted once.

    Raises `OverlayUnusable` for one that no archive can hold, and for a path of the agent's.
    """
    files: dict[tuple[int, int], int] = {}
    with _errors(path):
        for host, guest in _walk(path):
            # A path that begins with two slashes keeps both in normpath.
            if PurePosixPath("/", os.path.normpath(guest).lstrip("/")).is_relative_to(DIRECTORY):
                raise OverlayUnusable(
                    f"{guest} is in {DIRECTORY}, which belongs to the guest agent"
                )
            status = host.lstat()
            if stat.S_ISREG(status.st_mode):
                files[status.st_dev, status.st_ino] = status.st_size
                if status.st_size > MAX_FILE_BYTES:
                    raise OverlayUnusable(f"{host} is too large: an initramfs takes files to 4 GiB")
    return sum(files.values())


def _walk(path: PutPath) -> Iterator[tuple[Path, str]]:
    """Yield each file and directory of `path`, and its path in the guest, parents first.

    A symbolic link that is given itself is followed; those below it are not.
    """
    top = path.host.resolve(strict=True) if path.host.is_symlink() else path.host
    yield top, path.guest
    if top.is_dir():
        for directory, names, files in os.walk(top, onerror=_raise):
            names.sort()
            for name in sorted([*names, *files]):
                host = Path(directory, name)
                yield host, f"{path.guest.rstrip('/')}/{host.relative_to(top)}"


def _raise(error: OSError) -> None:
    raise error
