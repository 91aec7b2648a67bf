# SPDX-License-Identifier: Apache-2.0
"""`Guest`: commands from Python, from several threads, after a restore, and in pytest's fixture."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyvmm.harness import CommandNotStarted, CommandTimeout, Guest, GuestExited
from pyvmm.trace.recording import Recording
from pyvmm.units import MIB

pytestmark = pytest.mark.kvm

BOOT_SECONDS: list[float] = []


@pytest.fixture(scope="module")
def shared(guest_image: Path) -> Iterator[Guest]:
    """Boot a guest with a file of the host for the tests of this module."""
    begin = time.monotonic()
    put = [(Path(__file__), "/data/file")]
    with Guest(guest_image, ram_bytes=256 * MIB, put=put, commands=8) as guest:
        BOOT_SECONDS.append(time.monotonic() - begin)
        yield guest


def test_commands_have_streams_a_status_and_a_directory(shared: Guest) -> None:
    script = 'pwd; wc -c <file; echo "$NAME" >&2; cat; exit 3'
    result = shared.run(
        ["sh", "-c", script], input=b"\xff\0in", environment={"NAME": "a b"}, directory="/data"
    )
    size = Path(__file__).stat().st_size
    assert result.stdout.encode(errors="surrogateescape") == b"/data\n%d\n\xff\0in" % size
    assert (result.stderr, result.status, result.signal) == ("a b\n", 3, None)
    assert shared.run(["sh", "-c", "kill -TERM $$"]).signal == 15
    with pytest.raises(CommandNotStarted):
        shared.run(["no-such-program"])


def test_eight_threads_run_commands_at_once(shared: Guest) -> None:
    script = 'echo "$1" >/tmp/at-$1; until [ $(ls /tmp/at-* | wc -l) = 8 ]; do usleep 200000; done'

    def run(number: int) -> str:
        command = ["sh", "-c", f"{script}; seq $1 2000", "sh", str(number)]
        return shared.run(command, timeout_s=100, check=True).stdout

    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(run, range(8)))
    for number, output in enumerate(outputs):
        assert output == "".join(f"{each}\n" for each in range(number, 2001))


def test_a_command_whose_time_is_up_is_killed_with_its_children(shared: Guest) -> None:
    with pytest.raises(CommandTimeout) as raised:
        shared.run(["sh", "-c", "echo begun; sleep 998 & sleep 999"], timeout_s=2)
    assert raised.value.stdout == "begun\n"
    assert "sleep" not in shared.run(["sh", "-c", "cat /proc/[0-9]*/comm"]).stdout.split()


def test_a_restored_guest_answers_and_its_end_is_noticed(
    shared: Guest, directory: Path, figure: Callable[[str], None]
) -> None:
    shared.run(["sh", "-c", "echo before >/state"], check=True)
    assert shared.resize_balloon(target_pages=4096).pages == 4096
    shared.save_snapshot(directory / "snapshot")
    shared.run(["sh", "-c", "echo after >/state"], check=True)
    for _ in range(2):
        begin = time.monotonic()
        with Guest.restore(directory / "snapshot", record=directory / "rec") as guest:
            seconds = time.monotonic() - begin
            assert guest.run(["cat", "/state"]).stdout == "before\n"
            assert guest.session.vm.balloon.actual == 4096
    assert {"chain", "used", "interrupt", "vm_exits"} <= recorded_kinds(directory / "rec")
    figure(f"Guest: answers {BOOT_SECONDS[-1]:.2f} s after a boot, {seconds:.2f} s after a restore")
    with Guest.restore(directory / "snapshot") as guest:
        with pytest.raises(GuestExited, match="guest-shutdown"):
            guest.run(["poweroff", "-f"])
        with pytest.raises(GuestExited):
            guest.run(["true"])


def recorded_kinds(path: Path) -> set[str]:
    with Recording(path) as recording:
        return {event.kind for event in recording.events()}


TESTS = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_state(guest, number):
    count = guest.run(["sh", "-c", "echo >>/state; wc -l </state"], check=True).stdout
    print(f"test {number}: count {int(count)}, {guest.session.vm.config.vcpus} vCPUs")
"""


@pytest.mark.parametrize(("scope", "counts"), [("session", [1, 2, 3]), ("function", [1, 1, 1])])
def test_the_fixture_of_pytest_has_the_scope_that_is_configured(
    scope: str,
    counts: list[int],
    guest_image: Path,
    directory: Path,
    figure: Callable[[str], None],
) -> None:
    (directory / "test_it.py").write_text(TESTS)
    (directory / "pytest.ini").write_text(
        f"[pytest]\npyvmm_image = {guest_image}\npyvmm_guest_scope = {scope}\n"
        "pyvmm_memory = 256M\npyvmm_cpus = 2\npyvmm_record = recordings\n"
    )
    options = ("-q", "-s", "-p", "pyvmm.pytest_plugin", "-p", "no:cacheprovider", "--durations=0")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--durations-min=0"],
        cwd=directory,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for number, count in enumerate(counts):
        assert f"test {number}: count {count}, 2 vCPUs" in done.stdout
    recordings = [*(directory / "recordings").iterdir()]
    assert len(recordings) == counts.count(1)  # one for each guest
    assert all("used" in recorded_kinds(path) for path in recordings)
    setups = [line.split()[0] for line in done.stdout.splitlines() if " setup " in line]
    figure(f"pytest's guest, scope {scope}: set up in {', '.join(setups)}")
    assert list(directory.parent.glob("pyvmm-pytest-*")) == []
