# SPDX-License-Identifier: Apache-2.0
"""The memory of a VMM beside guest RAM, and the modules in it, while its guest is idle."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.footprint import resident_beside_ram
from tests.project.test_imports import UNNEEDED_FOR_A_RUNNING_GUEST

pytestmark = pytest.mark.kvm

RAM_BYTES = 256 << 20
LIMIT_MIB = 23
"""Python alone takes 9 MiB; a module that is not needed may take another one."""
PROGRAM = """
import signal, sys
names = sys.argv.pop(1)
def write_names(*_):
    with open(names, "w") as file:
        print(*sys.modules, file=file)
    os.rename(names, names + ".complete")
signal.signal(signal.SIGUSR1, write_names)
import os
from pyvmm.cli.entry import main
main()
"""


def test_a_running_guest_takes_little_memory_beside_its_ram(
    guest_image: Path, directory: Path, figure: Callable[[str], None]
) -> None:
    names = directory / "names"
    command = [sys.executable, "-c", PROGRAM, str(names), "run", str(guest_image)]
    command += ["--memory", f"{RAM_BYTES >> 20}M"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        output = b""
        while b"guest# " not in output:
            output += (byte := process.stdout.read(1))
            assert byte, output
        smaps = Path(f"/proc/{process.pid}/smaps").read_text()
        process.send_signal(signal.SIGUSR1)
        process.stdin.write(b"echo guest is responsive\n")
        process.stdin.flush()
        while b"\nguest is responsive" not in output:
            output += (byte := process.stdout.read(1))
            assert byte, output
        process.kill()
    found = set((directory / "names.complete").read_text().split())
    assert {"pyvmm.vm", "devices.balloon.device"} <= found
    assert not found & set(UNNEEDED_FOR_A_RUNNING_GUEST)
    resident_mib = resident_beside_ram(smaps, RAM_BYTES)["Rss"] / (1 << 20)
    figure(f"memory of the VMM beside guest RAM: {resident_mib:.1f} MiB")
    assert resident_mib < LIMIT_MIB
