# SPDX-License-Identifier: Apache-2.0
"""`pyvmm stats` as a process, on a real control socket and a real virtqueue."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from devices.testing.balloon.stats import FREE, MAJOR_FAULTS, TOTAL
from pyvmm.cli.stats_tables import table
from pyvmm.machine.run_state import RunState
from pyvmm.units import MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pyvmm", "stats", *arguments]


def stats(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def background(*arguments: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """`pyvmm stats` in the background, interrupted at the end if it still runs."""
    with subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.communicate(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise


def rows(text: str) -> dict[str, str]:
    """Return the first two columns of the table in `text`."""
    lines = [re.split(r"\s*[│┃|]\s*", line.strip("│┃| ")) for line in text.splitlines()]
    return {cells[0]: cells[1] for cells in lines if len(cells) > 1}


def test_statistics_are_shown_in_a_table(tmp_path: Path) -> None:
    machine = InMemoryVm()
    machine.stats_guest.statistics = {FREE: 600 * MIB, TOTAL: 1000 * MIB, MAJOR_FAULTS: 7000, 16: 9}
    with served_in_thread(machine, tmp_path / "qmp"):
        process = stats("--qmp", f"unix:{tmp_path}/qmp")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    shown = rows(process.stdout)
    assert shown["free memory"] == "600 MiB"
    assert shown["total memory"] == "1000 MiB"
    assert shown["major faults"] == "7,000"
    assert shown["tag 16"] == "9"
    assert [name for name, value in shown.items() if value == "absent"] == [
        *("swap in", "swap out", "minor faults", "available memory", "disk caches"),
        *("htlb pgalloc", "htlb pgfail", "oom kills", "alloc stalls"),
        *("async scans", "direct scans", "async reclaims", "direct reclaims"),
    ]
    assert machine.stats_guest.requests == 1


def test_json_is_one_line_with_null_for_absent(tmp_path: Path) -> None:
    machine = InMemoryVm()
    with served_in_thread(machine, tmp_path / "qmp"):
        process = stats("--qmp", f"unix:{tmp_path}/qmp", "--json")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("\n") == 1
    answer = json.loads(process.stdout)
    assert answer["stats"]["stat-free-memory"] == machine.stats_guest.statistics[FREE]
    assert answer["stats"]["stat-swap-in"] is None
    assert len(answer["stats"]) == 16
    assert answer["unknown"] == {}


class SilentVm(InMemoryVm):
    def _respond(self) -> None:
        """Leave requests without a response."""


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_guest_that_does_not_answer_gives_status_1(tmp_path: Path, form: list[str]) -> None:
    with served_in_thread(SilentVm(), tmp_path / "qmp"):
        process = stats("--qmp", f"unix:{tmp_path}/qmp", "--timeout", "0.1", *form)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "pyvmm: the guest has not responded within 0.1 s\n"


@pytest.mark.parametrize(
    ("status", "driver_runs", "message"),
    [
        (
            "paused",
            True,
            "the guest is paused and cannot respond; let it run with: pyvmm cont",
        ),
        (
            "running",
            False,
            "the guest runs no balloon driver; wait until it has booted, or load virtio_balloon"
            " in it",
        ),
    ],
)
def test_a_guest_that_cannot_answer_is_not_waited_for(
    tmp_path: Path, status: RunState, driver_runs: bool, message: str
) -> None:
    machine = InMemoryVm()
    machine.status, machine.balloon_driver_runs = status, driver_runs
    with served_in_thread(machine, tmp_path / "qmp"):
        process = stats("--qmp", f"unix:{tmp_path}/qmp", "--timeout", "600")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == f"pyvmm: {message}\n"


def test_watch_prints_answers_until_the_guest_ends(tmp_path: Path) -> None:
    machine = InMemoryVm()
    with (
        served_in_thread(machine, tmp_path / "qmp"),
        background("--qmp", f"unix:{tmp_path}/qmp", "--json", "--watch", "0.01") as process,
    ):
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline())]
        machine.stats_guest.statistics[FREE] = 1
        while seen[-1]["stats"]["stat-free-memory"] != 1:
            seen.append(json.loads(process.stdout.readline()))
        machine.stats_guest.board.balloon.stats.report_received.add(lambda report: machine.quit())
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "pyvmm: the guest has ended"


def test_watch_updates_one_table_on_a_terminal(tmp_path: Path) -> None:
    machine = InMemoryVm()
    controller, terminal = pty.openpty()
    with (
        served_in_thread(machine, tmp_path / "qmp"),
        background(
            "--qmp", f"unix:{tmp_path}/qmp", "--watch", "0.05", "--timeout", "0.1", stdout=terminal
        ) as process,
    ):
        os.close(terminal)
        read_until(controller, "600 MiB")
        machine.stats_guest.statistics[FREE] = 300 * MIB
        shown = read_until(controller, "-300 MiB")
        assert "change" in shown
        assert "\x1b[1A" in shown, "the cursor goes up to write over the table"
        machine.status = "paused"
        read_until(controller, "these figures are out of date")
        process.send_signal(signal.SIGINT)
        drain(controller)
        assert process.wait(30) == 130
    os.close(controller)


def drain(controller: int) -> None:
    """Read, as a terminal does, until no process has it open for writing."""
    with suppress(OSError):  # EIO, the end of a terminal
        while os.read(controller, 4096):
            pass


def read_until(controller: int, words: str) -> str:
    """Read from a terminal until `words` appear; the test's time limit bounds the wait."""
    text = ""
    while words not in text:
        text += os.read(controller, 4096).decode(errors="replace")
    return text


def test_watch_prints_tables_below_each_other_elsewhere(tmp_path: Path) -> None:
    machine = InMemoryVm()
    with (
        served_in_thread(machine, tmp_path / "qmp"),
        background("--watch", "--qmp", f"unix:{tmp_path}/qmp") as process,
    ):
        assert process.stdout is not None
        while "direct reclaims" not in (line := process.stdout.readline()):
            assert "\x1b" not in line


def test_changes_are_shown_with_their_sign() -> None:
    names = ("stat-free-memory", "stat-major-faults", "stat-swap-in", "stat-oom-kills")
    before = {"stats": dict(zip(names, (MIB, 5, None, 2), strict=True)), "unknown": {}}
    now = {
        "stats": dict(zip(names, (3 * MIB, 4, 4096, 2), strict=True)),
        "unknown": {"77": 1},
        "time": {"seconds": 0, "microseconds": 0},
    }
    columns = {column.header: list(column.cells) for column in table(now, before).columns}
    assert columns["value"] == ["3 MiB", "4", "4 KiB", "2", "1"]
    assert columns["change"] == ["+2 MiB", "-1", "", "", ""]
    assert "change" not in [column.header for column in table(now, None).columns]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--qmp'"),
        (["--qmp", "/tmp/x"], "expected unix:PATH"),
        (["--qmp", "unix:/nowhere/qmp"], "start a guest with --qmp unix:/nowhere/qmp"),
        (["--qmp", "unix:/nowhere/qmp", "--watch", "soon"], "--watch"),
        (["--qmp", "unix:/nowhere/qmp", "--timeout", "-1"], "--timeout"),
        (["--qmp", "unix:/nowhere/qmp", "extra"], "extra"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], words: str) -> None:
    process = stats(*arguments)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("pyvmm: ")
    assert process.stderr.count("\n") == 1
    assert words in process.stderr
