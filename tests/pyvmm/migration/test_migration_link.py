# SPDX-License-Identifier: Apache-2.0
"""Failures of the socket become errors of the migration."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import LinkBroken, LinkTimedOut
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.timeouts import Timeouts
from pyvmm.sockets.link import SocketLink
from tests.pyvmm.migration.migration_guest import FakeTarget

TENTH_OF_SECOND = Timeouts(message=0.1, hello=0.1, abort=0.1)


def test_a_silent_source_times_out() -> None:
    ours, theirs = socket.socketpair()
    link = MigrationLink(SocketLink(theirs))
    with ours, pytest.raises(LinkBroken, match=r"has not sent a whole message for 0\.1 s"):
        DestinationMigration(FakeTarget(), link, TENTH_OF_SECOND).run()
    link.close()


def test_a_transfer_that_moves_bytes_ends_at_its_deadline() -> None:
    """In both directions, with a peer that sends or takes a byte from time to time."""
    ours, theirs = socket.socketpair()
    link, ended = MigrationLink(SocketLink(theirs)), threading.Event()

    def dribble() -> None:
        while not ended.wait(0.01):
            ours.send(b"x")
            ours.recv(1)

    thread = threading.Thread(target=dribble)
    thread.start()
    operations: list[Callable[[], None]] = [
        lambda: link.send(bytes(1 << 24)),
        lambda: receive_all(link),
    ]
    for operation in operations:
        link.deadline = time.monotonic() + 0.2
        with pytest.raises(LinkTimedOut):
            operation()
        assert time.monotonic() - link.deadline < 1
    ended.set()
    thread.join()
    ours.close()
    link.close()


def receive_all(link: MigrationLink) -> None:
    while link.receive(1):
        pass


def test_a_link_is_readable_once_the_peer_has_sent_or_closed() -> None:
    ours, theirs = socket.socketpair()
    link = MigrationLink(SocketLink(theirs))
    assert not link.readable()
    ours.send(b"x")
    assert link.readable()
    assert link.receive(1) == b"x"
    assert not link.readable()
    ours.close()
    assert link.readable()
    assert link.receive(1) == b""
    link.close()


def test_every_operation_of_a_broken_connection_is_a_broken_link() -> None:
    ours, theirs = socket.socketpair()
    link = MigrationLink(SocketLink(theirs))
    ours.close()
    theirs.close()
    for operation in (
        lambda: link.send(b"x"),
        lambda: link.receive(1),
        lambda: link.receive_into(memoryview(bytearray(1))),
    ):
        with pytest.raises(LinkBroken, match="the connection failed"):
            operation()
