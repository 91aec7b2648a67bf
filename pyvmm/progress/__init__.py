# SPDX-License-Identifier: Apache-2.0
"""Progress of slow work, shown on standard error.

`reporter` is for work in stages in this process (build, copy, restore), which gets a `Progress` to
report to; `late` is for one stage, shown only when it takes long. `live_bar` is for work of another
process, whose state the caller polls.
rich is imported only when standard error is a terminal.
"""
