# SPDX-License-Identifier: Apache-2.0
"""The part of the completions that lists running guests, for `--vm`.

It reads the names of the sockets in the runtime directory, which it chooses as
`pyvmm.runtime_directory.directory` does, and does not start pyvmm either. Guests whose process was
killed may be among them until a command of pyvmm removes them.
"""

from __future__ import annotations

from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE, LAB_RUNTIME_DIRECTORY

FUNCTION = "_pyvmm_guests"
FISH_FUNCTION = "__pyvmm_guests"


def posix(files: str) -> list[str]:
    """Return the function for bash or zsh; `files` is the pattern of sockets in `$directory`."""
    return [
        f"{FUNCTION}()",
        "{",
        "    local directory=/tmp/pyvmm-$EUID base file",
        '    for base in "$XDG_RUNTIME_DIR" "/run/user/$EUID"; do',
        '        [[ -d $base && -O $base ]] && directory="$base/pyvmm" && break',
        "    done",
        f"    [[ ${IN_LAB_VARIABLE} == 1 ]] && directory={LAB_RUNTIME_DIRECTORY}",
        f"    for file in {files}; do",
        '        [[ -S $file ]] && file=${file##*/} && echo "${file%.sock}"',
        "    done",
        "}",
    ]


def fish() -> list[str]:
    """Return the function for fish."""
    return [
        f"function {FISH_FUNCTION}",
        "    set -l directory /tmp/pyvmm-(id -u)",
        '    for base in "$XDG_RUNTIME_DIR" /run/user/(id -u)',
        '        if test -d "$base" -a -O "$base"',
        "            set directory $base/pyvmm",
        "            break",
        "        end",
        "    end",
        f'    if test "${IN_LAB_VARIABLE}" = 1',
        f"        set directory {LAB_RUNTIME_DIRECTORY}",
        "    end",
        "    for file in $directory/*.sock",
        "        basename $file .sock",
        "    end",
        "end",
    ]
