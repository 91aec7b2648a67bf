# SPDX-License-Identifier: Apache-2.0
"""Reasons why a control socket cannot be used by a client."""

from __future__ import annotations

from pyvmm.errors import UserError


class QmpServerUnresponsive(UserError):
    """The server accepted the connection and does not send its greeting."""


class NotQmpSocket(UserError):
    """The socket's server does not speak QMP."""
