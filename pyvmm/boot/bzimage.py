# SPDX-License-Identifier: Apache-2.0
"""Open a bzImage, the format in which distributions ship kernels.

A bzImage is real-mode code with the setup header, then a decompressor that unpacks the vmlinux
inside the guest. Neither runs here: the host decompresses the vmlinux, which takes a second instead
of ten, and the guest enters it at its 64-bit entry point, to which the decompressor would jump. The
relocations after the ELF file are for a kernel at a randomized address; this one is not moved
(Linux then reports that KASLR is disabled).

The vmlinux is kept in the cache under the hash of the bzImage, for the next boot and for the lab,
where code is slow. PVH would be another entry point, but only for kernels built with it, and it
passes less information about the machine.

Documentation/arch/x86/boot.rst: "The Real-Mode Kernel Header", "64-bit Boot Protocol".
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from pyvmm.boot.errors import KernelUnusable
from pyvmm.boot.payload import PayloadError, decompress
from pyvmm.boot.setup_header import HEADER_OFFSET, SetupHeader, is_bzimage
from pyvmm.cache.directory import cached_file
from pyvmm.files.regular import open_regular_file

SECTOR_BYTES = 512
HEADER_END_LIMIT = 0x290  # the next field of struct boot_params
BOOT_FLAG = 0xAA55
FIRST_VERSION = 0x020C  # xloadflags, Linux 3.8; payload_offset came with 2.08
XLF_KERNEL_64 = 1 << 0
MAX_FILE_BYTES = 512 << 20
MAX_SETUP_BYTES = 64 << 10  # boot sector and setup code, which has the text of the release
KEPT_KERNELS = 6


@dataclass(frozen=True)
class BzImage:
    """An opened bzImage: its setup header and the path of its vmlinux (see `cached_file`)."""

    header: SetupHeader
    vmlinux: Path


def open_bzimage(path: Path) -> BzImage:
    """Read, check and decompress a bzImage. Raises `KernelUnusable`, and OSError."""
    with open_regular_file(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise _unusable(path, "it is larger than any kernel")
        content = file.read()
    try:
        header, payload = parse(content)
        digest = hashlib.sha256(content).hexdigest()
        vmlinux = cached_file("vmlinux", digest, lambda: _vmlinux(payload), count=KEPT_KERNELS)
    except PayloadError as error:
        raise _unusable(path, str(error)) from error
    return BzImage(header, vmlinux)


def kernel_release(path: Path) -> str | None:
    """Return the release of a bzImage, such as "6.1.0-30-amd64"; None if the file has none.

    Raises `KernelUnusable` if it cannot be read.
    """
    try:
        with open_regular_file(path) as file:
            beginning = file.read(MAX_SETUP_BYTES)
    except OSError as error:
        raise KernelUnusable(f"cannot read {path}: {error.strerror}") from error
    if len(beginning) < HEADER_END_LIMIT or not is_bzimage(beginning):
        return None
    (offset,) = struct.unpack_from("<H", beginning, 0x20E)
    words = beginning[offset + 0x200 :].partition(b"\0")[0].split() if offset else []
    return words[0].decode("ascii", "replace") if words else None


def parse(content: bytes) -> tuple[SetupHeader, bytes]:
    """Return the setup header and the compressed payload; raises `PayloadError`."""
    if len(content) < HEADER_END_LIMIT:
        raise PayloadError("it ends within its setup header")
    (boot_flag,) = struct.unpack_from("<H", content, 0x1FE)
    if boot_flag != BOOT_FLAG or not is_bzimage(content):
        raise PayloadError("it has no setup header")
    (version,) = struct.unpack_from("<H", content, 0x206)
    if version < FIRST_VERSION:
        raise PayloadError(f"its boot protocol {version >> 8}.{version & 0xFF:02} is too old")
    (xloadflags,) = struct.unpack_from("<H", content, 0x236)
    if not xloadflags & XLF_KERNEL_64:
        raise PayloadError("it is a 32-bit kernel")
    end = 0x202 + content[0x201]
    if not 0x250 <= end <= HEADER_END_LIMIT:
        raise PayloadError("its setup header has an invalid length")
    (initrd_addr_max,) = struct.unpack_from("<I", content, 0x22C)
    (cmdline_size,) = struct.unpack_from("<I", content, 0x238)
    header = SetupHeader(content[HEADER_OFFSET:end], cmdline_size, initrd_addr_max + 1)
    return header, _payload(content)


def _payload(content: bytes) -> bytes:
    """Return the compressed payload.

    `payload_offset` counts from the protected-mode code, which follows the boot and setup sectors.
    """
    setup_sectors = content[HEADER_OFFSET] or 4  # 0 means 4 (boot.rst)
    offset, length = struct.unpack_from("<II", content, 0x248)
    begin = (1 + setup_sectors) * SECTOR_BYTES + offset
    if not offset or length < 8:
        raise PayloadError("its setup header names no payload")
    if begin + length > len(content):
        raise PayloadError("it is shorter than its setup header says (truncated?)")
    return content[begin : begin + length]


def _vmlinux(payload: bytes) -> bytes:
    vmlinux = decompress(payload)
    if not vmlinux.startswith(b"\x7fELF"):
        raise PayloadError("it does not contain an ELF kernel")
    return vmlinux


def _unusable(path: Path, reason: str) -> KernelUnusable:
    return KernelUnusable(f"{path} is not a usable bzImage: {reason}")
