# SPDX-License-Identifier: Apache-2.0
"""A machine without an event loop: it boots, and queues wait until a loop is attached."""

from __future__ import annotations

import asyncio
import time

import pytest

from devices.balloon.device import BalloonDevice
from pyvmm.boot.loader import read_boot_files
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.trace.logging import LogTracer
from pyvmm_native.serial import ByteQueue
from tests.kvm.fixture_types import MakeConfig

pytestmark = pytest.mark.kvm

USER_SPACE = b"user space up"
BOOT_S = 120
PAGES = 1000


def test_a_machine_boots_without_a_loop_and_inflates_with_one(make_config: MakeConfig) -> None:
    output = ByteQueue(lambda: None, 1 << 20)
    config = make_config("pattern")
    machine = Machine(Platform(config, console_output=output, tracer=LogTracer()))
    try:
        machine.boot(read_boot_files(config))
        machine.start()
        printed, begin = b"", time.monotonic()
        while USER_SPACE not in printed:
            assert time.monotonic() < begin + BOOT_S, printed[-500:]
            time.sleep(0.05)
            printed += output.take()
        balloon = machine.model("balloon")
        assert isinstance(balloon, BalloonDevice)
        with machine.lock:
            balloon.set_target(PAGES)
        time.sleep(1)
        assert balloon.actual == 0, "nothing serves the inflate queue"
        asyncio.run(inflate(machine, balloon))
    finally:
        machine.close()


async def inflate(machine: Machine, balloon: BalloonDevice) -> None:
    machine.attach(asyncio.get_running_loop())
    async with asyncio.timeout(BOOT_S):
        while balloon.actual != PAGES:
            await asyncio.sleep(0.05)
    machine.stop()
    with machine.quiescent():
        pass


def test_a_machine_with_nothing_to_run_does_not_start(make_config: MakeConfig) -> None:
    output = ByteQueue(lambda: None, 1 << 20)
    machine = Machine(Platform(make_config(), console_output=output, tracer=LogTracer()))
    try:
        with pytest.raises(RuntimeError, match="neither booted nor restored"):
            machine.start()
    finally:
        machine.close()
