# SPDX-License-Identifier: Apache-2.0
"""The directives `{qmp-commands}` and `{qmp-events}`: the QMP reference, generated from the code.

    ```{qmp-commands} pyvmm.qmp.vm_commands
    ```

documents the commands whose handlers are in a module: parameters from their declarations, defaults
from the handler's signature, everything else from the sections of its docstring
(`pyvmm.qmp.command` has the format). Types of returned members and the examples come from recorded
exchanges with a server, `docs/reference/qmp-examples.json`; `tests/docs/test_qmp_reference.py`
compares them with a server's answers of today.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyvmm.machine.run_state import EVENTS
from pyvmm.qmp.command import QMP_TYPE_NAMES, Command, Parameter
from pyvmm.qmp.commands import COMMANDS
from pyvmm_docs.qmp_description import Description, documented_as, key_paths, parse

EXAMPLES = Path(__file__).parents[1] / "reference" / "qmp-examples.json"
_LINE_CHARACTERS = 76


class Example(NamedTuple):
    """A recorded exchange; an event has no request."""

    name: str
    request: dict[str, Any] | None
    response: dict[str, Any]


def examples() -> list[Example]:
    """Return the recorded exchanges."""
    return [Example(**each) for each in json.loads(EXAMPLES.read_text())]


def command_page(name: str, command: Command) -> str:
    """Return the Markdown that documents a command. Raises ValueError if its docstring does not."""
    description = parse(command.run.__doc__ or "")
    exchanges = [each for each in examples() if each.name == name]
    returns = description.sections.get("Returns", {})
    errors = description.sections.get("Errors", {})
    parts = [
        f"(qmp-{name})=\n### `{name}`",
        description.text,
        *_table(
            "Arguments",
            ("argument", "type", "default", "accepts", "meaning"),
            [_parameter_row(each, command, description) for each in command.parameters],
        ),
        *_table("Returns", ("member", "type", "meaning"), list(_member_rows(returns, exchanges))),
        *_table("Errors", ("class", "when"), [(f"`{each}`", errors[each]) for each in errors]),
        f"**In QEMU:** {description.in_qemu}.",
        *_example_blocks(exchanges),
    ]
    return "\n\n".join(parts)


def event_page(name: str) -> str:
    """Return the Markdown that documents an event."""
    description = parse(EVENTS[name])  # type: ignore[index]
    recorded = [each for each in examples() if each.name == name]
    data = description.sections.get("Data", {})
    rows = _member_rows(data, [each._replace(response=_as_return(each)) for each in recorded])
    return "\n\n".join(
        [
            f"(qmp-event-{name})=\n### `{name}`",
            description.text,
            *_table("Data", ("member", "type", "meaning"), list(rows)),
            f"**In QEMU:** {description.in_qemu}.",
            *_example_blocks(recorded),
        ]
    )


def _as_return(event: Example) -> dict[str, Any]:
    return {"return": event.response.get("data", {})}


def _parameter_row(
    parameter: Parameter, command: Command, description: Description
) -> tuple[str, ...]:
    default = inspect.signature(command.run).parameters[parameter.name.replace("-", "_")].default
    if parameter.required:
        shown = "required"
    else:
        shown = "optional" if default is None else f"`{json.dumps(default)}`"
    meaning = description.sections.get("Arguments", {}).get(parameter.name)
    if meaning is None:
        raise ValueError(f"argument {parameter.name} of {command.run.__name__} is not described")
    return f"`{parameter.name}`", QMP_TYPE_NAMES[parameter.type], shown, parameter.expects, meaning


def _member_rows(
    documented: Mapping[str, str], exchanges: list[Example]
) -> Iterator[tuple[str, ...]]:
    types: dict[str, set[str]] = {}
    for exchange in exchanges:
        for path, value in key_paths(exchange.response.get("return")):
            name = documented_as(path, documented)
            if name is not None:
                types.setdefault(name, set()).add(_json_type(value))
    for name, meaning in documented.items():
        optional = " (optional)" if name.endswith("?") else ""
        shown = " or ".join(sorted(types.get(name, ())))
        yield f"`{name.removesuffix('?')}`{optional}", shown, meaning


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    return "object" if isinstance(value, dict) else QMP_TYPE_NAMES[type(value)]


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return a table with its title, without columns that are empty; nothing if it has no rows."""
    if not rows:
        return []
    kept = [n for n in range(len(columns)) if any(row[n] for row in rows)]
    lines = (columns, ("---",) * len(columns), *rows)
    table = "\n".join("| " + " | ".join(line[n] for n in kept) + " |" for line in lines)
    return [f"**{title}**", table]


def _example_blocks(exchanges: list[Example]) -> list[str]:
    if not exchanges:
        return []
    blocks = [
        "\n".join(
            _json_text(message)
            for message in (exchange.request, exchange.response)
            if message is not None
        )
        for exchange in exchanges
    ]
    heading = "**Example**" if len(blocks) == 1 else "**Examples**"
    return [heading, *(f"```json\n{block}\n```" for block in blocks)]


def _json_text(message: Any, indent: str = "", prefix: str = "") -> str:
    """Return `prefix` and a message as JSON: what fits on a line is on one."""
    line = prefix + json.dumps(message, ensure_ascii=False)
    if len(indent + line) <= _LINE_CHARACTERS or not isinstance(message, (dict, list)):
        return line
    inner = indent + "  "
    if isinstance(message, dict):
        parts = [_json_text(message[name], inner, f"{json.dumps(name)}: ") for name in message]
    else:
        parts = [_json_text(value, inner) for value in message]
    opening, closing = "{}" if isinstance(message, dict) else "[]"
    return f"{prefix}{opening}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{closing}"


class QmpCommands(SphinxDirective):
    """Documents the commands of a module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a section for each command."""
        (module,) = self.arguments
        try:
            pages = [
                command_page(name, command)
                for name, command in COMMANDS.items()
                if command.run.__module__ == module
            ]
        except ValueError as error:
            raise self.error(str(error)) from None
        if not pages:
            raise self.error(f"no command is in {module}")
        self.env.note_dependency(str(EXAMPLES))
        return self.parse_text_to_nodes("\n\n".join(pages), allow_section_headings=True)


class QmpEvents(SphinxDirective):
    """Documents all events."""

    def run(self) -> list[nodes.Node]:
        """Return a section for each event."""
        self.env.note_dependency(str(EXAMPLES))
        text = "\n\n".join(event_page(name) for name in EVENTS)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("qmp-commands", QmpCommands)
    app.add_directive("qmp-events", QmpEvents)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
