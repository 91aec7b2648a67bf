# SPDX-License-Identifier: Apache-2.0
"""The destination of a migration: receive everything, restore it, run the guest on the commit.

Pages go straight into the RAM of a machine that has not run yet; with several streams, by threads
of their own (`pyvmm.migration.stream_receivers`), which have ended before anything is restored. The
machine's parts are kept until all have arrived, and are then restored together. The guest runs
when, and only when, the source's commit has been read. Any error before that ends the migration
here for good: the source is told the reason, and nothing that it sends afterwards is read. Each
message has a deadline, however slowly its bytes arrive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from devices.state import StateError
from pykvm import KvmError
from pyvmm.errors import UserError
from pyvmm.migration import messages
from pyvmm.migration.checksum_choice import choose
from pyvmm.migration.collection import collection_deferred
from pyvmm.migration.destination_channel import DestinationChannel, LastMessage
from pyvmm.migration.errors import LinkBroken, MigrationError
from pyvmm.migration.stream import SourceReader, ram_pages
from pyvmm.migration.stream_receivers import IncomingPages, StreamReceivers
from pyvmm.migration.timeouts import TIMEOUTS, Timeouts
from pyvmm_native.checksum import Checksum
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.migration.link import Link
    from pyvmm.migration.page_channel import PageChannel
    from pyvmm.state.records import Kind, Record
    from pyvmm_native.memory import GuestMemory

JOIN_POLL_S = 0.05
"""Interval at which the source's first connection is checked while its streams join."""


class TargetRam(Protocol):
    """RAM of a new machine, all of it zeros.

    Threads: migration.
    """

    @property
    def memory(self) -> GuestMemory:
        """The memory to be filled."""

    def zero(self, runs: PageRuns) -> None:
        """Make pages zero, and free the memory behind them if possible."""


class Target(Protocol):
    """Creates and starts the machine that a guest moves to; called in the order given here.

    Threads: migration.
    """

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The kinds of record that a machine's parts have here."""

    def create_machine(self, config: MachineConfig) -> TargetRam:
        """Create the machine and return its RAM. Raises `UserError`."""

    def restore(self, parts: Sequence[Record]) -> None:
        """Restore all parts of the machine. Raises `StateError` or `UserError`."""

    def start(self, *, running: bool) -> None:
        """Start the machine, its guest running or paused."""


class DestinationMigration:
    """One migration to `target` over `link`.

    `on_state` is called when the first message after the source's hello has arrived, or several
    times if there are several streams.

    Threads: migration; `abort` any, `on_state` is called in those of the streams, too.
    """

    def __init__(
        self,
        target: Target,
        link: Link,
        timeouts: Timeouts = TIMEOUTS,
        on_state: Callable[[], None] = lambda: None,
    ) -> None:
        self._target = target
        self._link = link
        self._timeouts = timeouts
        self._on_state = on_state
        last = LastMessage()
        self._channel = DestinationChannel(link, SourceReader(target.kinds), last)
        self.streams = StreamReceivers(link, last)
        """The further connections of this migration."""
        self._hello: messages.Hello | None = None
        self._pages = 0

    def receive_hello(self, within_s: float) -> messages.StreamHello | None:
        """Wait for the first message. Raises `MigrationError` if it is another.

        Return the hello of a stream: then this connection is one of another migration.
        """
        with self._aborting():
            message = self._channel.receive(within_s)
        if isinstance(message, messages.StreamHello):
            return message
        assert isinstance(message, messages.Hello), "the reader keeps the order"
        self._hello = message
        return None

    def refuse(self, reason: str) -> None:
        """Tell the source that its guest is not received here; `run` must not follow."""
        with suppress(MigrationError):
            self._channel.send(messages.Failed(reason), self._timeouts.abort)

    def abort(self) -> None:
        """Break all connections, so that `run` fails at once. Threads: any."""
        self._link.abort()
        self.streams.abort()

    def run(self) -> None:
        """Receive the guest; return when it runs here.

        Raises `MigrationError`, or an error of `target`, if it does not run here and never will.
        """
        if self._hello is None:
            self.receive_hello(self._timeouts.hello)
        with ExitStack() as switchover:
            switchover.callback(self.streams.end)
            with self._aborting():
                if self._hello is None:
                    raise MigrationError("a stream has no migration here")
                ready = self._receive_guest(self._hello, switchover)
            self._target.start(running=ready.was_running)
            with suppress(MigrationError):  # the guest runs anyway
                self._channel.send(messages.Running(), self._timeouts.message)

    @contextmanager
    def _aborting(self) -> Iterator[None]:
        """Tell the source the reason if the block raises."""
        try:
            yield
        except (StateError, UserError, KvmError) as error:
            self._channel.abort(str(error), self._timeouts.abort)
            raise MigrationError(str(error)) from error
        except LinkBroken as error:
            self.refuse(str(error))  # the source may receive it anyway
            raise
        except MigrationError as error:
            self._channel.abort(str(error), self._timeouts.abort)
            raise
        except BaseException as error:
            self._channel.abort(f"it has a bug: {error!r}", self._timeouts.abort)
            raise

    def _receive_guest(self, hello: messages.Hello, switchover: ExitStack) -> messages.Ready:
        """Receive and restore everything, up to the commit.

        No garbage is collected from the first part until `switchover` is closed.
        """
        message_s = self._timeouts.message
        checksum, answer = choose(hello.checksum, hello.offered, local=self._link.local)
        ram = self._target.create_machine(hello.config)
        channel = self._link.pages(ram.memory, Checksum(checksum))
        parts: list[Record] = []
        try:
            self._welcome(hello, ram.memory, checksum, answer)
            ready = self._receive_state(ram, channel, parts, switchover)
        except MigrationError as error:
            failure = self.streams.failure
            if failure is None or failure is error:
                raise
            raise failure from error
        pages = self._pages + self.streams.end()
        required = sum(not part.optional for part in parts)
        if (ready.pages, ready.parts) != (pages, required):
            raise MigrationError(
                f"{pages} pages and {required} parts have arrived, and not"
                f" {ready.pages} and {ready.parts}"
            )
        self._target.restore(parts)
        self._channel.send(messages.StateRestored(), message_s)
        self._channel.receive(message_s)  # the commit: the reader keeps the order
        return ready

    def _welcome(
        self, hello: messages.Hello, memory: GuestMemory, checksum: str, answer: str
    ) -> None:
        """Tell the source that there is a machine; wait until all its streams have joined.

        Pages have `checksum`, which is `answer` if the source has offered it.
        """
        message_s, hello_s = self._timeouts.message, self._timeouts.hello
        if hello.streams == 1:
            self._channel.send(messages.Welcome(checksum=answer), message_s)
            return
        token = self.streams.expect(hello.streams)
        self._channel.send(messages.Welcome(token, answer), message_s)
        ends_at = time.monotonic() + hello_s
        while (joined := self.streams.wait_joined(JOIN_POLL_S)) < hello.streams:
            if self._link.readable():
                self._channel.receive(message_s)
                raise MigrationError("the source has not waited for its streams")
            if time.monotonic() > ends_at:
                raise MigrationError(
                    f"{joined} of {hello.streams} streams have joined within {hello_s:.3g} s"
                )
        ram = ram_pages(hello.config)
        self.streams.start(IncomingPages(memory, ram, checksum, message_s, self._on_state))
        self._channel.send(messages.StreamsJoined(), message_s)

    def _receive_state(
        self, ram: TargetRam, channel: PageChannel, parts: list[Record], switchover: ExitStack
    ) -> messages.Ready:
        """Receive all pages, and add the machine's parts to `parts`."""
        message_s = self._timeouts.message
        message = self._channel.receive(message_s)
        self._on_state()
        while not isinstance(message, messages.Ready):
            match message:
                case messages.Pages():
                    self._pages += self._channel.receive_pages(ram.memory, channel, message)
                case messages.Zeros(runs):
                    ram.zero(runs)
                case messages.RoundEnd(number):
                    self.streams.end_round()
                    self._channel.send(messages.RoundAck(number), message_s)
                case messages.DeviceState(part):
                    if not parts:
                        switchover.enter_context(collection_deferred())
                    parts.append(part)
            message = self._channel.receive(message_s)
        return message
