# SPDX-License-Identifier: Apache-2.0
"""`python -m pyvmm` is the `pyvmm` command."""

from pyvmm.cli.entry import main

main()
