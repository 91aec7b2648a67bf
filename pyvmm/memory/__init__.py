# SPDX-License-Identifier: Apache-2.0
"""Guest RAM: the memory map, the dirty log, and the copy engine of snapshots and migrations.

`layout` has the addresses of everything in the guest, `ram` its memory, `hugetlb_ram` the same in
huge pages of `huge_page_pool`, `dirty_log` the pages that change, `precopy` the rounds in which
snapshots and migrations copy them, `rss` the resident memory of this process.
"""
