# SPDX-License-Identifier: Apache-2.0
"""The number of processors of a lab, and the reason that it is not larger, by QEMU's version.

QEMU emulates each processor in a thread of its own. Before 8.1, one thread may translate code that
another is changing, which corrupts a lab that runs guests of several vCPUs. Newer versions have the
correction, but the test that failed has not yet passed often enough in labs of two processors to
make that the default, so every version gets one (docs/adr/0028). `pyvmm lab --cpus` makes larger
labs.
"""

from __future__ import annotations

import re

DEFAULT_CPUS = 1
CORRECTED_IN = (8, 1)
"""First version of QEMU that does not translate code while another processor changes it."""


def single_processor_reason(qemu_version: str) -> str:
    """Return why a lab has `DEFAULT_CPUS` with the QEMU whose `--version` is `qemu_version`."""
    found = re.search(r"version (\d+)\.(\d+)", qemu_version)
    if found is None:
        return "the version of QEMU is unknown"
    if (int(found[1]), int(found[2])) < CORRECTED_IN:
        return "QEMU before 8.1 is not safe with several"
    return "several have not been shown to be safe with this QEMU"
