# SPDX-License-Identifier: Apache-2.0
"""A KVM virtual machine monitor: a package for each job, with dependencies in one direction.

    cli | pytest_plugin -> harness | qmp | lab -> vm -> snapshot | migration | balloon -> machine
        -> boot | state -> memory | cpuid -> trace -> pykvm, devices, pyvmm_native

`sockets`, `elf`, `progress`, `cache`, `files` and `standard_streams` are leaves; `config`, `units`,
`errors` and `version` are the only other modules here, besides `vm`. The contracts in
pyproject.toml enforce this.
"""

from pyvmm.version import VERSION as __version__

__all__ = ["__version__"]
