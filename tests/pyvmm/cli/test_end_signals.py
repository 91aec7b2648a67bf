# SPDX-License-Identifier: Apache-2.0
"""A VM ends within a limited time, whatever hangs; its terminal and sockets are restored."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from pyvmm.cli.end_signals import EndSignals
from pyvmm.cli.late_loop import LateLoop

PROGRAM = """
import asyncio, os, sys, threading
from pathlib import Path
from pyvmm.blocking import end_limit
from pyvmm.cli import boot_run, end_signals, terminal_run
from pyvmm.machine import machine
from pyvmm.machine.early_boot import EarlyBoot
from pyvmm.machine.exit_result import ExitReason, ExitResult
from tests.pyvmm.cli import stand_in_guest

end_signals.END_TIMEOUT_S = 0.5
end_limit.RELEASE_TIMEOUT_S = 0.5
hang = lambda: threading.Event().wait()

class Guest(stand_in_guest.Guest):
    async def run(self):
        asyncio.get_running_loop().call_later(0.1, os.write, 1, b"running")
        if where == "the event loop":
            asyncio.get_running_loop().call_later(0.2, hang)
        if where == "sockets":
            os.unlink = lambda *arguments, **options: hang()
        if where == "quit":
            asyncio.get_running_loop().call_later(0.2, self.end, ExitResult(ExitReason.QUIT))
        result = await super().run()
        if where in ("the end", "quit"):
            hang()
        return result
    def close(self):
        if where == "closing":
            hang()

where, sockets = sys.argv[1], [Path(name) for name in sys.argv[2:]]
stand_in_guest.use(stand_in_guest.Board)
machine.Machine = lambda platform: platform
terminal_run.VirtualMachine = Guest
sys.exit(boot_run.boot_on_terminal(EarlyBoot(stand_in_guest.CONFIG), sockets))
"""
LIMIT_S = 10.0
OVERDUE = "the VM has not ended within 0.5 s"


class Run:
    """A run of `PROGRAM` on a terminal, which hangs at `where`."""

    def __init__(self, where: str, *sockets: Path) -> None:
        self._master, self._slave = pty.openpty()
        self._before = termios.tcgetattr(self._slave)
        command = [sys.executable, "-c", PROGRAM, where, *map(str, sockets)]
        terminal = self._slave
        self.process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
        self.output = ""
        self._read_until("running")
        assert not termios.tcgetattr(self._slave)[3] & termios.ICANON
        time.sleep(0.3)

    def _read_until(self, text: str) -> None:
        ends_at = time.monotonic() + LIMIT_S
        while text not in self.output:
            assert select.select([self._master], [], [], ends_at - time.monotonic())[0], self.output
            self.output += os.read(self._master, 1000).decode()

    def status(self) -> int:
        """Return the exit status; the terminal is as it was."""
        try:
            status = self.process.wait(LIMIT_S)
            assert termios.tcgetattr(self._slave) == self._before
            while select.select([self._master], [], [], 0)[0]:
                self.output += os.read(self._master, 1000).decode()
            return status
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._master)
            os.close(self._slave)


@pytest.mark.parametrize("where", ["the event loop", "the end", "closing"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_that_hangs(
    where: str, signum: signal.Signals, tmp_path: Path
) -> None:
    run = Run(where, tmp_path / "qmp")
    assert (tmp_path / "qmp").is_socket()
    run.process.send_signal(signum)
    assert run.status() == 128 + signum
    assert OVERDUE in run.output
    assert not (tmp_path / "qmp").exists()


def test_sockets_that_cannot_be_removed_do_not_delay_the_end(tmp_path: Path) -> None:
    run = Run("sockets", tmp_path / "qmp")
    run.process.send_signal(signal.SIGTERM)
    assert run.status() == 128 + signal.SIGTERM


def test_quit_ends_a_process_that_hangs() -> None:
    run = Run("quit")
    assert run.status() == 1
    assert OVERDUE in run.output


def test_the_end_of_a_process_that_does_not_hang_is_not_forced() -> None:
    run = Run("nowhere")
    run.process.send_signal(signal.SIGTERM)
    assert run.status() == 128 + signal.SIGTERM
    assert OVERDUE not in run.output


def test_a_signal_with_a_handler_of_its_own_does_not_end_the_process() -> None:
    async def main() -> tuple[list[int], list[str]]:
        loop = LateLoop()
        loop.attach(asyncio.get_running_loop())
        ended: list[int] = []
        handled: list[str] = []
        signals = EndSignals(loop, ended.append, lambda: None)
        signals.start()
        try:
            signals.handle(signal.SIGINT, lambda: handled.append("SIGINT"))
            signals.handle(signal.SIGWINCH, lambda: handled.append("SIGWINCH"))
            for signum in (signal.SIGINT, signal.SIGWINCH):
                os.kill(os.getpid(), signum)
                await asyncio.sleep(0.05)
        finally:
            signals.close()
        return ended, handled

    before = signal.getsignal(signal.SIGINT)
    assert asyncio.run(main()) == ([], ["SIGINT", "SIGWINCH"])
    assert signal.getsignal(signal.SIGINT) is before
