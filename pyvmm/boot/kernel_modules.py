# SPDX-License-Identifier: Apache-2.0
"""Kernel modules of an installed or unpacked kernel: which files a driver needs, and their content.

depmod(8) writes `modules.dep`, a line for each module with those that it depends on, and
`modules.builtin`, the modules that are part of the kernel itself.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyvmm.boot.errors import ModulesUnusable


class ModuleFiles(NamedTuple):
    """The files of some modules and of their dependencies, in the order in which to load them.

    `missing` are the modules that are neither in a file nor part of the kernel.
    """

    files: tuple[Path, ...]
    missing: tuple[str, ...]


def find_modules(directory: Path, names: Sequence[str]) -> ModuleFiles:
    """Find the modules `names` in `directory`, a /lib/modules/RELEASE.

    Raises OSError if `directory` has no lists of modules.
    """
    needs = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {module_name(path): path for path in needs}
    builtin = {module_name(path) for path in (directory / "modules.builtin").read_text().split()}
    order: dict[str, None] = {}
    missing = []
    for name in (name.replace("-", "_") for name in names):
        if name in by_name:
            # modules.dep lists a module's dependencies outermost first
            for path in (*reversed(needs[by_name[name]]), by_name[name]):
                order.setdefault(path)
        elif name not in builtin:
            missing.append(name)
    return ModuleFiles(tuple(directory / path for path in order), tuple(missing))


def module_name(path: str) -> str:
    """Return the name of the module in the file `path`, as the kernel spells it."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """Return the module, uncompressed (.ko, .ko.gz, .ko.xz or .ko.zst), with its signature.

    Raises `ModulesUnusable`.
    """
    try:
        return _decompress(path, path.read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ModulesUnusable(f"cannot read the kernel module {path}: {error}") from error


def _decompress(path: Path, data: bytes) -> bytes:
    match path.suffix:
        case ".ko":
            return data
        case ".gz":
            return gzip.decompress(data)
        case ".xz":
            return lzma.decompress(data)
        case ".zst":
            import zstandard  # saves 1 ms where modules are not compressed with it

            try:
                return zstandard.ZstdDecompressor().decompressobj().decompress(data)
            except zstandard.ZstdError as error:
                raise ModulesUnusable(f"cannot read the kernel module {path}: {error}") from error
    raise ModulesUnusable(f"the kernel module {path} has an unknown compression")
