# SPDX-License-Identifier: Apache-2.0
"""JSON for scripts: the option `--json`, and the one function that prints its documents.

A document is one JSON object on one line of standard output. Its members have QMP's names and units
where QMP has the fact, and otherwise names in the same style, lower case with hyphens; a size is an
integer in bytes, a duration a number of seconds, and a fact that is not known is null. Members are
added in later versions, but neither removed nor changed; docs/reference/json.md lists them.

Progress and errors stay on standard error, and the exit status is the same with and without the
option. A command that fails before it has a result prints no document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON, on one line."
)


def print_json(document: Mapping[str, Any]) -> None:
    """Print `document` on standard output, at once."""
    print(json.dumps(document, allow_nan=False), flush=True)
