# SPDX-License-Identifier: Apache-2.0
"""Objects that a page names as `MODULE:NAME`, for directives that show what the code defines."""

from __future__ import annotations

import pkgutil
from typing import Any


def named_object(name: str) -> Any:
    """Return the object `MODULE:NAME`, or the module `MODULE`. Raises ValueError if there is none.

    A directive reports a ValueError with the page and the line; any other exception ends the build
    with a traceback.
    """
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error
