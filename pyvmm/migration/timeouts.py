# SPDX-License-Identifier: Apache-2.0
"""The longest waits of a migration; `docs/reference/deadlines.md` lists them with all others.

Each limits the whole of a step, not the time between two bytes: a peer that sends a byte from time
to time is no better than a silent one. A wait that ends by its deadline is a failure like any
other, so the rule of `pyvmm.migration` decides which side has the guest afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Timeouts:
    """Seconds after which a step of a migration has failed."""

    connection: float = 30.0
    """Source: from the command to a connection, with TLS files, name look-up and handshake."""
    hello: float = 20.0
    """Destination: from a connection to its first message, with the handshake; and from the welcome
    until all streams have joined."""
    welcome: float = 30.0
    """Source: for the destination to create its machine; then for all streams to join."""
    message: float = 60.0
    """Both: for one whole message to be sent, or to arrive while nothing else is to be done."""
    switchover: float = 20.0
    """Source: from the pause of the guest to the commit, in addition to the downtime limit."""
    commit: float = 30.0
    """Source: from the commit to the destination's confirmation."""
    abort: float = 5.0
    """Destination: to deliver the reason of an abort."""
    end: float = 5.0
    """Both: for the migration's thread to stop when the VM ends."""

    def scaled(self, factor: float) -> Timeouts:
        """Return all of them multiplied by `factor`, for tests."""
        return Timeouts(**{each.name: getattr(self, each.name) * factor for each in fields(self)})


TIMEOUTS = Timeouts()
