# SPDX-License-Identifier: Apache-2.0
"""`pyvmm run IMAGE -- COMMAND`: streams, exit statuses, terminals, files, and every other end."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kvm.terminal_process import pyvmm_run

pytestmark = pytest.mark.kvm

MEMORY = ("--memory", "256M")


def command(image: Path, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    run = [sys.executable, "-m", "pyvmm", "run", str(image), *MEMORY]
    return [*run, *options, "--", *arguments]


def run(
    image: Path, script: str, *, options: tuple[str, ...] = (), data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in a guest, with `data` as its input."""
    arguments = command(image, "sh", "-c", script, options=options)
    return subprocess.run(arguments, input=data, capture_output=True, check=False, timeout=200)


@pytest.mark.parametrize("size_mib", [8, pytest.param(100, marks=pytest.mark.long)])
def test_streams_are_passed_on_unchanged_and_the_status_is_the_commands(
    size_mib: int, guest_image: Path, figure: Callable[[str], None]
) -> None:
    data = random.Random(1).randbytes(size_mib << 20)
    script = """cat
for i in $(seq 1000); do echo out $i; echo err $i >&2; done
exit 7"""
    begin = time.monotonic()
    done = run(guest_image, script, data=data)
    seconds = time.monotonic() - begin
    figure(f"command: {size_mib} MiB in and out, boot included: {seconds:.1f} s")
    assert done.returncode == 7
    assert done.stdout[: len(data)] == data
    numbers = range(1, 1001)
    assert done.stdout[len(data) :] == b"".join(b"out %d\n" % number for number in numbers)
    assert done.stderr == b"".join(b"err %d\n" % number for number in numbers)


def test_files_environment_and_directory(guest_image: Path, directory: Path) -> None:
    (directory / "in").mkdir()
    (directory / "in" / "script").write_text('#!/bin/sh\npwd; echo "$NAME"; cat link; wc -c big\n')
    (directory / "in" / "script").chmod(0o755)
    (directory / "in" / "link").symlink_to("file")
    (directory / "in" / "file").write_text("content\n")
    (directory / "in" / "big").write_bytes(bytes(5 << 20))
    script = "./script; mkdir -p out/sub; cp big out/sub; ln -s sub out/l; exit 3"
    options = (
        *("--put", f"{directory}/in::/data", "--directory", "/data", "--env", "NAME=a b"),
        *("--get", f"/data/out::{directory}", "--get", f"/data/file::{directory}/f"),
        *("--status-file", f"{directory}/status"),
    )
    done = run(guest_image, script, options=options)
    assert done.stdout.decode() == "/data\na b\ncontent\n5242880 big\n"
    assert done.returncode == 3
    assert (directory / "out/sub/big").read_bytes() == bytes(5 << 20)
    assert (directory / "out/l").readlink() == Path("sub")
    assert (directory / "f").read_text() == "content\n"
    assert json.loads((directory / "status").read_text()) == {
        "reason": "exited",
        "status": 3,
        "signal": None,
        "oom-kills": 0,
        "message": None,
    }


@pytest.mark.parametrize(
    ("script", "options", "status", "reason", "message"),
    [
        ("kill -9 $$", (), 137, "signaled", "ended by SIGKILL"),
        ("poweroff -f; sleep 9", (), 125, "guest-shutdown", "powered off before"),
        ("echo c > /proc/sysrq-trigger", (), 125, "guest-panic", "panic"),
        ("sleep 1000", ("--timeout", "20"), 124, "timeout", "not ended within 20 s"),
        ("exec tail /dev/zero", (), 137, "signaled", "out of memory"),
        ("exit 125", (), 125, "exited", ""),
    ],
)
def test_every_end_has_its_status(
    guest_image: Path,
    directory: Path,
    script: str,
    options: tuple[str, ...],
    status: int,
    reason: str,
    message: str,
) -> None:
    file = directory / "status"
    done = run(guest_image, script, options=(*options, "--status-file", str(file)))
    written = json.loads(file.read_text())
    assert (done.returncode, written["reason"]) == (status, reason), done.stderr
    assert message.encode() in done.stderr


def test_a_reader_that_goes_away_ends_the_command(guest_image: Path) -> None:
    process = subprocess.Popen(
        command(guest_image, "yes"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE


def test_a_full_disk_behind_the_output_ends_the_command(guest_image: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(guest_image, "yes"),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=100,
        )
    assert done.returncode == 128 + signal.SIGPIPE
    assert b"No space left" in done.stderr


def test_interrupt_without_a_terminal_is_a_signal(guest_image: Path) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 1; done"
    process = subprocess.Popen(
        command(guest_image, "sh", "-c", script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == b"caught\n"
    assert process.wait(60) == 9


def test_a_command_on_a_terminal(guest_image: Path) -> None:
    arguments = (str(guest_image), *MEMORY, "--", "sh", "-c")
    script = """trap 'stty size' WINCH; trap 'echo interrupted' INT
tty; stty size; read line; echo "got $line"; read line; read line; exit 6"""
    with pyvmm_run(*arguments, script, rows=31, columns=97) as terminal:
        before = termios.tcgetattr(terminal.slave)
        terminal.expect("/dev/pts/0")
        terminal.expect("31 97")
        terminal.type("some words\r")
        terminal.expect("got some words")
        terminal.type("\x03")
        terminal.expect("interrupted")
        fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.expect("40 120")
        terminal.type("\r\r")
        assert terminal.process.wait(60) == 6
        assert termios.tcgetattr(terminal.slave) == before


def test_control_a_x_ends_a_command(guest_image: Path) -> None:
    with pyvmm_run(str(guest_image), *MEMORY, "--", "cat") as terminal:
        terminal.type("echoed\r")
        terminal.expect("echoed\r\necho")
        terminal.type("\x01x")
        assert terminal.process.wait(60) == 125
        terminal.expect("was ended before the command")


def test_the_kernels_log_is_kept_apart(guest_image: Path, directory: Path) -> None:
    log = directory / "log"
    done = run(guest_image, "echo to the log > /dev/kmsg; echo out", options=("--log", str(log)))
    assert done.stdout == b"out\n"
    assert done.stderr == b""
    assert b"to the log" in log.read_bytes()
