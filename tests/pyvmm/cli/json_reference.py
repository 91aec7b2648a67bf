# SPDX-License-Identifier: Apache-2.0
"""The documents of `--json` as docs/reference/json.md describes them, to compare real ones with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "json.md"
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
}


class Member(NamedTuple):
    """A row of a table; `type` is the name of a type in `TYPES`, or of a list's elements."""

    type: str
    is_list: bool
    nullable: bool
    optional: bool


class Section(NamedTuple):
    """The description of one document: its members by their path, and its example."""

    members: dict[str, Member]
    example: dict[str, Any]


def sections() -> dict[str, Section]:
    """Return the sections of the page that have an example, by their titles without markup."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        if example := re.search(r"^```json\n(.*?)^```", body, re.MULTILINE | re.DOTALL):
            rows = re.findall(r"^\| `([^`]+)` \| ([^|]+?) \| ([^|]+?) \|$", body, re.MULTILINE)
            members = {path: _member(kind) for path, kind, _ in rows}
            found[title.replace("`", "")] = Section(members, json.loads(example[1]))
    return found


def _member(kind: str) -> Member:
    match = re.fullmatch(r"(list of )?(\w+)( or null)?(, optional)?", kind)
    assert match, kind
    return Member(match[2], bool(match[1]), bool(match[3]), bool(match[4]))


def differences(document: dict[str, Any], members: dict[str, Member]) -> Iterator[str]:
    """Yield each difference between `document` and the described `members`."""
    yield from _differences(document, members, "")


def _differences(
    document: dict[str, Any], members: dict[str, Member], prefix: str
) -> Iterator[str]:
    described = {
        path.removeprefix(prefix): member
        for path, member in members.items()
        if path.startswith(prefix) and not re.search(r"[.\[]", path.removeprefix(prefix))
    }
    if not described:
        return  # its members are not fixed
    required = {name for name, member in described.items() if not member.optional}
    yield from (f"{prefix}{name} is missing" for name in sorted(required - document.keys()))
    for name, value in document.items():
        if name not in described:
            yield f"{prefix}{name} is not described"
        else:
            yield from _value_differences(value, described[name], members, f"{prefix}{name}")


def _value_differences(
    value: Any, member: Member, members: dict[str, Member], path: str
) -> Iterator[str]:
    if value is None and member.nullable:
        return
    if member.is_list and not isinstance(value, list):
        yield f"{path} is no list: {value!r}"
        return
    for element in value if member.is_list else [value]:
        if type(element) not in TYPES[member.type]:
            yield f"{path} is not of type {member.type}: {element!r}"
        elif isinstance(element, dict):
            below = f"{path}[]." if member.is_list else f"{path}."
            yield from _differences(element, members, below)
