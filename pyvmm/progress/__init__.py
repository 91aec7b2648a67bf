# SPDX-License-Identifier: Apache-2.0
"""Progress reports of long operations (a leaf): the interface, and its lines and bars."""
