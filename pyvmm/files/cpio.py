# SPDX-License-Identifier: Apache-2.0
"""Write initramfs archives: cpio in the `newc` format.

kernel: Documentation/driver-api/early-userspace/buffer-format.rst. Every entry belongs to root. A
hard link is a further entry with the same inode number and no content. The kernel unpacks archives
that follow each other in one initramfs; each begins at a multiple of four bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import PurePosixPath

MAX_FILE_BYTES = (1 << 32) - 1
_TRAILER = "TRAILER!!!"


class CpioArchive:
    """An archive that grows by an entry at a time; `finish` returns it.

    Paths are absolute or relative to the root, which makes no difference. Directories above an
    entry are added with mode 0755 unless they were added before.
    """

    def __init__(self) -> None:
        self._out = bytearray()
        self._inodes: dict[str, int] = {}
        self._last_inode = 0
        self._directories: set[str] = set()

    def add_file(self, path: str, content: bytes, mode: int = 0o755) -> None:
        """Add a regular file with the permissions `mode`; ValueError from 4 GiB on."""
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"a cpio archive cannot hold {len(content)} bytes in a file")
        self._add(path, stat.S_IFREG | mode, content)

    def add_link(self, path: str, existing: str, mode: int) -> None:
        """Add a hard link to the file that was added as `existing`, with its `mode`."""
        self._add(path, stat.S_IFREG | mode, b"", inode=self._inodes[_name(existing)])

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._add(path, stat.S_IFDIR | mode, b"")
        self._directories.add(_name(path))

    def add_symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def add_character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add the node of a character device."""
        self._add(path, stat.S_IFCHR | mode, b"", device=(major, minor))

    def finish(self) -> bytes:
        """Return the archive; nothing can be added afterwards."""
        self._write(_TRAILER, 0, 0, b"", (0, 0), 1)
        return bytes(self._out)

    def _add(
        self,
        path: str,
        mode: int,
        content: bytes,
        *,
        device: tuple[int, int] = (0, 0),
        inode: int | None = None,
    ) -> None:
        name = _name(path)
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            if str(parent) not in self._directories:
                self.add_directory(str(parent))
        if inode is None:
            # A path may be added twice, so this is not the number of paths.
            inode = self._last_inode = self._last_inode + 1
        self._inodes[name] = inode
        # The kernel looks for a file of the same inode only with two links or more.
        links = 2 if stat.S_ISREG(mode) else 1
        self._write(name, inode, mode, content, device, links)

    def _write(
        self,
        name: str,
        inode: int,
        mode: int,
        content: bytes,
        device: tuple[int, int],
        links: int,
    ) -> None:
        encoded = os.fsencode(name) + b"\0"
        fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
        self._out += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self._out += bytes(-len(self._out) % 4) + content
        self._out += bytes(-len(self._out) % 4)


def cpio(files: Mapping[str, bytes]) -> bytes:
    """Return an archive of executable `files`, content by path."""
    archive = CpioArchive()
    for path, content in files.items():
        archive.add_file(path, content)
    return archive.finish()


def _name(path: str) -> str:
    return path.strip("/")
