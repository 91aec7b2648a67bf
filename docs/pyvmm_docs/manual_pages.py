# SPDX-License-Identifier: Apache-2.0
"""Manual pages, one for `pyvmm` and one for each command: `python -m pyvmm_docs.generate`.

A page is roff with the macros of man(7), from `pyvmm_docs.command_tree`. Facts that are not in the
help texts (exit statuses, environment, signals, keys) are the tables of docs/reference/cli.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pyvmm.cli.main import THEMES
from pyvmm.version import VERSION
from pyvmm_docs.command_tree import (
    NAME,
    SUMMARY,
    Command,
    Option,
    root,
    spans,
    walk,
)

REFERENCE = Path(__file__).parents[1] / "reference" / "cli.md"
CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
DATE_BEFORE_RELEASES = "2026-11-29"
MAIN_SECTIONS = {"EXIT STATUS": "Exit statuses", "ENVIRONMENT": "Environment"}
RUN_SECTIONS = {"KEYS": "Keys of the console", "SIGNALS": "Signals"}
"""Sections of manual pages and the sections of the reference that they are made from."""


def manual_pages() -> dict[str, str]:
    """Return all pages by their file names."""
    pyvmm = root()
    pages = {f"{NAME}.1": "\n".join(_main_page(pyvmm)) + "\n"}
    for command in pyvmm.commands:
        pages[f"{_page(command)}.1"] = "\n".join(_command_page(command)) + "\n"
    return pages


def _page(command: Command) -> str:
    return command.name.replace(" ", "-")


def _main_page(pyvmm: Command) -> Iterator[str]:
    yield from _head(NAME, SUMMARY)
    yield from _synopsis(pyvmm)
    yield from _description(pyvmm)
    yield ".SH COMMANDS"
    for theme in THEMES:
        yield f".SS {_escape(theme)}"
        for command in pyvmm.commands:
            if command.theme == theme:
                yield from _term(rf"\fB{_escape(_page(command))}\fR(1)", f"{command.summary}.")
    yield from _reference_sections(MAIN_SECTIONS)
    yield from _see_also(_page(command) for command in pyvmm.commands)


def _command_page(command: Command) -> Iterator[str]:
    yield from _head(_page(command), command.summary[0].lower() + command.summary[1:])
    yield from _synopsis(command)
    yield from _description(command)
    for below in command.commands:
        yield f".SH {_escape(below.name.upper())}"
        yield from (_usage(below), ".PP", *_body(below))
        yield from _options(below)
    if command.exit_status:
        yield from (".SH EXIT STATUS", _prose(command.exit_status))
    if command.name == f"{NAME} run":
        yield from _reference_sections(RUN_SECTIONS)
    if any("$PYVMM_QMP" in o.notes for each in walk(command) for o in each.options):
        row = next(row for row in _rows("Environment") if row[0] == "`PYVMM_QMP`")
        yield from (".SH ENVIRONMENT", *_term(_markdown(row[0]), row[1]))
    yield from _see_also([NAME])


def _head(page: str, summary: str) -> Iterator[str]:
    yield '.\\" SPDX-License-Identifier: Apache-2.0'
    yield '.\\" Generated from the command line by `make generated`; do not edit.'
    yield f'.TH {page.upper()} 1 "{_release_date()}" "pyvmm {VERSION}" "pyvmm manual"'
    yield ".nh"
    yield from (".SH NAME", f"{_escape(page)} \\- {_escape(summary)}")


def _release_date() -> str:
    """Return the date of the newest release in the changelog."""
    found = re.search(r"^## .*(\d{4}-\d\d-\d\d)", CHANGELOG.read_text(), re.M)
    return found[1] if found else DATE_BEFORE_RELEASES


def _synopsis(command: Command) -> Iterator[str]:
    yield ".SH SYNOPSIS"
    grouped = command.commands and command.name != NAME
    lines = [_usage(each) for each in (command.commands if grouped else [command])]
    yield "\n.br\n".join(lines)


def _description(command: Command) -> Iterator[str]:
    yield ".SH DESCRIPTION"
    yield from _body(command)
    if not command.commands or command.name == NAME:
        yield ".SH OPTIONS"
        yield from _options(command)


def _body(command: Command) -> Iterator[str]:
    for number, block in enumerate(command.blocks):
        if number:
            yield ".PP"
        if block.verbatim:
            yield from (".RS 4", ".EX", *map(_escape, block.text.splitlines()), ".EE", ".RE")
        else:
            yield _prose(block.text)


def _options(command: Command) -> Iterator[str]:
    for option in command.options:
        yield from _term(_option_usage(option), " ".join(filter(None, (option.help, option.notes))))


def _option_usage(option: Option) -> str:
    """Return the names in bold and the rest in italics."""
    words = re.split(r"( / |, | )", option.usage)
    return "".join(
        rf"\fB{_escape(word)}\fR" if word.startswith("-") else rf"\fI{_escape(word)}\fR"
        if word.strip(" /,") else _escape(word)
        for word in words
    )  # fmt: skip


def _usage(command: Command) -> str:
    return rf"\fB{_escape(command.name)}\fR \fI{_escape(command.usage)}\fR"


def _term(term: str, text: str) -> Iterator[str]:
    yield from (".TP", term, _markdown(text))


def _reference_sections(sections: dict[str, str]) -> Iterator[str]:
    for title, name in sections.items():
        yield f".SH {title}"
        yield from map(_markdown, _paragraphs(name))
        for first, meaning in _rows(name):
            yield from _term(_markdown(first), meaning)


def _section(name: str) -> str:
    """Return the section `name` of the reference."""
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", REFERENCE.read_text(), re.S | re.M)
    assert found is not None, name
    return found[1]


def _paragraphs(name: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\n+", _section(name).strip()):
        if not paragraph.startswith("|"):
            yield " ".join(paragraph.split())


def _rows(name: str) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table of two columns in the section `name`, without its head."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", _section(name), re.M)
    yield from rows[2:]


def _see_also(pages: Iterator[str] | list[str]) -> Iterator[str]:
    yield ".SH SEE ALSO"
    yield ",\n".join(rf"\fB{_escape(page)}\fR(1)" for page in pages)


def _prose(text: str) -> str:
    """Return help text as roff, with its code in bold."""
    return _line("".join(rf"\fB{_escape(p)}\fR" if code else _escape(p) for p, code in spans(text)))


def _markdown(text: str) -> str:
    """Return a line of Markdown as roff: code in bold."""
    parts = re.split(r"`([^`]+)`", text)
    return _line(
        "".join(
            rf"\fB{_escape(part)}\fR" if number % 2 else _prose(part)
            for number, part in enumerate(parts)
        )
    )


def _line(text: str) -> str:
    r"""Return `text` so that its first character does not make it a request."""
    return rf"\&{text}" if text.startswith((".", "'")) else text


def _escape(text: str) -> str:
    return _line(text.replace("\\", r"\e").replace("-", r"\-").replace("~", r"\(ti"))
