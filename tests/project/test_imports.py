# SPDX-License-Identifier: Apache-2.0
"""The modules that a start imports; names, because times would depend on the machine.

Every import before the guest's first instruction delays the guest. A boot does not import modules
that it does not use; code that needs them imports them where it uses them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.pyvmm.boot.elf_kernel import elf_kernel

MACHINE = """
import pyvmm.cli.main, pyvmm.cli.run, pyvmm.cli.terminal_run
from pathlib import Path
from pyvmm.boot.image_config import config_for_image
from pyvmm.boot.loader import read_boot_files
read_boot_files(config_for_image(Path(sys.argv[1]), ram_bytes=64 << 20))
"""

UNNEEDED_FOR_A_BOOT = {
    "elftools": "the ELF tables of a kernel are cached after its first boot",
    "ssl": "no connection of this boot uses TLS",
    "hashlib": "only for a bzImage, which is cached by its hash",
    "pyvmm.boot.bzimage": "a vmlinux needs no unpacking",
    "pyvmm.boot.payload": "a vmlinux needs no unpacking",
    "pyvmm.qmp.server": "only with --qmp, or when a client connects",
    "pyvmm.lab.run": "only on hosts without a usable KVM",
    "rich": "only commands that print tables",
    "random": "only for temporary files",
    "tempfile": "a boot creates no temporary files",
}


def loaded(program: str, *arguments: str) -> set[str]:
    """Return the names of the modules that a new interpreter has loaded after `program`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    kernel = tmp_path_factory.mktemp("kernel") / "vmlinux"
    kernel.write_bytes(elf_kernel())
    os.utime(kernel, (0, 0))
    loaded(MACHINE, str(kernel))
    return loaded(MACHINE, str(kernel))


@pytest.mark.parametrize("name", UNNEEDED_FOR_A_BOOT)
def test_a_boot_does_not_import(modules: set[str], name: str) -> None:
    assert name not in modules, UNNEEDED_FOR_A_BOOT[name]


def test_a_boot_imports_the_machine(modules: set[str]) -> None:
    assert {"asyncio", "click", "pyvmm.machine.machine", "pyvmm.boot.image", "pykvm"} <= modules


def test_help_imports_no_machine() -> None:
    program = "from pyvmm.cli.main import main\nmain(['run', '--help'], standalone_mode=False)"
    names = loaded(program)
    assert "pyvmm.cli.run" in names
    assert not names & {"pyvmm.machine.machine", "elftools", "rich", "ssl"}


def test_ssl_can_be_imported_later() -> None:
    program = (
        "from pyvmm.cli.asyncio_without_ssl import asyncio\n"
        "assert 'ssl' not in sys.modules\nimport ssl"
    )
    assert {"asyncio", "ssl"} <= loaded(program)


def test_asyncio_that_is_already_loaded_is_used() -> None:
    program = "import asyncio as first\nfrom pyvmm.cli.asyncio_without_ssl import asyncio\n"
    assert "ssl" in loaded(program + "assert asyncio is first")
