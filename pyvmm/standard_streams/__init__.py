# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error of this process, which it shares with other programs.

Any of descriptors 0 to 2 may be closed when pyvmm starts, and any of the open files may be
non-blocking, because that mode belongs to everyone who has the file open. `descriptors` copes with
both.

Belongs here: everything that any room needs to use the three streams safely.
"""
