# SPDX-License-Identifier: Apache-2.0
"""The guest's console on a person's terminal, and the ports that the command line names.

`terminal` reads keys (raw mode, escape sequences); `pyvmm.console.writer` writes the output.
`ports` connects ports and the virtio console. A script uses `pyvmm.harness.scripted_console`.
"""
