# SPDX-License-Identifier: Apache-2.0
"""Feature bits of the balloon, by dialect (VIRTIO 1.2, section 5.5.3).

Which bits a device offers is a person's choice: a dialect says what it offers unless told otherwise
(`default`), what else it can (`optional`) and what of the default cannot be withheld (`fixed`). A
driver that does not accept what is `required` cannot be served. Bits 3 and 4 mean one thing in the
standard and another in the bitmap extension of 2016, so there is no table of bits, only one for
each dialect.
"""

from __future__ import annotations

from typing import NamedTuple

MUST_TELL_HOST = 1 << 0
STATS_VQ = 1 << 1
DEFLATE_ON_OOM = 1 << 2
PAGE_BITMAP = 1 << 3
MISC_VQ = 1 << 4
FREE_PAGE_HINT = 1 << 3
PAGE_POISON = 1 << 4
REPORTING = 1 << 5


class Features(NamedTuple):
    """What one dialect can offer; the sets are masks."""

    names: dict[int, str]
    """Every bit of the dialect, by the specification's name."""
    default: int
    optional: int = 0
    fixed: int = 0
    required: int = 0

    @property
    def known(self) -> int:
        """All that can be offered."""
        return self.default | self.optional

    @property
    def options(self) -> dict[str, int]:
        """The bits that can be offered as a person types them: `must-tell-host` and so on."""
        return {
            name.lower().replace("_", "-"): bit
            for bit, name in self.names.items()
            if bit & self.known
        }


# MUST_TELL_HOST keeps deflated pages out of use until the device has seen the request. Discarding
# anonymous memory does not need it, but every driver can do it at no cost, and counting what the
# guest really uses does need it. STATS_VQ costs one buffer. PAGE_POISON is offered as QEMU does:
# it only lets a driver say that it fills free pages, and one that cannot say so declines REPORTING.
# DEFLATE_ON_OOM changes what a balloon is, from a limit to a loan; FREE_PAGE_HINT has guests hold
# on to all their free memory for a while; REPORTING makes a guest's free memory cost page faults
# whenever it is used again. So these are asked for.
STANDARD = Features(
    names={
        MUST_TELL_HOST: "MUST_TELL_HOST",
        STATS_VQ: "STATS_VQ",
        DEFLATE_ON_OOM: "DEFLATE_ON_OOM",
        FREE_PAGE_HINT: "FREE_PAGE_HINT",
        PAGE_POISON: "PAGE_POISON",
        REPORTING: "REPORTING",
    },
    default=MUST_TELL_HOST | STATS_VQ | PAGE_POISON,
    optional=DEFLATE_ON_OOM | FREE_PAGE_HINT | REPORTING,
)

# Drivers of this dialect drop PAGE_BITMAP and MISC_VQ where STATS_VQ is not offered. MISC_VQ costs
# one buffer of 16 bytes.
BITMAP = Features(
    names={
        MUST_TELL_HOST: "MUST_TELL_HOST",
        STATS_VQ: "STATS_VQ",
        DEFLATE_ON_OOM: "DEFLATE_ON_OOM",
        PAGE_BITMAP: "PAGE_BITMAP",
        MISC_VQ: "MISC_VQ",
    },
    default=MUST_TELL_HOST | STATS_VQ | PAGE_BITMAP | MISC_VQ,
    optional=DEFLATE_ON_OOM,
    fixed=STATS_VQ | PAGE_BITMAP,
    required=PAGE_BITMAP,
)

BY_DIALECT = {"standard": STANDARD, "bitmap": BITMAP}
