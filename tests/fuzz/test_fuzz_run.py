# SPDX-License-Identifier: Apache-2.0
"""Fuzzers test the modules of the tree that they are in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.run import PYTHONPATH, ROOT

PROGRAM = """
import devices, pykvm, pyvmm, pyvmm_native.runs, tests.fuzz.run
for module in (devices, pykvm, pyvmm, pyvmm_native.runs, tests.fuzz.run):
    print(module.__file__)
"""


def test_modules_are_those_of_this_tree(tmp_path: Path) -> None:
    """In a second worktree, whose interpreter has another one installed as editable, too."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = [Path(line) for line in done.stdout.splitlines()]
    assert len(found) == 5
    assert all(path.is_relative_to(ROOT) for path in found), found
