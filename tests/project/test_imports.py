# SPDX-License-Identifier: Apache-2.0
"""The modules that a start and a running guest import; times would depend on the machine.

Every import before the guest's first instruction delays the guest, and each module takes memory for
as long as the guest runs. A boot does not import modules that it does not use; code that needs them
imports them where it uses them, or once the guest runs.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE
from tests.pyvmm.boot.elf_kernel import elf_kernel

BOOT = f"""
import os
os.environ[{IN_LAB_VARIABLE!r}] = "1"  # without the probe of KVM
from pyvmm.cli import entry
from tests.pyvmm.cli import stand_in_guest

def end():
    print(*sys.modules, flush=True)
    os._exit(0)

class Board(stand_in_guest.Board):
    {{methods}}

stand_in_guest.use(Board)
sys.argv[:] = ["pyvmm", "run", sys.argv[1], "--memory", "64M"]
entry.main()
"""
START = BOOT.format(
    methods="""
    def start(self):
        end()
"""
)
"""`pyvmm run KERNEL` up to the moment at which its vCPUs would run."""

SERVED = BOOT.format(
    methods="""
    def start(self):
        from pyvmm.machine import machine
        import devices.balloon.device  # as the catalogue does
        machine.Machine = lambda platform: platform
    @property
    def pci_devices(self):  # needed first by the VM on the event loop
        end()
"""
)
"""`pyvmm run KERNEL` up to the moment at which its VM exists and all that serves it is imported."""

UNNEEDED_FOR_A_BOOT = {
    "elftools": "the ELF tables of a kernel are cached after its first boot",
    "ssl": "no connection of this boot uses TLS",
    "hashlib": "only for a bzImage, which is cached by its hash",
    "email": "only for package metadata",
    "http": "only the scope serves a browser",
    "pyvmm.boot.bzimage": "a vmlinux needs no unpacking",
    "pyvmm.boot.payload": "a vmlinux needs no unpacking",
    "pyvmm.qmp.server": "only with --qmp, or when a client connects",
    "pyvmm.lab.run": "only on hosts without a usable KVM",
    "rich": "only commands that print tables",
    "random": "only for temporary files",
    "tempfile": "a boot creates no temporary files",
    "click": "only for help, completion, errors and other commands",
    "dataclasses": "it imports inspect",
    "inspect": "nothing here looks at source code",
    "asyncio": "the guest runs while it is imported",
    "concurrent.futures": "as asyncio, which needs it",
    "subprocess": "as asyncio, which needs it",
    "logging": "as asyncio; only --verbose logs before",
    "traceback": "only to print one",
    "pyvmm.machine.machine": "the guest waits for its devices at its first access",
    "devices.registers": "as the machine; the ACPI tables need only numbers",
    "pyvmm.machine.kvm_probe": "only where KVM is not known to be fit",
    "devices.balloon.device": "as the machine",
    "devices.pci.host_bridge": "as the machine",
    "devices.legacy.uart": "as the machine",
    "socket": "only with --qmp; a guest without a name is announced once it runs",
    "pyvmm.vm": "the guest runs while it is imported",
    "pyvmm.cli.terminal_run": "the guest runs while it is imported",
}

UNNEEDED_FOR_A_RUNNING_GUEST = (
    *("ssl", "_ssl", "_hashlib", "hashlib", "hmac", "email", "http", "urllib.request"),
    *("inspect", "ast", "dis", "tokenize", "locale", "dataclasses", "multiprocessing"),
    *("logging.config", "logging.handlers", "readline", "curses", "random", "tempfile"),
    *("concurrent.futures.thread", "concurrent.futures.process", "decimal", "lzma", "bz2"),
    *("click", "rich", "elftools", "tornado", "lz4", "zstandard", "lzallright", "matplotlib"),
    *("pyvmm.lab.run", "pyvmm.qmp", "pyvmm.scope", "pyvmm.learn", "pyvmm.harness"),
    *("pyvmm.snapshot", "pyvmm.migration", "pyvmm.state", "pyvmm.guest_agent", "pyvmm.progress"),
    *("pyvmm.trace.taker", "pyvmm.trace.recorder", "pyvmm.trace.watch", "pyvmm.trace.stream"),
    *("pyvmm.boot.bzimage", "pyvmm.boot.payload", "pyvmm.boot.overlay"),
    *("pyvmm_native.checksum", "pyvmm_native.page_socket", "pyvmm_native.page_blocks"),
    *("pyvmm_native.lazy_pages", "pyvmm_native.event_decoder", "pyvmm_native.huge_pages"),
    *("pyvmm_native.host_pages", "pyvmm_native.pages", "devices.console", "devices.rng"),
)
"""Modules that cost memory while the guest of `pyvmm run KERNEL` runs; see docs/performance.md."""


def loaded(program: str, *arguments: str) -> set[str]:
    """Return the names of the modules that a new interpreter has loaded after `program`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a kernel that has been booted before."""
    path = tmp_path_factory.mktemp("kernel") / "vmlinux"
    path.write_bytes(elf_kernel())
    os.utime(path, (0, 0))
    loaded(START, str(path))
    return str(path)


@pytest.fixture(scope="module")
def modules(kernel: str) -> set[str]:
    return loaded(START, kernel)


@pytest.mark.parametrize("name", UNNEEDED_FOR_A_BOOT)
def test_a_boot_does_not_import(modules: set[str], name: str) -> None:
    assert name not in modules, UNNEEDED_FOR_A_BOOT[name]


def test_a_boot_imports_the_platform(modules: set[str]) -> None:
    needed = {"pyvmm.machine.platform", "pyvmm.boot.image", "pykvm"}
    assert needed <= modules


def test_a_running_guest_has_no_module_that_it_does_not_need(kernel: str) -> None:
    found = loaded(SERVED, kernel)
    assert {"asyncio", "pyvmm.vm", "pyvmm.cli.terminal_run", "logging"} <= found
    assert not found & set(UNNEEDED_FOR_A_RUNNING_GUEST)


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


def test_a_deferred_module_is_loaded_where_it_is_used() -> None:
    program = (
        "from pyvmm.cli.deferred_modules import DEFERRED, deferred_modules\n"
        "with deferred_modules():\n    import inspect as early, traceback\n"
        "assert not set(DEFERRED) - {'linecache'} & sys.modules.keys()\n"
        "assert early.isfunction(deferred_modules.__wrapped__)\n"
        "import inspect\n"
        "assert early is not inspect and early.signature is inspect.signature\n"
        "try:\n    traceback.undefined\nexcept AttributeError as error:\n"
        "    assert 'undefined' in traceback.format_exc()\n"
    )
    assert {"inspect", "linecache"} <= loaded(program)


def test_a_module_that_is_used_while_it_is_deferred_is_loaded() -> None:
    program = (
        "from pyvmm.cli.deferred_modules import deferred_modules\n"
        "with deferred_modules():\n    from inspect import signature\n"
        "import inspect\nassert inspect.signature is signature\n"
    )
    assert "inspect" in loaded(program)
