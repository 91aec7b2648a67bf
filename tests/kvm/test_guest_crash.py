# SPDX-License-Identifier: Apache-2.0
"""A guest that ends in a triple fault is reported as a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.harness.guest_session import guest_session
from pyvmm.machine.exit_result import ExitReason
from pyvmm.units import MIB
from tests.pyvmm.boot.elf_kernel import elf_kernel

pytestmark = pytest.mark.kvm

NO_IDT_THEN_FAULT = bytes.fromhex(
    "6a 00"  # push 0
    "6a 00"  # push 0
    "0f 01 1c 24"  # lidt [rsp]: limit 0
    "cc"  # int3
)


def test_a_triple_fault_is_a_crash(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    stack = bytes.fromhex("bc 00 80 00 00")  # mov esp, 0x8000
    kernel.write_bytes(elf_kernel(stack + NO_IDT_THEN_FAULT))
    config = MachineConfig(kernel, None, "", 64 * MIB, 1, "standard")

    async def main() -> None:
        async with guest_session(config) as guest:
            outcome = await guest.wait_for_exit()
            assert outcome.reason is ExitReason.CRASH
            assert outcome.exit_status == 1
            assert "KVM_EXIT_SHUTDOWN" in outcome.detail

    asyncio.run(main())
