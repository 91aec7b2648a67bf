# SPDX-License-Identifier: Apache-2.0
"""`pyvmm balloon` as a process, on a real control socket."""

import os
import pty
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pyvmm.units import GIB, MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread
from tests.pyvmm.qmp.scripted_server import scripted_server

ROOT = Path(__file__).parents[3]


def balloon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", "balloon", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_one_line(process: subprocess.CompletedProcess[str], *words: str) -> None:
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("pyvmm: ")
    assert process.stderr.count("\n") == 1
    for word in words:
        assert word in process.stderr


@pytest.mark.parametrize("target_bytes", [256 * MIB, 256 * MIB + 1])
def test_the_target_is_reached(tmp_path: Path, target_bytes: int) -> None:
    machine = InMemoryVm()
    with served_in_thread(machine, tmp_path / "qmp"):
        process = balloon(str(target_bytes), "--qmp", f"unix:{tmp_path}/qmp")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("the guest has 256 MiB of 1 GiB after ")
    assert process.stdout.count("\n") == 1
    assert process.stderr == ""
    assert machine.targets == [target_bytes]
    assert machine.balloon_actual_bytes == -(-target_bytes // 4096) * 4096


def test_a_balloon_is_inflated_and_deflated(tmp_path: Path) -> None:
    machine = InMemoryVm()
    with served_in_thread(machine, tmp_path / "qmp"):
        assert balloon("128M", "--qmp", f"unix:{tmp_path}/qmp").returncode == 0
        process = balloon("1G", "--qmp", f"unix:{tmp_path}/qmp")
    assert process.returncode == 0
    assert machine.balloon_actual_bytes == GIB


def test_no_wait_only_sets_the_target(tmp_path: Path) -> None:
    machine = InMemoryVm(step_bytes=0)
    with served_in_thread(machine, tmp_path / "qmp"):
        process = balloon("256M", "--no-wait", "--qmp", f"unix:{tmp_path}/qmp")
    assert process.returncode == 0
    assert "set the target to 256 MiB of 1 GiB" in process.stdout
    assert machine.targets == [256 * MIB]


def test_without_a_target_the_present_state_is_shown(tmp_path: Path) -> None:
    machine = InMemoryVm()
    machine.balloon_actual_bytes = 256 * MIB
    with served_in_thread(machine, tmp_path / "qmp"):
        process = balloon("--qmp", f"unix:{tmp_path}/qmp")
    assert process.returncode == 0
    for words in ("running", "1 GiB", "256 MiB", "768 MiB"):
        assert words in process.stdout
    assert machine.targets == []


@pytest.mark.parametrize("kept_bytes", [36864, 0])
def test_memory_that_the_host_keeps_is_told(tmp_path: Path, kept_bytes: int) -> None:
    machine = InMemoryVm()
    machine.balloon_kept_bytes = kept_bytes
    with served_in_thread(machine, tmp_path / "qmp"):
        shown = balloon("--qmp", f"unix:{tmp_path}/qmp").stdout
        result = balloon("256M", "--qmp", f"unix:{tmp_path}/qmp").stdout
    assert ("kept by the host" in shown) == bool(kept_bytes)
    told = "; the host keeps 36 KiB of its balloon, as parts of huge pages"
    assert (told in result) == bool(kept_bytes)


def test_a_guest_that_ends_gives_status_1(tmp_path: Path) -> None:
    class DyingMachine(InMemoryVm):
        def set_balloon_target(self, target_bytes: int) -> None:
            self.quit()

    with served_in_thread(DyingMachine(), tmp_path / "qmp"):
        process = balloon("256M", "--qmp", f"unix:{tmp_path}/qmp")
    assert process.returncode == 1
    assert process.stderr == "pyvmm: the guest has ended\n"


def test_a_terminal_gets_a_progress_bar(tmp_path: Path) -> None:
    machine = InMemoryVm(step_bytes=MIB)
    controller, terminal = pty.openpty()
    shown = bytearray()

    def watch() -> None:
        try:
            while data := os.read(controller, 4096):
                shown.extend(data)
        except OSError:  # EIO: the other side was closed
            pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    with served_in_thread(machine, tmp_path / "qmp"):
        process = subprocess.run(
            [sys.executable, "-m", "pyvmm", "balloon", "256M", "--qmp", f"unix:{tmp_path}/qmp"],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=terminal,
            timeout=60,
            check=False,
        )
    os.close(terminal)
    watcher.join(10)
    os.close(controller)
    assert process.returncode == 0
    assert b"inflating" in shown
    assert b"guest has" in shown


def test_a_target_larger_than_ram_is_refused_with_the_limit(tmp_path: Path) -> None:
    machine = InMemoryVm()
    with served_in_thread(machine, tmp_path / "qmp"):
        process = balloon("2G", "--qmp", f"unix:{tmp_path}/qmp")
    assert_one_line(process, "only 1 GiB", f"at most {GIB} bytes")
    assert machine.targets == []


@pytest.mark.parametrize("target", ["nonsense", "0", "1GB", "-1M", "1e6", ""])
def test_invalid_targets_are_refused(target: str) -> None:
    assert_one_line(balloon(target, "--qmp", "unix:/nowhere"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["256M"], "Missing option '--qmp'"),
        (["256M", "--qmp", "/tmp/x"], "expected unix:PATH"),
        (["256M", "--qmp", "unix:/nowhere/qmp"], "start a guest with --qmp unix:/nowhere/qmp"),
        (["256M", "--qmp", "unix:/dev/null"], "connection refused"),
        (["256M", "--qmp", "unix:/nowhere/qmp", "--timeout", "-1"], "--timeout"),
        (["256M", "--qmp", "unix:/nowhere/qmp", "--timeout", "nan"], "--timeout"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], words: str) -> None:
    assert_one_line(balloon(*arguments), words)


@pytest.mark.parametrize("answer", [b"", b"220 mail.example ESMTP\r\n", b'{"hello": 1}\n', b"[]"])
def test_a_socket_that_does_not_speak_qmp_is_refused(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        process = balloon("256M", "--qmp", f"unix:{tmp_path}/other")
        thread.join(10)
    assert_one_line(process, "is not a QMP socket", "--qmp")


def test_qemu_without_a_balloon_device_is_reported_in_one_line(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = [
        {"return": {}},
        {"error": {"class": "DeviceNotActive", "desc": "No balloon device"}},
    ]
    with scripted_server(tmp_path / "qemu", answers):
        process = balloon("256M", "--qmp", f"unix:{tmp_path}/qemu")
    assert_one_line(process, "No balloon device")
