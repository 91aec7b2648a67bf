# SPDX-License-Identifier: Apache-2.0
"""The first and the last value that each bounded parameter accepts, and those beyond."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pyvmm.qmp.commands import COMMANDS
from pyvmm.qmp.messages import QmpError

SETTINGS = "migrate-set-parameters"


@pytest.mark.parametrize(
    ("command", "name", "accepted", "rejected"),
    [
        (SETTINGS, "max-bandwidth", [0, 1 << 20, (1 << 63) - 1], [-1, 1, (1 << 20) - 1, 1 << 63]),
        (SETTINGS, "downtime-limit", [0, 2_000_000], [-1, 2_000_001]),
        (SETTINGS, "throttle-trigger-threshold", [1, 100], [0, 101]),
        (SETTINGS, "cpu-throttle-initial", [1, 99], [0, 100]),
        (SETTINGS, "cpu-throttle-increment", [1, 99], [0, 100]),
        ("query-unused-pages", "runs", [0, 65536], [-1, 65537]),
        ("query-unused-pages", "cells", [0, 65536], [-1, 65537]),
        ("query-free-page-hints", "cells", [0, 65536], [-1, 65537]),
        ("query-unused-pages", "timeout", [5e-324, 86400], [0, -1, 86400.1, math.nan]),
        ("snapshot-to-file", "path", ["/", "/s"], ["", "s", "./s"]),
    ],
)
def test_the_bounds_of_a_parameter(
    command: str, name: str, accepted: list[Any], rejected: list[Any]
) -> None:
    (parameter,) = (each for each in COMMANDS[command].parameters if each.name == name)
    for value in accepted:
        parameter.check_bounds(value)
    for value in rejected:
        with pytest.raises(QmpError, match=f"Parameter '{name}' expects {parameter.expects[:5]}"):
            parameter.check_bounds(value)
