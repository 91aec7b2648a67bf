# SPDX-License-Identifier: Apache-2.0
"""ELF files that the initramfs packs: their loader, name and loaded part (System V ABI, 5)."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

_ELF_HEADER_BYTES = 64


def dynamic_loader() -> Path:
    """Return the dynamic loader of this interpreter."""
    with Path(sys.executable).resolve().open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_INTERP"):
            assert isinstance(segment, InterpSegment)
            return Path(segment.get_interp_name()).resolve()
    raise RuntimeError(f"{sys.executable} is statically linked")


def trim_elf(data: bytes) -> bytes:
    """Return the part of an ELF file that is mapped when it is loaded."""
    segments = ELFFile(io.BytesIO(data)).iter_segments("PT_LOAD")
    end = max(segment["p_offset"] + segment["p_filesz"] for segment in segments)
    return data[: max(end, _ELF_HEADER_BYTES)]


def soname(data: bytes) -> str | None:
    """Return DT_SONAME of a shared object."""
    for segment in ELFFile(io.BytesIO(data)).iter_segments("PT_DYNAMIC"):
        assert isinstance(segment, DynamicSegment)
        for tag in segment.iter_tags("DT_SONAME"):
            return str(getattr(tag, "soname"))  # noqa: B009 - set per instance, unknown to mypy
    return None
