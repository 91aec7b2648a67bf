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


def test_the_virtio_console_is_the_terminal_with_its_window_size(
    guest_image: Path, directory: Path
) -> None:
    log = directory / "log"
    options = ("--console", "virtio", "--port", f"log=file:{log}")
    command = (str(guest_image), "--memory", "128M", *options)
    with pyvmm_run(*command, rows=43, columns=132) as terminal:
        terminal.expect("Linux version")
        terminal.expect("guest# ")
        terminal.type("tty; stty size\r")
        terminal.expect("/dev/hvc0")
        terminal.expect("43 132")
        terminal.resize(30, 90)
        terminal.type("until stty size | grep -x '30 90'; do usleep 10000; done\r")
        terminal.expect("\n30 90")
        terminal.type("sh -c 'echo now asleep; exec sleep 1000'\r")
        terminal.expect("now asleep\r")
        terminal.type("\x03")
        terminal.expect("guest# ")
        terminal.type("for port in /dev/vport*p1; do echo the last output >$port; done; poweroff\r")
        assert terminal.process.wait(60) == 0
    assert log.read_text() == "the last output\n"


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
