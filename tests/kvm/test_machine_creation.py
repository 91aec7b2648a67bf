# SPDX-License-Identifier: Apache-2.0
"""A machine whose KVM requests fail one after the other is reported by the request's name."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from pykvm import KvmError, KvmHandle, ioctls
from pyvmm.boot.loader import read_boot_files
from pyvmm.config import MachineConfig
from pyvmm.machine.errors import MachineNotCreated, TooManyOpenFiles
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.trace.logging import LogTracer
from pyvmm.units import MIB
from pyvmm_native.serial import ByteQueue
from tests.pyvmm.boot.elf_kernel import elf_kernel

pytestmark = pytest.mark.kvm


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf_kernel())
    return MachineConfig(kernel, None, "", 64 * MIB, 2, "standard")


def create(config: MachineConfig) -> Machine:
    """Create a machine that is ready to run its kernel."""
    machine = Machine(
        Platform(config, console_output=ByteQueue(lambda: None, 4096), tracer=LogTracer())
    )
    try:
        machine.boot(read_boot_files(config))
    except BaseException:
        machine.close()
        raise
    return machine


def test_each_kvm_request_that_fails_is_named_in_one_line(
    config: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = KvmHandle._ioctl_once
    requests: list[int] = []
    fail_at = -1

    def counted(handle: KvmHandle, request: int, argument: Any = 0) -> int:
        requests.append(request)
        return -errno.ENOMEM if len(requests) - 1 == fail_at else real(handle, request, argument)

    monkeypatch.setattr(KvmHandle, "_ioctl_once", counted)
    machine = create(config)
    expected = list(requests)
    machine.close()
    assert len(expected) > 20
    for index, request in enumerate(expected):
        fail_at = index
        requests.clear()
        with pytest.raises(MachineNotCreated) as caught:
            create(config)
        assert str(caught.value) == (
            f"the machine cannot be created: {ioctls.name_of(request)}:"
            " Cannot allocate memory (ENOMEM)"
        )
        assert isinstance(caught.value.__cause__, KvmError)


def test_a_lack_of_file_descriptors_is_one_line(
    config: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("os.eventfd", no_descriptor)
    with pytest.raises(TooManyOpenFiles, match=r"^the machine cannot be created: too many open"):
        create(config)
