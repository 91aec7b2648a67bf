# SPDX-License-Identifier: Apache-2.0
"""Python's `logging` on standard error, one line for each record and its traceback below it.

Messages quote peers and guests, so they are printed as `pyvmm.standard_streams.text` does.
"""

from __future__ import annotations

import logging

from pyvmm.standard_streams.text import printable, printable_lines


class PrintableFormatter(logging.Formatter):
    """Formats records as lines of printable characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: object) -> str:
        return printable_lines(super().formatException(ei))  # type: ignore[arg-type]


def set_up_log(verbose: bool = False) -> None:
    """Print warnings or, if `verbose`, all records on standard error; the first call decides."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("pyvmm: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
