# SPDX-License-Identifier: Apache-2.0
"""Errors of a migration; the guest survives all of them, on exactly one side."""

from __future__ import annotations

from pyvmm.errors import UserError


class MigrationError(Exception):
    """The migration has failed. The message is one line that gives the reason, no full stop."""


class LinkBroken(MigrationError):
    """The connection has broken."""


class LinkTimedOut(LinkBroken):
    """The peer has not sent, or taken, a whole message before the link's deadline."""


class Cancelled(MigrationError):
    """The migration was cancelled on this side."""


class PeerAborted(MigrationError):
    """The destination has aborted: it does not run the guest and never will."""


class SwitchoverUnconfirmed(MigrationError):
    """The commit was sent and not answered: the destination may or may not run the guest.

    The source no longer runs it, but still has all of it.
    """


class IncomingMigrationFailed(UserError):
    """The guest does not run here; unless its source reports otherwise, it still runs there."""
