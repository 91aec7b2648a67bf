# SPDX-License-Identifier: Apache-2.0
"""The guest's serial console on a person's terminal.

`terminal` reads keys (raw mode, escape sequences) and `writer` writes the guest's output. A script
uses `pyvmm.harness.scripted_console` instead.
"""
