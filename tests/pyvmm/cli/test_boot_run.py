# SPDX-License-Identifier: Apache-2.0
"""The guest runs before the event loop exists: what happens meanwhile is not lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, threading
from pathlib import Path
from pyvmm.cli import boot_run
from pyvmm.machine import machine
from pyvmm.machine.early_boot import EarlyBoot
from pyvmm.machine.errors import MachineNotCreated
from tests.pyvmm.cli import stand_in_guest

class Board(stand_in_guest.Board):
    lock = threading.Lock()
    started = False
    def __init__(self, config, **options):
        super().__init__(config, **options)
        print("machine", flush=True)
    def start(self):
        self.started = True
        assert "asyncio" not in sys.modules
        what = sys.argv[1]
        if what == "output":
            self.output.put(b"early output")
        elif what == "fail":
            sys.modules["asyncio"] = None
        elif what.isdigit():
            os.kill(os.getpid(), int(what))
            from pyvmm.cli import terminal_run
            terminal_run.VirtualMachine = stand_in_guest.Guest
    def close(self):
        assert not self.lock.locked(), "a vCPU could not end"
        print("closed", flush=True)

def complete(platform):
    assert platform.started, "the guest runs before its devices exist"
    assert platform.lock.locked(), "it waits for them"
    if sys.argv[1] == "refuse":
        raise MachineNotCreated("no descriptor is left")
    return platform

stand_in_guest.use(Board)
machine.Machine = complete
sockets = [Path(name) for name in sys.argv[2:]]
sys.exit(boot_run.boot_on_terminal(EarlyBoot(stand_in_guest.CONFIG), sockets))
"""


def run(what: str, *sockets: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, what, *map(str, sockets)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_event_loop_ends_the_vm(signum: signal.Signals, tmp_path: Path) -> None:
    done = run(str(int(signum)), tmp_path / "qmp")
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "machine\nclosed\n", "")
    assert os.listdir(tmp_path) == []


def test_a_busy_socket_is_refused_before_the_machine_exists(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "qmp"))
        other.listen()
        done = run("nothing", tmp_path / "qmp")
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert done.stdout == ""


def test_a_guest_that_cannot_be_served_is_closed(tmp_path: Path) -> None:
    done = run("fail", tmp_path / "qmp")
    assert "ModuleNotFoundError" in done.stderr
    assert done.stdout == "machine\nclosed\n"
    assert os.listdir(tmp_path) == []


def test_a_guest_whose_devices_cannot_be_created_is_closed(tmp_path: Path) -> None:
    done = run("refuse", tmp_path / "qmp")
    assert done.stderr.endswith("MachineNotCreated: no descriptor is left\n")
    assert done.stdout == "machine\nclosed\n"
    assert os.listdir(tmp_path) == []
