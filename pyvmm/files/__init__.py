# SPDX-License-Identifier: Apache-2.0
"""Files that a person names (a leaf): which may be replaced, and which may be read."""
