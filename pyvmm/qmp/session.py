# SPDX-License-Identifier: Apache-2.0
"""One client's conversation: messages in, replies out.

A session begins in capabilities negotiation, where only `qmp_capabilities` is understood, and then
stays in command mode, where everything but that is (QEMU's qmp-spec, "Capabilities Negotiation").
Whatever a client sends gets one reply and the session goes on. Requests are served one after the
other: `answer` is not called again before the last reply was there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from inspect import isawaitable
from typing import Any

from pyvmm.qmp import messages as qmp
from pyvmm.qmp.commands import execute
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.vm_control import VmControl

_NEGOTIATE = "qmp_capabilities"

Reply = dict[str, Any]


class QmpSession:
    """What one client has negotiated, and what it is answered."""

    def __init__(self, vm: VmControl) -> None:
        self._vm = vm
        self.negotiated = False

    def answer(self, message: Mapping[str, Any]) -> Reply | Awaitable[Reply]:
        """The reply to `message`, with its "id" if any; later, if the command has to wait."""
        try:
            value = self._serve(qmp.parse_request(message))
        except QmpError as error:
            return _with_id(message, qmp.failure(error))
        if isawaitable(value):
            return self._answer_later(message, value)
        return _with_id(message, qmp.success(value))

    async def _answer_later(self, message: Mapping[str, Any], value: Awaitable[Any]) -> Reply:
        try:
            return _with_id(message, qmp.success(await value))
        except QmpError as error:
            return _with_id(message, qmp.failure(error))

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


def _with_id(message: Mapping[str, Any], reply: Reply) -> Reply:
    return {**reply, "id": message["id"]} if "id" in message else reply
