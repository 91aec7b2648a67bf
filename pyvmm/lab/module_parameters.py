# SPDX-License-Identifier: Apache-2.0
"""Parameters of kernel modules on the kernel's command line, as modprobe(8) passes them.

The kernel itself takes `MODULE.PARAMETER=VALUE` for the modules that are built in. For all others,
the program that loads a module has to read its parameters from /proc/cmdline and pass them to
finit_module(2), without the name of the module. In names `-` and `_` are the same character. A
double quote begins and ends text with spaces, and words after `--` are arguments of init.

Linux: Documentation/admin-guide/kernel-parameters.rst.
"""

from __future__ import annotations

import re

_WORD = re.compile(r'(?:"[^"]*"?|[^\s"])+')


def module_parameters(command_line: str, module: str) -> str:
    """Return the parameters of `module` in `command_line`, as finit_module(2) takes them."""
    found = []
    for word in _WORD.findall(command_line):
        if word == "--":
            break
        if word.startswith('"'):  # "module.parameter=a value"
            name, equals, value = word.strip('"').partition("=")
            word = f'{name}{equals}"{value}"' if equals else name
        owner, dot, parameter = word.partition(".")
        if dot and _same(owner) == _same(module) and "=" not in owner:
            found.append(parameter)
    return " ".join(found)


def _same(name: str) -> str:
    return name.replace("-", "_")
