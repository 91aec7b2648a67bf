# SPDX-License-Identifier: Apache-2.0
"""The directive `{command-reference}`: a section for each command, with its options.

The sections are Markdown, generated from `pyvmm_docs.command_tree` and parsed like the page around
them. Each command has the target `cli-NAME` (`cli-image-build`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyvmm.cli.main import THEMES
from pyvmm_docs.command_tree import Block, Command, Option, root, spans, walk

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~^$])")


def markdown(command: Command) -> str:
    """Return the reference of all commands below `command`, by the themes of `--help`."""
    lines = [f"```text\n{command.name} {command.usage}\n```", "", *_options(command)]
    for theme in THEMES:
        lines += [f"## {theme}", ""]
        for top in command.commands:
            if top.theme == theme:
                for each in walk(top):
                    lines += _section(each)
    return "\n".join(lines)


def _section(command: Command) -> Iterator[str]:
    yield f"(cli-{'-'.join(command.name.split()[1:])})="
    yield f"{'###' if command.theme else '####'} `{command.name}`"
    yield from ("", "```text", f"{command.name} {command.usage}", "```", "")
    for block in command.blocks:
        yield from _block(block)
    if command.exit_status:
        yield from (prose(command.exit_status), "")
    yield from _options(command)


def _block(block: Block) -> Iterator[str]:
    if block.verbatim and block.text.startswith("pyvmm "):
        yield from ("```console", *(_with_prompt(line) for line in block.text.splitlines()), "```")
    elif block.verbatim:
        yield from ("```text", block.text, "```")
    else:
        yield prose(block.text)
    yield ""


def _with_prompt(line: str) -> str:
    return line if line.startswith(" ") else f"$ {line}"


def _options(command: Command) -> Iterator[str]:
    for option in command.options:
        yield f"`{option.usage}`"
        yield f": {_meaning(option)}"
        yield ""


def _meaning(option: Option) -> str:
    return f"{prose(option.help)} *{prose(option.notes)}*" if option.notes else prose(option.help)


def prose(text: str) -> str:
    """Return `text` as Markdown, with its code marked."""
    return "".join(
        f"`{part}`" if code else _SPECIAL.sub(r"\\\1", part) for part, code in spans(text)
    )


class CommandReferenceDirective(SphinxDirective):
    """The reference of the whole command line."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        return self.parse_text_to_nodes(markdown(root()), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command-reference", CommandReferenceDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
