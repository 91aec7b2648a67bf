# SPDX-License-Identifier: Apache-2.0
"""Errors of a running machine: refusals of KVM, which are reported, and bugs, which are not."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from ctypes import sizeof
from typing import Any

import pytest

from pykvm import KvmError, abi
from pyvmm.machine.errors import kvm_refusal
from pyvmm_native import kvm_run
from tests.project.sources import ROOT


class NoDevices:
    """Satisfies `IoHandler`; the guest makes no access."""

    pio_read = pio_write = mmio_read = mmio_write = None


def test_kvm_run_of_something_else_is_a_refusal() -> None:
    run_area = bytearray(sizeof(abi.kvm_run))
    io: Any = NoDevices()
    with tempfile.TemporaryFile() as file, pytest.raises(OSError, match="KVM_RUN") as caught:
        kvm_run.run(file.fileno(), run_area, io)
    assert kvm_refusal(caught.value) == "KVM_RUN: Inappropriate ioctl for device"


EAGAIN_PROGRAM = """
import errno, sys, tempfile
from ctypes import sizeof
from pykvm import KvmError, Vcpu, abi
from pyvmm_native import kvm_run
from tests.native.seccomp import refuse

class NoDevices:
    pio_read = pio_write = mmio_read = mmio_write = None

file = tempfile.TemporaryFile()
size = sizeof(abi.kvm_run)
file.truncate(size)
vcpu = Vcpu(file.fileno(), size)
vcpu.kvm_run.immediate_exit = sys.argv[2] == "kicked"
if sys.argv[1] == "pykvm":
    vcpu.get_mp_state = lambda: abi.KVM_MP_STATE_RUNNABLE
refuse(16, errno.EAGAIN)
try:
    if sys.argv[1] == "pykvm":
        print(vcpu.run() == abi.KVM_EXIT_INTR)
    else:
        print(kvm_run.run(file.fileno(), vcpu.run_area, NoDevices()) == -errno.EINTR)
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("loop", ["pykvm", "native"])
@pytest.mark.parametrize(("state", "printed"), [("kicked", "True"), ("running", "EAGAIN")])
def test_a_runnable_vcpu_is_not_retried_for_ever(loop: str, state: str, printed: str) -> None:
    """As where KVM may not start its thread."""
    done = subprocess.run(
        [sys.executable, "-c", EAGAIN_PROGRAM, loop, state],
        capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == f"{printed}\n"


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
