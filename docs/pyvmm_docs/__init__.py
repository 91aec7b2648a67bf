# SPDX-License-Identifier: Apache-2.0
"""Sphinx extensions that generate parts of the documentation from the code.

Each module is one extension with a function `setup`. A module computes its content in functions
that know nothing of Sphinx, so that `tests/docs` can call them, and has directives on top.
"""
