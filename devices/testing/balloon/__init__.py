# SPDX-License-Identifier: Apache-2.0
"""Drivers and requests for tests of the balloon device."""
