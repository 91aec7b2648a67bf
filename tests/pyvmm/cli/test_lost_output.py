# SPDX-License-Identifier: Apache-2.0
"""The guest's output that cannot be written: the run ends with a message and status 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, sys
from pyvmm.cli import boot_run, terminal_run
from pyvmm.machine import machine
from pyvmm.machine.early_boot import EarlyBoot
from pyvmm.machine.exit_result import ExitReason, ExitResult
from tests.pyvmm.cli import stand_in_guest

class Guest(stand_in_guest.Guest):
    async def run(self):
        if sys.argv[1] == "power off":
            self.output.put(b"Power down")
            return ExitResult(ExitReason.POWEROFF)
        if sys.argv[1] in ("stalled", "quit while stalled"):
            for _ in range(40):
                self.output.put(b"x" * 4096)
            print("ending", file=sys.stderr, flush=True)
            stalled = sys.argv[1] == "stalled"
            return ExitResult(ExitReason.POWEROFF if stalled else ExitReason.QUIT)
        while not self.ending.done():
            self.output.put(b"a line of a guest that runs on")
            await asyncio.sleep(0.01)
        return await self.ending

stand_in_guest.use(stand_in_guest.Board)
machine.Machine = lambda platform: platform
terminal_run.VirtualMachine = Guest
sys.exit(boot_run.boot_on_terminal(EarlyBoot(stand_in_guest.CONFIG), []))
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


@contextmanager
def stalled(ending: str, timeout_s: float = 60) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a guest that has ended with output in its console, and the pipe to read it from."""
    reader, writer = os.pipe()
    program = PROGRAM.replace(
        "terminal_run.Virt", f"terminal_run.OUTPUT_TIMEOUT_S = {timeout_s}\nterminal_run.Virt"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, ending],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.readline() == "ending\n"
        yield process, reader
    os.close(reader)


def test_the_end_of_the_output_waits_for_a_reader_that_pauses() -> None:
    with stalled("stalled") as (process, reader):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.2)
        received = 0
        while data := os.read(reader, 4096):
            received += len(data)
        assert process.wait(30) == 0
    assert received == 40 * 4096


@pytest.mark.parametrize(("ending", "timeout_s"), [("stalled", 0.2), ("quit while stalled", 60)])
def test_output_that_is_not_read_ends_with_status_1(ending: str, timeout_s: float) -> None:
    with stalled(ending, timeout_s) as (process, _):
        assert process.wait(30) == 1
        assert process.stderr is not None
        expected = "pyvmm: the end of the guest's console output was not read\n"
        assert process.stderr.read() == expected


def test_a_signal_ends_the_wait_for_the_reader() -> None:
    with stalled("stalled") as (process, _):
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM


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
