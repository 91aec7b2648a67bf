# SPDX-License-Identifier: Apache-2.0
"""From the end of a command to the exit status of its process, for all commands.

0 for success (or the int that a command returns); 2, with one line on standard error, for
everything that the user can correct (125 when the lab failed); 1 when standard output cannot be
written; 130 after Ctrl-C. Any other exception is a bug in pyvmm and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from pyvmm.cli.errors import MORE_DESCRIPTORS
from pyvmm.errors import TOO_MANY_FILES, UserError
from pyvmm.standard_streams.descriptors import (
    discard_output,
    open_missing_descriptors,
    wait_for_readers,
)
from pyvmm.standard_streams.text import print_message

EXIT_USER_ERROR = UserError.exit_status
EXIT_OUTPUT_LOST = 1
EXIT_INTERRUPTED = 130
MIN_DESCRIPTORS = 16
"""With fewer descriptors no command works; a guest needs more."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

OPTIONAL_PACKAGES = {
    "bench": "the benchmarks are not installed; run them in a checkout of pyvmm",
    "pyvmm_native": "the native modules are not built; run 'make native'",
}
"""Packages that an installation or a checkout may lack, and the error to print then."""


def exit_with(command: Callable[[], Any]) -> NoReturn:
    """Call `command` and end in `SystemExit` with its status."""
    open_missing_descriptors()
    wait_for_readers()
    if 0 < (limit := os.sysconf("SC_OPEN_MAX")) < MIN_DESCRIPTORS:
        print_error(f"at most {limit} files may be open, too few; {MORE_DESCRIPTORS}")
        sys.exit(EXIT_USER_ERROR)
    try:
        result = command()
        sys.stdout.flush()
    except ImportError as error:
        if not (explanation := _explain_import(error)):
            raise
        print_error(explanation)
        sys.exit(EXIT_USER_ERROR)
    except UserError as error:
        # Late: saves 14 ms (the errors of every package) without an error.
        from pyvmm.cli.remedies import with_remedy

        print_error(with_remedy(error))
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        discard_output(sys.stdout.fileno())  # its reader is gone
        sys.exit(EXIT_OUTPUT_LOST)
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            print_error(f"too many open files; {MORE_DESCRIPTORS}")
            sys.exit(EXIT_USER_ERROR)
        if error.errno not in _DISK_FULL or error.filename is not None:
            raise
        discard_output(sys.stdout.fileno())
        print_error(f"standard output cannot be written: {error.strerror}")
        sys.exit(EXIT_OUTPUT_LOST)
    sys.exit(result if isinstance(result, int) else 0)


def _explain_import(error: ImportError) -> str:
    """Return the reason that a package is missing or not ours, with its remedy; "" if unknown."""
    # Late: saves 9 ms (package metadata) without an error.
    from pyvmm.cli.installation import find_conflicts

    if conflicts := find_conflicts():
        return f"{conflicts[0].fact}; run: {conflicts[0].remedy}"
    if isinstance(error, ModuleNotFoundError):
        return OPTIONAL_PACKAGES.get((error.name or "").partition(".")[0], "")
    return ""


def print_error(text: str) -> None:
    """Print `text` on standard error as one line, without its line breaks."""
    print_message(" ".join(text.split()))
