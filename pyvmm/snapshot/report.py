# SPDX-License-Identifier: Apache-2.0
"""The report in a snapshot: how many pages of RAM are in the file, and why the others are not."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from devices.state import Fields, encode
from pyvmm.config import MAX_RAM_BYTES
from pyvmm.snapshot.format import OWN_KINDS, REPORT
from pyvmm.state.records import Record
from pyvmm_native import PAGE_BYTES

_PAGES_LIMIT = MAX_RAM_BYTES // PAGE_BYTES + 1


@dataclass(frozen=True)
class PageReport:
    """Pages of RAM by their treatment; the first four counts add up to all of RAM."""

    stored: int
    """In the file."""
    zero: int
    """Populated, not reported as unused, and zero throughout."""
    unused: int
    """Populated, and reported as unused by the guest."""
    absent: int
    """Without memory behind them: never touched, or in the balloon."""
    ballooned: int
    """Absent pages that are in the balloon, as the guest counts."""
    asked: str
    """The request that the guest answered, or the reason why it has not."""

    def record(self) -> Record:
        """Return the report as a record."""
        return Record(REPORT, OWN_KINDS[REPORT].version, encode(asdict(self)))

    @property
    def ram(self) -> int:
        """All pages of RAM."""
        return self.stored + self.zero + self.unused + self.absent

    @classmethod
    def restore(cls, fields: Fields) -> PageReport:
        """Read a report; StateError for a malformed one."""
        names = ("stored", "zero", "unused", "absent", "ballooned")
        counts = {name: fields.number(name, below=_PAGES_LIMIT) for name in names}
        report = cls(asked=fields.text("asked"), **counts)
        fields.done()
        return report
