# SPDX-License-Identifier: Apache-2.0
"""One client's conversation: messages in, replies out.

A session begins in capabilities negotiation, where only `qmp_capabilities` is understood, and then
stays in command mode, where everything but that is (QEMU's qmp-spec, "Capabilities Negotiation").
Whatever a client sends gets one reply and the session goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyvmm.control import qmp
from pyvmm.control.commands import execute
from pyvmm.control.machine_control import MachineControl
from pyvmm.control.qmp import QmpError

_NEGOTIATE = "qmp_capabilities"


class Session:
    """What one client has negotiated, and what it is answered."""

    def __init__(self, machine: MachineControl) -> None:
        self._machine = machine
        self.negotiated = False

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to `message`, with its "id" if it has one."""
        try:
            reply = qmp.success(self._serve(qmp.parse_request(message)))
        except QmpError as error:
            reply = qmp.failure(error)
        if "id" in message:
            reply["id"] = message["id"]
        return reply

    def _serve(self, request: qmp.Request) -> Any:
        if self.negotiated and request.command == _NEGOTIATE:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
            )
        if not self.negotiated and request.command != _NEGOTIATE:
            raise QmpError(
                f"Expecting capabilities negotiation with '{_NEGOTIATE}'", "CommandNotFound"
            )
        value = execute(self._machine, request)
        self.negotiated = True
        return value
