# SPDX-License-Identifier: Apache-2.0
"""The guest's console on real terminals, pipes and files."""

import asyncio
import contextlib
import fcntl
import os
import pty
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.cli.console.raw_mode import Terminal
from pyvmm.cli.console.terminal import (
    HELP_TEXT,
    MAX_PENDING_BYTES,
    Action,
    ConsoleIo,
    EscapeFilter,
)
from pyvmm.console import writer as writer_module
from pyvmm.console.writer import MAX_UNWRITTEN_BYTES, ConsoleWriter

ROOT = Path(__file__).parents[3]
QUIT, HELP = Action.QUIT, Action.HELP


@pytest.mark.parametrize(
    ("typed", "for_guest", "actions"),
    [
        (b"", b"", []),
        (b"ls\r", b"ls\r", []),
        (b"\x01x", b"", [QUIT]),
        (b"\x01h\x01?", b"", [HELP, HELP]),
        (b"\x01\x01", b"\x01", []),
        (b"\x01\x01x", b"\x01x", []),
        (b"\x01\x01\x01x", b"\x01", [QUIT]),
        (b"\x01za", b"a", []),
        (b"a\x01xb\x01h", b"a", [QUIT]),
        (b"\x00\xff\x03", b"\x00\xff\x03", []),
        (b"\x01", b"", []),
    ],
)
def test_escapes_become_actions(typed: bytes, for_guest: bytes, actions: list[Action]) -> None:
    assert EscapeFilter().feed(typed) == (for_guest, actions)


@given(st.lists(st.sampled_from([b"\x01", b"x", b"h", b"a"])).map(b"".join), st.data())
def test_escapes_split_between_reads_are_found(typed: bytes, data: st.DataObject) -> None:
    expected = EscapeFilter().feed(typed)
    cut = data.draw(st.integers(0, len(typed)))
    filter_ = EscapeFilter()
    first, actions = filter_.feed(typed[:cut])
    if QUIT not in actions:
        rest, more = filter_.feed(typed[cut:])
        first, actions = first + rest, actions + more
    assert (first, actions) == expected


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Open a pseudo-terminal: (the user's side, the program's side)."""
    person, program = pty.openpty()
    yield person, program
    for fd in (person, program):
        try:
            os.close(fd)
        except OSError:
            assert fd == program  # a test closed it


def test_raw_mode_is_set_and_restored(terminal: tuple[int, int]) -> None:
    _, fd = terminal
    before = termios.tcgetattr(fd)
    with Terminal(fd):
        iflag, oflag, _, lflag, *_, cc = termios.tcgetattr(fd)
        assert not lflag & (termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
        assert not iflag & (termios.ICRNL | termios.IXON)
        assert oflag & termios.OPOST
        assert cc[termios.VMIN] in (1, b"\x01")
    assert termios.tcgetattr(fd) == before


def test_raw_mode_is_restored_after_an_exception(terminal: tuple[int, int]) -> None:
    _, fd = terminal
    before = termios.tcgetattr(fd)

    def fail_in_raw_mode() -> None:
        with Terminal(fd):
            assert termios.tcgetattr(fd) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_raw_mode()
    assert termios.tcgetattr(fd) == before


@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit(0)",
        "raise RuntimeError",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); os.kill(os.getpid(), 15)",
    ],
)
def test_raw_mode_is_restored_however_the_program_ends(
    terminal: tuple[int, int], ending: str
) -> None:
    """A program that never leaves the block restores it, too, through `atexit`."""
    _, fd = terminal
    before = termios.tcgetattr(fd)
    script = (
        "import os, signal, sys, termios\n"
        "from pyvmm.cli.console.raw_mode import Terminal\n"
        "Terminal(0).__enter__()\n"
        "assert not termios.tcgetattr(0)[3] & termios.ICANON\n"
        "sys.stdout.write('raw')\n" + ending
    )
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdin=fd, capture_output=True, check=False
    )
    assert process.stdout == b"raw"
    assert termios.tcgetattr(fd) == before


def test_files_that_are_not_terminals_are_ignored(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (tmp_path / "file").open("w") as file:
        for fd in (reader, file.fileno(), 9999):
            with Terminal(fd):
                pass
    os.close(reader)
    os.close(writer)


def test_a_closed_terminal_is_ignored() -> None:
    person, program = pty.openpty()
    with Terminal(program):
        os.close(person)
        os.close(program)


class Uart:
    """A receiver of `on_input` with a FIFO of 16 bytes."""

    def __init__(self) -> None:
        self.fifo = bytearray()
        self.received = bytearray()

    def receive(self, data: bytes) -> int:
        accepted = min(len(data), 16 - len(self.fifo))
        self.fifo += data[:accepted]
        return accepted

    def read_all(self) -> None:
        self.received += self.fifo
        self.fifo.clear()


Scenario = Callable[["ConsoleSetup"], Coroutine[Any, Any, None]]


class ConsoleSetup:
    """A `ConsoleIo` between given file descriptors and a `Uart`."""

    def __init__(self, stdin_fd: int, stdout_fd: int) -> None:
        self.uart = Uart()
        self.actions: list[Action] = []
        loop = asyncio.get_running_loop()
        self.console = ConsoleIo(
            loop, stdin_fd, ConsoleWriter(stdout_fd), self.uart.receive, self.actions.append
        )
        self.console.start()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Run the loop, with a guest that reads all input, until `condition` holds."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)
                self.uart.read_all()
                self.console.send_pending()

    async def filled(self) -> None:
        """Run the loop, with a guest that reads nothing, until the FIFO is full."""
        async with asyncio.timeout(20):
            while len(self.uart.fifo) < 16:
                await asyncio.sleep(0)

    async def settle(self) -> None:
        """Run the loop until nothing more happens while the guest reads nothing."""
        for _ in range(200):
            await asyncio.sleep(0)


def run_scenario(stdin_fd: int, stdout_fd: int, scenario: Scenario) -> None:
    async def main() -> None:
        setup = ConsoleSetup(stdin_fd, stdout_fd)
        try:
            await scenario(setup)
        finally:
            setup.console.close()

    asyncio.run(main())


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


def test_keys_reach_the_guest_and_output_reaches_the_terminal(terminal: tuple[int, int]) -> None:
    person, program = terminal

    async def scenario(setup: ConsoleSetup) -> None:
        os.write(person, b"\x03ls\r\x01h")
        await setup.until(lambda: len(setup.uart.received) == 4)
        assert setup.uart.received == b"\x03ls\r"
        setup.console.writer.queue.put(b"# ")
        os.write(person, b"\x01x")
        await setup.until(lambda: bool(setup.actions))
        assert setup.actions == [QUIT]

    with Terminal(program):
        run_scenario(program, program, scenario)
        shown = os.read(person, 4096)
    assert shown.replace(b"\r\r\n", b"\r\n") == HELP_TEXT + b"# "


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_long_input_is_passed_on_as_the_guest_reads_it(
    kind: str, tmp_path: Path, null: int
) -> None:
    text = bytes(range(2, 256)) * 1000
    if kind == "file":
        (tmp_path / "input").write_bytes(text)
        fd = os.open(tmp_path / "input", os.O_RDONLY)
        writer = None
    else:
        fd, write_fd = os.pipe()

        def write() -> None:
            with os.fdopen(write_fd, "wb") as pipe:
                pipe.write(text)

        writer = threading.Thread(target=write)
        writer.start()

    async def scenario(setup: ConsoleSetup) -> None:
        await setup.filled()
        await setup.settle()
        assert len(setup.uart.fifo) == 16
        assert len(setup.console._pending) < MAX_PENDING_BYTES + 4096
        await setup.until(lambda: len(setup.uart.received) == len(text))
        assert setup.uart.received == text
        await setup.settle()

    run_scenario(fd, null, scenario)
    if writer:
        writer.join(10)
    os.close(fd)


def test_the_escape_key_works_while_the_guest_reads_nothing(null: int) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"a" * 1000 + b"\x01x")

    async def scenario(setup: ConsoleSetup) -> None:
        await setup.settle()
        assert setup.actions == [QUIT]
        assert len(setup.uart.fifo) == 16

    run_scenario(reader, null, scenario)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("source", ["/dev/null", "closed pipe", "not open", "hung-up terminal"])
def test_the_end_of_input_is_not_an_action(source: str, null: int) -> None:
    if source == "/dev/null":
        fd = os.open(os.devnull, os.O_RDONLY)
    elif source == "closed pipe":
        fd, writer = os.pipe()
        os.close(writer)
    elif source == "hung-up terminal":
        person, fd = pty.openpty()
        os.close(person)
    else:
        fd = 9999

    async def scenario(setup: ConsoleSetup) -> None:
        await setup.settle()
        assert setup.actions == []
        assert setup.console._ended

    run_scenario(fd, null, scenario)
    if fd != 9999:
        os.close(fd)


def test_output_to_a_file_is_complete_at_close(tmp_path: Path) -> None:
    text = os.urandom(300_000)
    with (tmp_path / "output").open("wb") as file:
        console_writer = ConsoleWriter(file.fileno())
        console_writer.lost.add(pytest.fail)
        for at in range(0, len(text), 7):
            console_writer.queue.put(text[at : at + 7])
        console_writer.close()
    assert (tmp_path / "output").read_bytes() == text


@pytest.mark.parametrize("nonblocking", [False, True])
def test_output_waits_for_its_reader(nonblocking: bool) -> None:
    text = os.urandom(1_000_000)
    reader, writer = os.pipe()
    os.set_blocking(writer, not nonblocking)
    console_writer = ConsoleWriter(writer)
    console_writer.lost.add(pytest.fail)
    console_writer.queue.put(text)
    got = bytearray()
    while len(got) < len(text):
        got += os.read(reader, 65536)
    console_writer.close()
    assert got == text
    os.close(reader)
    os.close(writer)


def test_throttle_blocks_only_while_too_much_is_unwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer_module, "THROTTLE_S", 20.0)
    reader, writer = os.pipe()
    console_writer = ConsoleWriter(writer)
    console_writer.lost.add(pytest.fail)
    console_writer.queue.put(b"x")
    console_writer.throttle()  # at once
    throttled = threading.Thread(target=console_writer.throttle)
    console_writer.queue.put(b"y" * (fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) + 1))
    while len(console_writer.queue):  # the writer takes it all and is then stuck writing it
        os.sched_yield()
    console_writer.queue.put(b"z" * MAX_UNWRITTEN_BYTES)
    throttled.start()
    throttled.join(0.05)
    assert throttled.is_alive()
    os.set_blocking(reader, False)
    while throttled.is_alive():
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 65536)
    os.close(reader)
    console_writer.close()
    os.close(writer)


def test_throttle_and_close_return_when_nothing_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer_module, "THROTTLE_S", 0.01)
    reader, writer = os.pipe()
    console_writer = ConsoleWriter(writer)
    for _ in range(100):
        console_writer.queue.put(b"x" * 10_000)
        console_writer.throttle()
    console_writer.close(timeout_s=0.01)
    os.close(reader)  # ends the thread: EPIPE
    console_writer._thread.join(10)
    assert not console_writer._thread.is_alive()
    os.close(writer)


def test_lost_output_is_reported_once_and_dropped(null: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    async def scenario(setup: ConsoleSetup) -> None:
        for _ in range(100):
            setup.console.writer.queue.put(b"hello?")
        await setup.until(lambda: bool(setup.actions))
        setup.console.writer.queue.put(b"y" * (2 * MAX_UNWRITTEN_BYTES))
        setup.console.writer.throttle()
        await setup.settle()
        assert setup.actions == [Action.OUTPUT_LOST]

    run_scenario(null, writer, scenario)
    os.close(writer)


def test_a_program_with_a_console_ends_on_the_escape_key(terminal: tuple[int, int]) -> None:
    """A separate process: raw mode, keys (Ctrl-C goes to the guest), output and Ctrl-A x."""
    person, program = terminal
    before = termios.tcgetattr(program)
    script = (
        "import asyncio, os\n"
        "from pyvmm.cli.console.raw_mode import Terminal\n"
        "from pyvmm.cli.console.terminal import ConsoleIo\n"
        "from pyvmm.console.writer import ConsoleWriter\n"
        "async def main():\n"
        "    done = asyncio.Event()\n"
        "    def echo(data):\n"
        "        io.writer.queue.put(data.upper())\n"
        "        return len(data)\n"
        "    loop, writer = asyncio.get_running_loop(), ConsoleWriter(1)\n"
        "    io = ConsoleIo(loop, 0, writer, echo, lambda action: done.set())\n"
        "    io.start()\n"
        "    io.writer.queue.put(b'ready')\n"
        "    await done.wait()\n"
        "    io.close()\n"
        "with Terminal(0): asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=program, stdout=program
    )
    shown = b""
    while not shown.endswith(b"ready"):
        shown += os.read(person, 100)
    os.write(person, b"abc\x03")
    while not shown.endswith(b"ABC\x03"):
        shown += os.read(person, 100)
    os.write(person, b"\x01x")
    assert process.wait(20) == 0
    assert termios.tcgetattr(program) == before
