# SPDX-License-Identifier: Apache-2.0
"""QEMU's own QMP client resizes the balloon of a real guest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.errors import VcpuNotStopped
from pyvmm.machine.exit_result import ExitReason
from pyvmm.qmp.commands import COMMANDS, execute
from pyvmm.qmp.messages import Request
from pyvmm.qmp.server import ControlServer
from pyvmm.units import MIB
from pyvmm_docs.qmp_description import member_fault, parse
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

HINTS = "query-free-page-hints"
QUERIES = [name for name in COMMANDS if name.startswith("query-") and name != HINTS]


def test_qemus_client_resizes_the_balloon(run_guest: RunGuest, path: Path) -> None:

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        server = ControlServer(guest.vm, path)
        await server.start()
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            expected = {"actual": 256 * MIB, "target": 256 * MIB, "driver": True, "kept": 0}
            assert await client.execute("query-balloon") == expected
            with client.listener("BALLOON_CHANGE") as changes:
                assert await client.execute("balloon", {"value": 160 * MIB}) == {}
                await until_actual(changes, 160 * MIB)
            expected = {"actual": 160 * MIB, "target": 160 * MIB, "driver": True, "kept": 0}
            assert await client.execute("query-balloon") == expected
            assert await guest.free_bytes() < 160 * MIB

            await client.execute("stop")
            answer: Any = await client.execute("query-status")
            assert answer["status"] == "paused"
            await client.execute("cont")
            with client.listener("BALLOON_CHANGE") as changes:
                await client.execute("balloon", {"value": 256 * MIB})
                await until_actual(changes, 256 * MIB)

            with client.listener("SHUTDOWN") as ends:
                guest.console.send_line("quit")
                event = await asyncio.wait_for(ends.get(), 60)
            assert event["data"] == {"guest": True, "reason": "guest-shutdown"}
            assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF
        finally:
            await client.disconnect()
            await server.close()
        assert not path.exists()

    run_guest(scenario)


def test_queries_return_the_documented_members(run_guest: RunGuest, path: Path) -> None:

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        server = ControlServer(guest.vm, path)
        await server.start()
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            for name in QUERIES:
                value = await client.execute(name)
                documented = parse(COMMANDS[name].run.__doc__ or "").sections["Returns"]
                assert member_fault(value, documented) is None, name
            with pytest.raises(ExecuteError):  # the image speaks the bitmap dialect
                await client.execute(HINTS)
        finally:
            await client.disconnect()
            await server.close()

    run_guest(scenario)


async def until_actual(changes: EventListener, target_bytes: int) -> None:
    """Wait for the event with the final size; events are at most one a second."""
    async with asyncio.timeout(60):
        event: Any = await changes.get()
        while event["data"]["actual"] != target_bytes:
            event = await changes.get()


def test_a_vcpu_that_does_not_stop_fails_the_request_and_the_guest_runs_on(
    run_guest: RunGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        stop = Request("stop", {})
        with monkeypatch.context() as patch:
            patch.setattr(guest.vm.machine.gate, "wait_until_empty", lambda timeout_s: False)
            with pytest.raises(VcpuNotStopped):
                execute(guest.vm, stop)
        status = Request("query-status", {})
        assert execute(guest.vm, status)["status"] == "running"
        assert (await guest.shell("echo $((6*7))")).strip() == "42"
        execute(guest.vm, stop)
        assert execute(guest.vm, status)["status"] == "paused"

    run_guest(scenario)
