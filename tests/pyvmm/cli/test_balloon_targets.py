# SPDX-License-Identifier: Apache-2.0
"""`pyvmm balloon` and the targets that it leaves behind: refused, reached or taken back."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.qmp.client import QmpClient
from pyvmm.units import GIB, MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread
from tests.pyvmm.qmp.scripted_server import scripted_server

AVAILABLE = 6
"""Tag of the statistic, VIRTIO_BALLOON_S_AVAIL."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Balloon = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def balloon(tmp_path: Path) -> Iterator[Balloon]:
    """Start the command with some arguments, on the socket `qmp` of the test's directory."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pyvmm", "balloon", *map(str, arguments)]
        process = subprocess.Popen(
            [*command, "--qmp", f"unix:{tmp_path}/qmp"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=accept_signals,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def accept_signals() -> None:
    """Undo what nohup or a background job ignores: the command would ignore it, too."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


def result(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit status and standard error of a command without output."""
    out, err = process.communicate(timeout=60)
    assert out == ""
    return process.returncode, err


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- Guests that cannot follow --------------------------------------------------------------------
def test_a_guest_without_a_driver_is_reported_at_once(tmp_path: Path, balloon: Balloon) -> None:
    machine = InMemoryVm(step_bytes=0)
    machine.balloon_driver_runs = False
    with served_in_thread(machine, tmp_path / "qmp"):
        assert result(balloon("256M", "--timeout", 600)) == (
            2,
            "pyvmm: the request failed: the guest runs no balloon driver; wait until it has booted,"
            " or load virtio_balloon in it\n",
        )
        assert machine.targets == []
        assert balloon("256M", "--no-wait").wait(30) == 0
    assert machine.targets == [256 * MIB]


def test_a_paused_guest_is_reported_at_once(tmp_path: Path, balloon: Balloon) -> None:
    machine = InMemoryVm(step_bytes=0)
    machine.status = "paused"
    with served_in_thread(machine, tmp_path / "qmp"):
        assert result(balloon("256M", "--timeout", 600)) == (
            2,
            "pyvmm: the request failed: the guest is paused and cannot respond; let it run with:"
            " pyvmm cont\n",
        )
    assert machine.targets == []


def test_a_driver_that_stops_ends_the_wait(tmp_path: Path, balloon: Balloon) -> None:
    class Unbinding(InMemoryVm):
        def set_balloon_target(self, target_bytes: int) -> None:
            super().set_balloon_target(target_bytes)
            self.balloon_driver_runs = False

    machine = Unbinding(step_bytes=0)
    with served_in_thread(machine, tmp_path / "qmp"):
        assert result(balloon("256M", "--timeout", 600)) == (
            1,
            "pyvmm: the guest's balloon driver has stopped; its target is 1 GiB again\n",
        )


# --- Targets that are taken back ------------------------------------------------------------------
def test_a_target_that_is_not_reached_is_taken_back(tmp_path: Path, balloon: Balloon) -> None:
    machine = InMemoryVm(stuck_at_bytes=300 * MIB)
    with served_in_thread(machine, tmp_path / "qmp"):
        assert balloon("768M").wait(30) == 0
        assert result(balloon("256M", "--timeout", 0.3)) == (
            1,
            "pyvmm: the guest stopped at 300 MiB of 1 GiB (44 MiB short); its balloon has not"
            " changed for 0.3 s; its target is 768 MiB again\n",
        )
        until(lambda: machine.balloon_actual_bytes == 768 * MIB)
    assert machine.targets == [768 * MIB, 256 * MIB, 768 * MIB]


def test_keep_target_leaves_the_target_in_force(tmp_path: Path, balloon: Balloon) -> None:
    machine = InMemoryVm(stuck_at_bytes=300 * MIB)
    with served_in_thread(machine, tmp_path / "qmp"):
        status, err = result(balloon("256M", "--timeout", 0.3, "--keep-target"))
    assert (status, err.endswith("for 0.3 s; its target stays 256 MiB\n")) == (1, True)
    assert machine.targets == [256 * MIB]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_takes_the_target_back(
    tmp_path: Path, balloon: Balloon, signum: signal.Signals
) -> None:
    machine = InMemoryVm(stuck_at_bytes=300 * MIB)
    with served_in_thread(machine, tmp_path / "qmp"):
        process = balloon("256M", "--timeout", 600)
        until(lambda: machine.balloon_actual_bytes == 300 * MIB)
        time.sleep(0.3)  # until the command has seen that
        process.send_signal(signum)
        assert result(process) == (
            128 + signum,
            "pyvmm: interrupted when the guest had 300 MiB of 1 GiB; its target is 1 GiB again\n",
        )
    assert machine.targets == [256 * MIB, GIB]


def test_a_deflation_is_not_taken_back(tmp_path: Path, balloon: Balloon) -> None:
    machine = InMemoryVm(step_bytes=0)
    machine.balloon_actual_bytes = 512 * MIB
    with served_in_thread(machine, tmp_path / "qmp"):
        status, err = result(balloon("1G", "--timeout", 0.3))
    assert (status, err.endswith("for 0.3 s; its target stays 1 GiB\n")) == (1, True)
    assert machine.targets == [GIB]


def test_a_target_that_another_client_has_set_stays(tmp_path: Path, balloon: Balloon) -> None:
    machine = InMemoryVm(stuck_at_bytes=300 * MIB)
    with served_in_thread(machine, tmp_path / "qmp"):
        process = balloon("256M", "--timeout", 600)
        until(lambda: machine.targets == [256 * MIB])
        with QmpClient(tmp_path / "qmp") as other:
            other.execute("balloon", value=280 * MIB)
        process.send_signal(signal.SIGTERM)
        status, err = result(process)
    assert status == 128 + signal.SIGTERM
    assert err.endswith("; another client has set its target to 280 MiB\n")
    assert machine.targets == [256 * MIB, 280 * MIB]


EMPTY: dict[str, Any] = {"return": {}}
RAM = {"return": {"base-memory": GIB}}
RUNNING = {"return": {"status": "running"}}
NO_COMMAND = {"error": {"class": "CommandNotFound", "desc": "The command has not been found"}}


def state(actual_bytes: int, target_bytes: int) -> dict[str, Any]:
    return {"return": {"actual": actual_bytes, "target": target_bytes, "driver": True}}


def test_a_lost_connection_takes_the_target_back(tmp_path: Path, balloon: Balloon) -> None:
    first = [EMPTY, RAM, state(GIB, GIB), RUNNING, NO_COMMAND, EMPTY]
    second = [EMPTY, state(400 * MIB, 256 * MIB), EMPTY]
    with scripted_server(tmp_path / "qmp", first, second) as requests:
        assert result(balloon("256M")) == (
            2,
            "pyvmm: the connection to the guest was lost; its target is 1 GiB again; try again\n",
        )
    assert requests[-3:] == ["qmp_capabilities", "query-balloon", "balloon"]


def test_a_target_of_qemu_is_replaced_by_the_earlier_size(tmp_path: Path, balloon: Balloon) -> None:
    full = {"return": {"actual": 768 * MIB}}
    first = [EMPTY, RAM, full, RUNNING, EMPTY]
    second = [EMPTY, full, EMPTY]
    with scripted_server(tmp_path / "qmp", first, second):
        status, err = result(balloon("256M", "--timeout", 0))
    assert (status, err.endswith("; its target is 768 MiB again\n")) == (1, True)


# --- Targets with which the guest cannot live -----------------------------------------------------
def test_a_target_below_the_need_of_the_guest_is_refused(tmp_path: Path, balloon: Balloon) -> None:
    machine = InMemoryVm()
    machine.stats_guest.statistics[AVAILABLE] = 924 * MIB
    with served_in_thread(machine, tmp_path / "qmp"):
        assert result(balloon("100M")) == (
            2,
            "pyvmm: the guest needs 116 MiB of RAM: it has 1 GiB, of which 924 MiB are available;"
            " give a larger target, or set this one with --force\n",
        )
        assert result(balloon("115M", "--no-wait"))[0] == 2
        assert machine.targets == []
        assert balloon("116M").wait(30) == 0
        assert balloon("1G").wait(30) == 0
        assert balloon("1M", "--force").wait(30) == 0
    assert machine.targets == [116 * MIB, GIB, MIB]


@pytest.mark.parametrize("case", ["no statistic", "no driver", "paused"])
def test_without_statistics_a_guest_needs_the_least_ram_of_a_machine(
    tmp_path: Path, balloon: Balloon, case: str
) -> None:
    machine = InMemoryVm(step_bytes=0)
    machine.balloon_driver_runs = case != "no driver"
    machine.status = "paused" if case == "paused" else "running"
    with served_in_thread(machine, tmp_path / "qmp"):
        status, err = result(balloon("63M", "--no-wait"))
        assert (status, "less than a guest can have, 64 MiB, and" in err) == (2, True)
        assert balloon("64M", "--no-wait").wait(30) == 0
        assert balloon("63M", "--no-wait", "--force").wait(30) == 0
    assert machine.targets == [64 * MIB, 63 * MIB]
