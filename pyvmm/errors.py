# SPDX-License-Identifier: Apache-2.0
"""Errors that are the user's to mend.

Anything a person can put right by typing something else (a missing image, too little memory, a
socket path in use) is raised as `UserError` and printed by the command line as one line with its
remedy and exit status 2. Every other exception is a bug of ours and keeps its traceback.
"""


class UserError(Exception):
    """A mistake or a missing thing outside pyvmm, with what to do about it.

    `message` says what is wrong, `remedy` what mends it; both are single lines without a final
    full stop.
    """

    exit_status = 2

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"
