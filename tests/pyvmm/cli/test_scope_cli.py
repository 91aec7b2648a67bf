# SPDX-License-Identifier: Apache-2.0
"""`pyvmm scope`: its options, its text, and the process that serves the page."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.qmp.server import ControlServer
from pyvmm.runtime_directory.announcement import announce
from pyvmm.trace.recording_file import RecordingFile
from pyvmm.units import MIB
from pyvmm_native.events import EventBuffer
from tests.pyvmm.cli.test_cli import run_main
from tests.pyvmm.qmp.conftest import serve
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread
from tests.pyvmm.qmp.qmp_scenarios import Serve

__all__ = ["serve"]

URL = r"http://127\.0\.0\.1:\d+/\S{43}/"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Return a recording with an escape sequence and a line break of the guest in it."""
    buffer = EventBuffer()
    buffer.start()
    buffer.event("balloon.target", pages=5)
    buffer.event("echo.bad_payload", why="\x1b[2J\nforged line", queue="in")
    batch = buffer.stop()
    assert batch is not None
    file = RecordingFile(tmp_path / "boot.rec")
    file.commit()
    file.write(batch)
    file.close()
    return tmp_path / "boot.rec"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pyvmm", "scope", "--no-open", *map(str, arguments)]


@contextmanager
def started(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command; yield its process and the address that it has printed."""
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(
            r"The scope is at (http://127\.0\.0\.1:\d+/\S{43}/) until Ctrl-C\n", line
        )
        assert found, line
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def test_text_is_a_line_for_each_event(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["scope", str(recorded), "--text"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["0.000000", "balloon", "target", "5", "pages"]
    assert second.split(maxsplit=1)[1] == (
        "echo/in            bad_payload         why=\\x1b[2J\\nforged line"
    )


def test_text_of_chosen_events_only(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["scope", str(recorded), "--text", "--device", "echo"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["bad_payload"]


def test_a_recording_precedes_a_guest_of_the_environment(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVMM_QMP", "unix:/nothing")
    assert run_main(["scope", str(recorded), "--text"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_text_of_a_guest_that_runs(serve: Serve) -> None:
    async def scenario(vm: InMemoryVm, path: Path) -> None:
        arguments = [
            each for each in command("--qmp", f"unix:{path}", "--text") if each != "--no-open"
        ]
        process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
        while not vm.tracer.quiet.watched:
            await asyncio.sleep(0.02)
        vm.tracer.event("balloon.target", pages=7)
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert line.split() == [b"0.000000", b"balloon", b"target", b"7", b"pages"]
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0

    serve(scenario)


def test_the_page_shows_the_name_of_a_guest_that_was_given_by_name() -> None:
    with announce("web") as announcement, served_in_thread(InMemoryVm(), announcement):
        announcement.describe("/guest.img", 256 * MIB, None)
        with started("--vm", "web") as (_, url), urllib.request.urlopen(f"{url}api/source") as page:
            assert json.load(page)["name"] == "web"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_page_is_served_until_a_signal(recorded: Path, signum: signal.Signals) -> None:
    with started(recorded) as (process, url):
        with urllib.request.urlopen(url) as page:
            assert b"<!doctype html>" in page.read()
        process.send_signal(signum)
        assert process.wait(10) == 0


def test_the_page_remains_when_the_guest_ends(tmp_path: Path) -> None:
    async def main() -> None:
        server = ControlServer(InMemoryVm(), tmp_path / "qmp")
        await server.start()
        process = await asyncio.create_subprocess_exec(
            *command("--qmp", f"unix:{tmp_path / 'qmp'}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.readline()
        await server.close()
        assert await process.stderr.readline() == (
            b"pyvmm: the guest has ended; the page keeps its events until Ctrl-C\n"
        )
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 1
        assert await process.stderr.read() == b""

    asyncio.run(asyncio.wait_for(main(), 30))


def test_mistakes_are_one_line(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, message in (
            ([], "Give a recording, or a running guest with --qmp or --vm"),
            (["--qmp", "unix:/x", str(recorded)], "a recording and a running guest are given"),
            ([str(recorded), "--port", "8080", "--text"], "--port has no effect with --text"),
            ([str(recorded), "--kind", "used"], "--kind chooses events to print; add --text"),
            ([str(recorded), "--port", port], f"port {port} cannot be used: Address already"),
            (["/nothing"], "/nothing cannot be read: No such file or directory"),
            (["/dev/null"], "/dev/null"),
        ):  # fmt: skip
            assert run_main(["scope", "--no-open", *arguments] if arguments else ["scope"]) == 2
            output = capsys.readouterr()
            assert message in output.err
            assert output.err.count("\n") == 1
            assert output.out == ""
