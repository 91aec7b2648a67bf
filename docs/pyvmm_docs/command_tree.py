# SPDX-License-Identifier: Apache-2.0
"""The command line as data: what click knows about each command, for manual pages and the site.

`root` returns the command `pyvmm`, with all commands below it, their options, arguments and help
texts. A help text is split into paragraphs and examples (the blocks that begin with click's mark
for kept line breaks); the paragraph on the exit status is kept apart. `spans` finds the parts of a
text that are code.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import click

from pyvmm.cli.main import COMMANDS, LazyCommand, main

NAME = "pyvmm"
SUMMARY = "a KVM virtual machine monitor for ballooning"
_CODE = re.compile(r"'(?P<quoted>pyvmm [^']+)'|(?<![\w-])(?P<option>--[a-z][a-z-]*[a-z])")
EXIT_STATUS = "The exit status is "
Value = Literal["none", "file", "directory", "choice", "socket", "guest", "command", "text"]


@dataclass(frozen=True)
class Option:
    """An option with all its names, and the kind of its value."""

    names: tuple[str, ...]
    usage: str
    """Names and metavariable, as in `--help`."""
    help: str
    notes: str
    """Default, environment variable and the like, in sentences; may be empty."""
    value: Value
    choices: tuple[str, ...]
    repeatable: bool


@dataclass(frozen=True)
class Argument:
    """A positional argument."""

    usage: str
    value: Value
    repeatable: bool


@dataclass(frozen=True)
class Block:
    """A paragraph of help text on one line, or lines that keep their breaks: an example."""

    text: str
    verbatim: bool


@dataclass(frozen=True)
class Command:
    """A command or a group of commands."""

    name: str
    """With the commands above it: "pyvmm image build"."""
    summary: str
    usage: str
    """The arguments in the first line of `--help`."""
    blocks: tuple[Block, ...]
    exit_status: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[Command, ...]
    theme: str | None
    """Its section in the list of commands; None for `pyvmm` itself and for `image`'s commands."""


def root() -> Command:
    """Return the command `pyvmm`, which has all others below it."""
    return _command(main, click.Context(main, info_name=NAME, **main.context_settings), None)


def walk(command: Command) -> Iterator[Command]:
    """Yield `command` and all commands below it."""
    yield command
    for each in command.commands:
        yield from walk(each)


def spans(text: str) -> Iterator[tuple[str, bool]]:
    """Split `text` into parts, each with True if it is code: an option or a quoted command."""
    end = 0
    for match in _CODE.finditer(text):
        yield text[end : match.start()], False
        yield match["quoted"] or match["option"], True
        end = match.end()
    yield text[end:], False


def _command(command: click.Command, context: click.Context, entry: LazyCommand | None) -> Command:
    blocks = list(_blocks(inspect.cleandoc(command.help or "")))
    parameters = [*command.params, help_option(command, context)]
    return Command(
        name=context.command_path,
        summary=(entry.short_help if entry else command.get_short_help_str(200)).rstrip("."),
        usage=" ".join(command.collect_usage_pieces(context)),
        blocks=tuple(block for block in blocks if not block.text.startswith(EXIT_STATUS)),
        exit_status=" ".join(b.text for b in blocks if b.text.startswith(EXIT_STATUS)),
        options=tuple(
            _option(each, context)
            for each in parameters
            if isinstance(each, click.Option) and not each.hidden
        ),
        arguments=tuple(
            Argument(each.make_metavar(context), _value(each, context), each.nargs == -1)
            for each in parameters
            if isinstance(each, click.Argument)
        ),
        commands=tuple(_subcommands(command, context)),
        theme=entry.theme if entry else None,
    )


def help_option(command: click.Command, context: click.Context) -> click.Option:
    """Return the option that shows the help text.

    `get_params` would return one that click has cached, with the names that it had in the context
    of its first use in this process.
    """
    names = sorted(command.get_help_option_names(context), key=len)
    return click.Option(names, is_flag=True, help="Show this message and exit.")


def _subcommands(command: click.Command, context: click.Context) -> Iterator[Command]:
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        entry = COMMANDS[name] if command is main else None
        yield _command(below, click.Context(below, info_name=name, parent=context), entry)


def _blocks(help_text: str) -> Iterator[Block]:
    for paragraph in re.split(r"\n\s*\n", help_text):
        if not paragraph.startswith("\b\n"):
            yield Block(" ".join(paragraph.split()), verbatim=False)
            continue
        lines = paragraph.splitlines()[1:]
        for indented, group in groupby(lines, key=lambda line: line.startswith(" ")):
            text = textwrap.dedent("\n".join(group))
            yield Block(text, indented)


def _option(option: click.Option, context: click.Context) -> Option:
    record = option.get_help_record(context)
    assert record is not None  # only hidden options have none
    choices = tuple(option.type.choices) if isinstance(option.type, click.Choice) else ()
    return Option(
        names=(*option.opts, *option.secondary_opts),
        usage=record[0],
        help=option.help or "",
        notes=" ".join(_notes(option, context)),
        value=_value(option, context),
        choices=choices,
        repeatable=option.multiple,
    )


def _notes(option: click.Option, context: click.Context) -> Iterator[str]:
    """Yield what `--help` has in brackets, as sentences."""
    extra = option.get_help_extra(context)
    variables = " or ".join(f"${name}" for name in extra.get("envvars", ()))
    if extra.get("required"):
        yield f"Required unless {variables} is set." if variables else "Required."
    elif variables:
        yield f"Default: {variables}."
    if default := extra.get("default", "").strip("()"):
        yield f"Default: {'--' if option.secondary_opts else ''}{default}."
    match re.findall(r"\d+", extra.get("range", "")):
        case [least, most]:
            yield f"From {least} to {most}."
        case [least]:
            yield f"At least {least}."


def _value(parameter: click.Parameter, context: click.Context) -> Value:
    if isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count):
        return "none"
    if isinstance(parameter.type, click.Path):
        return "file" if parameter.type.file_okay else "directory"
    if isinstance(parameter.type, click.Choice):
        return "choice"
    if "--vm" in parameter.opts:
        return "guest"
    by_metavar: dict[str, Value] = {
        "unix:PATH": "socket",
        "ADDRESS": "socket",
        "COMMAND...": "command",
    }
    return by_metavar.get(parameter.make_metavar(context), "text")
