# SPDX-License-Identifier: Apache-2.0
"""Errors that a script gets from its guest."""


class GuestExited(Exception):
    """The guest ended before the script expected it to."""


class CommandFailed(Exception):
    """The guest's `pattern` program reported an error, or a shell command a status other than 0."""


class SnapshotFailed(Exception):
    """The guest was not saved; the message is the reason."""


class ConsoleTimeout(Exception):
    """The expected output did not appear in time; the message ends with the last output seen."""
