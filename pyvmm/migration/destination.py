# SPDX-License-Identifier: Apache-2.0
"""The destination of a migration: receive everything, restore it, run the guest on the commit.

Pages go straight into the RAM of a machine that has not run yet. Its parts are kept until all have
arrived, and are then restored together. The guest runs when, and only when, the source's commit has
been read. Any error before that ends the migration here for good: the source is told the reason,
and nothing that it sends afterwards is read. Each message has a deadline, however slowly its bytes
arrive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from devices.state import StateError
from pykvm import KvmError
from pyvmm.errors import UserError
from pyvmm.migration import messages
from pyvmm.migration.collection import collection_deferred
from pyvmm.migration.errors import LinkBroken, LinkTimedOut, MigrationError
from pyvmm.migration.stream import SourceReader
from pyvmm.migration.timeouts import TIMEOUTS, Timeouts
from pyvmm_native.checksum import CHECKSUMS, Checksum
from pyvmm_native.page_blocks import scatter_block
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.migration.link import Link
    from pyvmm.migration.messages import FromDestination, FromSource
    from pyvmm.migration.page_channel import PageChannel
    from pyvmm.state.records import Kind, Record
    from pyvmm_native.memory import GuestMemory

_MAX_DRAINED_BYTES = 1 << 28
_M = TypeVar("_M")


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

    `on_state` is called when the first message after the source's hello has arrived.

    Threads: migration.
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
        self._messages = SourceReader(target.kinds)
        self._hello: messages.Hello | None = None
        self._pages = 0
        self._message_s = 0.0

    def receive_hello(self, within_s: float) -> None:
        """Wait for the source's first message. Raises `MigrationError` if it sends another."""
        with self._aborting():
            self._hello = self._expect(messages.Hello, within_s)

    def refuse(self, reason: str) -> None:
        """Tell the source that its guest is not received here; `run` must not follow."""
        with suppress(MigrationError):
            self._send(messages.Failed(reason), self._timeouts.abort)

    def run(self) -> None:
        """Receive the guest; return when it runs here.

        Raises `MigrationError`, or an error of `target`, if it does not run here and never will.
        """
        if self._hello is None:
            self.receive_hello(self._timeouts.hello)
        with ExitStack() as switchover:
            with self._aborting():
                assert self._hello is not None
                ready = self._receive_guest(self._hello, switchover)
            self._target.start(running=ready.was_running)
            with suppress(MigrationError):  # the guest runs anyway
                self._send(messages.Running(), self._timeouts.message)

    @contextmanager
    def _aborting(self) -> Iterator[None]:
        """Tell the source the reason if the block raises."""
        try:
            yield
        except (StateError, UserError, KvmError) as error:
            self._abort(str(error))
            raise MigrationError(str(error)) from error
        except LinkBroken as error:
            self.refuse(str(error))  # the source may receive it anyway
            raise
        except MigrationError as error:
            self._abort(str(error))
            raise
        except BaseException as error:
            self._abort(f"it has a bug: {error!r}")
            raise

    def _receive_guest(self, hello: messages.Hello, switchover: ExitStack) -> messages.Ready:
        """Receive and restore everything, up to the commit.

        No garbage is collected from the first part until `switchover` is closed.
        """
        message_s = self._timeouts.message
        checksum = self._checksum(hello.checksum)
        ram = self._target.create_machine(hello.config)
        self._send(messages.Welcome(), message_s)
        parts: list[Record] = []
        channel = self._link.pages(ram.memory, checksum)
        message = self._receive(message_s)
        self._on_state()
        while not isinstance(message, messages.Ready):
            match message:
                case messages.Pages():
                    self._receive_pages(ram.memory, channel, message)
                case messages.Zeros(runs):
                    ram.zero(runs)
                case messages.RoundEnd(number):
                    self._send(messages.RoundAck(number), message_s)
                case messages.DeviceState(part):
                    if not parts:
                        switchover.enter_context(collection_deferred())
                    parts.append(part)
            message = self._receive(message_s)
        required = sum(not part.optional for part in parts)
        if (message.pages, message.parts) != (self._pages, required):
            raise MigrationError(
                f"{self._pages} pages and {required} parts have arrived, and not"
                f" {message.pages} and {message.parts}"
            )
        self._target.restore(parts)
        self._send(messages.StateRestored(), message_s)
        self._expect(messages.Commit, message_s)
        return message

    def _checksum(self, name: str) -> Checksum:
        """Return the checksum that the source has chosen. Raises `MigrationError`."""
        if name not in CHECKSUMS:
            raise MigrationError(
                f"this pyvmm has no checksum {name!r}, only {', '.join(CHECKSUMS)}"
            )
        if name == "none" and not self._link.local:
            raise MigrationError("pages without a checksum are received over unix sockets only")
        return Checksum(name)

    def _receive_pages(
        self, memory: GuestMemory, channel: PageChannel, message: messages.Pages
    ) -> None:
        """Store the pages of `message`; the deadline is that of the message."""
        self._pages += message.count
        if message.data:
            scatter_block(memory, message.first_pfn, message.bitmap, message.data)
            return
        try:
            right = channel.receive_block(message.first_pfn, message.bitmap)
        except LinkTimedOut as error:
            raise self._late() from error
        except EOFError as error:
            raise _closed() from error
        if not right:
            raise MigrationError("pages are damaged: wrong checksum")

    # --- Messages -------------------------------------------------------------------------------
    def _receive(self, within_s: float) -> FromSource:
        self._message_s = within_s
        self._link.deadline = time.monotonic() + within_s
        while (message := self._messages.next()) is None:
            try:
                data = self._link.receive(self._messages.wanted_bytes)
            except LinkTimedOut as error:
                raise self._late() from error
            if not data:
                raise _closed()
            self._messages.feed(data)
        return message

    def _late(self) -> LinkTimedOut:
        return LinkTimedOut(f"the source has not sent a whole message for {self._message_s:.3g} s")

    def _expect(self, due: type[_M], within_s: float) -> _M:
        message = self._receive(within_s)
        assert isinstance(message, due), "the reader keeps the order"
        return message

    def _send(self, message: FromDestination, within_s: float) -> None:
        self._link.deadline = time.monotonic() + within_s
        try:
            self._link.send(message.record().encode())
        except LinkTimedOut as error:
            raise LinkTimedOut(
                f"the source has not taken a message for {within_s:.3g} s"
            ) from error

    def _abort(self, reason: str) -> None:
        """Tell the source the reason, if it can still be reached.

        Data that it is sending is drained unread: a connection that is closed with bytes unread is
        reset, and the reason would be lost. Both are limited in time and the second in bytes.
        """
        with suppress(MigrationError):
            self._send(messages.Failed(reason), self._timeouts.abort)
            self._link.deadline = ends_at = time.monotonic() + self._timeouts.abort
            drained = 0
            while drained < _MAX_DRAINED_BYTES and time.monotonic() < ends_at:
                if not (data := self._link.receive(1 << 20)):
                    break
                drained += len(data)


def _closed() -> MigrationError:
    return MigrationError("the source has closed the connection before the commit")
