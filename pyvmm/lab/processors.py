# SPDX-License-Identifier: Apache-2.0
"""The number of processors of a lab, and the reason, by QEMU's version.

QEMU emulates each processor in a thread of its own. Before 8.1, one thread may translate code that
another is changing, which corrupts a lab that runs guests of several vCPUs. Newer versions have the
correction, but the test that failed has not yet passed often enough in labs of two processors to
make that the default, so every version gets one (docs/adr/0028). `pyvmm lab --cpus` makes larger
labs.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_CPUS = 1
CORRECTED_IN = (8, 1)
"""First version of QEMU that does not translate code while another processor changes it."""


class LabProcessors(NamedTuple):
    """The processors of a lab for which no number is given."""

    cpus: int
    reason: str
    """The reason that there are not more."""


def lab_processors(qemu_version: str) -> LabProcessors:
    """Return the default for the QEMU that prints `qemu_version` as its `--version`."""
    found = re.search(r"version (\d+)\.(\d+)", qemu_version)
    if found is None:
        return LabProcessors(DEFAULT_CPUS, "the version of QEMU is unknown")
    version = int(found[1]), int(found[2])
    if version < CORRECTED_IN:
        return LabProcessors(DEFAULT_CPUS, "QEMU before 8.1 is not safe with several")
    return LabProcessors(DEFAULT_CPUS, "several have not been shown to be safe with this QEMU")
