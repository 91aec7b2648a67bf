# SPDX-License-Identifier: Apache-2.0
"""A VM of KVM that a destination creates before its guest arrives.

    prepared = prepare_vm()
    ...  # wait for a source
    with prepared.taken(config) as setup:
        platform = Platform(config, setup=setup, ...)

The source waits while the destination creates a machine. Most of that does not depend on the guest:
the VM with its interrupt controllers, timer and first vCPU, and what KVM says of them. Code that
runs for the first time in a process also takes several times as long as later. So a small machine
is created, and its devices get drivers (`pyvmm.migration.rehearsal_driver`); a second one is
restored from its parts, as a guest's machine will be. Both are taken apart, and their VM is kept
for the first guest, whose RAM is mapped only when its source has sent a valid configuration. Later
sources, if the first one fails, find none and wait longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyvmm.config import MIN_RAM_BYTES, MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.errors import PlatformNotCreated
from pyvmm.machine.kvm_setup import KvmSetup, make_ram
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.migration.rehearsal_driver import start_drivers
from pyvmm.trace.logging import LogTracer
from pyvmm_native.serial import ByteQueue

_SMALL = MachineConfig(
    kernel=Path(),
    initrd=None,
    command_line="",
    ram_bytes=MIN_RAM_BYTES,
    vcpus=1,
    dialect="bitmap",
)


class PreparedVm:
    """A VM without RAM, whose vCPUs have not run; or none, if `setup` is None.

    Threads: event loop.
    """

    def __init__(self, setup: KvmSetup | None) -> None:
        self._setup = setup

    @contextmanager
    def taken(self, config: MachineConfig) -> Iterator[KvmSetup | None]:
        """Yield the VM, with RAM as `config` describes it, to the first caller; else None.

        It is the caller's then, but is released if the block raises. Raises `MachineNotCreated`,
        and `HostMemoryUnavailable`, after which the VM is still there.
        """
        if self._setup is None:
            yield None
            return
        ram = make_ram(config)
        setup, self._setup = self._setup, None
        with ExitStack() as refused:
            refused.callback(setup.close)
            setup.add_ram(ram)
            yield setup
            refused.pop_all()

    def close(self) -> None:
        """Release the VM, unless it has been taken."""
        if self._setup is not None:
            self._setup.close()
            self._setup = None


def prepare_vm() -> PreparedVm:
    """Create a VM, and create and restore a small machine with it; no guest should wait yet.

    Raises `PlatformNotCreated` if KVM refuses it, as it would a guest's. Where it is not possible
    for another reason, that is reported when a guest's machine is created.
    """
    try:
        return PreparedVm(_rehearsed_setup())
    except PlatformNotCreated:
        raise
    except (UserError, OSError):
        return PreparedVm(None)


def _rehearsed_setup() -> KvmSetup:
    ram = make_ram(_SMALL)
    with ExitStack() as refused:
        refused.callback(ram.close)
        setup = KvmSetup(ram)
        refused.callback(setup.close)
        machine = _small_machine(setup)
        machine.rehearse()
        start_drivers(machine)
        parts = machine.save_parts()
        machine.dismantle()
        setup.add_ram(make_ram(_SMALL))
        machine = _small_machine(setup)
        machine.restore_parts(parts)
        machine.dismantle()
        refused.pop_all()
    return setup


def _small_machine(setup: KvmSetup) -> Machine:
    output = ByteQueue(lambda: None, 1)
    return Machine(Platform(_SMALL, console_output=output, tracer=LogTracer(), setup=setup))
