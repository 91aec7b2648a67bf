# SPDX-License-Identifier: Apache-2.0
"""A VM whose machine has ended before the VM exists."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devices.listeners import Listeners
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from devices.testing.timers import FakeTimers
from pyvmm.config import MachineConfig
from pyvmm.machine.catalogue import CATALOGUE, Ports, make_models
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.units import MIB
from pyvmm.vm import VirtualMachine


def started_machine(**ended: object) -> Any:
    """Return a machine that runs, or has `ended`, without its vCPUs."""
    config = MachineConfig(Path("/kernel"), None, "", 64 * MIB, 1, "standard")
    ports = Ports(AnonymousRam((0, 64 * MIB)), FakeTimers(), RecordingTracer())
    models = {entry.name: model for entry, model in make_models(CATALOGUE, config, ports)}
    machine = SimpleNamespace(
        config=config,
        tracer=RecordingTracer(),
        pci_devices=models,
        model=models.__getitem__,
        lock=None,
        exited=Listeners(),
        failed=Listeners(),
        console_room=Listeners(),
        exit=None,
        failure=None,
        started=True,
        attach=lambda loop: None,
        stop=lambda: None,
    )
    vars(machine).update(ended)
    return machine


def run(machine: Any) -> ExitResult:
    async def main() -> ExitResult:
        async with asyncio.timeout(10):
            return await VirtualMachine(machine).run()

    return asyncio.run(main())


def test_a_vm_ends_as_its_machine_has() -> None:
    result = ExitResult(ExitReason.POWEROFF)
    assert run(started_machine(exit=result)) == result


def test_a_vm_raises_the_failure_of_its_machine() -> None:
    with pytest.raises(ZeroDivisionError):
        run(started_machine(failure=ZeroDivisionError()))
