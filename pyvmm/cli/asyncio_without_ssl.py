# SPDX-License-Identifier: Apache-2.0
"""asyncio, imported without OpenSSL.

asyncio imports `ssl` if it can, and works without: only its own TLS needs it, which pyvmm does not
use (`pyvmm.sockets.tls` wraps its sockets itself). OpenSSL costs `pyvmm run` 8 of its 59 ms
of imports and 4.3 MiB of memory for as long as the guest runs (CPython 3.11, x86-64), so asyncio is
imported here as if `ssl` did not exist. An entry of None in `sys.modules` is the import system's
documented way to say so. It is removed as soon as asyncio is loaded, so a later import of `ssl`
works. An alternative, a finder on `sys.meta_path`, does the same with more code. Other modules that
asyncio imports and does not need are deferred (`pyvmm.cli.deferred_modules`): another 1.1 MiB.

Import asyncio from here in modules that the command line loads first.
"""

from __future__ import annotations

import sys

from pyvmm.cli.deferred_modules import deferred_modules

if "ssl" in sys.modules or "asyncio" in sys.modules:
    import asyncio
else:
    sys.modules["ssl"] = None  # type: ignore[assignment] # the import statement allows None
    try:
        with deferred_modules():
            import asyncio
    finally:
        del sys.modules["ssl"]

__all__ = ["asyncio"]
