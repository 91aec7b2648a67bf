# SPDX-License-Identifier: Apache-2.0
"""The scope's page as a person has it: `pyvmm scope` in a process, and Debian's Chromium.

The benchmark, the tests of the page and the pictures of the documentation use both. Chromium has no
window, and makes no requests of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield the browser. Raises `UserError` if it is not installed."""
    try:
        from playwright.sync_api import sync_playwright  # only here: a developer's requirement
    except ImportError:
        raise UserError("the page of the scope needs the Python package playwright") from None
    if not _CHROMIUM.exists():
        raise UserError(f"the page of the scope needs {_CHROMIUM}, of Debian's package chromium")
    with sync_playwright() as playwright:
        launch = playwright.chromium.launch
        with closing(launch(executable_path=_CHROMIUM, args=list(_ARGUMENTS))) as browser:
            yield browser


@contextmanager
def served_scope(*source: str) -> Iterator[str]:
    """Serve the page of a source, as in the arguments of `pyvmm scope`; yields its address."""
    command = [sys.executable, "-m", "pyvmm", "scope", "--no-open", *source]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.terminate()
        process.wait()
