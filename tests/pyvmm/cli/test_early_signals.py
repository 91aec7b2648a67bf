# SPDX-License-Identifier: Apache-2.0
"""A signal that arrives before anything serves a socket, or after that, leaves none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, threading
from pathlib import Path
from pyvmm.cli import exit_status, guest_run, lab, vm_start
from pyvmm.machine import machine
from pyvmm.machine.errors import MachineNotCreated
from pyvmm.machine.early_boot import EarlyBoot
from tests.pyvmm.cli.stand_in_guest import CONFIG, Board, Guest, use

where, signum, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])

def interrupt():
    os.kill(os.getpid(), signum)

class RefusingBoard(Board):
    def __init__(self, config, **options):
        if where == "refused":
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            raise MachineNotCreated("KVM refuses")
        super().__init__(config, **options)
    def start(self):
        from pyvmm.cli import terminal_run
        terminal_run.VirtualMachine = Guest

def choose(mode, on_host, in_the_lab, **options):
    assert list(directory.rglob("*.sock")), "the guest is announced"
    if where == "announced":
        interrupt()
    return in_the_lab() if where == "lab" else on_host()

def start_lab(**options):
    assert (directory / "qmp").exists()
    interrupt()
    return start(**options)

def restore_slowly(snapshot, vm, on_pages):
    interrupt()
    ended = threading.Event()
    while not ended.wait(0.01):
        on_pages(1)

class Closed(vm_start.EndSignals):
    def close(self):
        super().close()
        if where == "refused":
            interrupt()
vm_start.EndSignals = Closed

class Snapshot:
    path, pages = Path("/snapshot"), 1000
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass

machine.Machine = lambda platform: platform
if where == "bound":
    from pyvmm.sockets import unix
    class Bound(unix.UnixListener):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            interrupt()
    unix.UnixListener = Bound
if where == "lab":
    from pyvmm.lab import run, start as lab_start
    def start(**options):
        lab_start._interrupt(options["signals"])
    run.start = start_lab
if where == "restoring":
    from pyvmm.cli import terminal_run
    from pyvmm.snapshot import restore
    restore.restore, terminal_run.VirtualMachine = restore_slowly, Guest
guest_run.run_where_kvm_works = choose
use(RefusingBoard)
source = Snapshot() if where == "restoring" else EarlyBoot(CONFIG)
sockets = [] if where == "announced" else [directory / "qmp"]
exit_status.exit_with(
    lambda: guest_run.run_guest(CONFIG, source, "guest", sockets, [], None, "host")
)
"""


def run(where: str, signum: signal.Signals, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, where, str(int(signum)), str(directory)]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(directory)},
    )


@pytest.mark.parametrize("where", ["announced", "bound", "lab", "restoring"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_guest_runs_leaves_no_socket(
    where: str, signum: signal.Signals, tmp_path: Path
) -> None:
    done = run(where, signum, tmp_path)
    assert done.returncode == 128 + signum
    assert done.stderr == ("restoring /snapshot\n" if where == "restoring" else "")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_a_start_that_has_failed_waits_until_no_socket_is_left(
    signum: signal.Signals, tmp_path: Path
) -> None:
    """Though a thread is left that could take it."""
    done = run("refused", signum, tmp_path)
    assert done.returncode == (-signum if signum == signal.SIGTERM else 128 + signum)
    assert done.stderr == ""
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
