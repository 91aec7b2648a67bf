# SPDX-License-Identifier: Apache-2.0
"""The destination's side of a migration: take everything in, and start only what is complete.

Pages go straight into the RAM of a machine that has not run yet; its parts are kept until all have
come and are then restored together. The guest runs when, and only when, the source's commit has
been read. Whatever is wrong before that ends the migration here for good: the source is told why,
and nothing sent afterwards is read any more.
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

_MAX_LAST_BYTES = 1 << 28
_M = TypeVar("_M")


class TargetRam(Protocol):
    """RAM of a machine that was just made, all of it zeros."""

    @property
    def memory(self) -> GuestMemory:
        """To be filled."""

    def discard(self, runs: PageRuns) -> int:
        """Make pages zero, and free the memory behind them."""


class Target(Protocol):
    """Where a guest can be made to live. Calls come from the migration's thread, in this order."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The parts that a machine here has."""

    def make(self, config: MachineConfig) -> TargetRam:
        """Make a machine; raises `UserError` if that cannot be."""

    def restore(self, parts: Sequence[Record]) -> None:
        """Restore all of its parts; raises `StateError` or `UserError` if that cannot be."""

    def run(self, runs: bool) -> None:
        """Let it run, or, unless `runs`, be as a machine that is paused."""


class DestinationMigration:
    """One migration to `target` over `link`."""

    def __init__(self, target: Target, link: Link) -> None:
        self._target = target
        self._link = link
        self._messages = SourceReader(target.kinds)
        self._pages = 0

    def run(self) -> None:
        """Returns when the guest runs here.

        Raises `MigrationError`, or what is wrong with `target`, when it does not and never will.
        """
        try:
            ready = self._take_in()
        except (StateError, UserError) as error:
            self._give_up(str(error))
            raise MigrationError(str(error)) from error
        except LinkBroken as error:
            with suppress(MigrationError):  # it may hear us all the same
                self._say(messages.Failed(str(error)))
            raise
        except MigrationError as error:
            self._give_up(str(error))
            raise
        except BaseException as error:
            self._give_up(f"it has a bug: {error!r}")
            raise
        self._target.run(ready.runs)
        with suppress(MigrationError):  # the guest runs all the same
            self._say(messages.Running())

    def _take_in(self) -> messages.Ready:
        """Everything up to the commit."""
        hello = self._wait_for(messages.Hello)
        ram = self._target.make(hello.config)
        self._say(messages.Welcome())
        parts: list[Record] = []
        while not isinstance(message := self._next(), messages.Ready):
            match message:
                case messages.Pages():
                    self._store(ram.memory, message)
                case messages.Zeros(runs):
                    ram.discard(runs)
                case messages.RoundEnd(number):
                    self._say(messages.RoundAck(number))
                case messages.DeviceState(part):
                    parts.append(part)
        if (message.pages, message.parts) != (self._pages, len(parts)):
            raise MigrationError(
                f"{self._pages} pages and {len(parts)} parts have come, and not"
                f" {message.pages} and {message.parts}"
            )
        self._target.restore(parts)
        self._say(messages.StateRestored())
        self._wait_for(messages.Commit)
        return message

    def _store(self, memory: GuestMemory, message: messages.Pages) -> None:
        scatter_block(memory, message.first_pfn, message.bitmap, message.data)
        self._pages += len(message.data) // PAGE_BYTES

    # --- Talking --------------------------------------------------------------------------------
    def _next(self) -> FromSource:
        while (message := self._messages.next()) is None:
            data = self._link.receive(self._messages.wanted_bytes)
            if not data:
                raise MigrationError("the source hung up before it handed over the guest")
            self._messages.feed(data)
        return message

    def _wait_for(self, wanted: type[_M]) -> _M:
        message = self._next()
        assert isinstance(message, wanted), "the reader keeps the order"
        return message

    def _say(self, message: FromDestination) -> None:
        self._link.send(message.record().encode())

    def _give_up(self, why: str) -> None:
        """Tell the source, if it can still be reached.

        What it is sending is drained without being looked at: a connection that is closed with
        bytes unread is reset, and the reason would be lost with it.
        """
        with suppress(MigrationError):
            self._say(messages.Failed(why))
            drained = 0
            while drained < _MAX_LAST_BYTES and (data := self._link.receive(1 << 20)):
                drained += len(data)
