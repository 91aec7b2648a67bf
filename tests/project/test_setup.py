# SPDX-License-Identifier: Apache-2.0
"""scripts/setup on machines that lack something: one line that says what to do, and nothing done.

The script runs in a copy of its own, and finds programs of ours in place of the machine's: each is
a shell script that records its arguments. So the tests install nothing, even as root.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.project.sources import ROOT

NEEDED = ("awk", "cat", "dirname", "grep", "mktemp", "rm", "sh", "tail")
KNOWN = 'for name in "$@"; do printf "%s:\\n  Candidate: 1.0\\n" "$name"; done'
UNKNOWN = 'for name in "$@"; do printf "%s:\\n  Candidate: (none)\\n" "$name"; done'
NO_NETWORK = "echo \"W: Failed to fetch x: Temporary failure resolving 'deb.debian.org'\""


@dataclass
class FakeMachine:
    """A directory with scripts/setup, and one of programs that replaces PATH."""

    directory: Path
    programs: dict[str, str] = field(
        default_factory=lambda: {
            "id": "echo 1000",
            "dpkg-query": 'case "$3" in bison|kmod) exit 1;; esac; echo "install ok installed"',
            "apt-cache": f"shift; {KNOWN}",
            "apt-get": "true",
            "python3": "true",
        }
    )

    def set_up(self) -> tuple[int, str, list[str]]:
        """Run scripts/setup; return its status, its output and the commands that it ran."""
        (self.directory / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "setup", self.directory / "scripts")
        shutil.copy(ROOT / "debian-packages.txt", self.directory)
        path, calls = self.directory / "bin", self.directory / "calls"
        path.mkdir()
        for name in NEEDED:
            program = shutil.which(name)
            assert program is not None
            (path / name).symlink_to(program)
        for name, script in self.programs.items():
            record = f'echo "{name} $*" >>{calls}\n'
            (path / name).write_text(f"#!{path}/sh\n{record}{script}\n")
            (path / name).chmod(0o755)
        calls.touch()
        done = subprocess.run(
            [self.directory / "scripts" / "setup"],
            env={"PATH": str(path), "TMPDIR": str(self.directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, calls.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def installs(calls: list[str]) -> list[str]:
    return [call for call in calls if call.startswith("apt-get ")]


def test_without_root_it_prints_one_command_and_does_nothing(machine: FakeMachine) -> None:
    status, output, calls = machine.set_up()
    assert status == 1
    assert output.splitlines() == [
        "setup: packages are missing; run this command as root, then make again as yourself:",
        "apt-get update && apt-get install --no-install-recommends bison kmod",
    ]
    assert installs(calls) == []
    assert not (machine.directory / ".venv").exists()


def test_as_root_it_installs_exactly_the_missing_packages(machine: FakeMachine) -> None:
    machine.programs["id"] = "echo 0"
    _, _, calls = machine.set_up()
    assert installs(calls) == [
        "apt-get update",
        "apt-get install -y --no-install-recommends bison kmod",
    ]


def test_the_command_is_the_same_before_the_first_apt_get_update(machine: FakeMachine) -> None:
    machine.programs["apt-cache"] = "true"
    _, output, _ = machine.set_up()
    assert output.endswith("--no-install-recommends bison kmod\n")


@pytest.mark.parametrize("user", ["0", "1000"])
def test_a_package_that_no_source_has_is_named(machine: FakeMachine, user: str) -> None:
    machine.programs["id"] = f"echo {user}"
    machine.programs["apt-cache"] = f"set -- bison; {UNKNOWN}; set -- kmod; {KNOWN}"
    status, output, calls = machine.set_up()
    assert status == 1
    assert output.splitlines()[-1] == (
        "setup: no package source of this machine has, as of the last apt-get update: bison;"
        " Debian 12 and 13 have them"
    )
    assert not any(" install " in call for call in calls)


def test_a_missing_network_is_named_although_apt_reports_a_success(machine: FakeMachine) -> None:
    machine.programs |= {"id": "echo 0", "apt-cache": "true", "apt-get": NO_NETWORK}
    status, output, _ = machine.set_up()
    assert status == 1
    assert output.splitlines() == [
        "setup: updating the list of packages",
        "setup: failed, because a server cannot be reached; check the network and its proxies,"
        " then run make again",
    ]


def test_a_missing_network_is_named_when_packages_cannot_be_fetched(machine: FakeMachine) -> None:
    machine.programs |= {"id": "echo 0", "apt-get": f"{NO_NETWORK}; [ $1 = update ]"}
    status, output, _ = machine.set_up()
    assert status == 1
    step, reason = output.splitlines()[-2:]
    assert step == "setup: installing bison kmod"
    assert "a server cannot be reached" in reason


def test_the_end_of_the_log_explains_any_other_failure(machine: FakeMachine) -> None:
    machine.programs |= {"id": "echo 0", "apt-get": 'echo "E: no space left"; [ $1 = update ]'}
    status, output, _ = machine.set_up()
    assert status == 1
    last, reason = output.splitlines()[-2:]
    assert last == "E: no space left"
    assert reason.startswith("setup: failed: apt-get install -y")


def test_an_old_python_is_refused_first(machine: FakeMachine) -> None:
    machine.programs["python3"] = '[ "$1" = --version ] && echo Python 3.9.2'
    status, output, calls = machine.set_up()
    assert status == 1
    assert output == (
        f"setup: {machine.directory}/bin/python3 is Python 3.9.2;"
        " put Python 3.11 or later first in PATH\n"
    )
    assert not any(call.startswith(("apt", "dpkg")) for call in calls)


def test_a_python_without_ensurepip_is_refused(machine: FakeMachine) -> None:
    machine.programs["dpkg-query"] = 'echo "install ok installed"'
    machine.programs["python3"] = 'case "$2" in *ensurepip*) exit 1;; esac'
    status, output, _ = machine.set_up()
    assert status == 1
    assert len(output.splitlines()) == 1
    assert "has no ensurepip" in output


def test_a_system_without_apt_is_named(machine: FakeMachine) -> None:
    del machine.programs["apt-get"]
    status, output, _ = machine.set_up()
    assert status == 1
    assert "this system has no apt-get" in output
