# SPDX-License-Identifier: Apache-2.0
"""The version of pyvmm, as a constant: reading it from package metadata costs import time.

The metadata has it from here, too (`version` in pyproject.toml is dynamic).
"""

VERSION = "0.1.0"
