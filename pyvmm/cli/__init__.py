# SPDX-License-Identifier: Apache-2.0
"""The `pyvmm` command: the commands of the command line and all that a terminal shows.

One module per command (`run`, `balloon`, `unused`, `stats`, `snapshot`, `migrate`, `image`,
`doctor`, `lab`; `demo` is a package); `main` is the group that imports a command when it is
called, and turns exceptions into exit statuses. Options that several commands have are in
`options`, the client of a running guest's control socket in `qmp_command`. The
guest's console is in `console`, and `terminal_run` joins it with a virtual machine.

Belongs here: click, rich, texts for people, exit statuses, and advice about options. No
other package of pyvmm knows of a command line.
"""
