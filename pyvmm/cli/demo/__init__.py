# SPDX-License-Identifier: Apache-2.0
"""`pyvmm demo`: run a scripted guest, measure its balloon, and plot the result."""
