# SPDX-License-Identifier: Apache-2.0
"""Snapshots: a running guest in a file, and a guest that goes on from one."""
