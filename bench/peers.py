# SPDX-License-Identifier: Apache-2.0
"""QEMUs to compare with: one pinned version, and further ones as extra rows.

The ratios, and the limits of `bench.targets`, are those to QEMU `PINNED_VERSION`, of Debian 12. It
is the first such QEMU on PATH; without one it is the first of any version, and the report says that
it is not the pinned one. A QEMU of another version, which is also on PATH or named by `--qemu`, is
measured beside it under its own version.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import UserError
from pyvmm.lab.qemu import QEMU, find_qemu

PINNED_VERSION = "7.2"
BASELINE = "QEMU"
"""The name of the pinned QEMU in results, whatever its version is; a report adds that."""
_VERSION = re.compile(r"QEMU emulator version (\d+(?:\.\d+)*)(.*)")


@dataclass(frozen=True)
class Qemu:
    """An installed QEMU."""

    program: str
    version: str
    """Its number, such as `7.2.22`."""
    package: str = ""
    """The rest of that line of `--version`, such as its Debian package."""

    @property
    def name(self) -> str:
        """The name of its contenders."""
        return f"QEMU {self.version}"

    @property
    def is_pinned(self) -> bool:
        """It is of the version that ratios and limits refer to."""
        return is_pinned(self.version)


def is_pinned(version: str) -> bool:
    """Return whether a QEMU of `version` is the one that ratios and limits refer to."""
    return f"{version}.".startswith(f"{PINNED_VERSION}.")


def read_qemu(program: str) -> Qemu:
    """Ask `program` for its version. Raises UserError if it is no QEMU."""
    try:
        output = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{program} cannot be run: {error}") from error
    found = _VERSION.search(output)
    if found is None:
        raise UserError(f"{program} is not QEMU: it reports no version")
    return Qemu(program, found[1], found[2].strip())


def on_path() -> list[Qemu]:
    """Return the QEMUs in the directories of PATH, in their order."""
    directories = dict.fromkeys(os.get_exec_path())
    paths = (shutil.which(QEMU, path=directory) for directory in directories)
    programs = {Path(path).resolve(): path for path in paths if path is not None}
    return [read_qemu(path) for path in programs.values()]


@functools.cache
def baseline() -> Qemu:
    """Return the pinned QEMU, or else the first one. Raises NotInstalled if there is none."""
    find_qemu()
    found = on_path()
    return next((qemu for qemu in found if qemu.is_pinned), found[0])


def further(named: str | None) -> tuple[Qemu, ...]:
    """Return the QEMUs to measure beside the baseline: others on PATH, and the `named` program."""
    found = on_path() + ([read_qemu(named)] if named is not None else [])
    versions = {qemu.version: qemu for qemu in found}
    return tuple(qemu for qemu in versions.values() if qemu.version != baseline().version)
