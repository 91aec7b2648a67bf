# SPDX-License-Identifier: Apache-2.0
"""`pyvmm balloon` on a real guest: programs survive targets that are too small for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyvmm.qmp.client import QmpClient
from pyvmm.units import MIB
from tests.kvm.pyvmm_process import RunProcess, run_pyvmm

pytestmark = pytest.mark.kvm

RAM = 256 * MIB
TOO_SMALL = 1 * MIB
DRIVER = "/sys/bus/virtio/drivers/virtio_balloon"


def test_programs_survive_a_target_that_is_too_small(
    guest_image: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qmp = directory / "qmp"
    monkeypatch.setenv("PYVMM_QMP", f"unix:{qmp}")
    options = ("--memory", RAM, "--append", 'loglevel=4 pyvmm.run="pattern"')
    with RunProcess(guest_image, *options, "--qmp", f"unix:{qmp}") as guest:
        guest.expect("user space up")
        with QmpClient(qmp) as client:
            refused = run_pyvmm("balloon", TOO_SMALL)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert refused.stderr.startswith("pyvmm: the guest needs ")
            assert "--force" in refused.stderr
            assert actual_bytes(client) == RAM
            assert_programs_run(guest, client)

            stuck = run_pyvmm("balloon", TOO_SMALL, "--force", "--timeout", 1)
            assert stuck.returncode == 1
            assert stuck.stderr.startswith("pyvmm: the guest stopped at ")
            assert stuck.stderr.endswith("; its target is 256 MiB again\n")
            assert_programs_run(guest, client)

            interrupt_when_stuck(client)
            assert_programs_run(guest, client)

            reply = guest.command(f"shell cd {DRIVER}; echo $(basename virtio*) > unbind")
            assert reply.startswith("ok 0"), reply
            without = run_pyvmm("balloon", RAM // 2, "--timeout", 600)
            assert without.returncode == 2
            assert "the guest runs no balloon driver;" in without.stderr
            client.execute("quit")


def assert_programs_run(guest: RunProcess, client: QmpClient) -> None:
    """Check that the guest, once it has all its RAM, starts a program, and has killed none."""
    deadline = time.monotonic() + 60
    while actual_bytes(client) != RAM:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    reply = guest.command("shell head -c 8000000 /dev/zero | wc -c; dmesg | grep -ci 'killed proc'")
    assert reply.startswith("ok 1 8000000\\n0"), reply  # grep's status: no such line


def interrupt_when_stuck(client: QmpClient) -> None:
    """Interrupt a change that has taken all that the driver can find."""
    command = [sys.executable, "-m", "pyvmm", "balloon", str(TOO_SMALL), "--force"]
    process = subprocess.Popen([*command, "--timeout", "120"], stderr=subprocess.PIPE, text=True)
    last = RAM
    while not last == (last := actual_bytes(client)) < RAM // 2:
        assert process.poll() is None
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert err.startswith("pyvmm: interrupted when the guest had ")
    assert err.endswith("; its target is 256 MiB again\n")


def actual_bytes(client: QmpClient) -> int:
    return int(client.execute("query-balloon")["actual"])
