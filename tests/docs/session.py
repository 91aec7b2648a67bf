# SPDX-License-Identifier: Apache-2.0
"""An interactive session for snippets: statements in, their output out, each as a line of JSON.

Statements are executed as `python -m asyncio` does, in a running event loop, so they may await.
That loop also runs while the next statement is awaited, as a guest needs.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import sys
import traceback
from typing import Any


async def execute(statement: str, names: dict[str, Any]) -> str:
    """Execute one interactive statement; return its output, or the last lines of its error."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            result = eval(compile(statement, "<session>", "single", flags), names)
            if inspect.iscoroutine(result):
                await result
        except Exception as error:
            print("Traceback (most recent call last):")
            print("".join(traceback.format_exception_only(error)), end="")
    return output.getvalue()


async def main() -> None:
    """Execute the statements on standard input."""
    names: dict[str, Any] = {"__name__": "__main__"}
    while line := await asyncio.to_thread(sys.stdin.readline):
        output = await execute(json.loads(line), names)
        print(json.dumps(output), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
