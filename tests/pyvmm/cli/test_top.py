# SPDX-License-Identifier: Apache-2.0
"""`pyvmm top`: rates between two answers, one table for scripts, and the screen on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyvmm.cli.guest_rates import COLUMNS, rate_lines, rates_between
from pyvmm.cli.guest_states import GuestState
from pyvmm.machine.counters import EXIT_REASONS, MachineCounters, QueueCounts
from pyvmm.runtime_directory.announcement import Announcement, announce
from pyvmm.runtime_directory.guests import AnnouncedGuest
from pyvmm.units import MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread

HOME, CLEAR_SCREEN = "\x1b[H", "\x1b[2J"


class BusyVm(InMemoryVm):
    """A VM whose counters grow with time: 100 exits for ports and 50 requests a second."""

    @property
    def counters(self) -> MachineCounters:
        now = time.monotonic()
        exits = dict.fromkeys(EXIT_REASONS, 0) | {"pio": int(100 * now)}
        queues = [
            QueueCounts("balloon", "inflate", int(40 * now), 0),
            QueueCounts("balloon", "deflate", int(10 * now), 0),
            QueueCounts("rng", "request", 7, 0),
        ]
        return MachineCounters(64 * MIB, exits, queues)

    @counters.setter
    def counters(self, counters: MachineCounters) -> None:
        pass


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the runtime directory of a test; its path is short."""
    with TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield Path(base) / "pyvmm"


@contextmanager
def running(name: str, vm: InMemoryVm) -> Iterator[Announcement]:
    with announce(name) as announcement, served_in_thread(vm, announcement):
        announcement.describe("/guest.img", 256 * MIB, None)
        yield announcement


def state(at_s: float, pio: int, requests: int, name: str = "web", pid: int = 1) -> GuestState:
    guest = AnnouncedGuest(name, Path("/x"), pid, 1, 0, "/guest.img", 256 * MIB, None)
    counters = {
        "rss": pio,
        "exits": {"pio": pio, "mmio": 5},
        "queues": [{"device": "balloon", "queue": "inflate", "requests": requests}],
    }
    return GuestState(guest, "running", 256 * MIB, 256 * MIB, 256 * MIB, counters, at_s)


def test_rates_are_differences_by_the_time_between_the_answers() -> None:
    (rates,) = rates_between([state(10.0, 100, 4)], [state(12.0, 700, 5)])
    assert rates.exits == {"pio": 300.0, "mmio": 0.0}
    assert rates.requests == {"balloon": 0.5}


@pytest.mark.parametrize(
    "before",
    [
        [],
        [state(10.0, 100, 4, pid=2)],
        [state(12.0, 100, 4)],
        [state(10.0, 100, 4)._replace(counters=None)],
    ],
    ids=["new", "another guest of that name", "no time between", "no answer before"],
)
def test_a_guest_without_two_answers_has_no_rates(before: list[GuestState]) -> None:
    (rates,) = rates_between(before, [state(12.0, 700, 5)])
    assert (rates.exits, rates.requests) == (None, None)
    assert rate_lines([rates])[1].split()[-6:] == ["-"] * 6


def test_the_table_is_sorted_by_a_column() -> None:
    before = [state(0.0, 0, 0, "a"), state(0.0, 0, 0, "b")]
    guests = rates_between(before, [state(1.0, 10, 9, "a"), state(1.0, 20, 1, "b")])

    def names(order: str) -> list[str]:
        return [line.split()[0] for line in rate_lines(guests, order)[1:]]

    assert names("name") == ["a", "b"]
    assert names("exits") == names("RSS") == ["b", "a"]
    assert names("requests") == ["a", "b"]


def pyvmm(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm", "top", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_an_output_that_is_no_terminal_gets_one_table() -> None:
    with running("web", BusyVm(256 * MIB)):
        status, out, err = pyvmm("--interval", "0.3")
    assert (status, err) == (0, "")
    head, row = out.splitlines()
    assert tuple(head.split()) == COLUMNS
    assert row.startswith("web   running  256 MiB  256 MiB  64 MiB ")
    assert "balloon " in row
    assert "rng" not in row
    assert "\x1b" not in out


def test_one_document_has_the_rates() -> None:
    with running("web", BusyVm(256 * MIB)):
        status, out, err = pyvmm("--json", "--interval", "0.5")
    (guest,) = json.loads(out)["guests"]
    assert (status, err, guest["name"]) == (0, "", "web")
    assert 50 < guest["exits"]["pio"] < 200
    assert 25 < guest["requests"]["balloon"] < 100
    assert guest["requests"]["rng"] == 0


def test_no_guest_is_no_error() -> None:
    assert pyvmm("--once", "--interval", "0.1") == (0, "", "pyvmm: no guest is running\n")


class Screen:
    """`pyvmm top` on a pseudo-terminal of 20 lines and 100 columns."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.master, self._terminal = pty.openpty()
        termios.tcsetwinsize(self._terminal, (20, 100))
        self.former_mode = termios.tcgetattr(self._terminal)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyvmm", "top", *arguments],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env={**os.environ, "TERM": "xterm"},
        )
        self.output = ""

    def expect(self, text: str) -> str:
        """Read until `text` is in the output; return what has been read, and forget it."""
        deadline = time.monotonic() + 20
        while text not in self.output:
            assert time.monotonic() < deadline, f"no {text!r} in {self.output!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 65536).decode()
        seen, self.output = self.output, ""
        return seen

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def status(self) -> int:
        """Return the exit status of the command, and check that the terminal is as before."""
        status = self.process.wait(20)
        assert termios.tcgetattr(self._terminal) == self.former_mode
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._terminal)


@contextmanager
def screen(*arguments: str) -> Iterator[Screen]:
    shown = Screen(arguments)
    try:
        yield shown
    finally:
        shown.close()


def test_the_screen_is_drawn_over_until_q() -> None:
    with running("web", BusyVm(256 * MIB)), screen("--interval", "0.2") as shown:
        first = shown.expect("REQUESTS/s")
        assert "\x1b[?1049h" in first
        second = shown.expect("balloon ")
        assert HOME in second
        assert CLEAR_SCREEN not in first + second
        shown.press("s")
        shown.expect("by RSS")
        shown.press("q")
        assert shown.expect("\x1b[?1049l")
        assert shown.status() == 0


def test_guests_come_and_go_on_the_screen() -> None:
    with screen("--interval", "0.1") as shown:
        shown.expect("no guest is running")
        with running("web", BusyVm(256 * MIB)):
            shown.expect("web  ")
        shown.expect("no guest is running")
        shown.press("q")
        assert shown.status() == 0


def test_a_guest_that_does_not_answer_does_not_delay_the_keys() -> None:
    with announce("silent") as announcement, screen() as shown:
        announcement.describe("/guest.img", 256 * MIB, None)
        shown.expect("starting")
        started = time.monotonic()
        shown.press("q")
        assert shown.status() == 0
        assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_restores_the_terminal(signum: int) -> None:
    with screen("--interval", "100") as shown:
        shown.expect("no guest is running")
        shown.process.send_signal(signum)
        assert "\x1b[?25h\x1b[?1049l" in shown.expect("\x1b[?1049l")
        assert shown.status() == 128 + signum


def test_an_unusable_directory_is_reported_after_the_screen(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    with screen("--interval", "0.1") as shown:
        shown.expect("no guest is running")
        runtime.chmod(0o777)
        after = shown.expect("other users may use the runtime directory")
        assert "\x1b[?1049l" in after
        assert shown.status() == 2
