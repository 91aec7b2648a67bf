# SPDX-License-Identifier: Apache-2.0
"""The command line: click commands, and everything that a terminal sees.

Each command is a module, imported when it runs (see `main`). Remedies for errors are added here;
the rooms below know no options. No other room imports this one.
"""
