# SPDX-License-Identifier: Apache-2.0
"""The guest's output that cannot be written: the run ends with a message and status 1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, sys
from pathlib import Path
from pyvmm.cli import terminal_run
from pyvmm.config import MachineConfig
from pyvmm.machine.exit_result import ExitReason, ExitResult

class Guest:
    def __init__(self, config, *, console_output, **others):
        self.output, self.ending = console_output, asyncio.get_running_loop().create_future()
    def boot(self):
        pass
    async def run(self):
        if sys.argv[1] == "power off":
            self.output.put(b"Power down")
            return ExitResult(ExitReason.POWEROFF)
        while not self.ending.done():
            self.output.put(b"a line of a guest that runs on")
            await asyncio.sleep(0.01)
        return await self.ending
    def end(self, result):
        if not self.ending.done():
            self.ending.set_result(result)
    def close(self):
        pass

terminal_run.VirtualMachine = Guest
config = MachineConfig(Path("/k"), None, "", 1 << 28, 1, "standard")
sys.exit(asyncio.run(terminal_run.run_vm(config, [])))
"""


def run(ending: str, stdout: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, ending]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("ending", ["runs on", "power off"])
def test_a_full_disk_ends_the_run_with_status_1(ending: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = run(ending, full)
    finally:
        os.close(full)
    reason = "No space left on device"
    assert done.stderr == f"pyvmm: the guest's console output cannot be written: {reason}\n"
    assert done.returncode == 1


def test_a_pipe_without_a_reader_ends_the_run_with_status_1() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("runs on", writer)
    finally:
        os.close(writer)
    assert done.stderr == "pyvmm: the guest's console output cannot be written: Broken pipe\n"
    assert done.returncode == 1


def test_output_that_is_written_ends_with_the_status_of_the_guest(tmp_path: Path) -> None:
    with (tmp_path / "console").open("wb") as file:
        done = run("power off", file.fileno())
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "console").read_bytes() == b"Power down"


@pytest.mark.parametrize("arguments", [["--help"], ["balloon", "--help"], ["--version"]])
def test_a_result_that_cannot_be_written_is_no_success(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "pyvmm", *arguments]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "pyvmm: standard output cannot be written: No space left on device\n"


def test_messages_that_cannot_be_written_do_not_change_the_status() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "pyvmm", "stop", "--qmp", "unix:/absent"]
        assert subprocess.run(command, stderr=full, timeout=60, check=False).returncode == 2
