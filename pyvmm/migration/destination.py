# SPDX-License-Identifier: Apache-2.0
"""The destination of a migration: receive everything, restore it, run the guest on the commit.

Pages go straight into the RAM of a machine that has not run yet. Its parts are kept until all have
arrived, and are then restored together. The guest runs when, and only when, the source's commit has
been read. Any error before that ends the migration here for good: the source is told the reason,
and nothing that it sends afterwards is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from devices.state import StateError
from pyvmm.errors import UserError
from pyvmm.migration import messages
from pyvmm.migration.errors import LinkBroken, MigrationError
from pyvmm.migration.stream import SourceReader
from pyvmm_native import PAGE_BYTES
from pyvmm_native.page_blocks import scatter_block
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.migration.link import Link
    from pyvmm.migration.messages import FromDestination, FromSource
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

    def discard(self, runs: PageRuns) -> int:
        """Make pages zero, and free the memory behind them."""


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

    Threads: migration.
    """

    def __init__(self, target: Target, link: Link) -> None:
        self._target = target
        self._link = link
        self._messages = SourceReader(target.kinds)
        self._pages = 0

    def run(self) -> None:
        """Receive the guest; return when it runs here.

        Raises `MigrationError`, or an error of `target`, if it does not run here and never will.
        """
        try:
            ready = self._receive_guest()
        except (StateError, UserError) as error:
            self._abort(str(error))
            raise MigrationError(str(error)) from error
        except LinkBroken as error:
            with suppress(MigrationError):  # the source may receive it anyway
                self._send(messages.Failed(str(error)))
            raise
        except MigrationError as error:
            self._abort(str(error))
            raise
        except BaseException as error:
            self._abort(f"it has a bug: {error!r}")
            raise
        self._target.start(running=ready.was_running)
        with suppress(MigrationError):  # the guest runs anyway
            self._send(messages.Running())

    def _receive_guest(self) -> messages.Ready:
        """Receive and restore everything, up to the commit."""
        hello = self._expect(messages.Hello)
        ram = self._target.create_machine(hello.config)
        self._send(messages.Welcome())
        parts: list[Record] = []
        while not isinstance(message := self._receive(), messages.Ready):
            match message:
                case messages.Pages():
                    self._store(ram.memory, message)
                case messages.Zeros(runs):
                    ram.discard(runs)
                case messages.RoundEnd(number):
                    self._send(messages.RoundAck(number))
                case messages.DeviceState(part):
                    parts.append(part)
        required = sum(not part.optional for part in parts)
        if (message.pages, message.parts) != (self._pages, required):
            raise MigrationError(
                f"{self._pages} pages and {required} parts have arrived, and not"
                f" {message.pages} and {message.parts}"
            )
        self._target.restore(parts)
        self._send(messages.StateRestored())
        self._expect(messages.Commit)
        return message

    def _store(self, memory: GuestMemory, message: messages.Pages) -> None:
        scatter_block(memory, message.first_pfn, message.bitmap, message.data)
        self._pages += len(message.data) // PAGE_BYTES

    # --- Messages -------------------------------------------------------------------------------
    def _receive(self) -> FromSource:
        while (message := self._messages.next()) is None:
            data = self._link.receive(self._messages.wanted_bytes)
            if not data:
                raise MigrationError("the source has closed the connection before the commit")
            self._messages.feed(data)
        return message

    def _expect(self, due: type[_M]) -> _M:
        message = self._receive()
        assert isinstance(message, due), "the reader keeps the order"
        return message

    def _send(self, message: FromDestination) -> None:
        self._link.send(message.record().encode())

    def _abort(self, reason: str) -> None:
        """Tell the source the reason, if it can still be reached.

        Data that it is sending is drained unread: a connection that is closed with bytes unread is
        reset, and the reason would be lost.
        """
        with suppress(MigrationError):
            self._send(messages.Failed(reason))
            drained = 0
            while drained < _MAX_DRAINED_BYTES and (data := self._link.receive(1 << 20)):
                drained += len(data)
