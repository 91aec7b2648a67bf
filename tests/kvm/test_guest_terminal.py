# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run` on a terminal and on pipes: input, the end by ^A x, the settings of the tty."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.kvm

TIMEOUT_S = 150.0


class Terminal:
    """A pseudo-terminal that is the terminal of a pyvmm process."""

    def __init__(self, master: int, slave: int, process: subprocess.Popen[bytes]) -> None:
        self.master, self.slave, self.process = master, slave, process
        self.output = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.output:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"no {text!r} in:\n{self.output}"
            self.output += os.read(self.master, 4096).decode(errors="replace")
        self.output = self.output[self.output.index(text) + len(text) :]


@contextmanager
def pyvmm_run(*arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "pyvmm", "run", *arguments]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    try:
        yield Terminal(master, slave, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_a_terminal_session_restores_the_tty(guest_image: Path) -> None:
    with pyvmm_run(str(guest_image), "--memory", "128M") as terminal:
        before = termios.tcgetattr(terminal.slave)
        terminal.expect("guest# ")
        assert not termios.tcgetattr(terminal.slave)[3] & termios.ICANON
        terminal.type("echo six times seven is $((6*7))\r")
        terminal.expect("seven is 42")
        terminal.type("\x01x")
        assert terminal.process.wait(30) == 0
        assert termios.tcgetattr(terminal.slave) == before


def test_interrupt_reaches_the_guest_and_exit_powers_off(guest_image: Path) -> None:
    with pyvmm_run(str(guest_image), "--memory", "128M") as terminal:
        terminal.expect("guest# ")
        # Wait for the program's output: ^C interrupts only a program that is in the foreground.
        terminal.type("sh -c 'echo now asleep; exec sleep 1000'\r")
        terminal.expect("now asleep\r")
        terminal.type("\x03")
        terminal.expect("guest# ")
        terminal.type("exit\r")
        assert terminal.process.wait(60) == 0


def test_input_that_waits_since_before_the_boot_arrives_completely(guest_image: Path) -> None:
    lines = [f"echo out-{number}-$((0+{number}))" for number in range(30)]
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", str(guest_image), "--memory", "128M"],
        input="\n".join([*lines, "poweroff", ""]),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"out-(\d+)-(\d+)", done.stdout)
    assert printed == [(str(number), str(number)) for number in range(30)], done.stdout
