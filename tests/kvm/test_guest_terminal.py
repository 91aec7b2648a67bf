# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run` on a terminal and on pipes: input, the end by ^A x, the settings of the tty."""

from __future__ import annotations

import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.kvm.terminal_process import TIMEOUT_S, pyvmm_run

pytestmark = pytest.mark.kvm


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
