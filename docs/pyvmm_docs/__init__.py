# SPDX-License-Identifier: Apache-2.0
"""Sphinx extensions that generate parts of the documentation from the code.

A module with a function `setup` is an extension, which `conf.py` lists; the others are parts of
extensions, and the programs `generate` and `check_links`. An extension computes its content in
functions that know nothing of Sphinx, so that `tests/docs` can call them, and has directives on
top.
"""
