# SPDX-License-Identifier: Apache-2.0
"""Errors of a running machine: refusals of KVM, which are reported, and bugs, which are not."""

from __future__ import annotations

import errno
import tempfile
from ctypes import sizeof
from typing import Any

import pytest

from pykvm import KvmError, abi
from pyvmm.machine.errors import kvm_refusal
from pyvmm_native import kvm_run


class NoDevices:
    """Satisfies `IoHandler`; the guest makes no access."""

    pio_read = pio_write = mmio_read = mmio_write = None


def test_kvm_run_of_something_else_is_a_refusal() -> None:
    run_area = bytearray(sizeof(abi.kvm_run))
    io: Any = NoDevices()
    with tempfile.TemporaryFile() as file, pytest.raises(OSError, match="KVM_RUN") as caught:
        kvm_run.run(file.fileno(), run_area, io)
    assert kvm_refusal(caught.value) == "KVM_RUN: Inappropriate ioctl for device"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KvmError("KVM_IRQ_LINE", errno.EINVAL), "KVM_IRQ_LINE: Invalid argument (EINVAL)"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), ""),
        (OSError("without a number"), ""),
        (ValueError("KVM_RUN: no"), ""),
    ],
)
def test_only_a_failed_request_to_kvm_is_a_refusal(error: Exception, text: str) -> None:
    assert kvm_refusal(error) == text
