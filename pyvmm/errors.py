# SPDX-License-Identifier: Apache-2.0
"""Errors that the user can correct.

Anything that the user can correct (a missing image, too little memory, a socket path in use) is a
`UserError`. The command line prints it as one line and exits with status 2; every other exception
is a bug of ours and keeps its traceback.

The message states the fact with its figures and never names an option of the command line, since
the control socket and the migration stream report the same messages. Raise `UserError` itself where
the message is sufficient. Define a subclass, in `errors.py` of the package that raises it, where
a caller must distinguish it or where the command line knows a remedy: `pyvmm.cli.remedies` maps
classes to remedies and adds them to the line.
"""

from __future__ import annotations

import errno

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
"""The `errno` of an OSError if the process, or the host, has as many open files as it may have."""


class UserError(Exception):
    """A mistake or a missing resource outside pyvmm.

    The message is a single line without a final full stop.
    """

    exit_status = 2
    """Exit status of a command that ends with this error."""


class ThreadNotStarted(UserError):
    """The host lets this process start no more threads."""


class ProcessNotStarted(UserError):
    """The host lets no more processes be started, such as a compiler or an emulator."""


class NotInstalled(UserError):
    """A program or file is missing that Debian's `packages` contain."""

    def __init__(self, message: str, *packages: str) -> None:
        super().__init__(message)
        self.packages = packages
