# SPDX-License-Identifier: Apache-2.0
"""The process that runs a chapter's runnable part: `python -m ... NUMBER RECORDING [IMAGE]`.

It is a process of its own because it may run in the lab, while the scope runs on the host.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from pyvmm.errors import UserError
from pyvmm.learn.stage import Stage
from pyvmm.standard_streams.text import print_message


def main() -> int:
    """Run the chapter that the arguments name; return the exit status."""
    number, recording, *image = sys.argv[1:]
    stage = Stage(Path(recording), Path(image[0]) if image else None)
    try:
        importlib.import_module(f"pyvmm.learn.chapter_{int(number):02d}.run").run(stage)
    except UserError as error:
        print_message(str(error))
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
