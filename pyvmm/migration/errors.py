# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a migration; the guest survives all of it, on exactly one side."""

from __future__ import annotations


class MigrationError(Exception):
    """The migration has failed. The message says why; it is one line, without a final full stop."""


class LinkBroken(MigrationError):
    """The connection has broken, or nothing has come over it for too long."""


class Cancelled(MigrationError):
    """Somebody on this side has cancelled it."""


class PeerAborted(MigrationError):
    """The destination has aborted: it does not run the guest and never will."""


class SwitchoverUnconfirmed(MigrationError):
    """The commit was sent and not answered: the destination may or may not run the guest.

    The source does not run it any more, but still has all of it.
    """
