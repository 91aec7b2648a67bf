# SPDX-License-Identifier: Apache-2.0
"""Failures of the socket become errors of the migration."""

from __future__ import annotations

import socket

import pytest

from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import LinkBroken
from pyvmm.migration.link import MigrationLink
from pyvmm.sockets import link as sockets_link
from pyvmm.sockets.link import SocketLink
from tests.pyvmm.migration.migration_guest import FakeTarget


def test_a_silent_source_times_out_after_one_receive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets_link, "IDLE_TIMEOUT_S", 0.2)
    receive, calls = SocketLink.receive, []

    def counting(self: SocketLink, at_most: int) -> bytes:
        calls.append(at_most)
        return receive(self, at_most)

    monkeypatch.setattr(SocketLink, "receive", counting)
    ours, theirs = socket.socketpair()
    link = MigrationLink(SocketLink(theirs))
    with ours, pytest.raises(LinkBroken, match=r"has sent nothing for 0\.2 s"):
        DestinationMigration(FakeTarget(), link).run()
    assert len(calls) == 1
    link.close()


def test_every_operation_of_a_broken_connection_is_a_broken_link() -> None:
    ours, theirs = socket.socketpair()
    link = MigrationLink(SocketLink(theirs))
    ours.close()
    theirs.close()
    for operation in (lambda: link.send(b"x"), lambda: link.receive(1)):
        with pytest.raises(LinkBroken, match="the connection failed"):
            operation()
