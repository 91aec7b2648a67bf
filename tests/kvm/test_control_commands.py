# SPDX-License-Identifier: Apache-2.0
"""`pyvmm status`, `stop`, `cont` and `quit` on a real guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyvmm.units import MIB
from tests.kvm.pyvmm_process import RunProcess, run_pyvmm

pytestmark = pytest.mark.kvm


def test_a_script_pauses_resumes_and_ends_a_guest(
    guest_image: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qmp = directory / "qmp"
    monkeypatch.setenv("PYVMM_QMP", f"unix:{qmp}")
    options = ("--memory", "128M", "--append", 'loglevel=4 pyvmm.run="pattern"')
    with RunProcess(guest_image, *options, "--qmp", f"unix:{qmp}") as program:
        program.expect("user space up")
        assert succeed("stop") == "the guest is paused\n"
        status = json.loads(succeed("status", "--json"))
        assert (status["status"], status["cpus"], status["actual"]) == ("paused", 1, 128 * MIB)
        assert succeed("cont") == "the guest runs\n"
        assert program.command("alloc 4").startswith("ok")
        assert succeed("quit") == "the guest has ended\n"
        assert not qmp.exists()
        assert program.status() == 0


def succeed(*arguments: object) -> str:
    """Run a command; return its output."""
    done = run_pyvmm(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
