# SPDX-License-Identifier: Apache-2.0
"""Text of others on a terminal: no control characters, no markup, no errors."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from pyvmm.memory.ram import Ram
from pyvmm.progress.live_bar import live_bar
from pyvmm.progress.reporter import PlainLines, show_progress
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.standard_streams.log import PrintableFormatter
from pyvmm.standard_streams.rich_console import TextConsole
from pyvmm.standard_streams.text import print_line, print_message, printable, printable_lines
from pyvmm.state.config_record import config_record
from tests.pyvmm.snapshot.sample_snapshot import CONFIG, REPORT

HOSTILE = "\x1b]0;owned\x07\x9b2J[/foo][red]:bomb:\r\u202e\udcff"
SHOWN = r"\x1b]0;owned\x07\x9b2J[/foo][red]:bomb:\r\u202e\udcff"
PROGRAM = [sys.executable, "-m", "pyvmm"]


def on_terminal(*arguments: str) -> bytes:
    """Run pyvmm with all of its streams on a terminal; return everything it prints."""
    person, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    printed = b""
    try:
        while data := os.read(person, 65536):
            printed += data
    except OSError:  # EIO: the last process has closed the terminal
        pass
    os.close(person)
    process.wait(60)
    return printed


def hostile_snapshot(path: Path) -> None:
    """Write a valid snapshot whose kernel's name is hostile, without pages."""
    kernel = Path(HOSTILE.removesuffix("\udcff"))  # a snapshot holds UTF-8
    with SnapshotWriter(path, Ram(CONFIG.ram_bytes).memory) as file:
        file.finish([config_record(CONFIG.changed(kernel=kernel)), REPORT.record()])


def test_printable_text_is_unchanged() -> None:
    assert printable("Größe: 1 GiB → [ok]") == "Größe: 1 GiB → [ok]"


def test_control_characters_become_escapes() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\nb") == r"a\nb"
    assert printable_lines(f"a\n{HOSTILE}") == f"a\n{SHOWN}"


def test_lines_and_messages_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(HOSTILE)
    print_message(HOSTILE)
    assert capsys.readouterr() == (f"{SHOWN}\n", f"pyvmm: {SHOWN}\n")


def test_tables_show_strings_literally() -> None:
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    file = io.StringIO()
    console = TextConsole(file)
    console.width = 200
    console.print(HOSTILE, table)
    assert file.getvalue().count(SHOWN) == 5


def test_log_records_cannot_begin_a_line_of_their_own() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", (f"a\npyvmm: {HOSTILE}",), None)
    assert PrintableFormatter("pyvmm: %(message)s").format(record) == rf"pyvmm: a\npyvmm: {SHOWN}"


def test_progress_shows_stages_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    class TerminalFile(io.StringIO):
        def isatty(self) -> bool:
            return True

    lines, bars, live = io.StringIO(), TerminalFile(), TerminalFile()
    PlainLines(lines).stage(HOSTILE)
    assert lines.getvalue() == f"{SHOWN}\n"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with show_progress(bars) as progress:
        progress.stage(HOSTILE, 1)
    assert SHOWN in bars.getvalue()
    monkeypatch.setattr(sys, "stderr", live)
    with live_bar(HOSTILE) as bar:
        bar.show(HOSTILE, 0, 1, HOSTILE)
    assert f"{SHOWN} " in live.getvalue()


def test_a_snapshot_with_hostile_text_is_shown_on_a_terminal(tmp_path: Path) -> None:
    directory = tmp_path / "r[/b]\x1b[2J"
    directory.mkdir(parents=True)
    hostile_snapshot(directory / "s")
    printed = on_terminal("snapshot", str(directory / "s"), "--info")
    assert b"[/foo][red]:bomb:" in printed
    assert b"r[/b]\\x1b[2J/s" in printed.replace(b"\r\n", b"")
    for sequence in (b"\x1b]0;", b"\xc2\x9b", b"\x1b[2J", b"Traceback"):
        assert sequence not in printed


def test_errors_show_arguments_literally() -> None:
    for arguments in (
        ["run", "\x1b[2J[/a].img"],
        ["--\x1b[2J[/a]"],
        ["stop", "--qmp", "unix:/\x1b[2J[/a]"],
    ):
        printed = on_terminal(*arguments)
        assert b"\\x1b[2J[/a]" in printed
        assert b"\x1b" not in printed
