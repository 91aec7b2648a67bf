# SPDX-License-Identifier: Apache-2.0
"""Starts of the lab for which there is no boot snapshot, and none can be written."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devices.listeners import Listeners
from pyvmm.lab import start as module
from pyvmm.lab.boot_snapshot import BootSnapshotError, snapshot_path
from pyvmm.lab.mux import Multiplexer
from pyvmm.lab.qemu import LabProcess
from pyvmm.lab.signals import signal_pipe


class FakeLab:
    """Counts its starts."""

    started: list[Path | None]

    def __init__(self, machine: list[str], snapshot: Path | None = None) -> None:
        self.snapshot = snapshot
        self.monitor = SimpleNamespace(watch=lambda fd, interrupt: None)
        self.started.append(snapshot)

    def end(self) -> None:
        """There is nothing to end."""


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Return the boot snapshot of each start that follows, None for a boot."""
    FakeLab.started = []
    monkeypatch.setattr(module, "LabProcess", FakeLab)
    monkeypatch.setattr(module, "machine_arguments", lambda *_: ["qemu"])
    monkeypatch.setattr(module, "_boot", lambda lab, signals: True)
    return FakeLab.started


def test_without_a_place_for_a_boot_snapshot_the_lab_boots_once(
    starts: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "snapshot_path", lambda machine: None)
    module.start(memory_mib=1024, cpus=1, signals=-1)
    assert starts == [None]


def test_a_boot_snapshot_that_cannot_be_written_is_tried_once(
    starts: list[Path | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full_disk(monitor: object, path: Path) -> None:
        raise BootSnapshotError("migrate: No space left on device")

    monkeypatch.setattr(module, "snapshot_path", lambda machine: tmp_path / "snapshot")
    monkeypatch.setattr(module, "save", full_disk)
    module.start(memory_mib=1024, cpus=1, signals=-1)
    assert starts == [None, None]


@pytest.mark.parametrize(("ratio", "right"), [(0.02, False), (1.0, True), (50.0, False)])
def test_the_clock_of_a_booted_lab_is_compared_with_the_hosts(
    ratio: float, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOCK_CHECK_S", 0.1)
    host, agent_end = socket.socketpair()
    begin = time.monotonic()

    def uptime() -> float:
        return (time.monotonic() - begin) * ratio

    def answer(message: dict[str, Any]) -> None:
        agent.send_control({"pong": uptime()})

    agent = Multiplexer(agent_end.fileno(), answer)
    agent.send_control({"booted": uptime()})

    def serve() -> None:
        for _ in range(5):
            agent.turn(200)

    thread = threading.Thread(target=serve)
    thread.start()
    lab = SimpleNamespace(link=host)
    with host, agent_end, signal_pipe(Listeners()) as signals:
        assert module._boot(cast(LabProcess, lab), signals) is right
        thread.join()


def test_a_signal_ends_the_first_boot_of_a_lab() -> None:
    host, agent_end = socket.socketpair()
    lab = SimpleNamespace(link=host)
    with host, agent_end, signal_pipe(Listeners()) as signals:
        os.kill(os.getpid(), signal.SIGWINCH)  # does not end anything
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(module.StartInterrupted) as interrupted:
            module._boot(cast(LabProcess, lab), signals)
    assert interrupted.value.number == signal.SIGTERM


def test_a_lab_with_a_wrong_clock_is_booted_again_and_then_not_saved(
    starts: list[Path | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "snapshot_path", lambda machine: tmp_path / "snapshot")
    monkeypatch.setattr(module, "_boot", lambda lab, signals: False)
    module.start(memory_mib=1024, cpus=1, signals=-1)
    assert starts == [None, None, None]


def test_a_cache_without_a_place_has_no_boot_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert snapshot_path(["/bin/sh"]) is None
