# SPDX-License-Identifier: Apache-2.0
"""Commands of scripts, through the agent's protocol on a real console device."""

from __future__ import annotations

import asyncio
import functools
import signal
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pyvmm.guest_agent.client import initial_ports
from pyvmm.guest_agent.errors import AgentFailed, CommandNotStarted, CommandUnusable
from pyvmm.guest_agent.messages import EndKind, Type
from pyvmm.harness import command_runner
from pyvmm.harness.agent_config import commands_at_once, config_with_agent, has_agent
from pyvmm.harness.command_runner import CommandRunner
from pyvmm.harness.completed_command import CompletedCommand
from pyvmm.harness.errors import CommandFailed, CommandTimeout, OutputTooLong
from tests.pyvmm.boot.elf_kernel import elf_kernel
from tests.pyvmm.guest_agent.agent_driver import AgentDriver

AT_ONCE = 2


class ScriptedAgent(AgentDriver):
    """A guest whose agent answers the commands of `runner` as a test tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = CommandRunner(self.agent, AT_ONCE)

    def run(self, *arguments: str, **options: Any) -> asyncio.Task[CompletedCommand]:
        return asyncio.create_task(self.runner.run(arguments, **options))

    async def take_command(self) -> tuple[int, tuple[int, ...]]:
        """Return the number and the ports of the next command; its input is not looked at."""
        number, fields, _ = await self.run_request()
        await self.skip_input_end(number)
        return number, fields[3:6]

    async def skip_input_end(self, number: int) -> None:
        type_, ended, _ = await self.message()
        assert (type_, ended) == (Type.INPUT_END, number)

    async def expect_kill(self, number: int) -> None:
        message = await self.message()
        assert message == (Type.SIGNAL, number, struct.pack("<I", signal.SIGKILL))


Scenario = Callable[[ScriptedAgent], Coroutine[Any, Any, None]]


def with_agent(scenario: Scenario) -> Callable[[], None]:
    """Run `scenario` with a guest whose agent has answered."""

    @functools.wraps(scenario)
    def run() -> None:
        async def main() -> None:
            agent = ScriptedAgent()
            await agent.welcome()
            connected = asyncio.create_task(agent.runner.wait_for_agent())
            type_, _, value = await agent.message()
            assert type_ == Type.HELLO
            agent.reply(Type.HELLO_REPLY, 0, struct.pack("<I", 1) + value)
            await connected
            await asyncio.wait_for(scenario(agent), 20)

        asyncio.run(main())

    del run.__wrapped__  # pytest would read its parameters
    return run


@with_agent
async def test_a_command_gets_its_input_and_returns_all_of_its_output(
    agent: ScriptedAgent,
) -> None:
    run = agent.run("cat", "-n", input="h\udcff", environment={"A": "b"}, directory="/tmp")
    number, fields, strings = await agent.run_request()
    assert strings[:3] == [b"/tmp", b"cat", b"-n"]
    assert {b"A=b", b"HOME=/root"} <= set(strings[3:])
    await agent.skip_input_end(number)
    await agent.settle(lambda: agent.console.ports["pyvmm.0"].input_bytes > 0)
    assert agent.take(fields[3]) == b"h\xff"
    agent.transmit(fields[4], b"\xe2\x82out")
    agent.transmit(fields[5], b"err")
    agent.end(number, fields[3:6], value=7, written=(5, 3))
    result = await run
    assert (result.arguments, result.status, result.signal) == (("cat", "-n"), 7, None)
    assert (result.stdout, result.stderr) == ("\udce2\udc82out", "err")
    assert result.stdout.encode(errors="surrogateescape") == b"\xe2\x82out"


@with_agent
async def test_a_failed_command_raises_with_its_error_output_if_checked(
    agent: ScriptedAgent,
) -> None:
    run = agent.run("make", "a b", check=True)
    number, ports = await agent.take_command()
    agent.transmit(ports[2], b"no rule")
    agent.end(number, ports, value=2, written=(0, 7))
    with pytest.raises(CommandFailed, match=r"make 'a b': status 2\nno rule") as raised:
        await run
    assert raised.value.result is not None
    assert raised.value.result.status == 2


@with_agent
async def test_a_command_whose_time_is_up_is_killed_and_its_output_kept(
    agent: ScriptedAgent,
) -> None:
    run = agent.run("sleep", "60", timeout_s=0.05)
    number, ports = await agent.take_command()
    agent.transmit(ports[1], b"begun")
    await agent.expect_kill(number)
    agent.end(number, ports, EndKind.SIGNALED, signal.SIGKILL, written=(5, 0))
    with pytest.raises(CommandTimeout, match=r"sleep 60: not ended within 0\.05 s") as raised:
        await run
    assert raised.value.stdout == "begun"


@with_agent
async def test_a_command_that_cannot_be_killed_is_left_behind(agent: ScriptedAgent) -> None:
    before, command_runner.KILL_TIMEOUT_S = command_runner.KILL_TIMEOUT_S, 0.05
    try:
        run = agent.run("dd", timeout_s=0.05)
        number, _ = await agent.take_command()
        await agent.expect_kill(number)
        with pytest.raises(TimeoutError):
            await run
    finally:
        command_runner.KILL_TIMEOUT_S = before


@with_agent
async def test_a_cancelled_command_is_killed_and_its_turn_ends_with_it(
    agent: ScriptedAgent,
) -> None:
    first, second, third = (agent.run(name) for name in ("first", "second", "third"))
    number, ports = await agent.take_command()
    await agent.take_command()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await agent.expect_kill(number)
    await agent.settle(second.done)
    assert not agent.received, "the third command waits for the end of the first"
    agent.end(number, ports, EndKind.SIGNALED, signal.SIGKILL)
    _, _, strings = await agent.run_request()
    assert strings[1] == b"third"
    second.cancel()
    third.cancel()


@with_agent
async def test_too_much_output_kills_the_command(agent: ScriptedAgent) -> None:
    before, command_runner.MAX_OUTPUT_BYTES = command_runner.MAX_OUTPUT_BYTES, 1 << 20
    try:
        run = agent.run("yes")
        number, ports = await agent.take_command()
        for _ in range(80):
            agent.transmit(ports[1], bytes(1 << 14))
            await agent.settle(lambda: True)
        await agent.expect_kill(number)
        agent.end(number, ports, EndKind.SIGNALED, signal.SIGKILL, written=(1 << 21, 0))
        with pytest.raises(OutputTooLong, match="yes: it has written more than 1 MiB"):
            await run
    finally:
        command_runner.MAX_OUTPUT_BYTES = before


@with_agent
async def test_commands_that_do_not_start_leave_their_turn_to_others(
    agent: ScriptedAgent,
) -> None:
    for _ in range(AT_ONCE + 1):
        with pytest.raises(CommandUnusable):
            await agent.run("a\0b")
        run = agent.run("missing")
        number, ports = await agent.take_command()
        agent.end(number, ports, EndKind.NOT_STARTED, 2)
        with pytest.raises(CommandNotStarted):
            await run
    with pytest.raises(TypeError, match=r"such as \['free', '-m'\]"):
        await agent.runner.run("free -m")


@with_agent
async def test_a_close_ends_commands(agent: ScriptedAgent) -> None:
    run = agent.run("x")
    await agent.take_command()
    agent.runner.close()
    with pytest.raises(AgentFailed, match="has ended"):
        await run


def test_the_configuration_has_ports_for_all_commands_at_once(tmp_path: Path) -> None:
    kernel, file = tmp_path / "vmlinux", tmp_path / "file"
    kernel.write_bytes(elf_kernel())
    file.write_text("content of the file")
    config, overlay = config_with_agent(
        kernel, modules="no", put=[(file, "/data/file")], append="loglevel=7", vcpus=2, commands=7
    )
    assert has_agent(config)
    assert config.ports == initial_ports()
    assert commands_at_once(config) == 7
    assert config.vcpus == 2
    assert config.command_line.endswith("rdinit=/pyvmm/agent quiet loglevel=7")
    assert b"data/file" in overlay
    assert b"content of the file" in overlay
