# SPDX-License-Identifier: Apache-2.0
"""Loading a kernel: an ELF `vmlinux` goes to the physical addresses its program headers name.

`pyvmm.elf.tables` reads the tables; this module checks. A file is hostile until every loadable
segment is known to lie inside the file, inside guest RAM above the first MiB, and apart from the
others. Nothing is written to guest memory before all of it has been checked. `guest.img` is such a
file too, with a manifest beside the code (see `guest_images.manifest`); a bzImage has one inside
(see `bzimage`).

ELF-64 object file format, program headers; Documentation/arch/x86/boot.rst, "64-bit boot protocol":
the entry point of a vmlinux is the 64-bit entry of that protocol.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pyvmm.boot.errors import InitramfsUnusable, KernelUnusable, NotEnoughRam
from pyvmm.boot.setup_header import HEADER_OFFSET, SetupHeader, is_bzimage
from pyvmm.elf.tables import MAGIC, ElfError, read_elf_tables
from pyvmm.memory import layout
from pyvmm.units import MIB

if TYPE_CHECKING:
    from pyvmm_native.memory import GuestMemory

BEGINNING_BYTES = HEADER_OFFSET + 64


class Segment(NamedTuple):
    """One loadable piece: `file_bytes` from `offset`, then zeros up to `memory_bytes`, at `gpa`."""

    gpa: int
    offset: int
    file_bytes: int
    memory_bytes: int

    @property
    def end(self) -> int:
        return self.gpa + self.memory_bytes


class KernelImage(NamedTuple):
    """A checked kernel: where its pieces go and where it starts.

    `path` is the file that was given, `vmlinux` the one with the pieces; a bzImage brings its
    header.
    """

    path: Path
    vmlinux: Path
    entry: int
    segments: tuple[Segment, ...]
    header: SetupHeader | None = None

    @property
    def end(self) -> int:
        """First guest-physical address after the kernel, its bss included."""
        return max(segment.end for segment in self.segments)

    def check_fits(self, ram_low_bytes: int) -> None:
        """Raise `NotEnoughRam` if the kernel does not fit below `ram_low_bytes`."""
        if self.end > ram_low_bytes:
            raise NotEnoughRam(
                f"{self.path} needs at least {-(-self.end // MIB)} MiB of RAM,"
                f" the guest has {ram_low_bytes // MIB} MiB",
                self.end,
            )

    def load(self, memory: GuestMemory) -> None:
        """Copy the kernel into RAM it fits into and that is still zero (fresh anonymous pages)."""
        with (
            self.vmlinux.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            memoryview(content) as view,
        ):
            for segment in self.segments:
                end = segment.offset + segment.file_bytes
                with view[segment.offset : end] as piece:
                    memory.write(segment.gpa, piece)


def read_kernel(path: Path) -> KernelImage:
    """Parse and check a vmlinux, guest.img or bzImage. Raises `KernelUnusable`."""
    try:
        with path.open("rb") as file:
            beginning = file.read(BEGINNING_BYTES)
        if beginning.startswith(MAGIC):
            return _read_elf(path, path, None)
        if is_bzimage(beginning):
            from pyvmm.boot.bzimage import open_bzimage  # with its decompressors

            bzimage = open_bzimage(path)
            return _read_elf(path, bzimage.vmlinux, bzimage.header)
    except OSError as error:
        name = error.filename or path
        raise KernelUnusable(f"cannot read {name}: {error.strerror}") from error
    raise KernelUnusable(f"{path} is not a kernel that can be booted, neither ELF nor bzImage")


def _read_elf(path: Path, vmlinux: Path, header: SetupHeader | None) -> KernelImage:
    with vmlinux.open("rb") as file:
        entry, segments = _parse(path, file)
    _check(path, vmlinux.stat().st_size, entry, segments)
    return KernelImage(path, vmlinux, entry, tuple(segments), header)


def _parse(path: Path, file: BinaryIO) -> tuple[int, list[Segment]]:
    try:
        elf = read_elf_tables(file)
    except ElfError as error:
        raise _broken(path, f"its ELF headers cannot be read ({error})") from error
    if elf is None or elf.machine != "EM_X86_64":
        raise KernelUnusable(f"{path} is an ELF file, but not for x86-64")
    segments = [
        Segment(one.p_paddr, one.p_offset, one.p_filesz, one.p_memsz)
        for one in elf.segments
        if one.p_memsz
    ]
    return elf.entry, segments


def _check(path: Path, size: int, entry: int, segments: list[Segment]) -> None:
    if not segments:
        raise _broken(path, "it has no loadable segment")
    free_from = layout.HIGH_MEMORY_GPA
    for segment in sorted(segments, key=lambda piece: piece.gpa):
        if segment.file_bytes > segment.memory_bytes:
            raise _broken(path, "a segment is longer in the file than in memory")
        if segment.offset + segment.file_bytes > size:
            raise _broken(path, "it is shorter than its headers say (truncated?)")
        if segment.gpa < free_from or segment.end > layout.LOW_RAM_END_GPA:
            raise _broken(path, f"a segment's place {segment.gpa:#x} is taken or outside RAM")
        free_from = segment.end
    if not any(s.gpa <= entry < s.gpa + s.file_bytes for s in segments):
        raise _broken(path, f"its entry point {entry:#x} is in none of its segments")


def _broken(path: Path, why: str) -> KernelUnusable:
    return KernelUnusable(f"{path} is not a usable kernel: {why}")


def read_initrd(path: Path) -> bytes:
    """The initramfs archive as it is (the kernel unpacks it); raises `InitramfsUnusable`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InitramfsUnusable(f"cannot read the initramfs {path}: {error.strerror}") from error
    if not content:
        raise InitramfsUnusable(f"the initramfs {path} is empty")
    return content
