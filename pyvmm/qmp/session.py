# SPDX-License-Identifier: Apache-2.0
"""The session of one client: messages in, encoded replies out.

A session starts in capabilities negotiation, where only `qmp_capabilities` is accepted, and then
stays in command mode, where every other command is (QEMU's qmp-spec, "Capabilities Negotiation").
Every message gets exactly one reply, whatever happens: a command that raises anything but
`QmpError` or `UserError`, is cancelled, or returns what JSON cannot express has a bug, which is
logged and reported to the client, and the session continues. Requests are served one after the
other: `reply` is not called again before the last reply is complete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from inspect import isawaitable
from typing import Any

from pyvmm.errors import UserError
from pyvmm.qmp import messages as qmp
from pyvmm.qmp.command import Client
from pyvmm.qmp.commands import execute
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.vm_control import VmControl

_NEGOTIATE = "qmp_capabilities"

_log = logging.getLogger(__name__)


class QmpSession:
    """The state of one client, which controls `vm`."""

    def __init__(self, vm: VmControl) -> None:
        self._vm = vm
        self._client = Client()
        self.negotiated = False

    def close(self) -> None:
        """End what depends on the client, which has disconnected."""
        self._client.gone()

    def reply(self, message: Mapping[str, Any]) -> bytes | Awaitable[bytes]:
        """Return the reply to `message`, with its "id" if any; awaitable if the command waits."""
        with_id = {"id": message["id"]} if "id" in message else {}
        try:
            value = self._serve(qmp.parse_request(message))
            if isawaitable(value):
                return self._reply_later(value, with_id)
            return qmp.encode({**qmp.success(value), **with_id})
        except Exception as error:
            return _failure(error, with_id)

    async def _reply_later(self, value: Awaitable[Any], with_id: dict[str, Any]) -> bytes:
        try:
            return qmp.encode({**qmp.success(await value), **with_id})
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the client has disconnected, or the VM ends
            return _failure(error, with_id)
        except Exception as error:
            return _failure(error, with_id)

    def _serve(self, request: qmp.Request) -> Any:
        if self.negotiated and request.command == _NEGOTIATE:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
            )
        if not self.negotiated and request.command != _NEGOTIATE:
            raise QmpError(
                f"Expecting capabilities negotiation with '{_NEGOTIATE}'", "CommandNotFound"
            )
        value = execute(self._vm, request, self._client)
        self.negotiated = True
        return value


def _failure(error: BaseException, with_id: dict[str, Any]) -> bytes:
    """Return the reply of a command that raised `error`; logs what is neither of the two kinds."""
    if isinstance(error, UserError):
        error = QmpError(str(error))
    elif not isinstance(error, QmpError):
        _log.error("a control command failed because of a bug", exc_info=error)
        error = QmpError(f"Internal error: {error!r}")
    return qmp.encode({**qmp.failure(error), **with_id})
