# SPDX-License-Identifier: Apache-2.0
"""`pyvmm migrate` as a process; the source and the destination are real sockets."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.migrate import failure, progress_line, summary
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.stream_receivers import StreamReceivers
from tests.pyvmm.migration.migration_destination import Destination
from tests.pyvmm.migration.migration_guest import FakeTarget
from tests.pyvmm.migration.test_source_candidates import Destination as WaitingDestination
from tests.pyvmm.migration.test_source_candidates import run
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pyvmm", "migrate", *map(str, arguments)]


def migrate(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[InMemoryVm]:
    """Serve a VM at `tmp_path`/qmp."""
    machine = InMemoryVm()
    machine.ram.memory.write(0, b"something")
    with served_in_thread(machine, tmp_path / "qmp"):
        yield machine


def test_the_guest_moves_and_its_process_ends(tmp_path: Path, machine: InMemoryVm) -> None:
    """Paths are relative to the directory of the command, not of the guest's process."""
    home = FakeTarget()
    destination = Destination(tmp_path / "m", home)
    done = migrate("unix:m", "--qmp", "unix:qmp", cwd=tmp_path)
    destination.join()
    assert (done.returncode, machine.status) == (0, "shutdown"), done.stderr
    assert done.stdout.startswith("the guest has moved in ")
    assert done.stdout.count("\n") == 1
    assert done.stdout.endswith(" MiB (answered on the misc queue)\n")
    assert done.stderr == f"pyvmm: migrating the guest to unix:{tmp_path}/m\n"
    assert home.runs
    assert home.ram is not None
    assert home.ram.page(0)[:9] == b"something"


def test_keep_leaves_the_source_process_running(tmp_path: Path, machine: InMemoryVm) -> None:
    destination = Destination(tmp_path / "m", FakeTarget())
    done = migrate(
        *(f"unix:{tmp_path}/m", "--qmp", f"unix:{tmp_path}/qmp", "--keep", "--no-unused"),
        *("--downtime-limit", 50, "--max-bandwidth", "1G", "--auto-converge"),
    )
    destination.join()
    assert (done.returncode, machine.status) == (0, "postmigrate"), done.stderr
    assert "query disabled" in done.stdout
    settings = machine.migrations.settings
    assert (settings.downtime_limit_s, settings.max_bandwidth) == (0.05, 1 << 30)
    assert settings.auto_converge


def test_omitted_options_reset_parameters_to_their_defaults(
    tmp_path: Path, machine: InMemoryVm
) -> None:
    """Parameters of an earlier migration do not persist."""
    untouched = machine.migrations.settings
    for options in (["--downtime-limit", 5, "--max-bandwidth", "1G", "--auto-converge"], []):
        migrate(f"unix:{tmp_path}/m", "--qmp", f"unix:{tmp_path}/qmp", *options)
        assert (machine.migrations.settings == untouched) == (not options)


def test_a_missing_destination_is_reported(tmp_path: Path, machine: InMemoryVm) -> None:
    done = migrate(f"unix:{tmp_path}/m", "--qmp", f"unix:{tmp_path}/qmp")
    assert (done.returncode, done.stdout, machine.status) == (1, "", "running")
    assert done.stderr.splitlines()[1] == (
        f"pyvmm: the guest has not moved: no destination can be reached at"
        f" unix:{tmp_path}/m: no such file or directory; it still runs here; start one with:"
        f" pyvmm run --incoming unix:{tmp_path}/m"
    )


def test_an_aborting_destination_is_reported(tmp_path: Path, machine: InMemoryVm) -> None:
    def fail() -> None:
        raise MigrationError("it has no room")

    destination = Destination(tmp_path / "m", FakeTarget(on_restore=fail))
    done = migrate(f"unix:{tmp_path}/m", "--qmp", f"unix:{tmp_path}/qmp")
    destination.join()
    assert (done.returncode, machine.status) == (1, "running")
    assert "the destination has aborted: it has no room; it still runs here" in done.stderr


class StuckDestination:
    """A destination that accepts a connection, reads one byte and never answers."""

    def __init__(self, path: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._server.settimeout(20)

    def wait(self) -> socket.socket:
        stream, _ = self._server.accept()
        stream.settimeout(20)
        assert stream.recv(1)
        return stream


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_migration(tmp_path: Path, machine: InMemoryVm, signum: int) -> None:
    stuck = StuckDestination(tmp_path / "m")
    process = subprocess.Popen(
        command(f"unix:{tmp_path}/m", "--qmp", f"unix:{tmp_path}/qmp"),
        stderr=subprocess.PIPE,
        text=True,
    )
    with stuck.wait():
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, machine.status) == (1, "running")
    assert stderr.splitlines()[1:] == [
        "pyvmm: the guest has not moved: the migration was cancelled; it still runs here"
    ]


def test_a_terminal_shows_the_progress(tmp_path: Path, machine: InMemoryVm) -> None:
    stuck = StuckDestination(tmp_path / "m")
    person, program = pty.openpty()
    process = subprocess.Popen(
        command(f"unix:{tmp_path}/m", "--qmp", f"unix:{tmp_path}/qmp"),
        stderr=program,
        env={**os.environ, "TERM": "xterm"},  # a dumb terminal is shown no progress
    )
    os.close(program)
    shown = b""
    with stuck.wait():
        while b"B sent, " not in shown:
            shown += os.read(person, 1000)
        assert b"active" in shown
        process.send_signal(signal.SIGINT)
        while b"it still runs here" not in shown:
            shown += os.read(person, 1000)
    assert process.wait(20) == 1
    os.close(person)


def test_a_source_process_that_ends_is_reported(tmp_path: Path) -> None:
    machine = InMemoryVm()
    machine.ram.memory.write(0, b"something")
    stuck = StuckDestination(tmp_path / "m")
    with served_in_thread(machine, tmp_path / "qmp"):
        process = subprocess.Popen(
            command(f"unix:{tmp_path}/m", "--qmp", f"unix:{tmp_path}/qmp"),
            stderr=subprocess.PIPE,
            text=True,
        )
        stream = stuck.wait()
    _, stderr = process.communicate(timeout=30)
    stream.close()
    assert process.returncode == 1
    assert "check whether the guest runs at the destination" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exec:cat"], "'exec:cat' is not an address: expected tcp:HOST:PORT"),
        (["tcp:192.0.2.1:4444"], "tcp:192.0.2.1:4444 is not on this host, and there is no TLS"),
        (["unix:/m", "--tls-ca", __file__], "TLS needs a CA, a certificate and a key"),
        (["unix:/m", "--tls-ca", "/nowhere"], "File '/nowhere' does not exist"),
        (["unix:" + "x" * 100], "is longer than 107 bytes"),
        (["unix:/m", "--checksum", "md5"], "'md5' is not one of 'auto', 'crc32c', 'xxh3', 'none'"),
        (["unix:/m", "--streams", "17"], "17 is not in the range 1<=x<=16"),
        (["unix:/m", "--max-bandwidth", "1000"], "'max-bandwidth' expects 0 or at least"),
        (["unix:/m", "--max-bandwidth", "much"], "'much' is not a size"),
        (["unix:/m", "--downtime-limit", "-1"], "-1 is not in the range"),
        ([], "Missing argument 'ADDRESS'"),
    ],
)
def test_invalid_arguments_are_refused(
    tmp_path: Path, machine: InMemoryVm, arguments: list[str], message: str
) -> None:
    done = migrate(*arguments, "--qmp", f"unix:{tmp_path}/qmp")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert machine.migrations.status == "none"


def test_pages_without_a_checksum_stay_on_unix_sockets(tmp_path: Path, machine: InMemoryVm) -> None:
    done = migrate("tcp:127.0.0.1:1", "--checksum", "none", "--qmp", f"unix:{tmp_path}/qmp")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pyvmm: the request failed: Pages without a checksum are sent over unix sockets only;"
        " give --checksum crc32c\n"
    )
    assert machine.migrations.status == "none"


@pytest.mark.parametrize("name", ["xxh3", "none"])
def test_another_checksum_can_be_chosen(tmp_path: Path, machine: InMemoryVm, name: str) -> None:
    destination = Destination(tmp_path / "m", FakeTarget())
    done = migrate("unix:m", "--qmp", "unix:qmp", "--checksum", name, cwd=tmp_path)
    destination.join()
    assert (done.returncode, destination.checksum) == (0, name), done.stderr


def test_memory_is_sent_on_the_streams_that_were_asked_for(
    tmp_path: Path, machine: InMemoryVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []
    end = StreamReceivers.end

    def count(streams: StreamReceivers) -> int:
        received.append(end(streams))
        return received[-1]

    async def scenario(destination: WaitingDestination) -> None:
        options = ("--streams", 2, "--qmp", f"unix:{tmp_path}/qmp")
        done = await asyncio.to_thread(migrate, destination.address, *options)
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(StreamReceivers, "end", count)
    destination = run(scenario)
    assert destination.created[0].has_run
    assert received[0] > 0


def test_tls_on_a_unix_socket_is_refused(tmp_path: Path, machine: InMemoryVm) -> None:
    files = [word for name in ("ca", "cert", "key") for word in (f"--tls-{name}", __file__)]
    done = migrate("unix:/m", *files, "--qmp", f"unix:{tmp_path}/qmp")
    assert (done.returncode, "TLS is not supported on a unix socket" in done.stderr) == (2, True)
    assert machine.migrations.status == "none"


@pytest.mark.parametrize(
    ("before", "now", "stderr"),
    [
        ("running", "running", "the guest has not moved: why; it still runs here"),
        ("paused", "paused", "the guest has not moved: why; it is still paused here"),
        ("running", "shutdown", "the guest has not moved: why; it has ended here"),
        ("running", "paused", "the guest may or may not have moved: why"),
    ],
)
def test_a_failure_says_where_the_guest_is(before: str, now: str, stderr: str) -> None:
    assert failure({"status": "failed", "error-desc": "why"}, before, now) == stderr


def test_the_summary_has_times_bytes_rounds_and_skipped_pages() -> None:
    answer: dict[str, Any] = {
        "total-time": 3210,
        "downtime": 45,
        "ram": {"transferred": 54 << 20, "dirty-sync-count": 3},
        "unused-pages": {"skipped": 53760, "how": "answered on the misc queue"},
    }
    assert summary(answer) == (
        "the guest has moved in 3.21 s, downtime 0.04 s; sent 54 MiB in 3 rounds;"
        " left out as unused: 53,760 pages, 210 MiB (answered on the misc queue)"
    )


def test_the_progress_line_has_bytes_round_and_throttle() -> None:
    answer: dict[str, Any] = {
        "ram": {"transferred": 5 << 20, "remaining": 7 << 20, "dirty-sync-count": 2}
    }
    line = "5 MiB sent, 7 MiB left, round 3"
    assert progress_line(answer) == line
    answer["cpu-throttle-percentage"] = 40
    assert progress_line(answer) == f"{line}, guest throttled by 40 %"
