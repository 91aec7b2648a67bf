# SPDX-License-Identifier: Apache-2.0
"""`session`, which gives the guest's shell its terminal, compiled and run here on a pty."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from guest_images.initramfs import compile_program
from guest_images.recipe import HERE

INTERRUPT = b"\x03"  # what a terminal sends for ^C


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "session"
    compile_program(HERE / "src" / "session.c", path)
    return path


def start(program: Path, *command: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start `command` as the guest's init does, in the background of a shell; also return a pty."""
    leader, follower = pty.openpty()
    terminal = os.ttyname(follower)
    process = subprocess.Popen(
        ["sh", "-c", '"$@" & wait $!', "sh", program, terminal, *command], stdin=subprocess.DEVNULL
    )
    return process, leader


def read_until(leader: int, text: bytes) -> bytes:
    shown = b""
    while text not in shown:
        shown += os.read(leader, 4096)
    return shown


def test_an_interrupt_reaches_the_foreground_program(program: Path) -> None:
    process, leader = start(program, "sh", "-c", "echo ready; exec sleep 1000")
    # exec: a shell that is just starting another program may lose the signal.
    read_until(leader, b"ready")
    os.write(leader, INTERRUPT)
    assert process.wait(30) == 128 + 2


def test_the_status_of_the_command_is_passed_on(program: Path) -> None:
    process, _ = start(program, "sh", "-c", "exit 7")
    assert process.wait(30) == 7


def test_the_command_has_a_controlling_terminal(program: Path) -> None:
    process, leader = start(program, "sh", "-c", "echo found >/dev/tty; tty")
    shown = read_until(leader, b"/dev/pts/")
    assert b"found" in shown
    assert process.wait(30) == 0


def test_a_missing_command_is_reported(program: Path) -> None:
    process, leader = start(program, "/no/such/command")
    assert b"No such file or directory" in read_until(leader, b"\n")
    assert process.wait(30) == 127


@pytest.mark.parametrize("arguments", [[], ["/dev/null"], ["/dev/null", "true"]])
def test_without_a_terminal_no_command_runs(program: Path, arguments: list[str]) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, check=False, timeout=30)
    assert done.returncode == 126
    assert done.stderr
