# SPDX-License-Identifier: Apache-2.0
"""`--offer` and `--withhold`: which of a dialect's feature bits the balloon offers."""

from __future__ import annotations

from collections.abc import Iterable

from devices.balloon.features import BY_DIALECT
from pyvmm.errors import UserError

OPTIONS = tuple(dict.fromkeys(name for each in BY_DIALECT.values() for name in each.options))
"""Every name either dialect knows."""


def balloon_features(dialect: str, offer: Iterable[str], withhold: Iterable[str]) -> int:
    """Bits to offer in `dialect`: its default, and what was named on top of it or taken from it.

    Raises `UserError` for a name the dialect does not have and for a choice that is none.
    """
    features = BY_DIALECT[dialect]
    more, less = _bits(dialect, offer), _bits(dialect, withhold)
    if more & less:
        raise UserError(
            f"{_names(dialect, more & less)} cannot be both offered and withheld",
            "choose one of --offer and --withhold",
        )
    if less & features.fixed:
        raise UserError(
            f"the {dialect} balloon dialect does not work without"
            f" {_names(dialect, less & features.fixed)}",
            "choose another --dialect",
        )
    return features.default & ~less | more


def _bits(dialect: str, names: Iterable[str]) -> int:
    options = BY_DIALECT[dialect].options
    bits = 0
    for name in names:
        if name not in options:
            raise UserError(
                f"the {dialect} balloon dialect has no feature {name!r}",
                f"choose from {', '.join(options)}",
            )
        bits |= options[name]
    return bits


def _names(dialect: str, bits: int) -> str:
    return ", ".join(name for name, bit in BY_DIALECT[dialect].options.items() if bit & bits)
