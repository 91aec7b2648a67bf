# SPDX-License-Identifier: Apache-2.0
"""The session of one client: messages in, replies out.

A session starts in capabilities negotiation, where only `qmp_capabilities` is accepted, and then
stays in command mode, where every other command is (QEMU's qmp-spec, "Capabilities Negotiation").
Every message gets exactly one reply, whatever happens: a command that raises anything but
`QmpError` or `UserError` has a bug, which is logged and reported to the client, and the session
continues. Requests are served one after the other: `reply` is not called again before the last
reply is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from inspect import isawaitable
from typing import Any

from pyvmm.errors import UserError
from pyvmm.qmp import messages as qmp
from pyvmm.qmp.commands import execute
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.vm_control import VmControl

_NEGOTIATE = "qmp_capabilities"

Reply = dict[str, Any]

_log = logging.getLogger(__name__)


class QmpSession:
    """The state of one client, which controls `vm`."""

    def __init__(self, vm: VmControl) -> None:
        self._vm = vm
        self.negotiated = False

    def reply(self, message: Mapping[str, Any]) -> Reply | Awaitable[Reply]:
        """Return the reply to `message`, with its "id" if any; awaitable if the command waits."""
        try:
            value = self._serve(qmp.parse_request(message))
        except Exception as error:
            return _with_id(message, _failure(error))
        if isawaitable(value):
            return self._reply_later(message, value)
        return _with_id(message, qmp.success(value))

    async def _reply_later(self, message: Mapping[str, Any], value: Awaitable[Any]) -> Reply:
        try:
            return _with_id(message, qmp.success(await value))
        except Exception as error:
            return _with_id(message, _failure(error))

    def _serve(self, request: qmp.Request) -> Any:
        if self.negotiated and request.command == _NEGOTIATE:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
            )
        if not self.negotiated and request.command != _NEGOTIATE:
            raise QmpError(
                f"Expecting capabilities negotiation with '{_NEGOTIATE}'", "CommandNotFound"
            )
        value = execute(self._vm, request)
        self.negotiated = True
        return value


def _failure(error: Exception) -> Reply:
    """Return the reply of a command that raised `error`; logs what is neither of the two kinds."""
    if isinstance(error, QmpError):
        return qmp.failure(error)
    if isinstance(error, UserError):
        return qmp.failure(QmpError(str(error)))
    _log.error("a control command failed because of a bug", exc_info=error)
    return qmp.failure(QmpError(f"Internal error: {error!r}"))


def _with_id(message: Mapping[str, Any], reply: Reply) -> Reply:
    return {**reply, "id": message["id"]} if "id" in message else reply
