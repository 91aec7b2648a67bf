# SPDX-License-Identifier: Apache-2.0
"""Linux without ACPI, APICs or MSI, and the resets of a PC that are not ACPI's."""

from __future__ import annotations

import pytest

from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.exit_result import ExitReason
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

INFLATE_PAGES = 16 * MIB // PAGE_BYTES


@pytest.mark.parametrize(
    ("append", "chip"),
    [
        ("acpi=off", "XT-PIC"),  # BARs right above RAM; INTx, from the interrupt line register
        ("nolapic", "XT-PIC"),  # INTx, routed by ACPI to the 8259s
        ("pci=nomsi", "IO-APIC"),  # INTx
    ],
)
def test_the_balloon_works_with_every_interrupt_controller(
    run_guest: RunGuest, append: str, chip: str
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        moved = await guest.resize_balloon(INFLATE_PAGES)
        assert moved.pages == INFLATE_PAGES
        await guest.resize_balloon(0)
        used = await guest.shell("grep virtio0 /proc/interrupts")
        assert chip in used
        guest.console.send_line("quit")  # ends in a reboot: without ACPI nothing can power off
        assert (await guest.wait_for_exit()).reason is ExitReason.RESET

    run_guest(scenario, "pattern; reboot -f", append=append)


@pytest.mark.parametrize("kind", ["kbd", "pci", "bios"])
def test_a_reset_without_acpi_ends_the_machine(run_guest: RunGuest, kind: str) -> None:
    async def scenario(guest: GuestSession) -> None:
        assert (await guest.wait_for_exit()).reason is ExitReason.RESET

    run_guest(scenario, f"echo {kind} >/sys/kernel/reboot/type; reboot -f")
