# SPDX-License-Identifier: Apache-2.0
"""`pyvmm status`, `stop`, `cont` and `quit` as processes, on a real control socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.main import main
from pyvmm.config import HugePages
from pyvmm.units import GIB, MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread
from tests.pyvmm.qmp.scripted_server import scripted_server


def pyvmm(*arguments: object, qmp: Path | None = None) -> tuple[int, str, str]:
    """Run a command, with the control socket in the environment; return status and outputs."""
    environment = {**os.environ, **({"PYVMM_QMP": f"unix:{qmp}"} if qmp else {})}
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_stop_pauses_the_guest_and_cont_resumes_it(tmp_path: Path) -> None:
    machine, qmp = InMemoryVm(), tmp_path / "qmp"
    with served_in_thread(machine, qmp):
        for _ in range(2):
            assert pyvmm("stop", qmp=qmp) == (0, "the guest is paused\n", "")
            assert machine.status == "paused"
        for _ in range(2):
            assert pyvmm("cont", "--qmp", f"unix:{qmp}") == (0, "the guest runs\n", "")
            assert machine.status == "running"


def test_stop_fails_for_a_guest_that_is_not_paused_afterwards(tmp_path: Path) -> None:
    machine, qmp = InMemoryVm(), tmp_path / "qmp"
    machine.status = "postmigrate"
    with served_in_thread(machine, qmp):
        status, out, err = pyvmm("stop", qmp=qmp)
    assert (status, out) == (1, "")
    assert err == "pyvmm: the guest has migrated and runs on the destination\n"


def test_cont_names_the_remedy_of_a_refused_request(tmp_path: Path) -> None:
    machine, qmp = InMemoryVm(), tmp_path / "qmp"
    machine.status = "postmigrate"
    with served_in_thread(machine, qmp):
        status, out, err = pyvmm("cont", qmp=qmp)
    assert (status, out) == (2, "")
    assert err.endswith("on the destination; give the control socket of the destination\n")


def test_quit_returns_when_the_control_socket_is_free(tmp_path: Path) -> None:
    machine, qmp = InMemoryVm(), tmp_path / "qmp"
    with served_in_thread(machine, qmp):
        assert pyvmm("quit", qmp=qmp) == (0, "the guest has ended\n", "")
        assert machine.status == "shutdown"
        assert not qmp.exists()


def test_quit_waits_for_the_removal_of_the_socket_file(tmp_path: Path) -> None:
    """As it does for a guest in a lab, whose socket file belongs to the process in front of it."""
    machine, qmp, link = InMemoryVm(), tmp_path / "qmp", tmp_path / "link"
    with served_in_thread(machine, qmp):
        link.hardlink_to(qmp)
        status, out, err = pyvmm("quit", "--timeout", 0.3, qmp=link)
        assert (status, out) == (1, "")
        assert err == "pyvmm: the guest has not ended within 0.3 s\n"


def test_quit_reports_a_process_that_does_not_end(tmp_path: Path) -> None:
    class Immortal(InMemoryVm):
        def quit(self) -> None:
            pass

    with served_in_thread(Immortal(), tmp_path / "qmp"):
        status, _, err = pyvmm("quit", "--timeout", 0.2, qmp=tmp_path / "qmp")
    assert (status, err) == (1, "pyvmm: the guest has not ended within 0.2 s\n")


def test_status_shows_a_table(tmp_path: Path) -> None:
    machine, qmp = InMemoryVm(), tmp_path / "qmp"
    machine.balloon_actual_bytes = 256 * MIB
    with served_in_thread(machine, qmp):
        status, out, err = pyvmm("status", qmp=qmp)
    assert (status, err) == (0, "")
    backing = "huge pages of hugetlbfs (512 MiB)"
    for words in ("running", "1 GiB", "256 MiB", "768 MiB", "pyvmm 0.", backing):
        assert words in out


@pytest.mark.parametrize(
    ("hugepages", "words"),
    [("transparent", "transparent huge pages (8 MiB)"), ("never", "pages of 4 KiB")],
)
def test_status_names_the_pages_behind_ram(
    tmp_path: Path, hugepages: HugePages, words: str
) -> None:
    machine, qmp = InMemoryVm(), tmp_path / "qmp"
    machine.memory_backing = machine.memory_backing._replace(hugepages=hugepages)
    with served_in_thread(machine, qmp):
        assert words in pyvmm("status", qmp=qmp)[1]


def test_status_of_qemu_has_null_for_facts_of_pyvmm(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = [
        {"return": {}},
        {"return": {"status": "prelaunch", "singlestep": False, "running": False}},
        {"return": {}},
        {"error": {"class": "DeviceNotActive", "desc": "No balloon device"}},
        {"return": {"base-memory": GIB, "plugged-memory": 0}},
        {"return": [{"cpu-index": 0, "thread-id": 4242, "target": "x86_64"}]},
        {"error": {"class": "CommandNotFound", "desc": "not found"}},
        {"return": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian 1:7.2"}},
        {"error": {"class": "CommandNotFound", "desc": "not found"}},
    ]
    for options in (["--json"], []):
        with scripted_server(tmp_path / "qemu", answers) as requests:
            status, out, err = pyvmm("status", *options, qmp=tmp_path / "qemu")
        assert (status, err) == (0, "")
        assert "query-balloon" in requests
        if not options:
            assert "QEMU 7.2.22" in out
            continue
        assert json.loads(out) == {
            "status": "prelaunch",
            "running": False,
            "base-memory": GIB,
            "actual": None,
            "kept": None,
            "cpus": 1,
            "migration": "none",
            "snapshot": None,
            "version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian 1:7.2"},
            "backing": None,
        }


@pytest.mark.parametrize("command", ["status", "stop", "cont", "quit"])
@pytest.mark.parametrize(
    ("qmp", "words"),
    [
        ([], "Missing option '--qmp'"),
        (["--qmp", "/tmp/x"], "expected unix:PATH"),
        (["--qmp", "unix:/nowhere/qmp"], "start a guest with --qmp unix:/nowhere/qmp"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], command: str, qmp: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([command, *qmp])
    captured = capsys.readouterr()
    assert (exit_info.value.code, captured.out) == (2, "")
    assert captured.err.startswith("pyvmm: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_a_guest_that_ends_meanwhile_gives_status_1(tmp_path: Path) -> None:
    class Dying(InMemoryVm):
        def pause(self) -> None:
            self.quit()

    with served_in_thread(Dying(), tmp_path / "qmp"):
        status, _, err = pyvmm("stop", qmp=tmp_path / "qmp")
    assert status == 1
    assert err == "pyvmm: the guest has ended\n"
