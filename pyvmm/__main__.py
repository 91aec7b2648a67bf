# SPDX-License-Identifier: Apache-2.0
"""`python -m pyvmm` is the `pyvmm` command."""

from pyvmm.cli.main import main

main(prog_name="pyvmm")
