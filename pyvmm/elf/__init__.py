# SPDX-License-Identifier: Apache-2.0
"""ELF executables (a leaf): segments and sections, with a cache of what was parsed."""
