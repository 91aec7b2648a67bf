# SPDX-License-Identifier: Apache-2.0
"""Load a kernel: copy the segments of an ELF `vmlinux` to their physical addresses.

`pyvmm.elf.tables` reads the tables; this module checks them. A file is not trusted until every
loadable segment is known to lie inside the file, inside guest RAM above the first MiB, and apart
from the others. Nothing is written to guest memory before everything has been checked. `guest.img`
is a vmlinux with a manifest (see `guest_images.manifest`); a bzImage contains one (see `bzimage`).

ELF-64 object file format, program headers; Documentation/arch/x86/boot.rst, "64-bit boot protocol":
the entry point of a vmlinux is the 64-bit entry of that protocol.
"""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pyvmm.boot.errors import InitramfsUnusable, KernelUnusable, NotEnoughRam
from pyvmm.boot.setup_header import HEADER_OFFSET, SetupHeader, is_bzimage
from pyvmm.elf.tables import MAGIC, ElfError, ElfSegment, read_elf_tables
from pyvmm.files.regular import open_regular_file
from pyvmm.memory import layout
from pyvmm.units import MIB

if TYPE_CHECKING:
    from pyvmm_native.memory import GuestMemory

BEGINNING_BYTES = HEADER_OFFSET + 64


class KernelImage(NamedTuple):
    """A checked kernel: its loadable segments and its entry point.

    `path` is the file that was given, `vmlinux` the ELF file that has the segments. They are the
    same unless `path` is a bzImage, which also has a setup header.
    """

    path: Path
    vmlinux: Path
    entry: int
    segments: tuple[ElfSegment, ...]
    header: SetupHeader | None = None

    @property
    def end(self) -> int:
        """Return the first guest-physical address after the kernel and its bss."""
        return max(_end(segment) for segment in self.segments)

    def check_fits(self, ram_low_bytes: int) -> None:
        """Raise `NotEnoughRam` if the kernel does not fit below `ram_low_bytes`."""
        if self.end > ram_low_bytes:
            raise NotEnoughRam(
                f"{self.path} needs at least {-(-self.end // MIB)} MiB of RAM,"
                f" the guest has {ram_low_bytes // MIB} MiB",
                self.end,
            )

    def load(self, memory: "GuestMemory") -> None:
        """Copy the kernel into `memory`, which is large enough and still all zeros.

        Raises `KernelUnusable` if the file can no longer be read, or has become shorter.
        """
        try:
            with open_regular_file(self.vmlinux) as file:
                if os.fstat(file.fileno()).st_size < max(map(_file_end, self.segments)):
                    raise _broken(self.path, "it has become shorter since it was checked")
                with (
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
                    memoryview(content) as view,
                ):
                    for segment in self.segments:
                        with view[segment.p_offset : _file_end(segment)] as content_of_segment:
                            memory.write(segment.p_paddr, content_of_segment)
        except OSError as error:
            raise _unreadable(self.vmlinux, error) from error


def read_kernel(path: Path) -> KernelImage:
    """Parse and check a vmlinux, guest.img or bzImage. Raises `KernelUnusable`."""
    try:
        with open_regular_file(path) as file:
            beginning = file.read(BEGINNING_BYTES)
        if beginning.startswith(MAGIC):
            return _read_elf(path, path, None)
        if is_bzimage(beginning):
            from pyvmm.boot.bzimage import open_bzimage  # saves 6 ms for a vmlinux

            bzimage = open_bzimage(path)
            return _read_elf(path, bzimage.vmlinux, bzimage.header)
    except OSError as error:
        raise _unreadable(path, error) from error
    raise KernelUnusable(f"{path} is not a kernel that can be booted, neither ELF nor bzImage")


def _read_elf(path: Path, vmlinux: Path, header: SetupHeader | None) -> KernelImage:
    with open_regular_file(vmlinux) as file:
        entry, segments = _parse(path, file)
        size = os.fstat(file.fileno()).st_size
    _check(path, size, entry, segments)
    return KernelImage(path, vmlinux, entry, tuple(segments), header)


def _parse(path: Path, file: BinaryIO) -> tuple[int, list[ElfSegment]]:
    try:
        elf = read_elf_tables(file)
    except ElfError as error:
        raise _broken(path, f"its ELF headers cannot be read ({error})") from error
    if elf is None or elf.machine != "EM_X86_64":
        raise KernelUnusable(f"{path} is an ELF file, but not for x86-64")
    return elf.entry, [segment for segment in elf.segments if segment.p_memsz]


def _check(path: Path, size: int, entry: int, segments: list[ElfSegment]) -> None:
    if not segments:
        raise _broken(path, "it has no loadable segment")
    free_from = layout.HIGH_MEMORY_GPA
    for segment in sorted(segments, key=lambda each: each.p_paddr):
        if segment.p_filesz > segment.p_memsz:
            raise _broken(path, "a segment is longer in the file than in memory")
        if _file_end(segment) > size:
            raise _broken(path, "it is shorter than its headers say (truncated?)")
        if segment.p_paddr < free_from or _end(segment) > layout.LOW_RAM_END_GPA:
            raise _broken(
                path, f"the segment at {segment.p_paddr:#x} overlaps another or lies outside RAM"
            )
        free_from = _end(segment)
    if not any(s.p_paddr <= entry < s.p_paddr + s.p_filesz for s in segments):
        raise _broken(path, f"its entry point {entry:#x} is outside its segments")


def _end(segment: ElfSegment) -> int:
    return segment.p_paddr + segment.p_memsz


def _file_end(segment: ElfSegment) -> int:
    return segment.p_offset + segment.p_filesz


def _unreadable(path: Path, error: OSError) -> KernelUnusable:
    return KernelUnusable(f"cannot read {error.filename or path}: {error.strerror}")


def _broken(path: Path, reason: str) -> KernelUnusable:
    return KernelUnusable(f"{path} is not a usable kernel: {reason}")


def read_initrd(path: Path) -> bytes:
    """Return the contents of an initramfs archive. Raises `InitramfsUnusable`."""
    try:
        with open_regular_file(path) as file:
            content = file.read()
    except OSError as error:
        raise InitramfsUnusable(f"cannot read the initramfs {path}: {error.strerror}") from error
    if not content:
        raise InitramfsUnusable(f"the initramfs {path} is empty")
    return content
