# SPDX-License-Identifier: Apache-2.0
"""`pyvmm snapshot` as a process, on a real control socket, and `pyvmm run --restore`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyvmm.units import MIB
from tests.pyvmm.cli.test_cli import run_main
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread

ROOT = Path(__file__).parents[3]


def machine_with_pages() -> InMemoryVm:
    """Return a machine with one page in use and one that the guest reports as unused."""
    machine = InMemoryVm(64 * MIB)
    machine.misc_guest.unused = {6000}
    for pfn in (5000, 6000):
        machine.ram.memory.write(pfn * 4096, b"something")
    return machine


def pyvmm(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_snapshot_is_saved_and_inspected(tmp_path: Path) -> None:
    machine, socket = machine_with_pages(), tmp_path / "qmp"
    with served_in_thread(machine, socket):
        done = pyvmm("snapshot", tmp_path / "s", "--qmp", f"unix:{socket}")
        assert (done.returncode, machine.status) == (0, "running"), done.stderr
        assert "4 KiB unused by the guest" in done.stdout
        assert ", downtime 0." in done.stdout
        done = pyvmm("snapshot", tmp_path / "t", "--qmp", f"unix:{socket}", "--stop", "--no-unused")
        assert (done.returncode, machine.status) == (0, "shutdown"), done.stderr
        assert "unused by" not in done.stdout
    shown = pyvmm("snapshot", tmp_path / "s", "--info")
    assert shown.returncode == 0, shown.stderr
    assert "all checksums match" in shown.stdout
    assert "bitmap dialect" in shown.stdout

    data = bytearray((tmp_path / "s").read_bytes())
    data[5000] ^= 1
    (tmp_path / "s").write_bytes(data)
    shown = pyvmm("snapshot", tmp_path / "s", "--info")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "cannot be used: wrong checksum of the pages from" in shown.stderr


def test_another_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    machine, socket, file = machine_with_pages(), tmp_path / "qmp", tmp_path / "notes"
    file.write_text("mine")
    arguments = ("snapshot", str(file), "--qmp", f"unix:{socket}", "--stop")
    with served_in_thread(machine, socket):
        done = pyvmm(*arguments)
        assert (done.returncode, machine.status) == (2, "running")
        message = f"{file} is a file, but not a snapshot, and is not replaced"
        assert f"pyvmm: {message}; choose another path, or " in done.stderr
        assert "--force; the guest still runs" in done.stderr
        assert file.read_text() == "mine"
        done = pyvmm(*arguments, "--force")
        assert (done.returncode, machine.status) == (0, "shutdown"), done.stderr


def test_a_snapshot_never_replaces_the_control_socket(tmp_path: Path) -> None:
    machine, socket = machine_with_pages(), tmp_path / "qmp"
    with served_in_thread(machine, socket):
        for force in ((), ("--force",)):
            done = pyvmm("snapshot", socket, "--qmp", f"unix:{socket}", *force)
            assert done.returncode == 2
            assert f"{socket}: it is a socket, not a regular file" in done.stderr
        assert pyvmm("status", "--qmp", f"unix:{socket}").returncode == 0


def test_a_restore_removes_the_file_of_a_killed_writer_beside_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket, snapshot, left = tmp_path / "qmp", tmp_path / "s", tmp_path / ".pyvmm-0.part"
    with served_in_thread(machine_with_pages(), socket):
        assert pyvmm("snapshot", snapshot, "--qmp", f"unix:{socket}").returncode == 0
    left.touch()
    monkeypatch.setattr("pyvmm.cli.run.run_guest", lambda *_: 0)
    assert run_main(["run", "--restore", str(snapshot)]) == 0
    assert snapshot.exists()
    assert not left.exists()


def test_a_failed_snapshot_is_one_line(tmp_path: Path) -> None:
    machine, socket = machine_with_pages(), tmp_path / "qmp"
    with served_in_thread(machine, socket):
        done = pyvmm("snapshot", "/proc/none", "--qmp", f"unix:{socket}", "--stop")
        assert (done.returncode, machine.status) == (2, "running")
    assert "cannot write the snapshot /proc/none" in done.stderr


@pytest.mark.parametrize("options", [[], ["--stop"]])
def test_a_signal_ends_the_command_and_tells_that_the_snapshot_continues(
    tmp_path: Path, options: list[str]
) -> None:
    class SilentVm(InMemoryVm):
        def _respond(self) -> None:
            """Leave the request for unused pages without a response."""

    machine, socket, file = SilentVm(64 * MIB), tmp_path / "qmp", tmp_path / "s"
    command = [sys.executable, "-m", "pyvmm", "snapshot", str(file), "--qmp", f"unix:{socket}"]
    with served_in_thread(machine, socket):
        process = subprocess.Popen(
            [*command, "--timeout", "2", *options], stderr=subprocess.PIPE, text=True
        )
        try:
            while not machine.saving:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
        while machine.saving:
            time.sleep(0.01)
    paused = "; the guest then stays paused" if options else ""
    expected = f"interrupted; {file} is still being written, see 'pyvmm status'{paused}"
    assert (process.returncode, err.splitlines()[-1]) == (130, f"pyvmm: {expected}")
    assert file.exists()
    assert machine.status == ("paused" if options else "running")


def test_either_qmp_or_info_is_needed(tmp_path: Path) -> None:
    for arguments in ([], ["--info", "--qmp", "unix:/x"]):
        done = pyvmm("snapshot", tmp_path / "s", *arguments)
        assert (done.returncode, "either --vm, --qmp or --info" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["guest.img"], "IMAGE"),
        (["--kernel", "k"], "--kernel"),
        (["--memory", "1024M"], "--memory"),
        (["--cpus", "1"], "--cpus"),
        (["--offer", "reporting"], "--offer"),
    ],
)
def test_restore_refuses_options_that_configure_the_guest(
    tmp_path: Path, options: list[str], named: str
) -> None:
    done = pyvmm("run", "--restore", tmp_path / "s", *options)
    assert done.returncode == 2
    assert f"--restore and {named} cannot be combined" in done.stderr


def test_restoring_a_file_that_is_not_a_snapshot_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"no snapshot at all" * 1000)
    done = pyvmm("run", "--restore", tmp_path / "s")
    assert done.returncode == 2
    assert "it is not a snapshot, or its header is damaged" in done.stderr
