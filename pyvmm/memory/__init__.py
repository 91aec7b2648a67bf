# SPDX-License-Identifier: Apache-2.0
"""Guest RAM: the memory map, the dirty log, and the copy engine of snapshots and migrations."""
