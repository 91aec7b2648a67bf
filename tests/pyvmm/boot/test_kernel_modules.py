# SPDX-License-Identifier: Apache-2.0
"""Kernel modules of every compression, and damaged ones."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pyvmm.boot.errors import ModulesUnusable
from pyvmm.boot.kernel_modules import read_module


@pytest.mark.parametrize(
    ("name", "content"), [("a.ko.xz", b"no xz"), ("a.ko.gz", b"no gzip"), ("a.ko.zst", b"x")]
)
def test_a_damaged_module_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModulesUnusable, match=name):
        read_module(tmp_path / name)


def test_a_module_of_unknown_compression_is_an_error(tmp_path: Path) -> None:
    module = tmp_path / "x.ko.lz4"
    module.write_bytes(b"\x02\x21\x4c\x18")
    with pytest.raises(ModulesUnusable, match="unknown compression"):
        read_module(module)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("ko", bytes),
        ("ko.gz", gzip.compress),
        ("ko.xz", lzma.compress),
        ("ko.zst", zstandard.ZstdCompressor(write_content_size=False).compress),
    ],
)
def test_modules_are_read_with_every_compression_of_a_distribution(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(compress(b"\x7fELF and the rest"))
    assert read_module(path) == b"\x7fELF and the rest"
