# SPDX-License-Identifier: Apache-2.0
"""The terminal of `pyvmm run`: raw mode, the escape key, and the thread that writes the output."""
