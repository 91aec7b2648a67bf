# SPDX-License-Identifier: Apache-2.0
"""The QMP reference documents every command and event, and its examples are a server's answers."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, get_args

import pytest

from pyvmm.machine.exit_result import ExitReason
from pyvmm.machine.run_state import EVENTS, EventName, RunState
from pyvmm.migration.outgoing import MigrationStatus
from pyvmm.qmp.commands import COMMANDS
from pyvmm_docs import qmp_reference
from pyvmm_docs.qmp_description import documented_as, key_paths, member_fault, parse
from pyvmm_docs.qmp_reference import Example, examples
from tests.docs.qmp_exchange import exchanges
from tests.project.sources import ROOT

VOLATILE = {
    "bandwidth",
    "checksum",
    "chunk",
    "dirty-pages-rate",
    "dirty-sync-count",
    "downtime",
    "downtime-steps",
    "expected-downtime",
    "file-bytes",
    "last-update",
    "mbps",
    "microseconds",
    "package",
    "rss",
    "seconds",
    "stopped-seconds",
    "thread-id",
    "total-time",
    "transferred",
}
"""Members whose values differ from run to run."""
ANNOTATIONS = {bool: "bool", int: "int", float: "float", str: "str", object: "Any"}


def command_parameters() -> list[Any]:
    return [pytest.param(name, id=name) for name in COMMANDS]


def without_volatile(value: Any) -> Any:
    """Return a message with the type instead of the value of each volatile member."""
    if isinstance(value, list):
        return [without_volatile(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: type(member).__name__ if name in VOLATILE else without_volatile(member)
        for name, member in value.items()
    }


def test_the_examples_are_the_answers_of_a_server() -> None:
    """Otherwise run `python -m tests.docs.qmp_exchange` and look at the difference."""
    recorded = [Example(*map(without_volatile, each)) for each in examples()]
    assert recorded == [Example(*map(without_volatile, each)) for each in exchanges()]


@pytest.mark.parametrize("name", command_parameters())
def test_a_command_is_declared_as_its_handler_is(name: str) -> None:
    command = COMMANDS[name]
    signature = inspect.signature(command.run).parameters
    declared = {each.name.replace("-", "_"): each for each in command.parameters}
    assert list(signature) == ["vm", *["client"] * command.of_client, *declared]
    for argument, parameter in declared.items():
        assert parameter.required == (signature[argument].default is inspect.Parameter.empty)
        annotation = signature[argument].annotation.removesuffix(" | None")
        assert re.sub(r"\[.*", "", annotation) == ANNOTATIONS.get(parameter.type, "list")


@pytest.mark.parametrize("name", command_parameters())
def test_a_command_is_documented_with_all_its_arguments(name: str) -> None:
    command = COMMANDS[name]
    description = parse(command.run.__doc__ or "")
    assert description.text
    assert description.in_qemu
    documented = list(description.sections.get("Arguments", {}))
    assert documented == [parameter.name for parameter in command.parameters]


@pytest.mark.parametrize("name", command_parameters())
def test_the_examples_of_a_command_have_just_the_documented_members(name: str) -> None:
    documented = parse(COMMANDS[name].run.__doc__ or "").sections.get("Returns", {})
    values = [
        each.response["return"]
        for each in examples()
        if each.name == name and "return" in each.response
    ]
    if inspect.signature(COMMANDS[name].run).return_annotation == "NoReturn":
        assert (values, documented) == ([], {})
        return
    assert values, "no example"
    if name == "qom-get":  # its value is that of the property
        return
    check_members(values, documented)


def check_members(values: list[Any], documented: Any) -> None:
    for value in values:
        assert member_fault(value, documented) is None
    seen = {documented_as(path, documented) for value in values for path, _ in key_paths(value)}
    assert seen == set(documented), "a documented member is in no example"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"a": 1, "b": {"c": 2}}, None),
        ({"a": 1, "b": {"c": 2}, "d": 3}, None),
        ({"b": {"c": 2}}, "a is missing"),
        ({"a": 1, "b": {"e": 2}}, "b.e is not documented"),
        ([{"a": 1}], "[].a is not documented"),
    ],
)
def test_a_value_is_compared_with_the_documented_members(value: Any, fault: str | None) -> None:
    documented = {"a": "", "b.c": "", "d?": ""}
    assert member_fault(value, documented) == fault


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_is_documented_with_just_its_data(name: EventName) -> None:
    description = parse(EVENTS[name])
    assert description.text
    assert description.in_qemu
    data = [each.response.get("data", {}) for each in examples() if each.name == name]
    assert data, "no example"
    check_members(data, description.sections.get("Data", {}))


def test_every_event_is_documented() -> None:
    assert set(EVENTS) == set(get_args(EventName))


def test_documented_values_are_those_of_the_code() -> None:
    def quoted(text: str) -> set[str]:
        return set(re.findall("`([^`]*)`", text))

    def returned(command: str, member: str) -> set[str]:
        return quoted(parse(COMMANDS[command].run.__doc__ or "").sections["Returns"][member])

    assert returned("query-status", "status") == set(get_args(RunState))
    assert returned("query-migrate", "status?") == set(get_args(MigrationStatus)) - {"none"}
    reasons = quoted(parse(EVENTS["SHUTDOWN"]).sections["Data"]["reason"])
    assert reasons == {each.value for each in ExitReason}


def test_every_group_of_commands_is_on_the_page() -> None:
    page = (ROOT / "docs" / "reference" / "qmp.md").read_text()
    groups = re.findall(r"\{qmp-commands\} (\S+)", page)
    assert len(groups) == len(set(groups))
    assert set(groups) == {command.run.__module__ for command in COMMANDS.values()}
    assert "{qmp-events}" in page


def test_a_page_of_a_command_has_arguments_members_errors_and_examples() -> None:
    page = qmp_reference.command_page("query-unused-pages", COMMANDS["query-unused-pages"])
    assert "| `timeout` | number | `10.0` | seconds, more than 0 to 86400 | the longest" in page
    assert "| `runs` (optional) | array | the first runs" in page
    assert "| `DeviceNotActive` | the driver cannot" in page
    assert '{"execute": "query-unused-pages", "arguments": {"runs": 2, "cells": 4}}' in page


def test_messages_that_are_too_long_for_a_line_are_broken_and_stay_the_same() -> None:
    message = {"return": {"a": [{"b": "x" * 60}, {"c": [1, 2, 3]}], "d": {}}}
    text = qmp_reference._json_text(message)
    assert json.loads(text) == message
    assert text.splitlines()[:3] == ["{", '  "return": {', '    "a": [']
    assert '      {"c": [1, 2, 3]}' in text.splitlines()
    assert qmp_reference._json_text({"return": {}}) == '{"return": {}}'


@pytest.mark.parametrize(
    "docstring", ["Do it.\n\nArguments:\n    a: b\nMore.", "Do it.\n\nReturns:\n    a: b\nX:\n"]
)
def test_an_unknown_section_is_refused(docstring: str) -> None:
    with pytest.raises(ValueError, match="not a section"):
        parse(docstring)
