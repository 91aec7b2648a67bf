# SPDX-License-Identifier: Apache-2.0
"""The description of one command, from which its arguments are checked and documented.

A handler is declared with its parameters: names, types, and the values that each accepts. Its
docstring has the rest, in sections that cost nothing at run time, and from which the reference in
`docs/` is generated::

    '''Return or do something.

    Arguments:
        timeout: the meaning of each argument; defaults are read from the handler's signature
    Returns:
        key: the meaning of each member; `a.b` is member b of member a, `[].a` member a of each
            element, and a `?` follows a member that is not always present
    Errors:
        DeviceNotActive: when there is an error of this class
    In QEMU:
        the same; or the difference; or "no such command", if the command is pyvmm's own
    '''
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from devices.listeners import Listeners
from pyvmm.qmp.messages import QmpError

QMP_TYPE_NAMES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    object: "any",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command."""

    name: str
    type: type
    """`float` accepts integers too; `object` accepts anything."""
    required: bool = True
    expects: str = ""
    """Unit and bounds, if any, in words, for errors and documents."""
    accepts: Callable[[Any], bool] | None = None
    """Returns whether a value of the type is within the bounds."""

    def check(self, value: Any) -> None:
        """Raise `QmpError` unless `value` has the type of the parameter."""
        if not self._has_type(value):
            expected = QMP_TYPE_NAMES[self.type]
            raise QmpError(f"Invalid parameter type for '{self.name}', expected: {expected}")
        if self.type is str and not _is_os_string(value):
            raise QmpError(f"Parameter '{self.name}' contains an invalid character")

    def check_bounds(self, value: Any) -> None:
        """Raise `QmpError` unless `value`, which has the type, is within the bounds."""
        if self.accepts is not None and not self.accepts(value):
            raise QmpError(f"Parameter '{self.name}' expects {self.expects}")

    def _has_type(self, value: Any) -> bool:
        if self.type is float:
            return type(value) in (int, float)
        return self.type is object or type(value) is self.type  # a boolean is not an integer


class Client:
    """The client of one session; `gone` is called when it has disconnected.

    `watches` is True once it has started to watch events, which `gone` ends.
    """

    def __init__(self) -> None:
        self.gone: Listeners[[]] = Listeners()
        self.watches = False


@dataclass(frozen=True)
class Command:
    """A command: its handler and its parameters.

    `run` is called with the VM, the `Client` if the command is `of_client`, and the arguments by
    name, with underscores for hyphens; it returns the command's value, or an awaitable of it.
    """

    run: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()
    of_client: bool = False
    """The effect depends on the client, or ends with its session."""

    def execute(self, vm: Any, arguments: dict[str, Any], client: Client) -> Any:
        """Check the arguments and run the command on `vm` for `client`. Raises `QmpError`."""
        self._check(arguments)
        named = {name.replace("-", "_"): arguments[name] for name in arguments}
        return self.run(vm, client, **named) if self.of_client else self.run(vm, **named)

    def _check(self, arguments: dict[str, Any]) -> None:
        for parameter in self.parameters:
            if parameter.name in arguments:
                parameter.check(arguments[parameter.name])
            elif parameter.required:
                raise QmpError(f"Parameter '{parameter.name}' is missing")
        unexpected = arguments.keys() - {parameter.name for parameter in self.parameters}
        if unexpected:
            raise QmpError(f"Parameter '{min(unexpected)}' is unexpected")
        for parameter in self.parameters:
            if parameter.name in arguments:
                parameter.check_bounds(arguments[parameter.name])


def _is_os_string(text: str) -> bool:
    """Return whether `text` can be passed to the operating system, as a path for example."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # an unpaired surrogate
        return False
