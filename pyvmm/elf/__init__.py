# SPDX-License-Identifier: Apache-2.0
"""ELF executables (a leaf): segments, symbols and sections, with a cache of what was parsed."""
