# SPDX-License-Identifier: Apache-2.0
"""The installation whose start is measured: complete, and without hooks of this environment."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.installation import install
from bench.start import AS_INSTALLED
from pyvmm.version import VERSION


def test_an_installed_command_runs_from_its_own_files(tmp_path: Path) -> None:
    installation = install(tmp_path / "environment")
    program = "import pyvmm.machine.machine as m, sys; print(m.__file__, *sys.modules)"
    found, *modules = output(installation.python, "-c", program).split()
    assert Path(found).is_relative_to(tmp_path)
    assert not any("editable" in name for name in modules)
    assert VERSION in output(installation.command, "--version")


def output(*command: object) -> str:
    return subprocess.run(
        list(map(str, command)),
        env={"PATH": "/usr/bin:/bin", **AS_INSTALLED},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
