# SPDX-License-Identifier: Apache-2.0
"""Feature bits of the balloon, by dialect (VIRTIO 1.2, section 5.5.3).

The user chooses which bits a device offers (`offered_features`): each dialect has bits that it
offers by default (`default`), further ones that it can offer (`optional`) and some of the default
that cannot be withheld (`fixed`). A driver that does not accept what is `required` cannot be
served. Bits 3 and 4 have different meanings in the standard and in each version of the extension of
2016, so there is one table for each dialect.

The payload alone does not tell the dialects apart: an array of page frame numbers can look like
the 8-byte header of the hybrid and ranges dialects. So these have one further bit of their own
each, of those that VIRTIO 1.2, 2.2 leaves to the device type: HYBRID_RECORDS and RANGE_RECORDS. It
is required, and only a driver that was told to speak the dialect accepts it. Any other driver does
not get FEATURES_OK (3.1.1), and no queue of a device without FEATURES_OK is served.
"""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

from collections.abc import Iterable
from typing import NamedTuple

MUST_TELL_HOST = 1 << 0
STATS_VQ = 1 << 1
DEFLATE_ON_OOM = 1 << 2
PAGE_BITMAP = 1 << 3
MISC_VQ = 1 << 4
PAGE_RANGE = 1 << 3
HOST_REQ_VQ = 1 << 4
FREE_PAGE_HINT = 1 << 3
PAGE_POISON = 1 << 4
REPORTING = 1 << 5
HYBRID_RECORDS = 1 << 50
RANGE_RECORDS = 1 << 51
"""VIRTIO_BALLOON_F_* as masks (5.5.3). Bit 3 is FREE_PAGE_HINT in the standard dialect, PAGE_BITMAP
in bitmap and hybrid, PAGE_RANGE in ranges; bit 4 is PAGE_POISON, MISC_VQ in bitmap, HOST_REQ_VQ in
hybrid and ranges."""


class Features(NamedTuple):
    """The features of one dialect; all sets are masks."""

    names: dict[int, str]
    """Every bit of the dialect, by the specification's name."""
    default: int
    """Bits offered unless they are withheld."""
    optional: int = 0
    """Bits offered only on request."""
    fixed: int = 0
    """Bits of the default that cannot be withheld."""
    required: int = 0
    """Bits without which a driver cannot be served."""

    @property
    def known(self) -> int:
        """Return all bits that can be offered."""
        return self.default | self.optional

    @property
    def options(self) -> dict[str, int]:
        """Return the bits that can be offered by their names as options: `must-tell-host` etc."""
        return {
            name.lower().replace("_", "-"): bit
            for bit, name in self.names.items()
            if bit & self.known
        }


# MUST_TELL_HOST keeps deflated pages out of use until the device has seen the request. Discarding
# anonymous memory does not need it, but every driver supports it at no cost, and accounting for the
# memory that the guest really uses does need it. STATS_VQ costs one buffer. PAGE_POISON is offered
# as in QEMU: it only lets a driver announce that it fills free pages, and a driver that cannot
# announce it declines REPORTING. Off by default: DEFLATE_ON_OOM turns the balloon from a limit into
# a loan; FREE_PAGE_HINT makes guests hold all their free memory for a while; REPORTING makes free
# memory cost page faults when it is used again.
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


def _with_records(page_feature: int, page_name: str, record_feature: int, name: str) -> Features:
    """Return the features of a dialect whose requests are records.

    As in the bitmap dialect, drivers drop bits 3 and 4 where STATS_VQ is not offered.
    """
    return Features(
        names={
            MUST_TELL_HOST: "MUST_TELL_HOST",
            STATS_VQ: "STATS_VQ",
            DEFLATE_ON_OOM: "DEFLATE_ON_OOM",
            page_feature: page_name,
            HOST_REQ_VQ: "HOST_REQ_VQ",
            record_feature: name,
        },
        default=MUST_TELL_HOST | STATS_VQ | page_feature | HOST_REQ_VQ | record_feature,
        optional=DEFLATE_ON_OOM,
        fixed=STATS_VQ | page_feature | record_feature,
        required=page_feature | record_feature,
    )


HYBRID = _with_records(PAGE_BITMAP, "PAGE_BITMAP", HYBRID_RECORDS, "HYBRID_RECORDS")
RANGES = _with_records(PAGE_RANGE, "PAGE_RANGE", RANGE_RECORDS, "RANGE_RECORDS")
"""Features of the dialects whose requests are records."""

BY_DIALECT = {"standard": STANDARD, "bitmap": BITMAP, "hybrid": HYBRID, "ranges": RANGES}
"""The features of each dialect, by its name."""

OPTIONS = tuple(dict.fromkeys(name for each in BY_DIALECT.values() for name in each.options))
"""Every name that `offered_features` takes in some dialect."""


class FeatureSelectionError(ValueError):
    """The dialect does not have a named feature, or cannot have it offered or withheld."""


def offered_features(dialect: str, offer: Iterable[str], withhold: Iterable[str]) -> int:
    """Return the bits to offer in `dialect`: its default plus `offer` less `withhold`, by name.

    Raises FeatureSelectionError for an unknown name, for one that is both offered and withheld,
    and for withholding a feature that the dialect cannot do without.
    """
    features = BY_DIALECT[dialect]
    more, less = _bits(dialect, offer), _bits(dialect, withhold)
    if more & less:
        raise FeatureSelectionError(
            f"{_option_names(features, more & less)} cannot be both offered and withheld"
        )
    if less & features.fixed:
        raise FeatureSelectionError(
            f"the {dialect} balloon dialect does not work without"
            f" {_option_names(features, less & features.fixed)}"
        )
    return features.default & ~less | more


def _bits(dialect: str, names: Iterable[str]) -> int:
    options = BY_DIALECT[dialect].options
    bits = 0
    for name in names:
        if name not in options:
            raise FeatureSelectionError(
                f"the {dialect} balloon dialect has no feature {name!r}, only {', '.join(options)}"
            )
        bits |= options[name]
    return bits


def _option_names(features: Features, bits: int) -> str:
    return ", ".join(name for name, bit in features.options.items() if bit & bits)
