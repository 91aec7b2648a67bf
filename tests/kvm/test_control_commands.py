# SPDX-License-Identifier: Apache-2.0
"""`pyvmm status`, `stop`, `cont`, `balloon` and `quit` on a real guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyvmm.units import MIB
from tests.kvm.pyvmm_process import RunProcess, run_pyvmm

pytestmark = pytest.mark.kvm


def test_a_script_controls_a_guest(
    guest_image: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qmp = directory / "qmp"
    monkeypatch.setenv("PYVMM_QMP", f"unix:{qmp}")
    options = ("--memory", "128M", "--cpus", 2, "--append", 'loglevel=4 pyvmm.run="pattern"')
    with RunProcess(guest_image, *options, "--qmp", f"unix:{qmp}") as program:
        program.expect("user space up")
        status = document("status")
        assert (status["status"], status["cpus"], status["actual"]) == ("running", 2, 128 * MIB)

        assert succeed("stop") == "the guest is paused\n"
        assert document("status")["running"] is False
        assert run_pyvmm("stats").stderr.endswith("let it run with: pyvmm cont\n")
        assert succeed("cont") == "the guest runs\n"
        assert program.command("alloc 4").startswith("ok")

        change = document("balloon", "112M", "--timeout", 60)
        assert (change["reached"], change["actual"]) == (True, 112 * MIB)
        assert document("stats", "--timeout", 60)["stats"]["stat-total-memory"] < 128 * MIB

        assert succeed("quit") == "the guest has ended\n"
        assert not qmp.exists()
        assert program.status() == 0


def succeed(*arguments: object) -> str:
    """Run a command; return its output."""
    done = run_pyvmm(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def document(*arguments: object) -> dict[str, Any]:
    """Run a command; return its JSON document."""
    result: dict[str, Any] = json.loads(succeed(*arguments, "--json"))
    return result
