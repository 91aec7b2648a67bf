# SPDX-License-Identifier: Apache-2.0
"""The origin of each end of a VM, and the exit status of `pyvmm run`."""

from __future__ import annotations

import pytest

from pyvmm.machine.exit_result import ExitReason, ExitResult


@pytest.mark.parametrize(
    ("reason", "by_guest", "exit_status"),
    [
        (ExitReason.POWEROFF, True, 0),
        (ExitReason.RESET, True, 0),
        (ExitReason.PANIC, True, 1),
        (ExitReason.CRASH, False, 1),
        (ExitReason.QUIT, False, 0),
        (ExitReason.ESCAPE, False, 0),
        (ExitReason.SIGNAL, False, 0),
    ],
)
def test_the_guest_or_the_host_ends_the_vm(
    reason: ExitReason, by_guest: bool, exit_status: int
) -> None:
    result = ExitResult(reason)
    assert (result.by_guest, result.exit_status) == (by_guest, exit_status)


def test_the_text_is_the_reason_with_its_detail() -> None:
    assert str(ExitResult(ExitReason.QUIT)) == "host-qmp-quit"
    assert str(ExitResult(ExitReason.CRASH, "triple fault")) == "host-error triple fault"
