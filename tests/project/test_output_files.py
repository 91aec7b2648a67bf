# SPDX-License-Identifier: Apache-2.0
"""No call overwrites a file of the user's in place: a failure would leave neither old nor new.

`pyvmm.files.replacement` writes beside the file and renames. The calls here write to a new file, to
one that only pyvmm uses, or to a device.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.project.sources import files, name_of

WRITES = {
    "bench/installation.py: (packages / 'dependencies.pth').write_text": "in a new environment",
    "bench/installation.py: command.write_text": "in a new environment",
    "bench/launch.py: shutil.copyfile": "in a temporary directory",
    "bench/measure.py: new.write_text": "is renamed",
    "bench/qemu.py: initrd.write_bytes": "in a temporary directory",
    "guest_images/build.py: (cache / 'build.lock').open": "an empty lock",
    "guest_images/build.py: note.write_bytes": "in a temporary directory",
    "guest_images/initramfs.py: (build_directory / LIST_NAME).write_text": "of a build",
    "guest_images/initramfs.py: shutil.copyfile": "of a build",
    "guest_images/kernel.py: shutil.copyfile": "of a build",
    "guest_images/kernel.py: partial.write_bytes": "of a build",
    "guest_images/kernel.py: self._patched.write_text": "of a build",
    "guest_images/kernel.py: self.log.open": "of a build",
    "pyvmm/cache/contents.py: (root / BUILD_LOCK).open": "an empty lock",
    "pyvmm/cli/fetched_files.py: os.fdopen": "a new file in a new directory",
    "pyvmm/cli/learn.py: path.open": "a new file, never another",
    "pyvmm/cli/recording.py: os.fdopen": "a ReplacementFile",
    "pyvmm/lab/mounts.py: open": "a device, and files of /proc",
    "pyvmm/runtime_directory/announcement.py: os.ftruncate": "of this guest only",
    "pyvmm/memory/huge_page_pool.py: (directory / 'nr_hugepages').write_text": "in /sys",
}
"""The calls, and why they lose nothing."""
COPIES = ("copy", "copy2", "copyfile")


def writes(source: str) -> Iterator[str]:
    """Yield the functions of `source` that are called to overwrite or create a file."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called.rpartition(".")[2]
        if name in ("write_text", "write_bytes", "ftruncate", "truncate", *COPIES):
            is_of_files = name not in COPIES or called.startswith("shutil.")
            if is_of_files:
                yield called
        elif name in ("open", "fdopen"):
            texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
            modes = [text for text in texts if isinstance(text, str) and len(text) <= 3]
            if any(set(mode) & set("wax") for mode in modes):
                yield called
        if "O_TRUNC" in ast.unparse(node):
            yield called


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("Path(name).write_text(text)", ["Path(name).write_text"]),
        ("with path.open('w') as file: pass", ["path.open"]),
        ("open(path, 'rb')", []),
        ("os.open(path, os.O_WRONLY | os.O_TRUNC)", ["os.open"]),
        ("shutil.copy(one, other)", ["shutil.copy"]),
        ("values.copy()", []),
    ],
)
def test_calls_that_write_are_found(source: str, found: list[str]) -> None:
    assert list(writes(source)) == found


def test_only_known_calls_write_files_in_place() -> None:
    found = {
        f"{name_of(path)}: {call}"
        for path in files("pyvmm", "guest_images", "bench", "devices", "pykvm")
        for call in writes(path.read_text())
    }
    assert found == set(WRITES)
