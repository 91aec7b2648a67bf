# SPDX-License-Identifier: Apache-2.0
"""Print text that others wrote, on a terminal that acts upon some characters.

File names, messages of peers and fields of snapshots may hold escape sequences, which could hide
text, change the terminal's settings or make it answer as if somebody typed. `printable` shows each
character that is not printable as a backslash escape. Every line for people is printed here (tables
by `rich_console`), so a caller need not know where its text comes from. The guest's console is not
filtered: it is the guest's terminal.
"""

from __future__ import annotations

import sys

from pyvmm.standard_streams.descriptors import discard_output


def printable(text: str) -> str:
    r"""Return `text` with each character that is not printable, "\n" included, as an escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def printable_lines(text: str) -> str:
    """Return `text` as `printable` does, but with its line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def print_line(text: str) -> None:
    """Print `text`, a result of the command, on standard output."""
    print(printable_lines(text))


def print_message(text: str, program: str = "pyvmm: ") -> None:
    """Print `text` on standard error, after the name of the program, at once.

    If standard error cannot be written to, the message is lost; that is no error.
    """
    try:
        print(f"{program}{printable_lines(text)}", file=sys.stderr, flush=True)
    except OSError:
        discard_output(sys.stderr.fileno())
