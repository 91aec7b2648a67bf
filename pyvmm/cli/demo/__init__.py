# SPDX-License-Identifier: Apache-2.0
"""`pyvmm demo`: inflate and deflate a real guest's balloon and show what the host gets back.

`measure` runs the guest where KVM works, perhaps in the lab, and writes the figures to a file;
`report` shows them on this terminal and judges them; `command` joins the two.
"""
