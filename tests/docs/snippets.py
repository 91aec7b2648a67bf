# SPDX-License-Identifier: Apache-2.0
"""The snippets of a page of the documentation, in order.

Every fenced block of code is a snippet that a test runs, as one of these:

* a block with a `:caption:` is a file of that name;
* `console` has commands, after `$ `, each followed by its output;
* `python` has an interactive session, with the prompts `>>> ` and `... `.

A block of `text`, such as a drawing, is no snippet. Any other block is an error, as no test would
run it, and so is an indented one. A snippet with the class `needs-kvm`, and every one of a page
whose front matter says `snippets: kvm`, is run where KVM works; the others are run anywhere.

A page whose front matter names another page as its `folder` is read in the folder of that page, so
the files of that page come first.

Read with markdown-it-py, on which MyST is built: the blocks are found as the site finds them, also
inside admonitions, and no second parser decides where a block ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from markdown_it import MarkdownIt

Kind: TypeAlias = Literal["file", "console", "session"]

_PARSER = MarkdownIt("commonmark")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_OPTION = re.compile(r":([\w-]+): *(.*)\n")
_CODE = re.compile(r"\{code(?:-block)?\} *")
_DIRECTIVE = re.compile(r"\{[\w:-]+\}")


class SnippetError(Exception):
    """A block that no test would run, or a snippet that does not do what the page shows."""


class Snippet(NamedTuple):
    """One snippet; `line` is that of its fence."""

    line: int
    kind: Kind
    text: str
    needs_kvm: bool
    file: str = ""
    """The name of a file."""
    highlighted: str = ""
    """Its highlighted lines, such as ``1-3,7``."""


def read_snippets(page: Path) -> list[Snippet]:
    """Return the snippets of `page`. Raises SnippetError for a block that is none."""
    text = page.read_text()
    front_matter = _FRONT_MATTER.match(text)
    fields = re.findall(r"^(\w+): (.*)$", front_matter[1], re.MULTILINE) if front_matter else []
    metadata = dict(fields)
    files: list[Snippet] = []
    if folder := metadata.get("folder"):
        files = [
            each for each in read_snippets(page.parent / f"{folder}.md") if each.kind == "file"
        ]
    try:
        return [*files, *_snippets(text, 0, metadata.get("snippets") == "kvm")]
    except SnippetError as error:
        raise SnippetError(f"{page.name}:{error}") from None


def _snippets(text: str, first_line: int, needs_kvm: bool) -> Iterator[Snippet]:
    for token in _PARSER.parse(text):
        line = first_line + (token.map or [0])[0] + 1
        if token.type == "code_block":
            raise SnippetError(f"{line}: an indented block is not run by any test")
        if token.type != "fence":
            continue
        info = token.info.strip()
        if _DIRECTIVE.match(info) and not _CODE.match(info):  # such as an admonition
            yield from _snippets(token.content, line, needs_kvm)
        elif info != "text":
            yield _snippet(line, _CODE.sub("", info), token.content, needs_kvm)


def _snippet(line: int, language: str, content: str, needs_kvm: bool) -> Snippet:
    options = {}
    while match := _OPTION.match(content):
        options[match[1]] = match[2]
        content = content[match.end() :]
    content = content.lstrip("\n") if options else content
    needs_kvm = needs_kvm or "needs-kvm" in options.get("class", "").split()
    if name := options.get("caption"):
        return Snippet(line, "file", content, needs_kvm, name, options.get("emphasize-lines", ""))
    if language == "console" and content.startswith("$ "):
        return Snippet(line, "console", content, needs_kvm)
    if language == "python" and content.startswith(">>> "):
        return Snippet(line, "session", content, needs_kvm)
    raise SnippetError(f"{line}: a block of {language or 'no language'} is not run by any test")
