# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of streams and of a command: the programs that they run. No test measures."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

pytest.importorskip("bench")

from bench.command import STAGES, STAMPED
from bench.console import BLOCK_BYTES, SERVE_COMMAND, Stream, _into, _out, _receive
from bench.launch import TIMES_FD
from pyvmm.errors import UserError


@pytest.fixture
def stream() -> Iterator[Stream]:
    """Run the guest's loop in a shell of this machine."""
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", SERVE_COMMAND], stdin=pipe, stdout=pipe, bufsize=0) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        yield Stream(shell.stdout.fileno(), shell.stdin.fileno())
        shell.kill()


def test_a_guest_serves_streams_in_both_directions_in_turns(stream: Stream) -> None:
    for _ in range(2):
        assert all(_out(stream, 3).values())
        assert all(_into(stream, 3).values())


def test_a_stream_that_ends_early_is_an_error() -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(5))
    os.close(writer)
    with pytest.raises(UserError, match=f"ended, {BLOCK_BYTES - 5} bytes early"):
        _receive(Stream(reader, -1), BLOCK_BYTES)
    os.close(reader)


def test_every_stage_of_a_command_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program wraps functions of pyvmm by name, so each of them has to exist."""
    entry: Any = import_module("pyvmm.cli.entry")
    guest_run: Any = import_module("pyvmm.cli.guest_run")
    command_run: Any = import_module("pyvmm.cli.command_run")
    vm_start: Any = import_module("pyvmm.cli.vm_start")
    wrapped = (
        (command_run.GuestAgent, "connect"),
        (command_run.GuestCommand, "wait"),
    )

    async def returns(*args: Any) -> None:
        """Stand for each function that is wrapped."""

    async def call_wrapped() -> None:
        for owner, name in wrapped:
            await getattr(owner, name)()

    def main() -> None:
        guest_run.run_where_kvm_works("host", int, int)
        vm_start.VmStart.boot()
        asyncio.run(call_wrapped())

    for owner, name in wrapped:
        monkeypatch.setattr(owner, name, returns)
    monkeypatch.setattr(vm_start.VmStart, "boot", lambda: None)
    monkeypatch.setattr(guest_run, "run_where_kvm_works", lambda *args: None)
    monkeypatch.setattr(entry, "main", main)
    reader, writer = os.pipe()
    monkeypatch.setenv(TIMES_FD, str(writer))
    exec(STAMPED, {})
    os.close(writer)
    with open(reader, "rb") as stamps:
        taken = json.load(stamps)
    assert list(taken) == list(STAGES)
    assert list(taken.values()) == sorted(taken.values())
