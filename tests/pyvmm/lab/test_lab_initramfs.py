# SPDX-License-Identifier: Apache-2.0
"""The lab's initramfs: the archive, unpacked by busybox, and the interpreter in it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.lab.elf_files import soname, trim_elf
from pyvmm.lab.initramfs import build_initramfs, init_arguments
from pyvmm.lab.kernel import LabKernel, find_kernel

needs_busybox = pytest.mark.skipif(not shutil.which("busybox"), reason="needs busybox")


def unpack(archive: bytes, into: Path) -> None:
    command = ["busybox", "cpio", "-idm", "--quiet"]
    subprocess.run(command, cwd=into, input=archive, check=True)


def test_a_trimmed_program_still_runs(tmp_path: Path) -> None:
    true = shutil.which("true")
    assert true is not None
    trimmed = tmp_path / "true"
    whole = Path(true).read_bytes()
    trimmed.write_bytes(trim_elf(whole) if len(whole) > 64 else whole)
    trimmed.chmod(0o755)
    assert trimmed.stat().st_size < len(whole)
    assert subprocess.run([trimmed], check=False).returncode == 0


def test_the_soname_of_libc_is_read() -> None:
    maps = Path("/proc/self/maps").read_text().split()
    libc = next(Path(word) for word in maps if "libc.so" in word or "libc-2" in word)
    assert soname(libc.read_bytes()) == "libc.so.6"


@needs_busybox
def test_the_packed_interpreter_imports_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = tmp_path / "vmlinuz"
    image.touch()
    path = build_initramfs(LabKernel("test", image, ()))
    root = tmp_path / "root"
    root.mkdir()
    unpack(path.read_bytes(), root)
    words = init_arguments()
    loader = words[0].removeprefix("rdinit=")
    library_path = words[words.index("--library-path") + 1]
    command = [f"{root}{loader}", "--library-path", f"{root}{library_path}", f"{root}/lab/python"]
    probe = "import pyvmm.lab.agent, sys; print(pyvmm.lab.agent.__file__, sys.version)"
    result = subprocess.run(
        [*command, "-S", "-c", probe],
        env={"PYTHONHOME": f"{root}/lab"},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(f"{root}/lab/lib/")
    assert result.stdout.strip().endswith(sys.version)


@needs_busybox
def test_a_module_that_puts_another_in_its_place_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "path" / "click"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import click.alias")
    (package / "alias.py").write_text("import sys; sys.modules[__name__] = sys")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "vmlinuz").touch()
    archive = build_initramfs(LabKernel("test", tmp_path / "vmlinuz", ())).read_bytes()
    unpack(archive, tmp_path)
    (packed,) = (tmp_path / "lab/lib").glob("python3.*/click")
    assert {path.name for path in packed.iterdir()} == {"__init__.pyc", "alias.pyc"}


def test_the_initramfs_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = find_kernel()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build_initramfs(kernel)
    before = first.stat()
    assert build_initramfs(kernel) == first
    assert first.stat().st_ino == before.st_ino
    monkeypatch.setattr(sys, "version", "another")
    assert build_initramfs(kernel) != first
