# SPDX-License-Identifier: Apache-2.0
"""A guest of this process, driven by a script: its VM, its commands, its console, its balloon.

    config, overlay = config_with_agent(Path("guest.img"))
    async with guest_session(config, overlay=overlay) as guest:
        result = await guest.run(["free", "-m"])
        await guest.resize_balloon(pages)
        await guest.save_snapshot(path)

    async with restored_session(path) as guest:
        result = await guest.run(["free", "-m"])

Every wait for the guest ends as soon as the VM does. In an interactive session
(`python -m asyncio`), where a block cannot stay open, `start_session` and `GuestSession.close` are
the two ends of `guest_session`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devices.virtio.inspection import QueueContents, inspect_queue
from pyvmm.balloon.guest_requests import DriverUnavailable, GuestPaused, GuestRequestError
from pyvmm.balloon.safe_target import check_target
from pyvmm.config import DEFAULT_HUGEPAGES, HugePages, MachineConfig
from pyvmm.guest_agent.client import DEFAULT_DIRECTORY
from pyvmm.guest_agent.errors import AgentFailed
from pyvmm.harness.agent_config import has_agent
from pyvmm.harness.command_runner import AGENT_TIMEOUT_S, CommandRunner, make_runner
from pyvmm.harness.completed_command import CompletedCommand
from pyvmm.harness.console_guest import POLL_S, ConsoleGuest
from pyvmm.harness.errors import SnapshotFailed
from pyvmm.harness.scripted_console import ScriptedConsole
from pyvmm.machine.catalogue import CATALOGUE, part_kinds
from pyvmm.machine.exit_result import ExitResult
from pyvmm.machine.machine import Machine
from pyvmm.machine.platform import Platform
from pyvmm.trace.tracer import EventTracer
from pyvmm.vm import VirtualMachine
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.machine.catalogue import CatalogueEntry
    from pyvmm.migration.prepared_vm import PreparedVm
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.snapshot.saver import SnapshotStatus
    from pyvmm.sockets.listener import MigrationListener
    from pyvmm.trace.recorder import Recorder

BALLOON_TIMEOUT_S = 600.0
"""Longest time that a resize may take."""
STATISTICS_TIMEOUT_S = 2.0
"""Longest wait for the statistics by which a target is judged."""


@dataclass(frozen=True)
class ResizeResult:
    """The cost of a resize, from setting the target until the driver reported that size."""

    seconds: float
    """Host time."""
    pages: int
    """4 KiB pages that the driver gave or took back."""
    requests: int
    """Buffers in which it named them."""


class GuestSession(ConsoleGuest[ExitResult]):
    """A running VM, `vm`, and the far end of its serial line, `console`."""

    def __init__(
        self,
        vm: VirtualMachine,
        console: ScriptedConsole,
        running: asyncio.Task[ExitResult] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(console, running or asyncio.create_task(vm.run()))
        self.vm = vm
        self._recorder = recorder
        self._runner: CommandRunner | None = None

    async def wait_for_agent(self, timeout_s: float = AGENT_TIMEOUT_S) -> None:
        """Wait until the guest's agent answers, so that commands can run.

        Raises `AgentFailed`, also for a machine without the agent's port, and GuestExited.
        """
        await self.while_running(self._command_runner().wait_for_agent(timeout_s))

    async def run(
        self,
        arguments: Sequence[str],
        *,
        input: bytes | str = b"",
        environment: Mapping[str, str] | None = None,
        directory: str = DEFAULT_DIRECTORY,
        timeout_s: float | None = None,
        check: bool = False,
    ) -> CompletedCommand:
        """Run a command in the guest, whose machine is one of `config_with_agent`, to its end.

        The program is looked up in the guest's PATH; `environment` is added to PATH and HOME.
        `input` is all of its standard input. Several commands may run at once; `timeout_s` counts
        from the start of this one. If it passes, or the caller is cancelled, the command's process
        group is killed.

        Raises `CommandTimeout`, `CommandNotStarted` if the guest has no such program or directory,
        `CommandFailed` with `check` if the status is not 0, `CommandUnusable` for arguments that
        are too long, `OutputTooLong`, `AgentFailed`, and GuestExited.
        """
        return await self.while_running(
            self._command_runner().run(
                arguments,
                input=input,
                environment=environment,
                directory=directory,
                timeout_s=timeout_s,
                check=check,
            )
        )

    def _command_runner(self) -> CommandRunner:
        """Return the runner of commands, which is connected to the agent on first use."""
        if self._runner is None:
            if not has_agent(self.vm.config):
                raise AgentFailed("the guest has no port for an agent")
            self._runner = make_runner(self.vm)
        return self._runner

    async def resize_balloon(self, target_pages: int, *, force: bool = False) -> ResizeResult:
        """Set the balloon's target size, in 4 KiB pages, and wait until the driver reports it.

        Raises DriverUnavailable or GuestPaused, before anything is changed, if the guest cannot
        follow, and UnsafeTarget, unless `force`, if it cannot live with the target by its own
        statistics; then GuestExited, and TimeoutError after `BALLOON_TIMEOUT_S`. If the wait ends
        with an exception, a target that takes memory from the guest is taken back.
        """
        await self._check_target(target_pages, force)
        vm, earlier_bytes = self.vm, self.vm.balloon_target_bytes
        inflates = target_pages > vm.balloon.actual
        before = self._traffic()
        begin = time.monotonic()
        vm.set_balloon_target(vm.ram_bytes - target_pages * PAGE_BYTES)
        try:
            await self.while_running(self._reach(target_pages))
        except BaseException:
            if inflates:
                vm.set_balloon_target(earlier_bytes)
            raise
        seconds = time.monotonic() - begin
        pages, requests = (new - old for new, old in zip(self._traffic(), before, strict=True))
        return ResizeResult(seconds, pages, requests)

    def inspect_queue(self, device: str, queue: int) -> QueueContents:
        """Return the contents of a queue of the device called `device`, as they are now.

        KeyError for a device that the machine does not have, IndexError for a queue that the device
        does not have, ValueError for one that its driver does not use.
        """
        with self.vm.machine.lock:
            return inspect_queue(self.vm.machine.model(device).queues[queue])

    async def save_snapshot(self, path: Path, *, keep_running: bool = True) -> SnapshotStatus:
        """Save the guest to the file `path`; it stays paused afterwards unless `keep_running`.

        Returns the cost. Raises SnapshotFailed.
        """
        # Late: saves 5 ms in scripts that take no snapshot.
        from pyvmm.snapshot.saver import (
            MachineEnded,
            MigrationActive,
            SnapshotActive,
            SnapshotRequest,
        )

        snapshots = self.vm.snapshots
        try:
            snapshots.start(SnapshotRequest(path, keep_running))
        except SnapshotActive:
            raise SnapshotFailed("a snapshot is already being taken") from None
        except MigrationActive:
            raise SnapshotFailed("the guest is being migrated") from None
        except MachineEnded:
            raise SnapshotFailed("the guest has ended") from None
        while snapshots.active:
            await asyncio.sleep(POLL_S)
        if snapshots.status.status != "completed":
            raise SnapshotFailed(snapshots.status.error)
        return snapshots.status

    async def _check_target(self, target_pages: int, force: bool) -> None:
        """Raise the error that `resize_balloon` describes if the target cannot or must not be."""
        vm = self.vm
        if vm.status == "paused":
            raise GuestPaused("the guest is paused and cannot respond")
        if vm.status == "running" and not vm.balloon_driver_runs:
            raise DriverUnavailable("the guest runs no balloon driver")
        actual_bytes = vm.balloon_actual_bytes
        target_bytes = vm.ram_bytes - target_pages * PAGE_BYTES
        if force or target_bytes >= min(actual_bytes, vm.balloon_target_bytes):
            return
        statistics: Mapping[str, int | None] = {}
        with contextlib.suppress(GuestRequestError):
            statistics = await self._settled_statistics()
        check_target(target_bytes, vm.balloon_actual_bytes, statistics)

    async def _settled_statistics(self) -> Mapping[str, int | None]:
        """Return the guest's statistics, of a moment at which its balloon did not change.

        While an earlier change is in progress, the guest has given pages that it has not reported.
        """
        vm, deadline = self.vm, time.monotonic() + STATISTICS_TIMEOUT_S
        while True:
            earlier_bytes = vm.balloon_actual_bytes
            statistics = (await vm.balloon_statistics.fresh(STATISTICS_TIMEOUT_S)).report.known
            settled = earlier_bytes == vm.balloon_actual_bytes == vm.balloon_target_bytes
            if settled or time.monotonic() > deadline:
                return statistics
            await asyncio.sleep(POLL_S)

    async def _reach(self, target_pages: int) -> None:
        async with asyncio.timeout(BALLOON_TIMEOUT_S):
            while self.vm.balloon.actual != target_pages:
                await asyncio.sleep(POLL_S)

    def _traffic(self) -> tuple[int, int]:
        counters = self.vm.balloon.counters
        inflate, deflate = counters.inflate, counters.deflate
        return inflate.pages + deflate.pages, inflate.requests + deflate.requests

    async def close(self) -> None:
        """End the VM if it still runs, and release its resources."""
        self.vm.quit()
        await asyncio.wait({self._running})
        if self._runner is not None:
            self._runner.close()
        self.vm.close()
        if self._recorder is not None:
            self._recorder.close()


def start_session(
    config: MachineConfig,
    snapshot: SnapshotFile | None = None,
    *,
    overlay: bytes = b"",
    devices: Sequence[CatalogueEntry] = CATALOGUE,
    record: Path | None = None,
) -> GuestSession:
    """Start the VM of `config` on the running event loop; `GuestSession.close` ends it.

    Arguments and errors are those of `guest_session`.
    """
    console = ScriptedConsole()
    with ExitStack() as stack:
        tracer, recorder = _start_tracer(stack, record)
        vm = _create_vm(config, console, devices, tracer)
        stack.callback(vm.close)
        if snapshot is None:
            vm.boot(overlay)
        else:
            # Late: saves 5 ms in scripts that boot.
            from pyvmm.snapshot.restore import restore

            restore(snapshot, vm)
        if recorder is not None:
            recorder.commit()
        stack.pop_all()
    console.connect(vm.console_input)
    return GuestSession(vm, console, recorder=recorder)


@asynccontextmanager
async def guest_session(
    config: MachineConfig,
    snapshot: SnapshotFile | None = None,
    *,
    overlay: bytes = b"",
    devices: Sequence[CatalogueEntry] = CATALOGUE,
    record: Path | None = None,
) -> AsyncIterator[GuestSession]:
    """Run the VM of `config` for the length of the block; it is booted, and closed at the end.

    `overlay` is an archive to add to its initramfs. With `snapshot`, whose `config` it must be, the
    VM is restored and resumed. `devices` are the PCI devices that the VM may have. Its events are
    recorded in the file `record`. Raises `UserError`.
    """
    session = start_session(config, snapshot, overlay=overlay, devices=devices, record=record)
    try:
        yield session
    finally:
        await session.close()


@asynccontextmanager
async def restored_session(
    path: Path,
    *,
    devices: Sequence[CatalogueEntry] = CATALOGUE,
    hugepages: HugePages = DEFAULT_HUGEPAGES,
    record: Path | None = None,
) -> AsyncIterator[GuestSession]:
    """Resume the guest of a snapshot for the length of the block; `devices` are those of its VM.

    Its RAM is in `hugepages`, and its events are recorded in the file `record`. Raises `UserError`.
    """
    # Late: saves 5 ms in scripts that boot.
    from pyvmm.snapshot.reader import SnapshotFile

    with SnapshotFile(path, part_kinds(devices)) as snapshot:
        config = snapshot.config.changed(hugepages=hugepages)
        async with guest_session(config, snapshot, devices=devices, record=record) as guest:
            yield guest


@asynccontextmanager
async def incoming_session(
    listener: MigrationListener,
    *,
    devices: Sequence[CatalogueEntry] = CATALOGUE,
    hugepages: HugePages = DEFAULT_HUGEPAGES,
    record: Path | None = None,
    prepared: PreparedVm | None = None,
) -> AsyncIterator[GuestSession]:
    """Wait for a VM that another pyvmm sends to `listener`, and run it as `guest_session` does.

    Its RAM is in `hugepages` here, and its events here are recorded in the file `record`. It runs
    in `prepared`, whose caller closes it. Raises `UserError` when the migration fails.
    """
    # Late: saves 13 ms (ssl) in scripts that boot.
    from pyvmm.migration.incoming import accept_migration

    console = ScriptedConsole()
    created: list[VirtualMachine] = []

    def close_created() -> None:
        while created:
            created.pop().close()

    with ExitStack() as stack:
        tracer, recorder = _start_tracer(stack, record)

        def make(config: MachineConfig) -> VirtualMachine:
            close_created()
            config = config.changed(hugepages=hugepages)
            created.append(_create_vm(config, console, devices, tracer, prepared))
            return created[0]

        stack.callback(close_created)
        if recorder is not None:
            recorder.commit()
        running = await accept_migration(listener, make, devices)
        stack.pop_all()
    console.connect(created[0].console_input)
    session = GuestSession(created[0], console, running, recorder)
    try:
        yield session
    finally:
        await session.close()


def _start_tracer(stack: ExitStack, record: Path | None) -> tuple[EventTracer, Recorder | None]:
    """Return a tracer, and the recorder that writes its events to the file `record`, if any.

    `stack` closes the recorder. Raises `RecordingNotWritten`.
    """
    tracer = EventTracer()
    if record is None:
        return tracer, None
    # Late: saves 2 ms in scripts that record nothing.
    from pyvmm.trace.recorder import Recorder
    from pyvmm.trace.recording_file import RecordingFile

    recorder = Recorder(tracer, RecordingFile(record))
    stack.callback(recorder.close)
    recorder.start()
    return tracer, recorder


def _create_vm(
    config: MachineConfig,
    console: ScriptedConsole,
    devices: Sequence[CatalogueEntry],
    tracer: EventTracer,
    prepared: PreparedVm | None = None,
) -> VirtualMachine:
    with nullcontext() if prepared is None else prepared.taken(config) as setup:
        platform = Platform(config, console_output=console.queue, tracer=tracer, setup=setup)
    machine = Machine(platform, devices=devices)
    return VirtualMachine(machine, on_console_room=console.send_pending)
