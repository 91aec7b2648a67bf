# SPDX-License-Identifier: Apache-2.0
"""Operations on a scripted guest that it or its VM refuses."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.balloon.guest_requests import RequestTimeout
from pyvmm.harness import (
    DriverUnavailable,
    GuestPaused,
    GuestSession,
    SnapshotFailed,
    UnsafeTarget,
)
from pyvmm.harness.scripted_console import ScriptedConsole
from pyvmm.snapshot.saver import MachineEnded, MigrationActive, SnapshotActive
from pyvmm.units import GIB, MIB
from pyvmm_native import PAGE_BYTES


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (SnapshotActive, "already being taken"),
        (MigrationActive, "is being migrated"),
        (MachineEnded, "the guest has ended"),
    ],
)
def test_a_refused_snapshot_fails_with_the_reason(
    refusal: type[Exception], reason: str, tmp_path: Path
) -> None:
    def refuse(request: object) -> None:
        raise refusal

    async def scenario() -> None:
        vm: Any = SimpleNamespace(snapshots=SimpleNamespace(start=refuse))
        running: Any = asyncio.get_running_loop().create_future()
        guest = GuestSession(vm, ScriptedConsole(), running)
        with pytest.raises(SnapshotFailed, match=reason):
            await guest.save_snapshot(tmp_path / "file")

    asyncio.run(scenario())


class FakeVm:
    """The part of a VM that a resize uses; its driver gives pages down to `least_bytes` of RAM."""

    ram_bytes = GIB
    status = "running"
    balloon_driver_runs = True

    def __init__(self, least_bytes: int = 0, available_bytes: int | None = None) -> None:
        self.targets: list[int] = []
        self.balloon = SimpleNamespace(actual=0, counters=self._counters())
        self.balloon_statistics = self
        self._least_bytes = least_bytes
        self._statistics = {"stat-available-memory": available_bytes}

    @staticmethod
    def _counters() -> SimpleNamespace:
        traffic = SimpleNamespace(pages=0, requests=0)
        return SimpleNamespace(inflate=traffic, deflate=traffic)

    @property
    def balloon_actual_bytes(self) -> int:
        return self.ram_bytes - int(self.balloon.actual) * PAGE_BYTES

    @property
    def balloon_target_bytes(self) -> int:
        return self.targets[-1] if self.targets else self.ram_bytes

    async def fresh(self, timeout_s: float) -> Any:
        if self._statistics["stat-available-memory"] is None:
            raise RequestTimeout("the guest has not responded")
        return SimpleNamespace(report=SimpleNamespace(known=self._statistics))

    def set_balloon_target(self, target_bytes: int) -> None:
        self.targets.append(target_bytes)
        given = self.ram_bytes - max(target_bytes, self._least_bytes)
        self.balloon.actual = given // PAGE_BYTES


def session(vm: Any) -> GuestSession:
    running: Any = asyncio.get_running_loop().create_future()
    return GuestSession(vm, ScriptedConsole(), running)


PAGES_PER_MIB = MIB // PAGE_BYTES


def test_a_resize_that_times_out_or_is_cancelled_takes_its_target_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules[GuestSession.__module__]
    monkeypatch.setattr(module, "BALLOON_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        vm = FakeVm(least_bytes=300 * MIB)
        guest = session(vm)
        await guest.resize_balloon(256 * PAGES_PER_MIB)
        with pytest.raises(TimeoutError):
            await guest.resize_balloon(768 * PAGES_PER_MIB)
        assert vm.targets == [768 * MIB, 256 * MIB, 768 * MIB]
        resize = asyncio.create_task(guest.resize_balloon(800 * PAGES_PER_MIB))
        await asyncio.sleep(0.01)
        resize.cancel()
        with pytest.raises(asyncio.CancelledError):
            await resize
        assert vm.targets[-2:] == [224 * MIB, 768 * MIB]
        assert vm.balloon_actual_bytes == 768 * MIB

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "error"),
    [({"status": "paused"}, GuestPaused), ({"balloon_driver_runs": False}, DriverUnavailable)],
)
def test_a_guest_that_cannot_follow_is_not_resized(
    change: dict[str, object], error: type[Exception]
) -> None:
    async def scenario() -> None:
        vm = FakeVm()
        for name, value in change.items():
            setattr(vm, name, value)
        with pytest.raises(error):
            await session(vm).resize_balloon(PAGES_PER_MIB)
        assert vm.targets == []

    asyncio.run(scenario())


@pytest.mark.parametrize(("available_bytes", "least_mib"), [(924 * MIB, 116), (None, 64)])
def test_a_target_with_which_the_guest_cannot_live_needs_force(
    available_bytes: int | None, least_mib: int
) -> None:
    async def scenario() -> None:
        vm = FakeVm(available_bytes=available_bytes)
        guest = session(vm)
        too_many = (1024 - least_mib) * PAGES_PER_MIB + 1
        with pytest.raises(UnsafeTarget):
            await guest.resize_balloon(too_many)
        assert vm.targets == []
        await guest.resize_balloon(too_many - 1)
        await guest.resize_balloon(0)
        await guest.resize_balloon(too_many, force=True)
        assert len(vm.targets) == 3

    asyncio.run(scenario())


def test_a_target_is_judged_when_the_change_before_it_has_settled() -> None:
    class Inflating(FakeVm):
        """Has given half of its RAM, and reports that after its first statistics only."""

        def set_balloon_target(self, target_bytes: int) -> None:
            if self.targets:
                super().set_balloon_target(target_bytes)
            else:
                self.targets.append(target_bytes)

        async def fresh(self, timeout_s: float) -> Any:
            report = await super().fresh(timeout_s)
            self.balloon.actual = 512 * PAGES_PER_MIB
            return report

    async def scenario() -> None:
        vm = Inflating(available_bytes=300 * MIB)
        vm.set_balloon_target(512 * MIB)
        guest = session(vm)
        await guest.resize_balloon(724 * PAGES_PER_MIB)
        assert vm.balloon_actual_bytes == 300 * MIB

    asyncio.run(scenario())


def test_the_target_in_force_is_not_judged_again() -> None:
    async def scenario() -> None:
        vm = FakeVm(available_bytes=0)
        guest = session(vm)
        await guest.resize_balloon(900 * PAGES_PER_MIB, force=True)
        vm.balloon.actual = 0  # as after a reset of the driver
        await guest.resize_balloon(900 * PAGES_PER_MIB)
        assert vm.targets == [124 * MIB] * 2

    asyncio.run(scenario())
