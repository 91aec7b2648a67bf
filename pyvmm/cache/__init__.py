# SPDX-License-Identifier: Apache-2.0
"""The cache directory (a leaf): files that can be recomputed."""
