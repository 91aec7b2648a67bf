# SPDX-License-Identifier: Apache-2.0
"""asyncio, imported without TLS.

asyncio imports `ssl` when it is there. Nothing here speaks TLS, and OpenSSL is a fifth of all that
`pyvmm run` would load before its guest starts, and some megabytes of memory as long as it runs. So
`ssl` looks absent while asyncio is imported, and only then: who needs it later can import it.
Import asyncio from here in what the command line starts; everywhere else it is then loaded already.
"""

from __future__ import annotations

import sys

if "ssl" in sys.modules or "asyncio" in sys.modules:
    import asyncio
else:
    sys.modules["ssl"] = None  # type: ignore[assignment] # makes importing it an ImportError
    try:
        import asyncio
    finally:
        del sys.modules["ssl"]

__all__ = ["asyncio"]
