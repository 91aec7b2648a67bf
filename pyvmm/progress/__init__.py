# SPDX-License-Identifier: Apache-2.0
"""Progress of slow work, shown on standard error.

`reporter` is for work in stages that the caller does itself (build, copy, restore): it hands a
`Progress` to the work. `live_bar` is for work that another process does and the caller polls.
rich is imported only when standard error is a terminal.
"""
