# SPDX-License-Identifier: Apache-2.0
"""The entry point of the command `pyvmm`: a plain boot runs without click, all else through it."""

from __future__ import annotations

import gc
import sys
from typing import Any, NoReturn


def main() -> NoReturn:
    """Run the command line of this process; ends in `SystemExit`."""
    gc.disable()  # until a guest, the lab or click runs: what a start creates stays
    # Late: saves 0.5 ms (collections that find nothing) of a boot.
    from pyvmm.cli.boot_options import parse_boot
    from pyvmm.cli.exit_status import exit_with

    parameters = parse_boot(sys.argv[1:])
    exit_with(_run_command if parameters is None else lambda: _boot(**parameters))


def _run_command() -> None:
    # Late: saves 24 ms (click) of a plain boot.
    from pyvmm.cli.main import main as group

    gc.enable()
    group(prog_name="pyvmm")


def _boot(*, addresses: tuple[str, ...], verbose: bool, **parameters: Any) -> int:
    # Late: 25 ms that no other command pays; an error in it is reported as any other.
    from pyvmm.cli.guest_run import boot_image, socket_paths

    if verbose:
        # Late: saves 5 ms; otherwise the guest runs meanwhile.
        from pyvmm.standard_streams.log import set_up_log

        set_up_log(verbose=True)
    return boot_image(sockets=socket_paths(addresses), **parameters)
